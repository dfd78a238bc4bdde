"""The work on one shard: turn planned rows into a data object, a quarantine object and a commit. No runner, no CLI, no globals.

A batch holds as many inputs as fit with all views into the batch rows of the plan (batches.py). Batches never cross shards.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tokenshards.pipeline.activity import ENCODE, FETCH, QUEUE, doing, measure
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.fault_injection import crash_point
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.images.extras import extra_versions
from tokenshards.pipeline.job.batches import CpuSlots, DecodedBatch, DecodedRow, decode_batches
from tokenshards.pipeline.job.decoded_rows import MaskDecoding
from tokenshards.pipeline.job.inputs import read_inputs
from tokenshards.pipeline.job.probe_urls import EarlierUrls
from tokenshards.pipeline.job.publish import ShardContent, committed_by_another, made_by, publish_shard
from tokenshards.pipeline.planning.plan import Plan, read_shard_rows
from tokenshards.pipeline.records import InputRecord, LeftOutRecord, SourceRecord, TokenBatch, Untaken, concatenate_tokens
from tokenshards.pipeline.shards.commit import Commit
from tokenshards.pipeline.shards.writer import ShardRows
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Images, OverlappedTokenizer, TellingTokenizer, Tokenizer
from tokenshards.pipeline.tokenizers.networks.device import describe_device

__all__ = [
    "InputContext",
    "JobContext",
    "ShardProgress",
    "encode_blank",
    "list_sample_ids",
    "probe_shard",
    "shard_batches",
    "tokenize_shard",
]


_Encoding = Callable[[], tuple[TokenBatch, float]]
"""Waits for the ids of a batch and returns the ids and the seconds of the encoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputContext:
    """The opened stores and settings with which a worker reads and decodes the inputs of a plan. Each worker opens them once."""

    out: Store
    plan: Plan
    source: Store
    source_config: SourceConfig
    decode_threads: int = 0
    """Threads that prepare the next batch while the tokenizer works. With 0, decoding and encoding alternate."""
    cpus: CpuSlots = field(default_factory=threading.Lock)
    """One slot per decoding thread, or one slot without threads. Concurrent shards share the slots and so the CPUs of the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext(InputContext):
    """An InputContext with the tokenizer. All shards of a worker share it."""

    tokenizer: Tokenizer
    run_uuid: str = ""
    """Uuid of the driver's run. Each commit names the run that made the commit."""
    join: bool = False
    """Another driver may work on the same plan: look for a commit before the work on a shard begins."""
    encode_lock: threading.Lock = field(default_factory=threading.Lock)
    """Concurrent shards take turns at the tokenizer: while one shard encodes, another reads or publishes."""


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """Work since the last report: inputs seen, encoded bytes of these inputs, and inputs that failed permanently.

    What is left out of a container is no input and does not count here.
    """

    inputs: int
    bytes_in: int
    quarantined: int


@dataclass(slots=True)
class _ShardResult:
    rows: list[DecodedRow] = field(default_factory=list)
    tokens: list[TokenBatch] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    untaken: Untaken = field(default_factory=Untaken)
    remarks: Counter[str] = field(default_factory=Counter)
    bytes_in: int = 0
    inputs: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"fetch": 0.0, "decode": 0.0, "encode": 0.0})


def tokenize_shard(
    context: JobContext,
    shard: int,
    *,
    attempt: int = 1,
    killers: frozenset[str] = frozenset(),
    on_progress: Callable[[ShardProgress], None] = lambda progress: None,
    batches: Generator[DecodedBatch] | None = None,
) -> Commit:
    """Turn one shard's planned rows into a published commit.

    `killers` are sample ids that kill a worker. These inputs are quarantined unread. `batches` are the batches of `shard_batches` if
    another process decodes them. Without `batches`, this process decodes. Raises TransientStorageError for an outage (no input is
    quarantined, no shard is committed) and PlanError if a manifest already closes this generation.
    """
    plan, out = context.plan, context.out
    if context.join and (done := committed_by_another(out, plan, shard)) is not None:
        return done
    result = _ShardResult()
    with contextlib.closing(batches or shard_batches(context, shard, killers)) as decoded:
        _tokenize(context, decoded, result, on_progress)
    return publish_shard(
        out,
        plan,
        shard,
        ShardContent(
            rows=_shard_rows(result.rows, plan),
            tokens=concatenate_tokens(result.tokens) if result.tokens else None,
            failed=result.failed,
            untaken=result.untaken,
            inputs_seen=result.inputs + result.untaken.left_out_count,
            bytes_in=result.bytes_in,
            seconds=result.seconds,
        ),
        context.tokenizer,
        made_by=_made_by(context, result.remarks),
        attempt=attempt,
        join=context.join,
    )


def shard_batches(context: InputContext, shard: int, killers: frozenset[str] = frozenset()) -> Generator[DecodedBatch]:
    """Yield the decoded batches of a shard in order, without the tokenizer. Raises TransientStorageError for an outage."""
    return _decoded(context, _inputs(context, shard, killers))


def list_sample_ids(context: InputContext, shard: int, killers: frozenset[str]) -> Iterator[str]:
    """Yield the sample id of every input of a shard in work order, without decoding."""
    return (record.sample_id for record in _only_inputs(context, shard, killers))


def probe_shard(context: JobContext, shard: int, start: int, stop: int, killers: frozenset[str]) -> None:
    """Decode and encode inputs [start, stop) of a shard without publishing.

    A runner bisects with this probe to find the input that kills the worker. A single input is encoded in an otherwise blank batch.
    """
    records = itertools.islice(_only_inputs(context, shard, killers), start, stop)
    with contextlib.closing(_decoded(context, records)) as decoded:
        _tokenize(context, decoded, _ShardResult(), lambda progress: None)


