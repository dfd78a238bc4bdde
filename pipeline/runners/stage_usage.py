"""How busy each stage of a run was, and which one to buy more of."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["RunUsage"]

STAGES = ("fetch", "decode", "encode", "write")


@dataclass(slots=True, kw_only=True)
class RunUsage:
    """Seconds of work per stage of a run, and the seconds that its workers had for it."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Work of committed shards, all workers together; `fetch` is time spent waiting for bytes."""
    worker_seconds: float = 0.0
    """Time that workers were there, all together: what the tokenizers had."""
    lane_seconds: float = 0.0
    """The same, times the shards that a worker works on side by side: what reading and publishing had."""
    decode_seconds: float = 0.0
    """Time that decoding threads were there beside the tokenizers; 0 where pictures are decoded and encoded in turn."""
    notes: list[str] = field(default_factory=list)
    """What else a person should know of the run, such as where pictures were decoded and why."""

    def count_worker(self, seconds: float, *, lanes: int = 1, decode_threads: int = 0) -> None:
        """Count the time that a worker was there with so many lanes for shards, and so many decoding threads for all of them."""
        self.worker_seconds += seconds
        self.lane_seconds += seconds * lanes
        self.decode_seconds += seconds * decode_threads

    def add(self, seconds: dict[str, float]) -> None:
        """Count the stages of a committed shard."""
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def busy_shares(self) -> dict[str, float]:
        """Return for each stage the share of its capacity that was used, 0 to 1."""
        capacity = dict.fromkeys(self.seconds, self.lane_seconds)
        capacity["decode"] = self.decode_seconds or self.worker_seconds
        capacity["encode"] = self.worker_seconds
        return {stage: min(1.0, spent / capacity[stage]) if capacity[stage] else 0.0 for stage, spent in self.seconds.items()}

    def rows(self) -> list[tuple[str, str]]:
        """Return what the report at the end says, as (name, value) text."""
        if not self.worker_seconds:
            return []
        shares = self.busy_shares()
        busy = ", ".join(f"{stage} {share:.0%}" for stage, share in shares.items())
        return [("busy", f"{busy} of its workers' time"), ("bottleneck", self.bottleneck()), *(("note", note) for note in self.notes)]

    def bottleneck(self) -> str:
        """Return the stage to speed up first, and by how much it holds the encoder up."""
        shares = self.busy_shares()
        stage = max(shares, key=lambda name: shares[name])
        if not self.decode_seconds or stage == "encode":
            return f"{stage}: {shares[stage]:.0%} of the workers' time"
        if not shares["encode"]:
            return stage
        waits, faster = 1 - shares["encode"], 1 / shares["encode"]
        return f"{stage}: the encoder waits {waits:.0%} of the time and could take {faster:.1f} times as many images"
