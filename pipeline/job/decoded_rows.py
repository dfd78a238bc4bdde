"""One image with its mask -> what a shard stores of each of its views, besides the tokens; or the quarantine row of an input that failed.

Shapes: V views of an image, H height, W width, C = 3 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.config import ImageRules
from tokenshards.pipeline.errors import BadInput
from tokenshards.pipeline.images.decode import decode_image
from tokenshards.pipeline.images.failures import first_bytes
from tokenshards.pipeline.images.mask_pixels import cut_mask, decode_mask
from tokenshards.pipeline.images.remarks import Remark
from tokenshards.pipeline.images.views import DecodedViews, decode_views
from tokenshards.pipeline.mask_rules import MaskRules
from tokenshards.pipeline.records import FailedRecord, ImageRecord, Label
from tokenshards.pipeline.shards.masks import MaskFormat, PackedMask, pack_mask
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.storage.redaction import MASK
from tokenshards.pipeline.view_policy import Box, ViewPolicy

__all__ = ["DecodedRow", "Decoding", "MaskDecoding", "decode_rows", "quarantine_row"]

MAX_QUARANTINED_BYTES = 4 << 20
Pixels: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class DecodedRow:
    """The columns that a shard stores for one view of a decoded image, besides the tokens."""

    sample_id: str
    label: Label
    meta: dict[str, Any]
    width: int
    height: int
    bytes_in: int
    """Encoded bytes of the image, the same for all views of the image."""
    view: int = 0
    box: Box | None = None
    """The crop of the source that the view shows; None if each image has one view."""
    mirrored: bool = False
    mask: PackedMask = None
    """The mask of the view, packed; None for an image without a mask."""


@dataclass(frozen=True, slots=True)
class MaskDecoding:
    """How masks are read, and how they are stored."""

    format: MaskFormat
    rules: MaskRules


@dataclass(frozen=True, slots=True)
class Decoding:
    """How images become rows; `seed` is the seed of random views."""

    preprocess: Preprocess
    rules: ImageRules
    views: ViewPolicy
    seed: int
    inputs: int
    """Inputs of one batch."""
    masks: MaskDecoding | None = None

    def blank_pixels(self) -> Pixels:
        """Return the pixels of a batch without images."""
        size = self.preprocess.size
        return np.zeros((self.inputs * self.views.count, size, size, 3), np.uint8)


def decode_rows(pixels_VHWC: Pixels, record: ImageRecord, decoding: Decoding) -> tuple[tuple[DecodedRow, ...], tuple[Remark, ...]]:
    """Decode an image into `pixels_VHWC`; return the rows of its views and the remarks on it. Raises BadInput, also for its mask."""
    known = (record.sample_id, record.label, record.meta)
    size, masked = len(record.data), decoding.masks is not None and record.mask is not None
    if decoding.views.count == 1 and not masked:
        image = decode_image(record.data, decoding.preprocess, decoding.rules)
        pixels_VHWC[0] = image.pixels_HWC
        return (DecodedRow(*known, image.width, image.height, size),), image.remarks
    found = decode_views(
        record.data, decoding.preprocess, decoding.views, seed=decoding.seed, sample_id=record.sample_id, rules=decoding.rules
    )
    masks = _masks(record.mask, found, decoding)
    pixels_VHWC[:] = found.pixels_VHWC
    if decoding.views.count == 1:
        return (DecodedRow(*known, found.width, found.height, size, mask=masks[0]),), found.remarks
    seen = enumerate(zip(found.boxes, found.mirrored, masks, strict=True))
    return (
        tuple(DecodedRow(*known, found.width, found.height, size, view, box, mirrored, mask) for view, (box, mirrored, mask) in seen),
        found.remarks,
    )


def _masks(data: bytes | None, found: DecodedViews, decoding: Decoding) -> list[PackedMask]:
    """Return the mask of each view."""
    if data is None or decoding.masks is None:
        return [None] * len(found.boxes)
    mask_HW = decode_mask(
        data,
        (found.width, found.height),
        decoding.masks.rules,
        ignore=decoding.masks.format.ignore,
        max_pixels=decoding.rules.max_pixels,
        turned=decoding.preprocess.exif_orientation,
    )
    size = decoding.preprocess.size
    cut = (cut_mask(mask_HW, box, size, mirrored=mirrored) for box, mirrored in zip(found.boxes, found.mirrored, strict=True))
    return [pack_mask(mask) for mask in cut]


def quarantine_row(record: ImageRecord | FailedRecord, error: BadInput) -> dict[str, Any]:
    """Return the row of an input that failed, with its bytes where it may keep them and they are few."""
    data, detail = record.data, error.detail
    if isinstance(record, ImageRecord) and not record.keep_bytes:  # a message must not show them either
        data, detail = None, detail.replace(first_bytes(record.data), MASK)
    elif data is not None and len(data) > MAX_QUARANTINED_BYTES:
        data = None
    return {
        "sample_id": record.sample_id,
        "uri": record.uri,
        "stage": str(error.stage),
        "reason": str(error.reason),
        "detail": detail,
        "label": None if record.label is None else str(record.label),
        "data": data,
    }
