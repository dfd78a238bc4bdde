"""Choose the columns of a table that hold image, id, label and meta, by name and type."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError, shorten

__all__ = ["LABEL_NAMES", "URI_NAMES", "Columns", "choose_columns", "kind_of_type", "kind_of_values"]

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content", "data")
URI_NAMES = ("image", "img", "uri", "url", "path", "file", "filename", "file_name", "filepath", "image_path", "image_url", "image_uri")
LABEL_NAMES = ("label", "class", "cls", "target", "category", "label_name")
STATUS_NAME, SPLIT_NAME = "status", "split"

SCALARS = ("int64", "string", "float64", "bool", "decimal", "time")
"""Kinds of columns whose values are labels or meta values as they are."""
LIST = "list"
Holds = Literal["bytes", "URIs", "encoded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns to read."""

    image: str | None
    """None where `template` makes the paths."""
    holds: Holds
    """`bytes`: binary cells, or structs {bytes, path}. `URIs`: paths and URLs. `encoded`: base64 text or data: URIs."""
    template: tuple[tuple[str, str | None], ...] = ()
    """Parts of --path-template: a text, and the column whose value follows it."""
    id: str | None = None
    label: str | None = None
    meta: tuple[str, ...] = ()
    mask: str | None = None
    status: str | None = None
    """Column in which who made the table says whether the image could be had, as img2dataset does."""
    split: str | None = None
    """Column that names the split of each row."""
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Columns that nothing takes."""

    @property
    def image_words(self) -> str:
        """The column of the images, and what its cells are, as the end of a sentence."""
        if self.image is None:
            return "the path that --path-template makes"
        what = {"bytes": "image bytes", "URIs": "paths or URLs", "encoded": "images as text"}[self.holds]
        return f"column {self.image}, {what}"

    @property
    def names(self) -> tuple[str, ...]:
        """All columns to read, each once; image or template first."""
        parts = [name for _, name in self.template]
        named = (self.image, *parts, self.id, self.label, *self.meta, self.mask, self.status, self.split)
        return tuple(dict.fromkeys(name for name in named if name is not None))


@dataclass(frozen=True, slots=True)
class _Choice:
    """The columns of one table, to choose from."""

    kinds: Mapping[str, str]
    config: SourceConfig
    where: str

    def refuse(self, what: str) -> SourceError:
        """Return an error that lists the columns."""
        shown = ", ".join(f"{name} ({kind})" for name, kind in self.kinds.items())
        return SourceError(f"{self.where}: {what}; the columns are {shown or 'none'}")

    def required(self, name: str, option: str) -> str:
        if name not in self.kinds:
            raise self.refuse(f"{option} names {name!r}; expected a column of the table")
        return name

    def found(self, names: Iterable[str], *accepted: str) -> str | None:
        by_lower_name = {name.lower(): name for name in self.kinds if not accepted or self.kinds[name] in accepted}
        return next((by_lower_name[name] for name in names if name in by_lower_name), None)

    def image(self) -> str:
        """Return the column of images or URIs."""
        kinds, asked = self.kinds, self.config.image_column
        if asked is not None:
            if kinds[self.required(asked, "--image-column")] not in ("bytes", "string", "null"):
                raise self.refuse(f"--image-column names {asked!r} of type {kinds[asked]}; {_EXPECTED}")
            return asked
        of_bytes = [name for name, kind in kinds.items() if kind == "bytes"]
        if image := self.found(IMAGE_NAMES, "bytes"):
            return image
        if len(of_bytes) == 1:
            return of_bytes[0]
        arrays = [name for name, kind in kinds.items() if _may_hold_images(name, kind)]
        if arrays:  # a text column beside it may be the URL where each image came from, or anything else
            kind = kinds[arrays[0]]
            raise self.refuse(f"column {arrays[0]} is of type {kind}; {_EXPECTED}, or name another column with --image-column")
        if image := self.found(URI_NAMES, "string"):
            return image
        looked = ", ".join(URI_NAMES)
        raise self.refuse(f"no column of image bytes or URIs found (looked for {looked}); name one with --image-column, or say with "
                          "--path-template how the other columns make the path, such as 'train/{id}.jpg'")  # fmt: skip

    def label(self, image: str | None) -> tuple[str | None, str]:
        """Return the column of labels, and a note."""
        config, kinds = self.config, self.kinds
        if config.no_labels or config.label_from == "none":
            return None, ""
        if config.label is not None:
            label: str | None = self.required(config.label, "--label")
        else:
            label = self.found(name for name in LABEL_NAMES if image is None or name != image.lower())
        if label is None:
            return None, ""
        kind = kinds[label]
        if kind in SCALARS or kind == "null":
            return label, ""
        if kind.startswith(LIST):
            if config.label_first:
                return label, f"column {label} holds lists: the first value is the label"
            if config.label is None and label in config.meta:
                return None, ""
            raise self.refuse(
                f"column {label} holds lists ({kind}), and an image has one label: --label-first takes the first, --meta {label} keeps the "
                "list as text without a label, --no-labels leaves it out"
            )
        if config.label is not None:
            raise self.refuse(f"--label names {label!r} of type {kind}; expected numbers, text or bools")
        return None, f"column {label} is of type {kind}: it is not taken as the label"


_EXPECTED = (
    "expected image bytes, {bytes, path} as Hugging Face writes it, text with paths or URLs, or base64. Lists of images and arrays of "
    "pixels are not read: write a row for each image, as an encoded file such as PNG"
)


def choose_columns(
    kinds: Mapping[str, str],
    config: SourceConfig,
    where: str,
    *,
    encoded: bool = False,
    usual: tuple[str | None, str | None] = (None, None),
) -> Columns:
    """Return the columns that `config` names, or else columns with a usual name and a fitting kind.

    `kinds` maps column names to `bytes`, one of SCALARS, `null`, or a type that begins with `list` or is unused. `encoded`: text of the
    image column is base64 or a data: URI. `usual`: columns of image and label in a table whose columns have no names. Raises SourceError,
    which lists them.
    """
    if usual[0] is not None and config.image_column is None and config.path_template is None:
        config = replace(config, image_column=usual[0])
    if usual[1] is not None and config.label is None and config.label_from is None and not config.no_labels:
        config = replace(config, label=usual[1])
    mask = _mask_column(_Choice(kinds, config, where), config.mask_rules.mask_column)
    kinds = {name: kind for name, kind in kinds.items() if name != mask}
    choice = _Choice(kinds, config, where)
    image: str | None = None
    template: tuple[tuple[str, str | None], ...] = ()
    if config.path_template is None:
        image = choice.image()
    else:
        if config.image_column is not None:
            raise SourceError(
                "--path-template makes the path of each image, and --image-column names a column of it; expected one of the two"
            )
        template = _parts(config.path_template)
        for _, name in template:
            if name is not None:
                choice.required(name, "--path-template")
    label, note = choice.label(image)
    further = [name for name, kind in kinds.items() if kind == "bytes" and name not in (image, *config.meta)]
    if further and config.image_column is None:
        beside = f"images in column {', '.join(further)} would not be taken: --image-column NAME takes another column than {image}"
        note = f"{note}; {beside}" if note else beside
    holds: Holds = "bytes" if image is not None and kinds[image] == "bytes" else "encoded" if encoded else "URIs"
    taken = (image, label, config.id_column, *config.meta, mask)
    columns = Columns(
        image=image,
        holds=holds,
        template=template,
        id=_id_column(choice, config.id_column, image),
        label=label,
        meta=tuple(choice.required(name, "--meta") for name in config.meta),
        mask=mask,
        status=choice.found((STATUS_NAME,), "string") if STATUS_NAME not in taken else None,
        split=choice.found((SPLIT_NAME,), "string") if SPLIT_NAME not in (image, label) else None,
        notes=(note,) if note else (),
    )
    return replace(columns, others=tuple(name for name in kinds if name not in columns.names))


def _mask_column(choice: _Choice, name: str | None) -> str | None:
    if name is not None and choice.kinds[choice.required(name, "--mask-column")] not in ("bytes", "string", "null"):
        raise choice.refuse(f"--mask-column names {name!r} of type {choice.kinds[name]}; {_EXPECTED}")
    return name


def _id_column(choice: _Choice, name: str | None, image: str | None) -> str | None:
    if name is None or (image is not None and name == f"{image}.path" and choice.kinds[image] == "bytes"):
        return name
    if choice.kinds[choice.required(name, "--id-column")] not in ("int64", "string", "null"):
        raise choice.refuse(f"--id-column names {name!r} of type {choice.kinds[name]}; expected whole numbers or text")
    return name


def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """Return the parts of a --path-template: `{column}` stands for a value, `{{` for a brace."""
    expected = "a path with names of columns in braces, such as 'train/{id}.jpg'"
    try:
        parts = [(text, name, spec, conversion) for text, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as error:
        raise SourceError(f"--path-template is {shorten(template)} ({error}); expected {expected}") from None
    if not any(name for _, name, *_ in parts) or any(spec or conversion for *_, spec, conversion in parts):
        raise SourceError(f"--path-template is {shorten(template)}; expected {expected}, without formats")
    return tuple((text, name or None) for text, name, *_ in parts)


def _may_hold_images(name: str, kind: str) -> bool:
    named = name.lower() in IMAGE_NAMES or name.lower().rstrip("s") in IMAGE_NAMES
    return (kind.startswith(LIST) and "binary" in kind) or "tensor" in kind or (named and kind.startswith((LIST, "struct", "dict")))


def kind_of_type(arrow_type: Any) -> str:
    """Return the kind, as in `choose_columns`, of an Arrow type. A struct with a field `bytes`, as Hugging Face writes images, is bytes.

    Where every image of a file is a path beside null bytes, the field has the type null.
    """
    types = pa.types
    if types.is_dictionary(arrow_type):
        return kind_of_type(arrow_type.value_type)
    if types.is_struct(arrow_type):
        names = [arrow_type.field(place).name for place in range(arrow_type.num_fields)]
        kind = kind_of_type(arrow_type.field("bytes").type) if "bytes" in names else ""
        return "bytes" if kind == "bytes" or (kind == "null" and "path" in names) else str(arrow_type)
    tests = {
        "bytes": (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view),
        "string": (types.is_string, types.is_large_string, types.is_string_view),
        "int64": (types.is_integer,),
        "float64": (types.is_floating,),
        "bool": (types.is_boolean,),
        "decimal": (types.is_decimal,),
        "time": (types.is_temporal,),
        "null": (types.is_null,),
    }
    found = next((kind for kind, ways in tests.items() if any(way(arrow_type) for way in ways)), str(arrow_type))
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return f"{LIST} of {found}" if any(way(arrow_type) for way in lists) and not found.startswith(LIST) else found


def kind_of_values(values: Iterable[object]) -> str:
    """Return the kind, as in `choose_columns`, of JSON values. None fits every kind, integers fit float64, and all scalars fit string."""
    names = {bool: "bool", int: "int64", float: "float64", str: "string", list: LIST, dict: "dict"}
    kinds = {names.get(type(value), type(value).__name__) for value in values if value is not None}
    if len(kinds) <= 1:
        return next(iter(kinds), "string")
    if kinds == {"int64", "float64"}:
        return "float64"
    if LIST in kinds:
        return f"{LIST} and others"
    return "string" if kinds <= set(SCALARS) else " or ".join(sorted(kinds))
