"""Judge from a worker's last heartbeat whether the worker is alive, slow, hanging or waiting for a store. No processes, no clusters.

Each stage has a deadline. The deadline is the larger of the stall timeout and ten times the longest part of this stage in this run. A stage
without a measurement gets a longer deadline, because before its first batch a slow tokenizer looks like a hanging tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tokenshards.pipeline.activity import DECODE, ENCODE, FETCH, PACK, QUEUE, SHARD, STARTING, WAITING_FOR_STORE, Doing

__all__ = ["SILENT", "Deadlines", "State", "Verdict"]

SILENT = "silent"
"""Stage of a worker that sends no heartbeat: the process is frozen, or code that holds Python's lock blocks the heartbeat thread."""
SLACK = 10.0
"""A part of a stage may take this many times as long as the longest part before."""
PATIENCE = {STARTING: 4.0, QUEUE: 12.0, ENCODE: 12.0, PACK: 12.0, SHARD: 2.0, SILENT: 2.0}
"""Least deadline of a stage, in stall timeouts; 1 for other stages. Encoding has this value until its worker has encoded a part."""
SILENT_BEATS = 3.0
NOTED_SHARE = 0.1
"""We report a wait for the store that is longer than this share of the stall timeout."""
BLAMED = (DECODE, QUEUE, ENCODE, SILENT)
"""Stages in which an input can make a worker hang."""
EXCUSED = (STARTING, FETCH, SHARD)
"""Stages in which a thread may wait for another thread that waits for the store."""


class State(StrEnum):
    """The state of a worker as the driver sees it."""

    STARTING = "starting"
    ALIVE = "alive"
    SLOW = "slow"
    """The activity lasts longer than the stall timeout, but not longer than the deadline of its stage."""
    WAITING_FOR_STORE = "waiting_for_store"
    HANGING = "hanging"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A worker's state, and the activity that decides the state."""

    state: State
    doing: Doing | None = None
    limit_seconds: float = 0.0

    @property
    def blames_input(self) -> bool:
        """True for a hang that an input can have caused. A hang in a read, a write or the start proves nothing about an input."""
        return self.doing is not None and self.doing.stage in BLAMED

    @property
    def hung_at(self) -> str:
        """Sample id of the input at which the worker hung; empty if unknown."""
        return self.doing.input if self.doing is not None and self.doing.stage == DECODE else ""

    def describe(self) -> str:
        """Return how a worker hung, for messages such as "a worker … on shard 3"."""
        if self.doing is None:
            return "hung"
        if self.doing.stage == SILENT:
            return f"gave no sign of life for {self.doing.seconds:.0f} s and was killed"
        what = f" ({self.doing.input})" if self.doing.input else ""
        return f"made no progress for {self.doing.seconds:.0f} s in the stage {self.doing.stage}{what} and was killed"


class Deadlines:
    """Judges workers by one stall timeout and by the measurements of this run's workers."""

    def __init__(self, stall_seconds: float, beat_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._beat_seconds = beat_seconds
        self._slowest: dict[str, float] = {}

    def measure(self, slowest: Mapping[str, float]) -> None:
        """Record the longest part of each stage that a worker has measured."""
        for stage, seconds in slowest.items():
            if seconds > self._slowest.get(stage, 0.0):
                self._slowest[stage] = seconds

    def limit_seconds(self, stage: str, *, first: bool = False) -> float:
        """Return how long one part of a stage may take. `first` as in `judge`."""
        if stage == SILENT:
            return max(self.limit_seconds(ENCODE, first=first), PATIENCE[SILENT] * self._stall_seconds, SILENT_BEATS * self._beat_seconds)
        measured = self._slowest.get(stage)
        patience = 1.0 if stage == ENCODE and measured is not None and not first else PATIENCE.get(stage, 1.0)
        return max(patience * self._stall_seconds, SLACK * (measured or 0.0))

    def judge(self, found: Sequence[Doing], silent_seconds: float, *, ready: bool, first: bool = False) -> Verdict:
        """Return the state of a worker from its last heartbeat, which came `silent_seconds` ago.

        `first`: this worker has not encoded yet. Its machine may be far slower than the machines of the workers that have.
        """
        if silent_seconds > SILENT_BEATS * self._beat_seconds:
            # The activities of the last heartbeat may be over. In every stage, silence means that the heartbeat thread does not run.
            limit = self.limit_seconds(SILENT if ready else STARTING, first=first)
            silent = Doing(stage=SILENT, input="", seconds=silent_seconds)
            return self._verdict(silent, limit) or Verdict(state=State.ALIVE if ready else State.STARTING)
        waiting = [doing for doing in found if doing.stage == WAITING_FOR_STORE]
        late: Verdict | None = None
        for doing in found:
            if doing.stage == WAITING_FOR_STORE or (waiting and doing.stage in EXCUSED):
                continue
            if doing.stage == SHARD and len(found) > 1:
                continue  # the thread of this stage waits for other threads
            verdict = self._verdict(doing, self.limit_seconds(doing.stage, first=first))
            if verdict is not None and (late is None or verdict.state == State.HANGING):
                late = verdict
        if late is not None:
            return late
        longest = max(waiting, key=lambda doing: doing.seconds, default=None)
        if longest is not None and longest.seconds > NOTED_SHARE * self._stall_seconds:
            return Verdict(state=State.WAITING_FOR_STORE, doing=longest)
        return Verdict(state=State.ALIVE if ready else State.STARTING)

    def _verdict(self, doing: Doing, limit_seconds: float) -> Verdict | None:
        if doing.seconds > limit_seconds:
            return Verdict(state=State.HANGING, doing=doing, limit_seconds=limit_seconds)
        if doing.seconds > self._stall_seconds:
            return Verdict(state=State.SLOW, doing=doing, limit_seconds=limit_seconds)
        return None
