"""The queue of shards to do. It decides what a failure of a shard means: another try after a pause, the end of the shard's budget,
or a search for the input that kills workers. Every runner uses this queue. The queue knows nothing about processes or clusters.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.errors import DiskFullError
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.words import counted

__all__ = ["ShardQueue", "ShardTask"]


MAX_DISK_FULL = 3
"""A run stops after so many shards that did not fit on the disk, because each of these shards was encoded in vain."""
MAX_VANISHED = 5
"""If a shard's workers vanish more often than this, we blame the shard, because machines do not leave so regularly."""


@dataclass(slots=True)
class _Search:
    """A bisection. The input that kills workers is in [start, stop); `stop=-1` until the inputs are counted."""

    named: str = ""
    """Sample id of the input at which the worker hung. This input is tried alone, without bisection."""
    start: int = 0
    stop: int = -1
    probed_stop: int = 0
    deaths_of_one: int = 0
    """Times that input `start` alone killed its worker. One death proves nothing, because a machine may fail once by chance."""
    hung: bool = False
    """One of these deaths was a hang. A hang proves nothing if a blank batch hangs too."""
    accused: int | None = None
    """Index of the input that hung. A blank batch now serves as the control."""
    guilty: int | None = None


@dataclass(slots=True)
class ShardTask:
    """One shard on its way to a commit."""

    shard: int
    attempt: int = 1
    failures: int = 0
    deaths: int = 0
    vanished: int = 0
    """Times that the shard's worker was lost with its machine, or for an unknown reason."""
    killers: set[str] = field(default_factory=set)
    cleared: set[str] = field(default_factory=set)
    """Sample ids at which a worker hung, but which did not hang when they were tried alone."""
    search: _Search | None = None

    @property
    def suspect(self) -> bool:
        """True after a worker died on this shard. A suspect gets a worker of its own, so that no other shard is blamed or lost."""
        return self.deaths > 0 or self.search is not None

    def command(self) -> dict[str, Any]:
        """Return the next command of a worker for this shard."""
        base = {"shard": self.shard, "attempt": self.attempt, "killers": sorted(self.killers)}
        search = self.search
        if search is None:
            return {"op": "run", **base}
        if search.stop < 0:
            return {"op": "find", "sample_id": search.named, **base} if search.named else {"op": "count", **base}
        if search.guilty is not None:
            return {"op": "name", "index": search.guilty, **base}
        if search.accused is not None:
            return {"op": "control", **base}
        search.probed_stop = (search.start + search.stop + 1) // 2 if search.stop - search.start > 1 else search.stop
        return {"op": "probe", "start": search.start, "stop": search.probed_stop, **base}


