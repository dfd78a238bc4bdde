"""All cores of this machine: one process per worker, one BLAS thread each.

A worker that dies or hangs is replaced and its shard tried again; a shard that kills its worker three times is searched by bisection
for the guilty input, which is then quarantined.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipeline.config import RunConfig
from pipeline.errors import TokenshardsError
from pipeline.runners.base import JobSpec, RunListener, ShardSummary

__all__ = ["LocalRunner"]

_ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
}
# glibc gives each picture's buffers back to the system and faults them in again, 4 % of the time; other C libraries ignore these.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
_TICK_SECONDS = 0.2
_STARTUP_DEATHS = 3


@dataclass(slots=True)
class _Search:
    """Bisection: the input that kills workers is in [start, stop)."""

    sample_ids: list[str] = field(default_factory=list)
    start: int = 0
    stop: int = 0
    probed_stop: int = 0


@dataclass(slots=True)
class _Task:
    shard: int
    attempt: int = 1
    failures: int = 0
    deaths: int = 0
    not_before: float = 0.0
    killers: set[str] = field(default_factory=set)
    search: _Search | None = None

    def command(self) -> dict[str, Any]:
        """Return the next thing a worker must do for this shard."""
        base = {"shard": self.shard, "attempt": self.attempt, "killers": sorted(self.killers)}
        search = self.search
        if search is None:
            return {"op": "run", **base}
        if not search.sample_ids:
            return {"op": "list", **base}
        search.probed_stop = (search.start + search.stop + 1) // 2 if search.stop - search.start > 1 else search.stop
        return {"op": "probe", "start": search.start, "stop": search.probed_stop, **base}


class _Worker:
    def __init__(self, job_line: bytes) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.runners.worker"],  # -P: a `pipeline` folder of the user stays out
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**_KEEP_MEMORY, **os.environ, **_ONE_THREAD, "PYTHONPATH": path},
        )
        self.task: _Task | None = None
        self.ready = False
        self.last_report = time.monotonic()
        self._partial = b""
        self.send(job_line)

    @property
    def output(self) -> IO[bytes]:
        stdout = self.process.stdout
        if stdout is None:
            raise RuntimeError("a worker was started without a pipe")
        return stdout

    def send(self, line: bytes) -> None:
        stdin = self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # its death is seen at the end of its output
            if stdin is not None:
                stdin.write(line + b"\n")
                stdin.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages that have arrived, None at the end of the worker."""
        data = os.read(self.output.fileno(), 1 << 20)
        if not data:
            return None
        self.last_report = time.monotonic()
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def last_words(self) -> str:
        """Return the end of what the worker wrote to stderr."""
        self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, self.errors.tell() - 2000))
        return self.errors.read().decode("utf-8", "replace").strip()

    def stop(self) -> None:
        """Kill the process and release its pipes."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()


class LocalRunner:
    """Runs shards in `config.workers` processes of this machine."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        """Return the shards that stay uncommitted, each with the last error."""
        return _LocalRun(self._config, job, shards, listener).run()


class _LocalRun:
    def __init__(self, config: RunConfig, job: JobSpec, shards: Sequence[int], listener: RunListener) -> None:
        self._config = config
        self._job_line = json.dumps(job.to_json()).encode()
        self._listener = listener
        self._queue = deque(_Task(shard) for shard in shards)
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._failed: dict[int, str] = {}
        self._startup_deaths = 0

    def run(self) -> dict[int, str]:
        try:
            while self._queue or any(worker.task for worker in self._workers):
                self._hire()
                self._assign()
                for key, _ in self._selector.select(_TICK_SECONDS):
                    self._hear(key.data)
                self._watch()
                self._listener.tick()
        finally:
            for worker in self._workers:
                worker.stop()
            self._selector.close()
        return self._failed

    def _hire(self) -> None:
        busy = sum(worker.task is not None for worker in self._workers)
        wanted = min(self._config.workers, busy + len(self._queue))
        while len(self._workers) < wanted:
            worker = _Worker(self._job_line)
            self._workers.append(worker)
            self._selector.register(worker.output, selectors.EVENT_READ, worker)

    def _assign(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.ready or worker.task is not None:
                continue
            task = next((task for task in self._queue if task.not_before <= now), None)
            if task is None:
                return
            self._queue.remove(task)
            self._command(worker, task)

    def _command(self, worker: _Worker, task: _Task) -> None:
        worker.task, worker.last_report = task, time.monotonic()
        command = task.command()
        if command["op"] == "run":
            self._listener.started(task.shard)
        worker.send(json.dumps(command).encode())

    def _hear(self, worker: _Worker) -> None:
        messages = worker.receive()
        if messages is None:
            self._bury(worker, "died")
            return
        for message in messages:
            self._handle(worker, message)

    def _handle(self, worker: _Worker, message: dict[str, Any]) -> None:
        task = worker.task
        if message["event"] == "ready":
            worker.ready, self._startup_deaths = True, 0
        elif message["event"] == "broken":
            raise TokenshardsError(message["message"])
        elif task is None:
            raise RuntimeError(f"a worker without a task reported {message['event']}")
        elif message["event"] == "progress":
            self._listener.progressed(task.shard, message["inputs"], message["bytes_in"], message["quarantined"])
        elif message["event"] == "alive":
            return  # a probe works; `receive` has noted the time
        elif message["event"] == "done":
            worker.task = None
            self._listener.committed(task.shard, ShardSummary(**message["summary"]))
        elif message["event"] == "failed":
            worker.task = None
            self._retry(task, message["kind"], message["message"])
        elif message["event"] == "listed":
            ids = message["sample_ids"]
            task.search = _Search(sample_ids=ids, stop=len(ids)) if ids else None
            self._command(worker, task)
        elif message["event"] == "survived":
            self._narrow(task, survived=True)
            worker.task = None
            if not self._gave_up(task):
                self._command(worker, task)

    def _retry(self, task: _Task, kind: str, message: str) -> None:
        task.failures += 1
        if kind == "fatal" or task.failures >= self._config.shard_attempts:
            self._listener.noted(f"shard {task.shard} is left uncommitted: {message}", shard=task.shard)
            self._failed[task.shard] = message
            return
        task.attempt += 1
        delay = min(self._config.retry.max_delay_seconds, self._config.retry.first_delay_seconds * 2**task.failures)
        task.not_before = time.monotonic() + delay
        self._listener.noted(f"shard {task.shard} failed and is tried again in {delay:.0f} s: {message}", shard=task.shard)
        self._queue.append(task)

    def _watch(self) -> None:
        limit = self._config.stall_timeout_seconds
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.task is not None and now - worker.last_report > limit:
                self._bury(worker, f"reported nothing for {limit:.0f} s and was killed")

    def _bury(self, worker: _Worker, how: str) -> None:
        self._selector.unregister(worker.output)
        self._workers.remove(worker)
        words = worker.last_words()
        worker.stop()
        code = worker.process.returncode
        task = worker.task
        if task is None:
            self._startup_deaths += not worker.ready
            if self._startup_deaths >= _STARTUP_DEATHS:
                raise TokenshardsError(f"workers cannot start (exit code {code}); the last one said:\n{words or '(nothing)'}")
            return
        self._listener.noted(f"a worker {how} on shard {task.shard} (exit code {code})", shard=task.shard, stderr=words)
        task.attempt += 1
        if task.search is not None:
            self._narrow(task, survived=False)
        else:
            task.deaths += 1
            if task.deaths >= self._config.worker_deaths:
                self._listener.noted(f"shard {task.shard} killed {task.deaths} workers: searching for the guilty input", shard=task.shard)
                task.search = _Search()
        if not self._gave_up(task):
            self._queue.appendleft(task)

    def _gave_up(self, task: _Task) -> bool:
        if task.failures < self._config.shard_attempts:
            return False
        self._failed[task.shard] = f"its workers keep dying, and no single input is guilty ({task.failures} searches)"
        self._listener.noted(f"shard {task.shard} is left uncommitted: {self._failed[task.shard]}", shard=task.shard)
        return True

    def _narrow(self, task: _Task, *, survived: bool) -> None:
        search = task.search
        if search is None or not search.sample_ids:  # died while only listing: nothing learnt
            task.search = None
            task.deaths = 0
            task.failures += 1
        elif not survived and search.probed_stop - search.start == 1:
            guilty = search.sample_ids[search.start]
            self._listener.noted(f"{guilty} kills its worker and is quarantined", shard=task.shard, sample_id=guilty)
            task.killers.add(guilty)
            task.search, task.deaths = None, 0
        elif not survived:
            search.stop = search.probed_stop
        elif search.probed_stop == search.stop:  # not reproduced: no single input is guilty
            task.search, task.deaths = None, 0
            task.failures += 1
        else:
            search.start = search.probed_stop
