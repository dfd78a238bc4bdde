"""`verify --re-encode`: encode some committed rows again from their source and compare id by id.

Checksums prove that the stored bytes are the written bytes; this check proves that the written ids are the tokenizer's ids of the images.

Shapes: L sites of one image, Q ids of a site.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import ConfigError, IncompleteError, PlanError
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.job.batches import DecodedBatch, decode_batches
from tokenshards.pipeline.job.context import TOKENIZER_FOLDER
from tokenshards.pipeline.job.decoded_rows import MaskDecoding
from tokenshards.pipeline.job.originals import read_originals
from tokenshards.pipeline.ledger.state import DatasetState
from tokenshards.pipeline.records import FailedRecord, ImageRecord
from tokenshards.pipeline.shards.manifest import ShardEntry
from tokenshards.pipeline.shards.masks import MASK, Masks, PackedMask, mask_array, masks_of
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.sources import source_root
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.directory import load_tokenizer
from tokenshards.pipeline.tokenizers.networks.device import describe_device
from tokenshards.pipeline.words import counted

__all__ = ["Reencoding", "ReencodingConfig", "reencode_sample"]

Ids = npt.NDArray[np.unsignedinteger[Any]]
Stored = tuple[Ids, Masks | None]
"""Ids [L, Q] and mask [H, W] of a row."""
MAX_ROWS = 100_000
EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReencodingConfig:
    """Settings of `verify --re-encode`."""

    rows: int
    seed: int
    min_agreement: float = 0.99
    source_url: str | None = None
    """Present place of the source; None for the place in the plan."""

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MAX_ROWS:
            raise ConfigError(f"--re-encode is {self.rows}; expected 1 to {MAX_ROWS} rows")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; expected 0 or more")
        if not 0 <= self.min_agreement <= 1:
            raise ConfigError(f"--min-agreement is {self.min_agreement}; expected a share from 0 to 1")


@dataclass(slots=True, kw_only=True)
class Reencoding:
    """Result of the comparison."""

    config: ReencodingConfig
    device: str
    dtype: str
    decoder: str
    """The library that decoded the images when the rows were made."""
    rows_drawn: int = 0
    rows_encoded: int = 0
    rows_different: int = 0
    masks: int = 0
    """Masks that were made again, or are missing on one side."""
    masks_different: int = 0
    ids: int = 0
    ids_equal: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> number of rows whose source image is missing, has changed or cannot be decoded any more."""
    examples: list[str] = field(default_factory=list)

    @property
    def agreement(self) -> float | None:
        """Share of equal ids; None if no row could be encoded again."""
        return self.ids_equal / self.ids if self.ids else None

    @property
    def ok(self) -> bool:
        """True if enough ids agree. A row without its source is not a difference; but if no row has a source, the check fails."""
        return self.agreement is not None and self.agreement >= self.config.min_agreement and not self.masks_different

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "ok": self.ok,
            "rows_drawn": self.rows_drawn,
            "seed": self.config.seed,
            "rows_encoded": self.rows_encoded,
            "rows_different": self.rows_different,
            "ids": self.ids,
            "ids_equal": self.ids_equal,
            "agreement": self.agreement,
            **({"masks": self.masks, "masks_different": self.masks_different} if self.masks else {}),
            "min_agreement": self.config.min_agreement,
            "left_out": dict(sorted(self.left_out.items())),
            "examples": self.examples,
            "device": self.device,
            "dtype": self.dtype,
        }

    def lines(self) -> list[str]:
        """Return the result as text, with what to do if too few ids agree."""
        differ = counted(self.rows_different, "row differs", "rows differ")
        shown = "" if self.agreement is None else f": {self.agreement:.4%} of {self.ids:,} ids agree, {differ}"
        rows = f"{self.rows_encoded:,} of {counted(self.rows_drawn, 'row')} (--seed {self.config.seed})"
        lines = [f"re-encoded {rows} on {self.device}, {self.dtype}{shown}"]
        if self.left_out:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.left_out.items()))
            lines.append(f"left out, because the source has changed since tokenization: {reasons}")
        if self.masks:
            differ = counted(self.masks_different, "differs", "differ") if self.masks_different else "all are the same"
            lines.append(f"{counted(self.masks, 'mask')} made again: {differ}")
        lines += [f"  {example}" for example in self.examples]
        if self.rows_different:
            lines.append(
                "single ids can differ between devices, dtypes and places in a batch, if a value lies halfway between two codes; "
                "if rows differ in many ids, another tokenizer or another decoder made them"
            )
        if self.decoder not in ("", "unknown", DECODER):
            lines.append(f"images were decoded by {self.decoder} when the rows were made, and by {DECODER} now, which gives other pixels")
        if self.agreement is None:
            lines.append("no row could be encoded again: give the present place of the source with --source")
        elif self.agreement < self.config.min_agreement:
            lines.append(f"agreement is {self.agreement:.4%}; expected at least {self.config.min_agreement:.4%} (--min-agreement)")
        return lines


