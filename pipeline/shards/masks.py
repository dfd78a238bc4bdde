"""Masks: a class number for each pixel of the view that the tokens of a row show. SPEC.md, section 4.2, has the rules of the column.

Shapes: B rows, H height and W width of a mask in pixels, both the size of the tokenizer's preprocessing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenshards.pipeline.canonical import known_fields
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, require, shorten
from tokenshards.pipeline.shards.schema import KEY_PREFIX
from tokenshards.pipeline.shards.zstd import compress, decompress

__all__ = [
    "IGNORE",
    "MASK",
    "MaskFormat",
    "MaskTotals",
    "Masks",
    "PackedMask",
    "count_mask_pixels",
    "mask_array",
    "masks_of",
    "pack_mask",
    "stated_format",
]

MASK = "mask"
"""Name of the column."""

IGNORE = {"uint8": 255, "uint16": 65_535}
"""dtype -> the value of a pixel that counts for no class: the largest one."""

Masks: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
PackedMask: TypeAlias = bytes | None
"""zstd of the pixels of a mask, row by row in little-endian order; None for an image without a mask."""

PACKING_LEVEL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFormat:
    """What the masks of a dataset look like; a shard's footer holds it as `tokenshards.mask`.

    >>> dataset = tokenshards.open_dataset("masked.tokens")
    >>> dataset.mask
    MaskFormat(dtype='uint8', height=64, width=64, ignore=255)
    """

    dtype: str
    """`uint8` or `uint16`."""
    height: int
    width: int
    ignore: int
    """Value of pixels that belong to no class."""

    def __post_init__(self) -> None:
        require(self.dtype in IGNORE, "mask.dtype", self.dtype, f"one of {', '.join(IGNORE)}")
        require(self.height >= 1 and self.width >= 1, "mask size", (self.height, self.width), "at least 1 x 1 pixels")
        require(self.ignore == IGNORE[self.dtype], "mask.ignore", self.ignore, f"{IGNORE[self.dtype]}, the largest {self.dtype}")

    @classmethod
    def of_size(cls, size: int, dtype: str) -> MaskFormat:
        """Return the format of masks of `size` x `size` pixels."""
        require(dtype in IGNORE, "mask.dtype", dtype, f"one of {', '.join(IGNORE)}")
        return cls(dtype=dtype, height=size, width=size, ignore=IGNORE[dtype])

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MaskFormat:
        """Return the format from `to_json` output; raises ValueError for anything else."""
        try:
            return cls(**known_fields(cls, value))
        except (TypeError, ConfigError) as error:
            raise ValueError(f"not a mask format ({error})") from None

    @property
    def pixels(self) -> int:
        """Pixels of a mask."""
        return self.height * self.width

    @property
    def arrow_type(self) -> pa.DataType:
        """Arrow type of the column `mask`."""
        return pa.list_(pa.field("element", pa.from_numpy_dtype(np.dtype(self.dtype)), nullable=False), self.pixels)

    def to_json(self) -> dict[str, Any]:
        """Return the format in plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskTotals:
    """What a manifest records of all masks: their format, rows with a mask, and pixels by value, those of `ignore` among them."""

    format: MaskFormat
    images: int = 0
    pixels: dict[int, int] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """The largest class number and one more; 0 where no pixel has a class."""
        return max((value for value in self.pixels if value != self.format.ignore), default=-1) + 1

    def with_counts(self, images: int, pixels: Iterable[Sequence[int]]) -> MaskTotals:
        """Return totals with the rows and [value, pixels] pairs of a commit or of another manifest added."""
        counts = dict(self.pixels)
        for value, count in pixels:
            counts[value] = counts.get(value, 0) + count
        return MaskTotals(format=self.format, images=self.images + images, pixels=dict(sorted(counts.items())))

    def to_json(self) -> dict[str, Any]:
        """Return the member `mask` of a manifest."""
        return {**self.format.to_json(), "classes": [[value, count] for value, count in sorted(self.pixels.items())], "images": self.images}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MaskTotals:
        """Return totals from `to_json` output; raises ValueError or KeyError for anything else."""
        pixels = {int(number): int(count) for number, count in value["classes"]}
        return cls(format=MaskFormat.from_json(value), images=int(value["images"]), pixels=pixels)


