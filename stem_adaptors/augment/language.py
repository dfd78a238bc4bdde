"""The text of `augment.ops`: operations in the order in which they work, written as calls. It is read, never run.

one_of(0.25*synonyms(replace=0.25), 0.25*swap()), rrc(scale_min=0.08), 0.5*noise(std=1), cutmix(alpha=1)
rrc(), half_batch([noise()], [color_adapt()]), python("my_package.module:Fade", amount=0.3)
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.named_code import PREFIX
from tokenshards.stem_adaptors.augment.composed import HalfBatch, OneOf
from tokenshards.stem_adaptors.augment.operation import Operation
from tokenshards.stem_adaptors.augment.registry import make_operation, operations_of_callable

__all__ = ["named_code", "parse_operations", "text_of"]


def parse_operations(text: str) -> list[Operation]:
    """Return the operations that a text names; `python:module:callable` alone names a callable that returns them.

    Raises ConfigError where the text cannot be read, or where an operation on ids follows one on embeddings.
    """
    if text.startswith(PREFIX):
        operations = operations_of_callable(text)
    else:
        operations = [_operation(node) for node in _elements(text)]
    if not operations:
        raise ConfigError("augment.ops holds no operation; expected at least one, or give --no-augment")
    stages = [operation.stage for operation in operations]
    if stages != sorted(stages, reverse=True):
        late = operations[len(stages) - 1 - stages[::-1].index("ids")]
        raise ConfigError(
            f"augment.ops: {late.text()} works on ids and stands after an operation on embeddings; expected operations on ids first"
        )
    return operations


def text_of(operations: Sequence[Operation]) -> str:
    """Return the text of operations, in one form: what is printed, and what `parse_operations` reads."""
    return ", ".join(operation.text() for operation in operations)


def named_code(text: str) -> list[str]:
    """Return the callables `module:callable` that a text names; nothing is imported."""
    if text.startswith(PREFIX):
        return [text.removeprefix(PREFIX)]
    calls = [node for element in _elements(text) for node in ast.walk(element) if isinstance(node, ast.Call)]
    return [str(_target(call)) for call in calls if _name(call) == "python"]


def _elements(text: str) -> list[ast.expr]:
    try:
        tree = ast.parse(f"[{text}\n]", mode="eval")
        if not isinstance(tree.body, ast.List):
            raise SyntaxError("brackets that close too early")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"augment.ops is {shorten(text)}, which cannot be read: {_fault(text, error)}; expected {_EXAMPLES}") from None
    return tree.body.elts


_EXAMPLES = "calls such as one_of(0.25*synonyms(), 0.25*swap()), rrc(), 0.5*noise(std=1), cutmix(alpha=1)"
_CLOSES = {")": "(", "]": "[", "}": "{"}


def _fault(text: str, error: Exception) -> str:
    """Return what is wrong with a text that Python's parser refused: brackets and quotes first, else the place of the parser."""
    opened: list[tuple[int, str]] = []
    quote = 0, ""
    for place, sign in enumerate(text, start=1):
        if quote[1]:
            quote = (0, "") if sign == quote[1] else quote
        elif sign in "'\"":
            quote = place, sign
        elif sign in _CLOSES.values():
            opened.append((place, sign))
        elif sign in _CLOSES and (not opened or opened.pop()[1] != _CLOSES[sign]):
            return f"the {sign} at character {place} closes no {_CLOSES[sign]}"
    for place, sign in (quote, *reversed(opened)):
        if sign:
            return f"the {sign} at character {place} is not closed"
    if isinstance(error, SyntaxError) and error.lineno == 1 and error.offset and error.offset - 2 < len(text):
        place = max(1, error.offset - 1)  # the parser reads one bracket more, and counts from 1
        return f"something is wrong at character {place}, before or in {shorten(text[place - 1 :], 40)}"
    return "it ends too early"


def _operation(node: ast.expr) -> Operation:
    if isinstance(node, ast.BinOp):
        return OneOf(_weighted(node))
    if not isinstance(node, ast.Call):
        raise _unreadable(node)
    name = _name(node)
    if name == "one_of":
        _require(node, not node.keywords)
        return OneOf(*(_weighted(argument) for argument in node.args))
    if name == "half_batch":
        halves = [argument.elts for argument in node.args if isinstance(argument, ast.List)]
        _require(node, len(halves) == len(node.args) == 2 and not node.keywords)
        first, second = ([_operation(element) for element in half] for half in halves)
        return HalfBatch(first, second)
    _require(node, len(node.args) == (name == "python"))
    options = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    _require(node, len(options) == len(node.keywords))
    return make_operation(f"{PREFIX}{_target(node)}" if name == "python" else name, options)


def _name(call: ast.Call) -> str:
    if not isinstance(call.func, ast.Name):
        raise _unreadable(call)
    return call.func.id


def _target(call: ast.Call) -> Any:
    _require(call, len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str))
    return _value(call.args[0])


def _weighted(node: ast.expr) -> tuple[float, Operation]:
    """Return probability and operation of `0.25*swap()`."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        raise ConfigError(f"augment.ops: {ast.unparse(node)!r} has no probability; expected PROBABILITY*OPERATION, such as 0.25*swap()")
    chance = _value(node.left)
    if isinstance(chance, bool) or not isinstance(chance, (int, float)):
        raise _unreadable(node.left)
    return float(chance), _operation(node.right)


def _value(node: ast.expr) -> Any:
    """Return a number, string or truth value; a quotient of numbers such as 4/3 is a number too."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        over, under = _value(node.left), _value(node.right)
        if all(isinstance(part, (int, float)) for part in (over, under)) and under:
            return over / under
    try:
        found = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        raise _unreadable(node) from None
    if not isinstance(found, (int, float, str, bool)):
        raise _unreadable(node)
    return found


def _require(node: ast.Call, holds: bool) -> None:
    if not holds:
        raise ConfigError(
            f"augment.ops: {ast.unparse(node)!r} cannot be read; expected NAME(OPTION=VALUE, ...), one_of(PROBABILITY*OPERATION, ...), "
            'half_batch([OPERATION, ...], [OPERATION, ...]) or python("module:callable", OPTION=VALUE, ...)'
        )


def _unreadable(node: ast.expr) -> ConfigError:
    return ConfigError(f"augment.ops: {shorten(ast.unparse(node))} cannot be read; expected {_EXAMPLES}")