def reencode_sample(store: Store, state: DatasetState, config: ReencodingConfig, source: SourceConfig) -> Reencoding:
    """Draw rows of a verified dataset, encode them again in batches of the job's size, and compare the ids.

    `source` holds the access options of the source; the seed decides the rows. Memory is bounded by one batch and its read-ahead.
    Raises IncompleteError without a manifest, PlanError for imported tokens, TokenizerError if the tokenizer cannot encode,
    TransientStorageError if the source fails.
    """
    if state.manifest is not None and state.manifest.published:
        raise PlanError(f"{store.url} is a published copy, which does not record where its images are: there are none to encode again")
    if state.manifest is None or not state.chain:
        raise IncompleteError(f"{store.url} is not complete, so there are no rows to encode again. Finish it with `tokenshards tokenize`")
    if state.chain[0].is_import:
        raise PlanError(f"{store.url} holds tokens imported from {state.chain[0].source['url']}: there are no images to encode again")
    return _Reencoder(store, state, config, load_tokenizer(store, TOKENIZER_FOLDER), source).run()


class _Reencoder:
    def __init__(self, store: Store, state: DatasetState, config: ReencodingConfig, tokenizer: Tokenizer, source: SourceConfig) -> None:
        self._store, self._state, self._tokenizer, self._config = store, state, tokenizer, config
        first = state.chain[0]
        self._source_config = first.source_config(source)
        self._source = source_root(config.source_url or str(first.source["url"]), self._source_config)
        self._plan = first
        self._waiting: dict[str, dict[int, Stored]] = {}
        """Sample id -> view -> what is stored, for drawn rows whose images are being read."""
        spec = tokenizer.spec
        self._found = Reencoding(config=config, device=describe_device(tokenizer), dtype=spec.dtype, decoder=spec.preprocess.decoder)

    def run(self) -> Reencoding:
        plan, rules = self._plan, self._source_config.image_rules  # all generations of a dataset have the same view policy
        preprocess, threads = self._tokenizer.spec.preprocess, max(1, os.cpu_count() or 1)
        decoded = decode_batches(
            self._records(),
            preprocess,
            plan.batch_rows,
            rules=rules,
            views=plan.views,
            seed=plan.order_seed,
            masks=None if plan.mask is None else MaskDecoding(plan.mask_format, self._source_config.mask_rules),
            threads=threads,
        )
        with closing(decoded) as batches:
            for batch in batches:
                self._compare(batch)
        return self._found

    def _compare(self, batch: DecodedBatch) -> None:
        for failed in batch.failed:
            self._found.left_out[failed["reason"]] += len(self._waiting.pop(failed["sample_id"]))
            self._show(f"{failed['sample_id']}: {failed['reason']}: {failed['detail']}")
        if not batch.slots:
            return
        tokens = self._tokenizer.encode(batch.images_BHWC).take(np.array(batch.slots))
        for row, made_LQ, sites in zip(batch.rows, tokens.ids_BLQ, tokens.sites_B, strict=True):
            stored = self._waiting[row.sample_id].pop(row.view, None)
            if stored is not None:
                name = row.sample_id if self._plan.views.count == 1 else f"{row.sample_id} view {row.view}"
                self._count(name, stored[0], made_LQ[:sites])
                self._count_mask(name, stored[1], row.mask)

    def _count(self, sample_id: str, stored_LQ: Ids, made_LQ: Ids) -> None:
        both = min(len(stored_LQ), len(made_LQ))
        total = max(stored_LQ.size, made_LQ.size)
        equal = int(np.count_nonzero(stored_LQ[:both] == made_LQ[:both]))
        self._found.rows_encoded += 1
        self._found.ids += total
        self._found.ids_equal += equal
        if equal < total:
            self._found.rows_different += 1
            self._show(f"{sample_id}: {total - equal:,} of {total:,} ids differ")

    def _count_mask(self, name: str, stored_HW: Masks | None, packed: PackedMask) -> None:
        if stored_HW is None and packed is None:
            return
        made_HW = None if packed is None else masks_of(mask_array([packed], self._plan.mask_format), self._plan.mask_format)[0]
        self._found.masks += 1
        if stored_HW is None or made_HW is None:
            self._found.masks_different += 1
            self._show(f"{name}: the mask is {'not stored' if stored_HW is None else 'no longer in the source'}")
        elif different := int(np.count_nonzero(stored_HW != made_HW)):
            self._found.masks_different += 1
            self._show(f"{name}: {different:,} of {stored_HW.size:,} pixels of the mask differ")

    def _show(self, example: str) -> None:
        if len(self._found.examples) < EXAMPLES:
            self._found.examples.append(example)

    def _records(self) -> Iterator[ImageRecord | FailedRecord]:
        """Yield the images of the drawn rows, shard by shard; put their stored ids into `_waiting` first."""
        for entry, rows in self._drawn():
            stored: dict[str, dict[int, Stored]] = {}
            for name, view, kept in self._stored(entry, rows):
                stored.setdefault(name, {})[view] = kept
            self._waiting.update(stored)
            plan = self._state.plans.get(entry.plan_id)
            if plan is None:
                raise PlanError(f"plan/{entry.plan_id} cannot be read. Run `tokenshards repair {self._store.url}`")
            yield from read_originals(self._store, plan, entry.shard, self._source, self._source_config, frozenset(stored))

    def _drawn(self) -> Iterator[tuple[ShardEntry, npt.NDArray[np.int64]]]:
        """Yield each shard that has drawn rows, and the ascending positions of these rows in it."""
        shards = self._state.manifest.shards if self._state.manifest else ()
        stops = np.cumsum([entry.rows for entry in shards], dtype=np.int64)
        total = int(stops[-1]) if len(stops) else 0
        count = self._found.rows_drawn = min(self._config.rows, total)
        drawn = np.sort(np.random.default_rng(self._config.seed).choice(total, count, replace=False)) if count else np.empty(0, np.int64)
        owners = np.searchsorted(stops, drawn, side="right")
        for place in np.unique(owners):
            entry = shards[int(place)]
            yield entry, drawn[owners == place] - (int(stops[place]) - entry.rows)

    def _stored(self, entry: ShardEntry, rows: npt.NDArray[np.int64]) -> Iterator[tuple[str, int, Stored]]:
        reader = ShardReader.open(self._store, str(entry.path))
        start = 0
        for group in range(reader.num_row_groups):
            stop = start + reader.row_group_rows(group)
            inside = rows[(rows >= start) & (rows < stop)] - start
            if len(inside):
                data = reader.read_row_group(group, ("sample_id", "view", *((MASK,) if reader.mask else ())))
                masks: list[Masks | None] = [None] * len(inside)
                if reader.mask is not None:
                    column = data.table.column(MASK).take(inside)
                    valid = column.is_valid().to_pylist()
                    masks = [mask_HW if there else None for mask_HW, there in zip(masks_of(column, reader.mask), valid, strict=True)]
                names, views = (data.table[column].take(inside).to_pylist() for column in ("sample_id", "view"))
                tokens = data.tokens.take(inside)
                for name, view, ids_LQ, sites, mask_HW in zip(names, views, tokens.ids_BLQ, tokens.sites_B, masks, strict=True):
                    yield name, view, (ids_LQ[:sites], mask_HW)
            start = stop
