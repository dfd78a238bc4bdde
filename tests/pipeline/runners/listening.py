"""A listener that records all events, and checks the rules that every runner must follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenshards.pipeline.job.job_spec import ShardSummary
from tokenshards.pipeline.runners.stage_usage import RunUsage


class KeptListener:
    """Counts of the shards in flight, counts of the committed shards, and every note."""

    def __init__(self) -> None:
        self.in_flight: dict[int, list[int]] = {}
        self.committed_shards: dict[int, ShardSummary] = {}
        self.started_shards: list[int] = []
        self.shards_elsewhere: list[int] = []
        self.standings: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.details: list[dict[str, Any]] = []
        self.usage: RunUsage | None = None

    def started(self, shard: int) -> None:
        assert shard not in self.committed_shards and shard not in self.in_flight, f"shard {shard} is begun twice"
        self.started_shards.append(shard)
        self.in_flight[shard] = [0, 0, 0]

    def progressed(self, shard: int, inputs: int, bytes_in: int, quarantined: int) -> None:
        counts = self.in_flight[shard]
        for index, value in enumerate((inputs, bytes_in, quarantined)):
            counts[index] += value

    def committed(self, shard: int, summary: ShardSummary) -> None:
        assert shard not in self.committed_shards, f"shard {shard} is committed twice"
        self.in_flight.pop(shard, None)
        self.committed_shards[shard] = summary

    def committed_elsewhere(self, shard: int, summary: ShardSummary) -> None:
        self.in_flight.pop(shard, None)
        self.shards_elsewhere.append(shard)

    def abandoned(self, shard: int) -> None:
        self.in_flight.pop(shard, None)

    def measured(self, usage: RunUsage) -> None:
        assert self.usage is None
        self.usage = usage

    def unreadable(self, count: int, examples: Sequence[str]) -> None:
        self.notes.append(f"{count} unreadable: {', '.join(examples)}")

    def watched(self, standing: dict[str, Any]) -> None:
        self.standings.append(standing)

    def noted(self, message: str, **details: Any) -> None:
        self.notes.append(message)
        self.details.append(details)

    def tick(self) -> None:
        pass

    def says(self, *words: str) -> bool:
        """Return whether a note holds all these words."""
        return any(all(word in note for word in words) for note in self.notes)
