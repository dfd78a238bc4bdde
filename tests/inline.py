"""A runner in this process: for stores that live in one process alone (memory://) and for injected faults."""

from __future__ import annotations

from collections.abc import Sequence

from tokenshards.pipeline.errors import TransientStorageError, UnreadableObjectError
from tokenshards.pipeline.job.context import open_context
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary
from tokenshards.pipeline.job.shard_job import tokenize_shard
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.runners.stage_usage import RunUsage


class InlineRunner:
    """Runs shards one after the other; a store that fails leaves its shard uncommitted."""

    def __init__(self) -> None:
        self.shards: list[int] = []

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        context = open_context(job)
        failed = {}
        for shard in shards:
            listener.started(shard)
            try:
                commit = tokenize_shard(
                    context,
                    shard,
                    on_progress=lambda done, shard=shard: listener.progressed(shard, done.inputs, done.bytes_in, done.quarantined),
                )
            except UnreadableObjectError as error:
                listener.unreadable(len(error.objects), error.objects)
                failed[shard] = str(error)
                continue
            except TransientStorageError as error:
                failed[shard] = str(error)
                continue
            self.shards.append(shard)
            listener.committed(shard, ShardSummary.of(commit))
            listener.tick()
        listener.measured(RunUsage())
        return failed
