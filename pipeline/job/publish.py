"""Publish a shard: first the data, then the quarantine, then the commit (SPEC section 8). No other code publishes a shard."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tokenshards import __version__
from tokenshards.pipeline.activity import PACK, WRITE, doing, step
from tokenshards.pipeline.errors import FormatError, MissingObjectError, PlanError
from tokenshards.pipeline.fault_injection import crash_point
from tokenshards.pipeline.planning.plan import Plan
from tokenshards.pipeline.records import TokenBatch, Untaken
from tokenshards.pipeline.shards.codebook import carries_copies
from tokenshards.pipeline.shards.codecs import get_codec
from tokenshards.pipeline.shards.commit import (
    MAX_COMMIT_VOCABULARY,
    Commit,
    commit_path,
    pack_counts,
    read_commit,
    sort_labels,
    write_object,
)
from tokenshards.pipeline.shards.compact.model_file import models_of
from tokenshards.pipeline.shards.manifest import load_pointer
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.writer import EncodedShard, ShardRows, encode_quarantine, encode_shard
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Tokenizer

__all__ = ["ShardContent", "committed_by_another", "made_by", "publish_shard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardContent:
    """The results of one shard's inputs, before they are published."""

    rows: ShardRows
    tokens: TokenBatch | None
    """None if every input failed."""
    failed: list[dict[str, Any]]
    """Quarantine rows."""
    untaken: Untaken = field(default_factory=Untaken)
    inputs_seen: int
    bytes_in: int
    seconds: dict[str, float]
    """Worker seconds of each stage before publishing. `publish_shard` adds `write`."""


def publish_shard(
    out: Store,
    plan: Plan,
    shard: int,
    content: ShardContent,
    tokenizer: Tokenizer,
    *,
    made_by: dict[str, Any],
    attempt: int = 1,
    join: bool = False,
    on_progress: Callable[[], None] = step,
) -> Commit:
    """Publish the objects of a shard and its commit; return the commit.

    If another driver has committed the shard meanwhile, we return the other commit and do not write ours. With `join` we look for another
    commit even while the generation is open. We call `on_progress` after each row group, so that a slow codec does not count as a hang.
    Raises PlanError if a manifest closes the generation and the shard has no valid commit.
    """
    if (done := _done_elsewhere(out, plan, shard, join)) is not None:
        return done
    begun, name = time.perf_counter(), str(shard)
    encoded, data, quarantine = None, None, None
    if content.tokens is not None:
        with doing(PACK, name):
            encoded = _encode(out, plan, shard, content.rows, content.tokens, tokenizer, on_progress)
        with doing(WRITE, name):
            crash_point("write", name)
            data = write_object(out, "shards", shard, encoded.data)
        crash_point("after-data-put")
    if content.failed:
        with doing(WRITE, name):
            quarantine = write_object(out, "quarantine", shard, encode_quarantine(content.failed))
        crash_point("after-quarantine-put")
    seconds = {**content.seconds, "write": time.perf_counter() - begun}
    commit = Commit(
        plan_id=plan.plan_id,
        shard=shard,
        data=data,
        quarantine=quarantine,
        rows=len(content.rows.sample_id),
        quarantined=len(content.failed),
        reasons=dict(sorted(Counter(row["reason"] for row in content.failed).items())),
        inputs_seen=content.inputs_seen,
        bytes_in=content.bytes_in,
        token_bytes=encoded.token_bytes if encoded else 0,
        id_count=encoded.id_count if encoded else 0,
        labels=sort_labels(Counter(label for label in content.rows.label if label is not None)),
        histogram=_histogram(content.tokens, tokenizer.spec),
        attempt=attempt,
        seconds={stage: round(spent, 4) for stage, spent in seconds.items()},
        made_by=made_by,
        masked_rows=sum(mask is not None for mask in content.rows.mask or ()),
        mask_pixels=encoded.mask_pixels if encoded else [],
        **asdict(content.untaken),
    )
    # Another driver may have finished while we encoded the shard and wrote two objects.
    if (done := _done_elsewhere(out, plan, shard, join)) is not None:
        return done
    with doing(WRITE, name):
        out.write(commit_path(plan.plan_id, shard), commit.to_bytes())
    crash_point("after-commit-put")
    return commit


def committed_by_another(out: Store, plan: Plan, shard: int) -> Commit | None:
    """Return the commit of a shard if the commit is intact and names existing files of the right size, else None."""
    try:
        commit, _ = read_commit(out, plan.plan_id, shard)
    except (MissingObjectError, FormatError):
        return None
    found = [(ref, out.info(ref.path)) for ref in (commit.data, commit.quarantine) if ref is not None]
    return commit if all(info is not None and info.size == ref.size for ref, info in found) else None


def made_by(source: Store, device: str, **more: Any) -> dict[str, Any]:
    """Return what a commit records about this process. `source` is the root of the uris of the shard's inputs."""
    return {
        "tokenshards": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "device": device,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "source": f"{source.place('').rstrip('/')}/",
        **more,
    }


def _encode(
    out: Store, plan: Plan, shard: int, rows: ShardRows, tokens: TokenBatch, tokenizer: Tokenizer, on_progress: Callable[[], None]
) -> EncodedShard:
    copies = carries_copies(shard - plan.first_shard)
    return encode_shard(
        rows,
        tokens,
        spec=tokenizer.spec,
        codec=get_codec(plan.codec, models_of(out)),
        label_type=plan.label_type,  # type: ignore[arg-type]
        meta_types=plan.meta_types,  # type: ignore[arg-type]
        mask=None if plan.mask is None else plan.mask_format,
        codebook=tokenizer.codebook() if copies else None,
        copies=copies,
        extra_metadata={"plan_id": plan.plan_id, "shard": str(shard)},
        on_progress=on_progress,
    )


def _histogram(tokens: TokenBatch | None, spec: TokenizerSpec) -> list[str]:
    if tokens is None or sum(spec.vocabulary) > MAX_COMMIT_VOCABULARY:
        return []
    return [pack_counts(counts_K) for counts_K in tokens.count_ids(spec.vocabulary)]


def _done_elsewhere(out: Store, plan: Plan, shard: int, join: bool) -> Commit | None:
    """Return the commit of another driver that replaces ours. Under a manifest we may write nothing."""
    pointer = load_pointer(out)
    closed = pointer is not None and int(pointer["generation"]) >= plan.generation
    commit = committed_by_another(out, plan, shard) if closed or join else None
    if commit is None and closed:
        raise PlanError(
            f"{out.url} is complete, but shard {shard} has no valid commit; its shards must not change under a manifest. "
            f"Run `tokenshards verify {out.url}`, then `tokenshards repair {out.url}`"
        )
    return commit
