"""Watch a submitted job: its status, its log, its end. The watch survives a dashboard that does not answer for a while."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenshards.pipeline.conversion.request import Reporter
from tokenshards.pipeline.errors import ClusterError, ConfigError, TokenshardsError
from tokenshards.pipeline.ledger.heartbeat import live_runs
from tokenshards.pipeline.ledger.progress import RunProgress
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.submit.ray_dashboard import said_by_ray
from tokenshards.pipeline.submit.submission import Submitted

__all__ = ["JobEnd", "watch_job"]

POLL_SECONDS = 1.0
PROGRESS_SECONDS = 10.0
"""How often we read the run record. The record changes every 15 seconds."""
LOST_SECONDS = 90.0
STOPPED_EXIT_CODE = 143
"""Exit code of a process that SIGTERM ended. Ray stops jobs by SIGTERM."""
SHOWN_LINES = 20
_CONTINUES = "Committed shards stay. Submit the same command again: it continues"
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """How a job ended."""

    status: str
    exit_code: int
    seconds: float
    log_end: str
    """The last lines of the log if the job failed, else empty."""
    report: str = ""
    """The report at the end of the log if the job succeeded, else empty."""


def watch_job(
    job: Submitted,
    reporter: Reporter,
    *,
    write_log: Callable[[str], None] | None = None,
    open_out: Callable[[], Store] | None = None,
    lost_seconds: float = LOST_SECONDS,
) -> JobEnd:
    """Wait for the end of a job. `write_log` receives the log as the log grows. `open_out` opens the dataset with the run record.

    Raises ClusterError if the cluster has not answered for `lost_seconds`, or if the cluster itself ended the job. KeyboardInterrupt does
    not stop the job.
    """
    return asyncio.run(_Watch(job, reporter, write_log, open_out, lost_seconds).run())


class _Watch:
    def __init__(
        self,
        job: Submitted,
        reporter: Reporter,
        write_log: Callable[[str], None] | None,
        open_out: Callable[[], Store] | None,
        lost_seconds: float,
    ) -> None:
        self._job = job
        self._reporter = reporter
        self._write_log = write_log
        self._open_out = open_out
        self._told: queue.SimpleQueue[RunProgress | str] = queue.SimpleQueue()
        self._lost_seconds = lost_seconds
        self._written = 0

    async def run(self) -> JobEnd:
        started, status = time.monotonic(), ""
        tail = asyncio.create_task(self._tail()) if self._write_log else None
        if self._open_out is not None:
            threading.Thread(target=self._read_progress, args=(self._open_out,), name="progress", daemon=True).start()
        try:
            while True:
                found = await self._ask()
                self._show_progress()
                if found["status"] != status:
                    status = str(found["status"])
                    self._reporter.say(f"job {self._job.submission_id}: {status.lower()}")
                if status in _ENDED:
                    return await self._end(found, time.monotonic() - started)
                await asyncio.sleep(POLL_SECONDS)
                if tail is not None and tail.done():
                    tail.result()  # raise if the log could not be written, for example into a closed pipe
        finally:
            if tail is not None:
                tail.cancel()
                await asyncio.gather(tail, return_exceptions=True)

    def _read_progress(self, open_out: Callable[[], Store]) -> None:
        """Read the run record in the dataset until this process ends, as `status` does. Runs in a daemon thread."""
        try:
            out = open_out()
            while True:
                if (found := _latest_progress(out)) is not None:
                    self._told.put(found)
                time.sleep(PROGRESS_SECONDS if found is not None else POLL_SECONDS)  # until the run begins, a person waits for a sign
        except TokenshardsError as error:
            self._told.put(
                f"no progress can be shown, because this machine cannot read OUT: {error}\nThe job goes on. "
                "`tokenshards status OUT` shows the progress on a machine that can read OUT, and --tail shows the job's log"
            )

    def _show_progress(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                told = self._told.get_nowait()
                if isinstance(told, RunProgress):
                    self._reporter.advance(told)
                else:
                    self._reporter.say(told)

    async def _ask(self) -> dict[str, Any]:
        """Return what the cluster says about the job. Ask again while the cluster does not answer."""
        job, lost_since = self._job, None
        while True:
            try:
                found = await asyncio.to_thread(job.dashboard.job, job.submission_id)
            except ClusterError as error:
                now = time.monotonic()
                if lost_since is None:
                    lost_since = now
                    self._reporter.say(f"the cluster does not answer; asking again for {self._lost_seconds:.0f} s")
                if now - lost_since >= self._lost_seconds:
                    raise ClusterError(
                        f"the cluster was lost while job {job.submission_id} ran: {error}. {_CONTINUES}, to this cluster or another"
                    ) from None
                await asyncio.sleep(POLL_SECONDS)
                continue
            if found is None:
                raise ClusterError(
                    f"the cluster at {job.dashboard.address} no longer knows job {job.submission_id}, because its head is new. {_CONTINUES}"
                )
            return found

    async def _tail(self) -> None:
        """Pass the log on. After a lost connection the log comes from the start again, and we skip the part that we have written."""
        while True:
            skip = self._written
            texts = self._job.client.tail_job_logs(self._job.submission_id)
            while (text := await _next_text(texts)) is not None:
                self._write(text[skip:])
                skip = max(0, skip - len(text))
            await asyncio.sleep(POLL_SECONDS)

    def _write(self, text: str) -> None:
        if self._write_log is not None and text:
            self._written += len(text)
            self._write_log(text)

    async def _end(self, found: dict[str, Any], seconds: float) -> JobEnd:
        job, status, code = self._job, str(found["status"]), found.get("driver_exit_code")
        log = ""
        with contextlib.suppress(ClusterError, ConfigError):  # the log is lost with its node, but we still know how the job ended
            log = await asyncio.to_thread(job.dashboard.log, job.submission_id)
        self._write(log[self._written :])
        if status == "FAILED" and code is None:
            raise ClusterError(f"the cluster ended job {job.submission_id}: {_reason(str(found.get('message') or 'no reason given'))}")
        if status == "STOPPED":
            code = STOPPED_EXIT_CODE
        code = int(code or 0)
        return JobEnd(
            status=status.lower(),
            exit_code=code if code >= 0 else 128 - code,
            seconds=seconds,
            log_end="\n".join(log.splitlines()[-SHOWN_LINES:]) if status == "FAILED" else "",
            report=_report(log) if status == "SUCCEEDED" else "",
        )


def _report(log: str) -> str:
    """Return the last table of the log, from its title `OUT: complete` on."""
    lines = log.splitlines()
    titles = [number for number, line in enumerate(lines) if line.endswith((": complete", ": already complete"))]
    return "\n".join(lines[titles[-1] :]) if titles else ""


def _latest_progress(out: Store) -> RunProgress | None:
    runs = [record for record in live_runs(out) if record.counters]
    return max(runs, key=lambda record: record.updated_seconds).progress if runs else None


def _reason(message: str) -> str:
    """Return why a job never ran or lost its node, without Ray's tracebacks, and what to do."""
    said = said_by_ray(message)
    if "runtime_env" in message:
        return f"{said}. Nothing ran; with --install-dependencies each node needs `pip` and access to a package index"
    return f"{said}. {_CONTINUES}"


async def _next_text(texts: Any) -> str | None:
    """Return the next part of a log, or None at the end or after a lost connection. The job's status tells which of the two."""
    try:
        return str(await anext(texts))
    except Exception:  # RuntimeError of Ray's client, errors of aiohttp, and StopAsyncIteration
        return None
