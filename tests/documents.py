"""Reads the pages that users read: their blocks in order, the commands in them, and how a command line is parsed without being run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["blocks_of", "calls_in", "console_lines", "lines_of", "ordered_blocks", "parse"]


def ordered_blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of every code block, in the order of the page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def blocks_of(page: Path, language: str = "bash") -> list[str]:
    return [text for name, text in ordered_blocks(page) if name == language]


def console_lines(text: str) -> list[str]:
    """Return the commands of a console block: what follows `$ `, continued lines joined."""
    return [line[2:] for line in _logical_lines(text) if line.startswith("$ ")]


def lines_of(page: Path) -> list[str]:
    """Return every command line of a page: the commands of console blocks, then all lines of bash blocks."""
    prompted = [line for block in blocks_of(page, "console") for line in console_lines(block)]
    return prompted + [line for block in blocks_of(page) for line in _logical_lines(block)]


def calls_in(line: str) -> Iterator[list[str]]:
    """Yield the simple commands of a shell line, without redirections; what follows ` -- ` is a command of its own as well."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    tokens = iter([*lexer, ";"])
    for token in tokens:
        if token.startswith(">"):
            next(tokens)
        elif set(token) <= set("();|&"):
            if words:
                yield words
            if "--" in words:
                yield words[words.index("--") + 1 :]
            words = []
        else:
            words.append(token)


def parse(command: Any, words: Sequence[str]) -> dict[str, Any]:
    """Parse arguments as the command line would, without running anything; an unknown option or a bad value raises."""
    rest, name, context = list(words), "root", None
    while hasattr(command, "commands"):
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {name}; expected one of {sorted(command.commands)}"
        context = command.make_context(name, [name, *rest], parent=context)
        command = command.commands[name]
    params: dict[str, Any] = command.make_context(name, rest, parent=context).params
    return params


def _logical_lines(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()