class ShardQueue:
    """Hands out tasks and receives their results. `failed` holds the shards that have used their budget, each with its last error."""

    def __init__(self, shards: Sequence[int], config: RunConfig, listener: RunListener) -> None:
        self._config = config
        self._listener = listener
        self._fresh = iter(shards)
        self._fresh_left = len(shards)
        self._at_once: deque[ShardTask] = deque()
        self._later: list[tuple[float, int, ShardTask]] = []
        self._counter = itertools.count()
        self.failed: dict[int, str] = {}
        self._disk_full = 0

    def suspects(self) -> int:
        """Return how many due tasks wait for a worker of their own."""
        return sum(task.suspect for task in self._at_once)

    def __len__(self) -> int:
        """Return the number of waiting tasks, including tasks that are not due yet."""
        return self._fresh_left + len(self._at_once) + len(self._later)

    def next_due(self, now: float, *, suspects: bool = True) -> ShardTask | None:
        """Take the next due task. `suspects=False` leaves out tasks that need a worker of their own."""
        while self._later and self._later[0][0] <= now:
            self._at_once.append(heapq.heappop(self._later)[2])
        for task in self._at_once:
            if suspects or not task.suspect:
                self._at_once.remove(task)
                return task
        if not self._fresh_left:
            return None
        self._fresh_left -= 1
        return ShardTask(next(self._fresh))

    def failed_once(
        self, task: ShardTask, kind: str, message: str, now: float, unreadable: dict[str, Any] | None = None, **details: Any
    ) -> None:
        """Record a failure. After a `transient` failure the task waits for its next try, until its budget is used up.

        The kinds `fatal`, `disk_full` and `unreadable` end the budget at once. Raises DiskFullError after the third shard that did not fit
        on the disk. `unreadable` holds the count and examples of the unreadable objects of the shard.
        """
        self._listener.abandoned(task.shard)
        task.failures += 1
        if unreadable is not None:
            self._listener.unreadable(**unreadable)
        self._disk_full += kind == "disk_full"
        if self._disk_full >= MAX_DISK_FULL:
            raise DiskFullError(f"{counted(self._disk_full, 'shard')} could not be written, so this run stops. The last error: {message}")
        if kind != "transient" or task.failures >= self._config.shard_attempts:
            self._give_up(task, message)
            return
        task.attempt += 1
        delay = min(self._config.retry.max_delay_seconds, self._config.retry.first_delay_seconds * 2**task.failures)
        self._listener.noted(f"shard {task.shard} failed and is tried again in {delay:.0f} s: {message}", shard=task.shard, **details)
        self._wait(task, now + delay)

    def worker_died(self, task: ShardTask, how: str, *, blamed: bool = True, hung: bool = False, hung_at: str = "", **details: Any) -> None:
        """Record that the worker of a task died, or that the worker `hung` and was killed. `hung_at` is the input, if known.

        If the machine left, the task is not `blamed` and goes on elsewhere.
        """
        self._listener.noted(f"a worker {how} on shard {task.shard}", shard=task.shard, **details)
        self._listener.abandoned(task.shard)
        task.attempt += 1
        if not blamed:
            task.vanished += 1
        if not blamed and task.vanished <= MAX_VANISHED:
            self._at_once.appendleft(task)
            return
        if task.search is not None:
            self._narrow(task, task.search, survived=False, hung=hung)
        else:
            task.deaths += 1
            if hung_at and hung_at not in task.cleared:
                self._listener.noted(f"{hung_at} is tried alone, because a worker hung at this input", shard=task.shard, sample_id=hung_at)
                task.search = _Search(named=hung_at)
            else:
                self._search_all(task)
        self._go_on(task)

    def _search_all(self, task: ShardTask) -> None:
        """Begin a search by bisection once enough workers have died."""
        task.search = None
        if task.deaths >= self._config.worker_deaths:
            self._listener.noted(
                f"shard {task.shard} killed {counted(task.deaths, 'worker')}: searching for the guilty input", shard=task.shard
            )
            task.search = _Search()

    def _clear(self, task: ShardTask, search: _Search) -> None:
        """Clear the named input: the input alone did not kill its worker, or is not in this shard."""
        task.cleared.add(search.named)
        self._search_all(task)

    def answered(self, task: ShardTask, message: dict[str, Any]) -> None:
        """Handle a worker's answer to a command of a search: `counted`, `found`, `survived` or `named`."""
        search = task.search
        if search is None:
            raise RuntimeError(f"shard {task.shard} has no search, but a worker reported {message['event']}")
        if message["event"] == "counted":
            search.stop = int(message["inputs"])
            if search.stop == 0:
                self._not_reproduced(task)
        elif message["event"] == "found" and message["index"] is None:
            self._clear(task, search)
        elif message["event"] == "found":
            search.start, search.stop = int(message["index"]), int(message["index"]) + 1
        elif message["event"] == "survived":
            self._narrow(task, search, survived=True)
        elif message["sample_id"] is None:  # the inputs have changed since they were counted
            self._not_reproduced(task)
        else:
            guilty = str(message["sample_id"])
            self._listener.noted(f"{guilty} kills its worker and is quarantined", shard=task.shard, sample_id=guilty)
            task.killers.add(guilty)
            task.search, task.deaths = None, 0
        self._go_on(task)

    def _narrow(self, task: ShardTask, search: _Search, *, survived: bool, hung: bool = False) -> None:
        if search.stop < 0 or search.guilty is not None:  # the worker died while listing ids: we learnt nothing
            self._not_reproduced(task)
        elif search.accused is not None and survived:
            search.guilty = search.accused
        elif search.accused is not None:  # a blank batch fails too: the tokenizer or the machine is at fault
            self._not_reproduced(task)
        elif not survived and search.probed_stop - search.start == 1:
            search.stop = search.probed_stop
            search.deaths_of_one += 1
            search.hung |= hung
            if search.deaths_of_one >= self._config.worker_deaths:
                search.accused, search.guilty = (search.start, None) if search.hung else (None, search.start)
        elif not survived:
            search.stop = search.probed_stop
        elif search.probed_stop == search.stop and search.named:
            self._clear(task, search)
        elif search.probed_stop == search.stop:  # no single input is guilty
            self._not_reproduced(task)
        else:
            search.start = search.probed_stop

    def _not_reproduced(self, task: ShardTask) -> None:
        task.search, task.deaths = None, 0
        task.failures += 1

    def _go_on(self, task: ShardTask) -> None:
        if task.failures >= self._config.shard_attempts:
            self._give_up(task, f"its workers keep dying, and no single input is guilty ({task.failures} searches)")
        else:
            self._at_once.appendleft(task)

    def _give_up(self, task: ShardTask, message: str) -> None:
        self._listener.noted(f"shard {task.shard} is left uncommitted: {message}", shard=task.shard)
        self.failed[task.shard] = message

    def _wait(self, task: ShardTask, until: float) -> None:
        heapq.heappush(self._later, (until, next(self._counter), task))
