"""The shards still to do, and what each failure of one means: another try after a pause, the end of its budget, or a search for the
input that kills workers. Every runner shares it; it knows nothing of processes or clusters.
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

__all__ = ["ShardQueue", "ShardTask"]


MAX_DISK_FULL = 3
"""Shards for which there is no room, before a run stops: each has been encoded for nothing."""
MAX_VANISHED = 5
"""A shard whose workers vanish more often than this is blamed for it: machines do not leave that regularly."""


@dataclass(slots=True)
class _Search:
    """Bisection: the input that kills workers is in [start, stop); `stop=-1` while the inputs are not counted yet."""

    named: str = ""
    """Sample id that the worker had in hand when it hung: it is tried alone, without bisection."""
    start: int = 0
    stop: int = -1
    probed_stop: int = 0
    deaths_of_one: int = 0
    """Times that [start, start + 1) alone killed its worker; a machine may fail once by chance, so that one death proves nothing."""
    hung: bool = False
    """One of those deaths was a hang. It proves something only if a blank batch does not hang too."""
    accused: int | None = None
    """Index of the input whose hang is checked against a blank batch."""
    guilty: int | None = None


@dataclass(slots=True)
class ShardTask:
    """One shard on its way to a commit."""

    shard: int
    attempt: int = 1
    failures: int = 0
    deaths: int = 0
    vanished: int = 0
    """Times its worker was lost with its machine, or for no known reason."""
    killers: set[str] = field(default_factory=set)
    cleared: set[str] = field(default_factory=set)
    """Sample ids that a worker hung at, and which were then tried alone without a hang."""
    search: _Search | None = None

    @property
    def suspect(self) -> bool:
        """True once a worker died on it: it then has a worker to itself, so that nobody else is blamed or lost."""
        return self.deaths > 0 or self.search is not None

    def command(self) -> dict[str, Any]:
        """Return the next thing a worker must do for this shard."""
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
    """Hands out tasks and takes back how each went; `failed` holds the shards whose budget is used up, with the last error."""

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
        """Return how many tasks wait, with their time come, for a worker to themselves."""
        return sum(task.suspect for task in self._at_once)

    def __len__(self) -> int:
        """Return the tasks that wait, those of a later time included."""
        return self._fresh_left + len(self._at_once) + len(self._later)

    def next_due(self, now: float, *, suspects: bool = True) -> ShardTask | None:
        """Take the next task whose time has come; `suspects=False` leaves out those that need a worker to themselves."""
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
        """A worker reported a failure of `kind` `transient`: the task waits for its next try, or its budget is used up.

        `fatal`, `disk_full` and `unreadable` end its budget at once. Raises DiskFullError after the third shard for which there was no
        room. `unreadable` are the count and examples of the objects of an `unreadable` shard.
        """
        self._listener.abandoned(task.shard)
        task.failures += 1
        if unreadable is not None:
            self._listener.unreadable(**unreadable)
        self._disk_full += kind == "disk_full"
        if self._disk_full >= MAX_DISK_FULL:
            raise DiskFullError(f"{self._disk_full} shards could not be written, so this run stops. The last error: {message}")
        if kind != "transient" or task.failures >= self._config.shard_attempts:
            self._give_up(task, message)
            return
        task.attempt += 1
        delay = min(self._config.retry.max_delay_seconds, self._config.retry.first_delay_seconds * 2**task.failures)
        self._listener.noted(f"shard {task.shard} failed and is tried again in {delay:.0f} s: {message}", shard=task.shard, **details)
        self._wait(task, now + delay)

    def worker_died(self, task: ShardTask, how: str, *, blamed: bool = True, hung: bool = False, hung_at: str = "", **details: Any) -> None:
        """The worker of a task died, or `hung` and was killed, with the input `hung_at` in hand where that is known.

        Not `blamed` where its machine left: the task goes on elsewhere.
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
                self._listener.noted(f"{hung_at} is tried alone, because a worker hung at it", shard=task.shard, sample_id=hung_at)
                task.search = _Search(named=hung_at)
            else:
                self._search_all(task)
        self._go_on(task)

    def _search_all(self, task: ShardTask) -> None:
        """Begin a search by bisection once enough workers have died."""
        task.search = None
        if task.deaths >= self._config.worker_deaths:
            self._listener.noted(f"shard {task.shard} killed {task.deaths} workers: searching for the guilty input", shard=task.shard)
            task.search = _Search()

    def _clear(self, task: ShardTask, search: _Search) -> None:
        """The named input did nothing when it was tried alone, or is not in this shard."""
        task.cleared.add(search.named)
        self._search_all(task)

    def answered(self, task: ShardTask, message: dict[str, Any]) -> None:
        """A worker answered a command of a search: `counted`, `found`, `survived` or `named`."""
        search = task.search
        if search is None:
            raise RuntimeError(f"shard {task.shard} is not searched, but a worker reported {message['event']}")
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
        elif message["sample_id"] is None:  # the inputs are not those that were counted
            self._not_reproduced(task)
        else:
            guilty = str(message["sample_id"])
            self._listener.noted(f"{guilty} kills its worker and is quarantined", shard=task.shard, sample_id=guilty)
            task.killers.add(guilty)
            task.search, task.deaths = None, 0
        self._go_on(task)

    def _narrow(self, task: ShardTask, search: _Search, *, survived: bool, hung: bool = False) -> None:
        if search.stop < 0 or search.guilty is not None:  # died while only listing: nothing learnt
            self._not_reproduced(task)
        elif search.accused is not None and survived:
            search.guilty = search.accused
        elif search.accused is not None:  # without any input it ends the same way: the tokenizer or the machine is at fault
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
