"""A look at a few masks at planning: do their class numbers fit 8 bits? A wrong kind of mask stops the run here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, SourceError
from tokenshards.pipeline.images.mask_pixels import raw_mask
from tokenshards.pipeline.records import FailedRecord, ImageRecord, PlanRow
from tokenshards.pipeline.shards.masks import IGNORE, MaskFormat
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.sources.fetch import fetch_ahead, urls_to_probe
from tokenshards.pipeline.sources.mask_folder import fetch_mask, mask_store
from tokenshards.pipeline.sources.slices import read_slice
from tokenshards.pipeline.sources.summary import Doubt
from tokenshards.pipeline.words import counted

__all__ = ["plan_of_masks", "settle_masks"]

LOOKED_AT, SLICES = 64, 8
"""Most masks to look at, and most tars and slices of tables that they come from."""
MOST_WITHOUT = 256
"""So many images without a mask are looked at in a slice."""
THREADS = 16


@dataclass(slots=True)
class _Look:
    images: int = 0
    masks: int = 0
    values: Counter[int] = field(default_factory=Counter)
    """Value -> masks that hold it."""
    bad: list[str] = field(default_factory=list)


def plan_of_masks(source: ImageSource, size: int) -> dict[str, Any] | None:
    """Return what a plan records of the masks of a listed source for views of `size` pixels a side; None without masks."""
    config, rules = source.config, source.config.mask_rules
    if not config.takes_masks:
        return None
    kind = "folder" if config.masks is not None else "member" if source.kind == "tar" else "column"
    from_where = config.masks if config.masks is not None else rules.mask_column
    values = {"ignored": list(rules.mask_ignore), "mapped": [list(pair) for pair in rules.mask_map]}
    return {**MaskFormat.of_size(size, rules.dtype).to_json(), **values, "kind": kind, "source": from_where}


def settle_masks(source: ImageSource, rows: Sequence[PlanRow]) -> None:
    """Settle the bits of the masks of a listed source by those of some `rows`, and say in the summary what they hold.

    16 bits are taken where a value that is not ignored or mapped is above 254, apart from 255, the usual mark of a pixel without a class.
    Raises SourceError if no mask that was looked at can be used.
    """
    config = source.config
    if not config.takes_masks or config.frozen:
        return
    found = _look(source, rows)
    rules, summary = config.mask_rules, source.summary
    if found.images and not found.masks and not found.bad and not config.yes:
        raise SourceError(
            f"{source.store.url}: none of {counted(found.images, 'image')} that were looked at has a mask ({summary.mask_rule}); expected "
            "one for most. --yes goes on if others have one"
        )
    if found.bad and not found.masks:
        raise SourceError(
            f"{source.store.url}: none of {counted(len(found.bad), 'mask')} that were looked at can be used ({summary.mask_rule}), such as "
            f"{found.bad[0]}"
        )
    if found.bad:
        summary.notes.append(
            f"{len(found.bad):,} of {found.masks + len(found.bad):,} masks that were looked at cannot be used: {found.bad[0]}"
        )
    named = {*rules.mask_ignore, *(old for old, _ in rules.mask_map)}
    free = sorted(set(found.values) - named)
    bits = rules.mask_bits or (16 if any(value > 254 and value != 255 for value in free) else 8)
    source.config = replace(config, mask_rules=rules.settled(bits=bits))
    _describe(source, found, free, bits)
    if bits == 16 and rules.mask_bits is None and 255 in free and IGNORE["uint16"] not in found.values:
        summary.doubts.append(
            Doubt(sentence="255 is a class of these masks of 16 bits", option="--mask-ignore 255 if it means a pixel without a class")
        )


def _describe(source: ImageSource, found: _Look, free: list[int], bits: int) -> None:
    summary, rules = source.summary, source.config.mask_rules
    ignore = IGNORE[rules.dtype]
    classes = [value for value in free if 0 <= value < ignore]
    seen = f"{counted(len(classes), 'class number')} from {classes[0]} to {classes[-1]}" if classes else "no class number"
    ignored = sorted({*rules.mask_ignore, *([ignore] if ignore in found.values else [])})
    without = f", {' and '.join(f'{value:,}' for value in ignored)} without a class" if ignored else ""
    asked = "" if found.masks else ", as nothing was seen"
    looked = counted(found.masks, "mask")
    summary.mask_rule += f"; stored as {rules.dtype}{asked} ({seen} in {looked} looked at{without}; else --mask-bits {24 - bits})"
    if set(free) <= {0, 255} and 255 in free:
        summary.doubts.append(
            Doubt(
                sentence="the masks hold 0 and 255 only, and 255 is stored as a pixel without a class, so that there is one class",
                option="--mask-map 255=1 makes it the class 1, --mask-ignore 255 if it is meant so",
                grave=True,
            )
        )


def _look(source: ImageSource, rows: Sequence[PlanRow]) -> _Look:
    config = replace(source.config, unreadable="quarantine")
    found, others = _Look(), urls_to_probe(row for row in rows if row.kind == "file")

    def values(item: tuple[str, bytes | PlanRow | BadInput | None]) -> np.ndarray | None:
        data = item[1]
        if isinstance(data, BadInput):
            raise data
        if data is None:
            return None
        data = fetch_mask(source.store, data, config, others) if isinstance(data, PlanRow) else data
        return np.asarray(np.unique(raw_mask(data, max_pixels=config.image_rules.max_pixels, turned=False)))

    masks = mask_store(source.store, config.masks) or source.store
    threads = 0 if masks.is_local else THREADS
    for (sample_id, _), outcome in fetch_ahead(_masks(source, rows, config), values, threads=threads, ahead=LOOKED_AT):
        found.images += 1
        if isinstance(outcome, BadInput):
            found.bad.append(f"{sample_id}: {outcome.detail}")
        elif outcome is not None:
            found.masks += 1
            found.values.update(outcome.tolist())
    return found


def _masks(source: ImageSource, rows: Sequence[PlanRow], config: SourceConfig) -> Iterator[tuple[str, bytes | PlanRow | BadInput | None]]:
    """Yield sample id and mask of some images: its bytes, its row, or why it cannot be read; None for an image without one."""
    files = [row for row in rows if row.kind == "file" and row.mask_path is not None]
    yield from ((row.sample_id, row) for row in files[:: max(1, len(files) // LOOKED_AT)][:LOOKED_AT])
    slices = [row for row in rows if row.kind in ("tar", "rows")]
    chosen = slices[:: max(1, len(slices) // SLICES)][:SLICES]
    for row in chosen:
        left, without = -(-LOOKED_AT // len(chosen)), MOST_WITHOUT
        for record in read_slice(source.store, row, config, source.summary.label_type, source.summary.meta_types):
            if isinstance(record, ImageRecord):
                yield record.sample_id, record.mask
                left -= record.mask is not None
                without -= record.mask is None
            elif isinstance(record, FailedRecord) and record.error.reason is Reason.BAD_MASK:
                yield record.sample_id, record.error
                left -= 1
            if left <= 0 or without <= 0:
                break
