"""The fields that `--set` takes, as lines for a terminal, with the descriptions that stand in stem_adaptors/config.py."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields

from tokenshards.stem_adaptors import config
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.segment_config import SegmentConfig

__all__ = ["descriptions", "setting_lines"]

PARTS = {
    "model": config.ModelConfig,
    "augment": config.AugmentConfig,
    "loader": config.LoaderConfig,
    "train": config.TrainConfig,
    "mask": MaskConfig,
    "segment": SegmentConfig,
}


def descriptions(kind: type) -> dict[str, str]:
    """Return the first sentence of the text that stands below each field of a config in its source."""
    body = next(node.body for node in ast.walk(ast.parse(inspect.getsource(kind))) if isinstance(node, ast.ClassDef))
    found = {}
    for field, text in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split()).split(". ")[0].removesuffix(".") + "."
    return found


def setting_lines() -> Iterator[str]:
    """Yield a line for each field: `PART.FIELD=DEFAULT`, its type and what it is.

    Where `train` chooses by the data, its choice stands in the place of the default.
    """
    yield (
        "PART.FIELD=DEFAULT (type): what it is. Of some fields `train` and `pretrain` choose the value by the data, and say so before they "
        "start. The part `mask` is for `pretrain` alone, `segment` for `train --objective segment`."
    )
    for part, kind in PARTS.items():
        texts = descriptions(kind)
        for field in fields(kind):
            default = "null" if field.default is None else str(field.default).lower() if isinstance(field.default, bool) else field.default
            yield f"{part}.{field.name}={default} ({field.type}): {texts[field.name]}"
