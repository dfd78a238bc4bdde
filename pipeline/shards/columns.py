"""A description of a dataset's columns: name, type and meaning, from the schema of one shard."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from tokenshards.pipeline.shards.manifest import Manifest
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.schema import META_PREFIX
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store

__all__ = ["Column", "dataset_columns"]

_MEANINGS = {
    "sample_id": "name of the image in its source; `sample_id` and `view` are the key of a row",
    "view": "number of the view of the image, counted from 0",
    "label": "label of the image, null if it has none",
    "length": "number of sites of the row",
    "shape": "grid of the row: height and width; for videos frames, height and width",
    "mask": "class number of each pixel, row by row, of the view that the tokens show; null if the image has no mask",
    "orig_width": "width of the source image in pixels, 0 if unknown",
    "orig_height": "height of the source image in pixels, 0 if unknown",
    "orig_bytes": "size of the encoded source image in bytes",
    "crop": "left, top, width and height of the part that the row shows, in pixels of the upright source image",
    "flip": "whether the view is mirrored left to right",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `meaning` is a phrase for a dataset card."""

    name: str
    type: str
    meaning: str


def dataset_columns(store: Store, manifest: Manifest) -> list[Column]:
    """Return the columns of the first shard in file order, [] if there is no shard. Raises what `ShardReader.open` raises."""
    first = next((entry.path for entry in manifest.shards if entry.path is not None), None)
    if first is None:
        return []
    reader = ShardReader.open(store, first)
    return [Column(field.name, _type(field.type), _meaning(field, reader.spec)) for field in reader.schema]


def _type(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _type(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return f"{_type(kind.value_type)}[{kind.list_size}]"
    if pa.types.is_list(kind):
        return f"{_type(kind.value_type)}[]"
    return str(kind)


def _meaning(field: pa.Field, spec: TokenizerSpec) -> str:
    name = str(field.name)
    if name == "tokens" and pa.types.is_binary(field.type):
        return f"{_tokens(spec)}; coded as one stream of bytes a row, which tokenshards reads (codec compact, see SPEC.md)"
    if name.startswith(META_PREFIX):
        return f"`{name.removeprefix(META_PREFIX)}` of the source"
    return _tokens(spec) if name == "tokens" else _MEANINGS.get(name, "column of a newer version of the format")


def _tokens(spec: TokenizerSpec) -> str:
    layout, levels = spec.layout, spec.layout.ids_per_site
    order = {"grid": "row by row", "video": "frame by frame, each row by row", "pyramid": "scale by scale", "sequence": "in sequence order"}
    sites = f"the ids of {'up to ' if layout.variable else ''}{layout.sites:,} sites, {order[layout.kind]}"
    if levels == 1:
        return sites
    together = "add up" if layout.combine == "sum" else "are concatenated"
    many = "its own number of sites" if layout.variable else f"{layout.sites:,}"
    return (
        f"{sites}, of {levels} levels whose code vectors {together}; level-major: all ids of level 0 first, then all of level 1, …: "
        f"the id of level q at site s is element q * L + s, counted from 0, with L = {many}"
    )
