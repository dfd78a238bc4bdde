"""Measure how busy each stage of a run was, and which stage needs more resources."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["RunUsage"]

STAGES = ("fetch", "decode", "encode", "write")


@dataclass(slots=True, kw_only=True)
class RunUsage:
    """Seconds of work per stage of a run, and the seconds that the workers were available."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Work for committed shards, summed over all workers. `fetch` is the time of waiting for bytes."""
    worker_seconds: float = 0.0
    """Available time of all workers: the capacity for encoding."""
    lane_seconds: float = 0.0
    """`worker_seconds` times the concurrent shards of a worker: the capacity for fetch and write."""
    decode_seconds: float = 0.0
    """Available time of the decoding threads beside the tokenizers; 0 if decoding and encoding alternate."""
    notes: list[str] = field(default_factory=list)
    """Other notes about the run for a person, such as where images were decoded and why."""

    def count_worker(self, seconds: float, *, lanes: int = 1, decode_threads: int = 0) -> None:
        """Count the available time of a worker with `lanes` concurrent shards and `decode_threads` threads for all lanes."""
        self.worker_seconds += seconds
        self.lane_seconds += seconds * lanes
        self.decode_seconds += seconds * decode_threads

    def add(self, seconds: dict[str, float]) -> None:
        """Count the stages of a committed shard."""
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def busy_shares(self) -> dict[str, float]:
        """Return the used share of the capacity of each stage, from 0 to 1."""
        capacity = dict.fromkeys(self.seconds, self.lane_seconds)
        capacity["decode"] = self.decode_seconds or self.worker_seconds
        capacity["encode"] = self.worker_seconds
        return {stage: min(1.0, spent / capacity[stage]) if capacity[stage] else 0.0 for stage, spent in self.seconds.items()}

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of the final report, as (name, value) text."""
        if not self.worker_seconds:
            return []
        shares = self.busy_shares()
        busy = ", ".join(f"{stage} {share:.0%}" for stage, share in shares.items())
        return [("busy", f"{busy} of its workers' time"), ("bottleneck", self.bottleneck()), *(("note", note) for note in self.notes)]

    def bottleneck(self) -> str:
        """Return the stage to speed up first, and how much this stage delays the encoder."""
        shares = self.busy_shares()
        stage = max(shares, key=lambda name: shares[name])
        if not self.decode_seconds or stage == "encode":
            return f"{stage}: {shares[stage]:.0%} of the workers' time"
        if not shares["encode"]:
            return stage
        waits, faster = 1 - shares["encode"], 1 / shares["encode"]
        return f"{stage}: the encoder waits {waits:.0%} of the time and could take {faster:.1f} times as many images"