def encode_blank(context: JobContext) -> None:
    """Encode a blank batch, the control of a search. A tokenizer that hangs on a blank batch hangs on every batch."""
    size = context.plan.spec.preprocess.size
    rows = max(1, context.plan.batch_rows // context.plan.views.count) * context.plan.views.count
    _begin(context, np.zeros((rows, size, size, 3), np.uint8), "a blank batch")()


def _only_inputs(context: InputContext, shard: int, killers: frozenset[str]) -> Iterator[InputRecord]:
    """Yield the records that take a slot of a batch, absent inputs among them."""
    return (record for record in _inputs(context, shard, killers) if not isinstance(record, LeftOutRecord))


def _inputs(context: InputContext, shard: int, killers: frozenset[str]) -> Iterator[SourceRecord]:
    with doing(FETCH, str(shard)):
        rows = read_shard_rows(context.out, context.plan, shard)
        urls = EarlierUrls(context.out, context.plan)
        records = read_inputs(context.source, context.source_config, context.plan, rows, killers, urls)
    fetching = doing(FETCH, str(shard))
    while True:
        with fetching:
            record = next(records, None)
        if record is None:
            return
        yield record


def _decoded(context: InputContext, records: Iterator[SourceRecord]) -> Generator[DecodedBatch]:
    plan = context.plan
    return decode_batches(
        records,
        plan.spec.preprocess,
        plan.batch_rows,
        rules=context.source_config.image_rules,
        views=plan.views,
        seed=plan.order_seed,
        masks=None if plan.mask is None else MaskDecoding(plan.mask_format, context.source_config.mask_rules),
        threads=context.decode_threads,
        cpus=context.cpus,
    )


def _tokenize(
    context: JobContext, batches: Iterator[DecodedBatch], result: _ShardResult, on_progress: Callable[[ShardProgress], None]
) -> None:
    # Give a device the next batch before the device has finished this batch.
    ahead = 1 if isinstance(context.tokenizer, OverlappedTokenizer) else 0
    begun: deque[tuple[DecodedBatch, _Encoding | None]] = deque()
    for batch in batches:
        begun.append((batch, _begin(context, batch.images_BHWC, batch.rows[0].sample_id) if batch.slots else None))
        if len(begun) > ahead:
            _finish(*begun.popleft(), result, on_progress)
    for batch, encoding in begun:
        _finish(batch, encoding, result, on_progress)


def _begin(context: JobContext, images_BHWC: Images, first: str) -> _Encoding:
    tokenizer = context.tokenizer
    with context.encode_lock:
        if isinstance(tokenizer, OverlappedTokenizer):
            with doing(QUEUE, first):
                finish = tokenizer.begin(images_BHWC)
            return partial(_wait, finish, first)
        with contextlib.nullcontext() if context.decode_threads else context.cpus, doing(ENCODE, first):
            crash_point("encode", first)
            started = time.perf_counter()
            tokens = tokenizer.encode(images_BHWC)
            seconds = time.perf_counter() - started
    return lambda: (tokens, seconds)


def _wait(finish: _Encoding, first: str) -> tuple[TokenBatch, float]:
    with doing(ENCODE, first):
        tokens, seconds = finish()
    measure(ENCODE, seconds)  # the wait may have begun long after the device
    return tokens, seconds


def _finish(batch: DecodedBatch, encoding: _Encoding | None, result: _ShardResult, on_progress: Callable[[ShardProgress], None]) -> None:
    if encoding is not None:
        tokens, seconds = encoding()
        result.seconds["encode"] += seconds
        result.tokens.append(tokens if len(batch.slots) == len(batch.images_BHWC) else tokens.take(np.array(batch.slots)))
    result.seconds["fetch"] += batch.fetch_seconds
    result.seconds["decode"] += batch.decode_seconds
    result.rows.extend(batch.rows)
    result.failed.extend(batch.failed)
    result.untaken.add(batch.untaken)
    result.remarks.update(batch.remarks)
    result.bytes_in += sum(row.bytes_in for row in batch.rows if row.view == 0)
    result.inputs += batch.inputs
    on_progress(ShardProgress(batch.inputs, batch.bytes_in, len(batch.failed)))


def _shard_rows(rows: list[DecodedRow], plan: Plan) -> ShardRows:
    several = plan.views.count > 1
    return ShardRows(
        sample_id=[row.sample_id for row in rows],
        view=np.array([row.view for row in rows], np.int16),
        crop=np.array([row.box for row in rows], np.float32) if several else None,
        flip=np.array([row.mirrored for row in rows], np.bool_) if several else None,
        label=[row.label for row in rows],
        meta={name: [row.meta.get(name) for row in rows] for name in plan.meta_types},
        orig_width=np.array([row.width for row in rows], np.int32),
        orig_height=np.array([row.height for row in rows], np.int32),
        orig_bytes=np.array([row.bytes_in for row in rows], np.int64),
        mask=None if plan.mask is None else [row.mask for row in rows],
    )


def _made_by(context: JobContext, remarks: Counter[str]) -> dict[str, Any]:
    tokenizer = context.tokenizer
    notes = tokenizer.take_notes() if isinstance(tokenizer, TellingTokenizer) else []
    told = {"notes": notes, "image_remarks": dict(sorted(remarks.items())), "plugins": extra_versions()}
    more = {"run": context.run_uuid, **{name: value for name, value in told.items() if value}}
    return made_by(context.source, describe_device(tokenizer), decoder=DECODER, **more)
