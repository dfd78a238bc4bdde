"""`runs/<uuid>.json`: the heartbeat of a driver, and its log. The heartbeat keeps two drivers apart. Correctness never depends on it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenshards.pipeline.canonical import known_fields, seal
from tokenshards.pipeline.errors import FormatError, LiveRunError, MissingObjectError, TransientStorageError
from tokenshards.pipeline.ledger.progress import RunProgress
from tokenshards.pipeline.shards.manifest import read_sealed
from tokenshards.pipeline.shards.version import FORMAT_VERSION
from tokenshards.pipeline.storage.jsonl_log import RunLog
from tokenshards.pipeline.storage.store import Store

__all__ = ["PLANNING", "Heartbeat", "RunRecord", "live_runs", "refuse_beside_live_run", "run_records", "wins_planning"]

BEAT_SECONDS = 15.0
LIVE_SECONDS = 90.0
LEAVE_SECONDS = 5.0
PLANNING = ""
"""Plan id in the record of a driver that is making the plan."""
_GIVE_WAY_SECONDS = 1.0
_GIVE_WAY_LOOKS = 5


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """The record that a driver publishes about itself."""

    uuid: str
    host: str
    pid: int
    process_started: str
    """The kernel's start time of the process. It tells this process from a later process with the same pid."""
    plan_id: str
    started_seconds: float
    updated_seconds: float
    state: str = "running"
    counters: dict[str, Any] = field(default_factory=dict)

    def is_live(self, now_seconds: float) -> bool:
        """True while the driver may still write: the record is recent, and its process has not ended on this host."""
        if self.state != "running" or now_seconds - self.updated_seconds >= LIVE_SECONDS:
            return False
        return self.host != socket.gethostname() or _process_started(self.pid) == self.process_started

    def describe(self, now_seconds: float) -> str:
        """Return host, age, rate, and the time after which the run counts as dead."""
        age, progress = now_seconds - self.updated_seconds, self.progress
        workers = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in sorted(progress.workers.items()))
        left = "" if progress.left_seconds is None else f", ETA {progress.left_seconds:,.0f} s"
        at_work = f"; workers: {workers}{progress.state_text()}" if workers else ""
        dead = f"it counts as dead in {max(0.0, LIVE_SECONDS - age):.0f} s"
        rate = f"{progress.images_per_second:.0f} images/s{left}"
        return f"host {self.host}, pid {self.pid}, last sign {age:.0f} s ago, {rate}{at_work}; {dead}"

    @property
    def progress(self) -> RunProgress:
        """The progress of the run by its counters."""
        return RunProgress.from_json({"work_seconds": self.updated_seconds - self.started_seconds, **self.counters})


def _process_started(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return "gone"
    except (OSError, IndexError):
        pass
    try:  # this system has no /proc: only the pid can be checked
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        pass
    return "unknown"


def run_records(store: Store) -> list[RunRecord]:
    """Return every readable run record. Damaged records are left out, because correctness never depends on a heartbeat."""
    found = []
    for info in store.list("runs"):
        if info.path.count("/") == 1 and info.path.endswith(".json"):
            try:
                value = read_sealed(store, info.path)
                found.append(RunRecord(**known_fields(RunRecord, value)))
            except (FormatError, MissingObjectError, TypeError):
                continue
    return found


def live_runs(store: Store) -> list[RunRecord]:
    """Return the runs that may still be writing."""
    now = time.time()
    return [record for record in run_records(store) if record.is_live(now)]


def refuse_beside_live_run(store: Store, verb: str, *, besides: str = "") -> None:
    """Raise LiveRunError when another driver works on the dataset; `besides` is the uuid of our own record."""
    for record in live_runs(store):
        if record.uuid == besides:
            continue
        raise LiveRunError(f"{store.url}: cannot {verb}, another run is at work ({record.describe(time.time())}). Wait for it or stop it")


def wins_planning(store: Store, mine: RunRecord) -> bool:
    """Return whether the driver of a published record may make the plan. The other drivers must give way or wait.

    Each driver publishes its record before it looks for others. So if two drivers start at the same moment, at least one driver sees the
    other. The driver with the larger uuid gives way at once. The driver with the smaller uuid waits some seconds for the other to withdraw
    and then gives way too, because the other driver may have looked first and be at work.
    """
    for _ in range(_GIVE_WAY_LOOKS):
        others = [record for record in live_runs(store) if record.uuid != mine.uuid]
        if not others:
            return True
        if any(record.plan_id != PLANNING or record.uuid < mine.uuid for record in others):
            return False
        time.sleep(_GIVE_WAY_SECONDS)
    return False


class Heartbeat:
    """Writes the run record every 15 seconds while the driver works, and its log beside it."""

    def __init__(self, store: Store, plan_id: str, counters: Callable[[], dict[str, Any]]) -> None:
        now = time.time()
        self._store = store
        self._counters = counters
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self.record = RunRecord(
            uuid=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started=_process_started(os.getpid()),
            plan_id=plan_id,
            started_seconds=now,
            updated_seconds=now,
        )
        self._log = RunLog(store, self.record.uuid, "driver")

    def __enter__(self) -> Heartbeat:
        self._publish()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self.record.state = "finished" if kind is None else "stopped"
        if error is not None:
            self._leave(error)
            return
        self._thread.join()
        self._publish()

    def _leave(self, error: BaseException) -> None:
        """Publish that the run stopped, but wait only seconds for the store: after Ctrl-C in an outage nobody waits for all retries.

        Without this last record, the run counts as dead on this host when its process is gone, and on other hosts after 90 s.
        """
        if not isinstance(error, KeyboardInterrupt):
            self.log("the run stopped", error=f"{type(error).__name__}: {error}")

        def publish() -> None:
            self._thread.join()
            with contextlib.suppress(TransientStorageError):  # show only the first error
                self._publish()

        last = threading.Thread(target=publish, daemon=True, name="heartbeat-end")
        last.start()
        last.join(LEAVE_SECONDS)

    def log(self, message: str, **details: Any) -> None:
        """Add a line to the run's JSONL log. The next beat writes the line."""
        self._log.add(message, **details)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._publish()
            except TransientStorageError as error:
                self.log("a heartbeat could not be written", error=str(error))

    def _publish(self) -> None:
        self.record.updated_seconds = round(time.time(), 3)
        self.record.counters = self._counters()
        self._log.flush()
        self._store.write(f"runs/{self.record.uuid}.json", seal({"format_version": FORMAT_VERSION, **asdict(self.record)}))
