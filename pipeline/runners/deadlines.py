"""Alive, slow, hanging or waiting for a store: what a worker's last heartbeat means. It knows no process and no cluster.

Each stage has a deadline: the stall timeout, or ten times the longest that one part of this stage has taken in this run, whichever is
more. A stage that nobody has measured yet gets more patience, because a slow tokenizer looks like one that hangs until it has encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tokenshards.pipeline.activity import DECODE, ENCODE, PACK, SHARD, STARTING, WAITING_FOR_STORE, Doing

__all__ = ["SILENT", "Deadlines", "State", "Verdict"]

SILENT = "silent"
"""Stage of a worker that sends no heartbeat: it is frozen, or code that holds Python's lock keeps its heartbeat thread from running."""
SLACK = 10.0
"""How many times as long as the longest before it a part of a stage may take."""
PATIENCE = {STARTING: 4.0, ENCODE: 12.0, PACK: 12.0, SHARD: 2.0, SILENT: 2.0}
"""Stall timeouts that a stage has at least, 1 for the others. Encoding has them until it was measured."""
SILENT_BEATS = 3.0
NOTED_SHARE = 0.1
"""Share of the stall timeout after which a wait for the store is worth telling."""
BLAMED = (DECODE, ENCODE, SILENT)
"""Stages in which an input can make its worker hang."""


class State(StrEnum):
    """What a worker is, seen from its driver."""

    STARTING = "starting"
    ALIVE = "alive"
    SLOW = "slow"
    """Longer at one thing than the stall timeout, and within the deadline of its stage."""
    WAITING_FOR_STORE = "waiting_for_store"
    HANGING = "hanging"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A worker's state, and the activity that decides it."""

    state: State
    doing: Doing | None = None
    limit_seconds: float = 0.0

    @property
    def blames_input(self) -> bool:
        """True for a hang that an input can have caused; a hang in a read, a write or the start says nothing of any input."""
        return self.doing is not None and self.doing.stage in BLAMED

    @property
    def hung_at(self) -> str:
        """Sample id of the input in hand, empty where that is not known."""
        return self.doing.input if self.doing is not None and self.doing.stage == DECODE else ""

    def describe(self) -> str:
        """Return what a hanging worker did, for messages such as "a worker … on shard 3"."""
        if self.doing is None:
            return "hung"
        if self.doing.stage == SILENT:
            return f"gave no sign of life for {self.doing.seconds:.0f} s and was killed"
        what = f" ({self.doing.input})" if self.doing.input else ""
        return f"made no progress for {self.doing.seconds:.0f} s in the stage {self.doing.stage}{what} and was killed"


class Deadlines:
    """Judges workers by one stall timeout and by what the workers of this run have measured."""

    def __init__(self, stall_seconds: float, beat_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._beat_seconds = beat_seconds
        self._slowest: dict[str, float] = {}

    def measure(self, slowest: Mapping[str, float]) -> None:
        """Take in the longest parts of stages that a worker has seen."""
        for stage, seconds in slowest.items():
            if seconds > self._slowest.get(stage, 0.0):
                self._slowest[stage] = seconds

    def limit_seconds(self, stage: str) -> float:
        """Return how long one part of a stage may take."""
        if stage == SILENT:
            return max(self.limit_seconds(ENCODE), PATIENCE[SILENT] * self._stall_seconds, SILENT_BEATS * self._beat_seconds)
        measured = self._slowest.get(stage)
        patience = 1.0 if stage == ENCODE and measured is not None else PATIENCE.get(stage, 1.0)
        return max(patience * self._stall_seconds, SLACK * (measured or 0.0))

    def judge(self, found: Sequence[Doing], silent_seconds: float, *, ready: bool) -> Verdict:
        """Return the state of a worker by its last heartbeat, which came `silent_seconds` ago."""
        if silent_seconds > SILENT_BEATS * self._beat_seconds:
            # What it did then may long be over; whichever stage it is in, its heartbeat thread does not run.
            limit = self.limit_seconds(SILENT if ready else STARTING)
            silent = Doing(stage=SILENT, input="", seconds=silent_seconds)
            return self._verdict(silent, limit) or Verdict(state=State.ALIVE if ready else State.STARTING)
        waiting = [doing for doing in found if doing.stage == WAITING_FOR_STORE]
        late: Verdict | None = None
        for doing in found:
            if doing.stage == WAITING_FOR_STORE or (waiting and doing.stage not in (DECODE, ENCODE, PACK)):
                continue  # other threads wait for the one that waits for the store
            if doing.stage == SHARD and len(found) > 1:
                continue  # its thread waits for the others
            verdict = self._verdict(doing, self.limit_seconds(doing.stage))
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
