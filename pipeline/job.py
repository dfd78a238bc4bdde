"""The work on one shard: planned rows in, data object, quarantine object and commit out. No runner, no CLI, no globals.

Batch k of a shard is its inputs [kB, (k+1)B), B from the plan; a failed input leaves a blank slot and the last batch is padded, because
another batching flips ids even on a CPU. Batches never cross shards.
"""

from __future__ import annotations

import itertools
import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import __version__
from pipeline.config import SourceConfig
from pipeline.decode import DECODER, decode_image
from pipeline.errors import BadInput, FormatError, MissingObjectError, PlanError
from pipeline.faults import crash_point
from pipeline.fetch import display_uri
from pipeline.inputs import read_inputs
from pipeline.plan import Plan, read_shard_rows
from pipeline.records import FailedRecord, ImageRecord, PlanRow, TokenBatch, concatenate_tokens
from pipeline.shards.codebook import carries_codebook
from pipeline.shards.codecs import get_codec
from pipeline.shards.commit import (
    MAX_COMMIT_VOCABULARY,
    Commit,
    commit_path,
    pack_counts,
    read_commit,
    sort_labels,
    write_object,
)
from pipeline.shards.manifest import load_pointer
from pipeline.shards.writer import ShardRows, encode_quarantine, encode_shard
from pipeline.storage import Store
from pipeline.tokenizers.base import Tokenizer

__all__ = ["JobContext", "ShardProgress", "list_sample_ids", "probe_shard", "tokenize_shard"]

MAX_QUARANTINED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """What every shard of a plan shares, opened once per worker."""

    out: Store
    plan: Plan
    source: Store
    source_config: SourceConfig
    tokenizer: Tokenizer
    join: bool = False
    """Another driver may work on the same plan: look for a commit before a shard is begun."""


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """Work done since the last report: inputs seen, their encoded bytes, and how many of them failed for good."""

    inputs: int
    bytes_in: int
    quarantined: int


@dataclass(slots=True)
class _ShardResult:
    sample_ids: list[str] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    meta: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[tuple[int, int, int]] = field(default_factory=list)  # width, height, bytes
    tokens: list[TokenBatch] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    bytes_in: int = 0
    inputs: int = 0


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds = {"fetch": 0.0, "decode": 0.0, "encode": 0.0, "write": 0.0}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


def tokenize_shard(
    context: JobContext,
    shard: int,
    *,
    attempt: int = 1,
    killers: frozenset[str] = frozenset(),
    on_progress: Callable[[ShardProgress], None] = lambda progress: None,
) -> Commit:
    """Turn one shard's planned rows into a published commit.

    `killers` are sample ids known to kill their worker; they are quarantined unread. Raises TransientStorageError for an outage (nothing
    is quarantined, nothing committed) and PlanError when a manifest already closes this generation.
    """
    plan, out = context.plan, context.out
    if context.join and (done := _committed_by_another(out, plan, shard)) is not None:
        return done
    watch = _Stopwatch()
    rows = read_shard_rows(out, plan, shard)
    result = _ShardResult()
    _tokenize(context, _inputs(context, rows, killers), result, watch, on_progress)
    _refuse_under_manifest(out, plan)
    data = None
    token_bytes = id_count = 0
    tokens = concatenate_tokens(result.tokens) if result.tokens else None
    if tokens is not None:
        encoded = encode_shard(
            _shard_rows(result, plan.meta_types),
            tokens,
            spec=context.tokenizer.spec,
            codec=get_codec(plan.codec),
            label_type=plan.label_type,  # type: ignore[arg-type]
            meta_types=plan.meta_types,  # type: ignore[arg-type]
            codebook=context.tokenizer.codebook() if carries_codebook(shard - plan.first_shard) else None,
            extra_metadata={"plan_id": plan.plan_id, "shard": str(shard)},
        )
        data = write_object(out, "shards", shard, encoded.data)
        token_bytes, id_count = encoded.token_bytes, encoded.id_count
        crash_point("after-data-put")
    quarantine = None
    if result.failed:
        quarantine = write_object(out, "quarantine", shard, encode_quarantine(result.failed))
        crash_point("after-quarantine-put")
    watch.lap("write")
    commit = Commit(
        plan_id=plan.plan_id,
        shard=shard,
        data=data,
        quarantine=quarantine,
        rows=len(result.sample_ids),
        quarantined=len(result.failed),
        reasons=dict(sorted(Counter(row["reason"] for row in result.failed).items())),
        inputs_seen=result.inputs,
        bytes_in=result.bytes_in,
        token_bytes=token_bytes,
        id_count=id_count,
        labels=_label_counts(result.labels),
        histogram=_histogram(tokens, context.tokenizer),
        attempt=attempt,
        seconds={stage: round(seconds, 4) for stage, seconds in watch.seconds.items()},
        made_by=_made_by(context.source),
    )
    _refuse_under_manifest(out, plan)  # again: encoding and two puts are long enough for another driver to finish
    if context.join and (done := _committed_by_another(out, plan, shard)) is not None:
        return done
    out.write(commit_path(plan.plan_id, shard), commit.to_bytes())
    crash_point("after-commit-put")
    return commit


def list_sample_ids(context: JobContext, shard: int, killers: frozenset[str]) -> list[str]:
    """Return the sample id of every input of a shard in work order, without decoding any."""
    return [record.sample_id for record in _inputs(context, read_shard_rows(context.out, context.plan, shard), killers)]


