"""Columns of tables by rules 1 and 2: as plans of format 1.0 choose them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError

__all__ = ["LABEL_NAMES", "Columns", "choose_columns", "kind_of_type", "kind_of_values"]

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content", "data")
URI_NAMES = ("image", "img", "uri", "url", "path", "file", "filename", "file_name", "filepath", "image_path", "image_url", "image_uri")
LABEL_NAMES = ("label", "class", "cls", "target", "category", "label_name")

_LABEL_KINDS = ("int64", "string")
_META_KINDS = ("int64", "string", "float64", "bool")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read."""

    image: str
    holds: str
    """`bytes` or `URIs`."""
    id: str | None
    label: str | None
    meta: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All columns to read, each once."""
        return list(dict.fromkeys(name for name in (self.image, self.id, self.label, *self.meta) if name is not None))


def choose_columns(kinds: Mapping[str, str], config: SourceConfig, where: str) -> Columns:
    """Return the columns that `config` names, or else columns with a usual name and a fitting kind.

    `kinds` maps column names to `bytes`, `string`, `int64`, `float64`, `bool` or an unused type. Raises SourceError, which lists them.
    """

    def refuse(what: str) -> SourceError:
        return SourceError(f"{where}: {what}; the columns are {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}")

    def required(name: str, option: str, accepted: tuple[str, ...]) -> str:
        if kinds.get(name) not in accepted:
            raise refuse(f"{option} names {name!r}; expected a column of {' or '.join(accepted)}")
        return name

    def found(names: Iterable[str], *accepted: str) -> str | None:
        by_lower_name = {name.lower(): name for name in kinds if kinds[name] in accepted}
        return next((by_lower_name[name] for name in names if name in by_lower_name), None)

    of_bytes = [name for name in kinds if kinds[name] == "bytes"]
    image = config.image_column or found(IMAGE_NAMES, "bytes") or (of_bytes[0] if len(of_bytes) == 1 else found(URI_NAMES, "string"))
    if image is None:
        raise refuse(f"no column of image bytes or URIs found (looked for {', '.join(URI_NAMES)}); name one with --image-column")
    required(image, "--image-column", ("bytes", "string"))
    usual = None if config.no_labels else found((name for name in LABEL_NAMES if name != image.lower()), *_LABEL_KINDS)
    label = config.label or usual
    if label is not None:
        required(label, "--label", _LABEL_KINDS)
    return Columns(
        image=image,
        holds="bytes" if kinds[image] == "bytes" else "URIs",
        id=None if config.id_column is None else required(config.id_column, "--id-column", _LABEL_KINDS),
        label=label,
        meta=tuple(required(name, "--meta", _META_KINDS) for name in config.meta),
    )


def kind_of_type(arrow_type: Any) -> str:
    """Return the kind, as in `choose_columns`, of an Arrow type. A struct with a field `bytes`, as Hugging Face writes images, is bytes."""
    types = pa.types
    if types.is_dictionary(arrow_type):
        return kind_of_type(arrow_type.value_type)
    if types.is_struct(arrow_type):
        index = arrow_type.get_field_index("bytes")
        return "bytes" if index >= 0 and kind_of_type(arrow_type.field(index).type) == "bytes" else str(arrow_type)
    tests = {
        "bytes": (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view),
        "string": (types.is_string, types.is_large_string, types.is_string_view),
        "int64": (types.is_integer,),
        "float64": (types.is_floating,),
        "bool": (types.is_boolean,),
    }
    return next((kind for kind, ways in tests.items() if any(way(arrow_type) for way in ways)), str(arrow_type))


def kind_of_values(values: Iterable[object]) -> str:
    """Return the kind, as in `choose_columns`, of JSON values. None fits every kind, integers fit float64, and all scalars fit string."""
    names = {bool: "bool", int: "int64", float: "float64", str: "string"}
    kinds = {names.get(type(value), type(value).__name__) for value in values if value is not None}
    if len(kinds) <= 1:
        return next(iter(kinds), "string")
    if kinds == {"int64", "float64"}:
        return "float64"
    return "string" if kinds <= set(names.values()) else " or ".join(sorted(kinds))
