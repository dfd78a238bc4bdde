"""The work of `import seit`: one pass through the token stream makes every open shard. The counterpart of `job.shard_job`.

Shapes: N images, G images of a block or shard without a fault, L sites.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import PlanError, Reason, Stage, TransientStorageError
from tokenshards.pipeline.interop.seit.bytes import decode_images, explain_fault
from tokenshards.pipeline.interop.seit.token_files import ImageStream, SeitSplit
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary
from tokenshards.pipeline.job.publish import ShardContent, made_by, publish_shard
from tokenshards.pipeline.planning.plan import Plan, load_plan, read_shard_rows
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.shards.commit import Commit
from tokenshards.pipeline.shards.writer import ShardRows
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.published.seit_tokens import SeitTokens

__all__ = ["Decoded", "SeitRunner", "SeitSource"]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Decoded images of a block: row numbers and ids of the good ones, row number -> bytes of the faulty ones."""

    rows_G: npt.NDArray[np.int64]
    ids_GL: npt.NDArray[np.uint16]
    faults: dict[int, bytes]
    images: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeitSource:
    """An opened source: everything that decides the content of the shards, except the options of the plan."""

    split: SeitSplit
    tokenizer: SeitTokens
    synonyms: bytes | None
    classes: tuple[int | str, ...]

    @property
    def sites(self) -> int:
        """Number of ids per image."""
        return self.tokenizer.spec.layout.sites

    @property
    def codes(self) -> int:
        """Number of rows of the codebook."""
        return self.tokenizer.spec.vocabulary[0]

    @property
    def version(self) -> str:
        """Version for the plan rows: a change of token, index, label, class or synonym bytes gives another plan."""
        beside = repr((self.classes, self.synonyms)).encode()
        return f"{self.split.version}+{sha256_hex(beside)[:12]}"

    def decoded(self, images: ImageStream, start: int, stop: int) -> Iterator[Decoded]:
        """Yield images [start, stop) of the stream as ids and faults."""
        for block in images.blocks(start, stop):
            ids_GL, good_N = decode_images(block.data, block.bounds_N1, self.sites, self.codes)
            faults = {block.first + int(at): block.image(int(at)) for at in np.flatnonzero(~good_N)}
            yield Decoded(block.first + np.flatnonzero(good_N), ids_GL, faults, len(good_N), len(block.data))

    def explain(self, image: bytes) -> str:
        """Return a message about the fault in the bytes of an image."""
        return explain_fault(image, self.sites, self.codes)


class SeitRunner:
    """Makes the open shards in one pass through the stream, in this process, because most of the work is reading."""

    def __init__(self, store: Store, source: SeitSource) -> None:
        self._store = store
        self._source = source

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        """Return {shard: error} if a store failed, else {}; raises SourceError if the stream does not match the plan."""
        plan = load_plan(self._store, job.plan_id)
        if plan is None:
            raise PlanError(f"{self._store.url} has no plan {job.plan_id[:12]}; run the import again")
        with self._source.split.images() as images:
            for shard in sorted(shards):
                listener.started(shard)
                try:
                    commit = self._import_shard(plan, shard, images, listener)
                except TransientStorageError as error:
                    return {shard: str(error)}
                listener.committed(shard, ShardSummary.of(commit))
                listener.tick()
        return {}

    def _import_shard(self, plan: Plan, shard: int, images: ImageStream, listener: RunListener) -> Commit:
        began = time.perf_counter()
        store, source = self._store, self._source
        (planned,) = read_shard_rows(store, plan, shard)
        rows: list[npt.NDArray[np.int64]] = []
        parts: list[npt.NDArray[Any]] = []
        faults: dict[int, bytes] = {}
        for decoded in source.decoded(images, planned.row_start, planned.row_stop):
            rows.append(decoded.rows_G)
            parts.append(decoded.ids_GL.astype(source.tokenizer.spec.id_dtype, copy=False))
            faults |= decoded.faults
            listener.progressed(shard, decoded.images, decoded.size, len(decoded.faults))
            listener.tick()
        if planned.row_stop == len(source.split):
            images.finish()
        rows_G, ids_GL = np.concatenate(rows), np.concatenate(parts)
        return publish_shard(
            store,
            plan,
            shard,
            ShardContent(
                rows=self._rows(rows_G),
                tokens=TokenBatch(ids_GL[:, :, None]) if len(rows_G) else None,
                failed=[self._quarantine_row(row, image) for row, image in faults.items()],
                inputs_seen=planned.inputs,
                bytes_in=int((source.split.offsets_N1[rows_G + 1] - source.split.offsets_N1[rows_G]).sum()),
                seconds={"decode": time.perf_counter() - began},
            ),
            source.tokenizer,
            made_by=made_by(source.split.store, f"cpu {platform.machine()}"),
            on_progress=listener.tick,
        )

    def _rows(self, rows_G: npt.NDArray[np.int64]) -> ShardRows:
        split = self._source.split
        unknown_G = np.zeros(len(rows_G), np.int32)  # the release does not record the sizes of the images
        return ShardRows(
            sample_id=[self._sample_id(row) for row in rows_G.tolist()],
            view=np.zeros(len(rows_G), np.int16),
            label=[self._source.classes[label] for label in split.labels_N[rows_G].tolist()],
            meta={},
            orig_width=unknown_G,
            orig_height=unknown_G,
            orig_bytes=split.offsets_N1[rows_G + 1] - split.offsets_N1[rows_G],
        )

    def _sample_id(self, row: int) -> str:
        return f"{self._source.split.name}/{row:08d}"

    def _quarantine_row(self, row: int, image: bytes) -> dict[str, Any]:
        split = self._source.split
        return {
            "sample_id": self._sample_id(row),
            "uri": f"{split.uri}#{row}",
            "stage": str(Stage.DECODE),
            "reason": str(Reason.CORRUPT),
            "detail": f"image {row:,}: {self._source.explain(image)}",
            "label": str(self._source.classes[int(split.labels_N[row])]),
            "data": image,
        }