def probe_shard(
    context: JobContext, shard: int, start: int, stop: int, killers: frozenset[str], on_progress: Callable[[ShardProgress], None]
) -> None:
    """Decode and encode inputs [start, stop) of a shard without publishing; `on_progress` is a sign of life after each batch.

    A runner uses it to find, by bisection, the input that kills its worker.
    """
    rows = read_shard_rows(context.out, context.plan, shard)
    records = itertools.islice(_inputs(context, rows, killers), start, stop)
    _tokenize(context, records, _ShardResult(), _Stopwatch(), on_progress)


def _inputs(context: JobContext, rows: list[PlanRow], killers: frozenset[str]) -> Iterator[ImageRecord | FailedRecord]:
    return read_inputs(context.source, context.source_config, context.plan, rows, killers)


def _tokenize(
    context: JobContext,
    records: Iterator[ImageRecord | FailedRecord],
    result: _ShardResult,
    watch: _Stopwatch,
    on_progress: Callable[[ShardProgress], None],
) -> None:
    while done := _tokenize_batch(context, itertools.islice(records, context.plan.batch_rows), result, watch):
        on_progress(done)


def _tokenize_batch(
    context: JobContext, batch: Iterator[ImageRecord | FailedRecord], result: _ShardResult, watch: _Stopwatch
) -> ShardProgress | None:
    """Add a batch to the result; None when it is empty. Encoded images are held one at a time, because they can be large."""
    preprocess = context.tokenizer.spec.preprocess
    images_BHWC = np.zeros((context.plan.batch_rows, preprocess.size, preprocess.size, 3), np.uint8)
    kept: list[int] = []
    inputs = bytes_in = 0
    failed_before = len(result.failed)
    for slot, record in enumerate(batch):
        watch.lap("fetch")
        inputs += 1
        bytes_in += len(record.data or b"")
        if isinstance(record, FailedRecord):
            result.failed.append(_quarantine_row(record, record.error))
            continue
        crash_point("decode", record.sample_id)
        try:
            image = decode_image(record.data, preprocess)
        except BadInput as error:
            result.failed.append(_quarantine_row(record, error))
            continue
        finally:
            watch.lap("decode")
        images_BHWC[slot] = image.pixels_HWC
        kept.append(slot)
        result.sample_ids.append(record.sample_id)
        result.labels.append(record.label)
        result.meta.append(record.meta)
        result.sizes.append((image.width, image.height, len(record.data)))
        result.bytes_in += len(record.data)
    if not inputs:
        return None
    if kept:
        tokens = context.tokenizer.encode(images_BHWC)
        result.tokens.append(tokens if len(kept) == len(images_BHWC) else tokens.take(np.array(kept)))
    watch.lap("encode")
    result.inputs += inputs
    return ShardProgress(inputs, bytes_in, len(result.failed) - failed_before)


def _quarantine_row(record: ImageRecord | FailedRecord, error: BadInput) -> dict[str, Any]:
    data = record.data if record.data is not None and len(record.data) <= MAX_QUARANTINED_BYTES else None
    return {
        "sample_id": record.sample_id,
        "uri": record.uri,
        "stage": str(error.stage),
        "reason": str(error.reason),
        "detail": error.detail,
        "label": None if record.label is None else str(record.label),
        "data": data,
    }


def _shard_rows(result: _ShardResult, meta_types: dict[str, str]) -> ShardRows:
    widths, heights, sizes = zip(*result.sizes, strict=True)
    return ShardRows(
        sample_id=result.sample_ids,
        view=np.zeros(len(result.sample_ids), np.int16),
        label=result.labels,
        meta={name: [meta.get(name) for meta in result.meta] for name in meta_types},
        orig_width=np.array(widths, np.int32),
        orig_height=np.array(heights, np.int32),
        orig_bytes=np.array(sizes, np.int64),
    )


def _label_counts(labels: list[Any]) -> list[list[Any]]:
    counts: dict[Any, int] = {}
    for label in labels:
        if label is not None:
            counts[label] = counts.get(label, 0) + 1
    return sort_labels(counts)


def _histogram(tokens: TokenBatch | None, tokenizer: Tokenizer) -> list[str]:
    sizes = tokenizer.spec.vocabulary
    if tokens is None or sum(sizes) > MAX_COMMIT_VOCABULARY:
        return []
    ids_BLQ = tokens.ids_BLQ
    stored = slice(None)
    lengths = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD.prod(axis=1)
    if lengths is not None:  # padding is not stored, so it is not counted
        stored = np.arange(ids_BLQ.shape[1])[None, :] < lengths[:, None]  # type: ignore[assignment]
    return [pack_counts(np.bincount(ids_BLQ[..., q][stored].ravel(), minlength=size)) for q, size in enumerate(sizes)]


def _committed_by_another(out: Store, plan: Plan, shard: int) -> Commit | None:
    try:
        commit, _ = read_commit(out, plan.plan_id, shard)
    except (MissingObjectError, FormatError):
        return None
    found = [(ref, out.info(ref.path)) for ref in (commit.data, commit.quarantine) if ref is not None]
    return commit if all(info is not None and info.size == ref.size for ref, info in found) else None


def _refuse_under_manifest(out: Store, plan: Plan) -> None:
    pointer = load_pointer(out)
    if pointer is not None and int(pointer["generation"]) >= plan.generation:
        raise PlanError(f"{out.url} was completed (generation {pointer['generation']}) while this worker ran; its shards must not change")


def _made_by(source_store: Store) -> dict[str, Any]:
    return {
        "tokenshards": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "decoder": DECODER,
        "device": f"cpu {platform.machine()}",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "source": display_uri(source_store, ""),  # where the uri of every input of this shard begins
    }