def stated_format(footer: str | None, schema: pa.Schema, path: str) -> MaskFormat | None:
    """Return the format that the footer of a shard states; raises CorruptObjectError unless the column `mask` is of that format."""
    if footer is None:
        return None
    try:
        stated = MaskFormat.from_json(json.loads(footer))
    except (ValueError, TypeError) as error:
        raise CorruptObjectError(path, f"the footer key {KEY_PREFIX}mask cannot be read ({shorten(str(error))})") from None
    found = schema.field(MASK).type if MASK in schema.names else "absent"
    if found != stated.arrow_type:
        raise CorruptObjectError(path, f"the column {MASK} is {found}; the footer states {stated.arrow_type}")
    return stated


def masks_of(column: pa.Array | pa.ChunkedArray, format: MaskFormat) -> Masks:
    """Return the masks [B, H, W] of a column `mask`, in the dtype of the format; a row without a mask is `ignore` in every pixel.

    The array is read-only, and no copy, where every row has a mask and lies in one chunk. Raises ValueError for a column of another type.
    """
    if column.type != format.arrow_type:
        raise ValueError(f"the masks are {column.type}; expected {format.arrow_type}")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_chunk_masks(chunk, format) for chunk in chunks]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros((0, format.height, format.width), format.dtype)


def _chunk_masks(chunk: pa.FixedSizeListArray, format: MaskFormat) -> Masks:
    # From the buffer, because Arrow counts the values of a null row as nulls, which numpy cannot hold.
    start = chunk.values.offset + chunk.offset * format.pixels
    values = np.frombuffer(chunk.values.buffers()[1] or b"", format.dtype)[start : start + len(chunk) * format.pixels]
    masks_BHW: Masks = values.reshape(len(chunk), format.height, format.width)
    if not chunk.null_count:
        return masks_BHW
    masks_BHW = masks_BHW.copy()
    masks_BHW[chunk.is_null().to_numpy(zero_copy_only=False)] = format.ignore
    return masks_BHW


def pack_mask(mask_HW: Masks) -> bytes:
    """Return the packed form of a mask, which takes a hundredth of its memory until its shard is written."""
    return compress(np.ascontiguousarray(mask_HW, mask_HW.dtype.newbyteorder("<")).tobytes(), PACKING_LEVEL)


def _unpacked(packed: bytes, format: MaskFormat) -> Masks:
    """Return the pixels [H * W] of a packed mask; raises ValueError where they are not as many as the format says."""
    dtype = np.dtype(format.dtype).newbyteorder("<")
    values = np.frombuffer(decompress(packed, format.pixels * dtype.itemsize), dtype)
    if values.size != format.pixels:
        raise ValueError(f"a mask of {values.size} values; expected {format.height} x {format.width} of {format.dtype}")
    return values


def mask_array(packed: Sequence[PackedMask], format: MaskFormat) -> pa.Array:
    """Return packed masks as the column `mask`; `masks_of` returns the same masks."""
    values = np.zeros((len(packed), format.pixels), format.dtype)  # a null row holds zeros, so that equal masks give equal bytes
    for row, one in enumerate(packed):
        if one is not None:
            values[row] = _unpacked(one, format)
    nulls = pa.array([one is None for one in packed], pa.bool_())
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=format.arrow_type, mask=nulls)


def count_mask_pixels(packed: Sequence[PackedMask], format: MaskFormat) -> list[list[int]]:
    """Return [value, pixels] pairs over all masks, in ascending order of the value."""
    counts_V = np.zeros(IGNORE[format.dtype] + 1, np.int64)
    for one in packed:
        if one is not None:
            counts_V += np.bincount(_unpacked(one, format), minlength=len(counts_V))
    return [[int(value), int(counts_V[value])] for value in np.flatnonzero(counts_V)]
