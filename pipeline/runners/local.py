"""All cores of this machine: one process per worker, one BLAS thread each, and for networks an equal share of the cores.

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
from collections.abc import Sequence
from typing import IO, Any

from tokenshards.pipeline.code_identity import import_root
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.errors import TokenshardsError, TransientStorageError
from tokenshards.pipeline.runners.base import JobSpec, RunListener, ShardSummary
from tokenshards.pipeline.runners.shard_queue import ShardQueue, ShardTask
from tokenshards.pipeline.runners.stage_usage import RunUsage

__all__ = ["LocalRunner"]

_ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
}
# Threads of torch that wait sleep: beside other busy processes, spinning made small networks many times slower.
_SLEEP_IDLE = {"OMP_WAIT_POLICY": "PASSIVE"}
_TICK_SECONDS = 0.2
_STARTUP_DEATHS = 3


class _Worker:
    def __init__(self, job_line: bytes, torch_threads: int) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        package_root = str(import_root())
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            # -P: a `tokenshards` folder of the user stays out
            [sys.executable, "-P", "-m", "tokenshards.pipeline.runners.local_worker", str(torch_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**_SLEEP_IDLE, **os.environ, **_ONE_THREAD, "PYTHONPATH": path},
        )
        self.task: ShardTask | None = None
        self.ready = False
        self.ready_since = 0.0
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


def available_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        self._queue = ShardQueue(shards, config, listener)
        self._torch_threads = max(1, available_cores() // max(1, min(config.workers, len(shards))))
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._startup_deaths = 0
        self._usage = RunUsage()

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
                self._stop(worker)
            self._selector.close()
            self._listener.measured(self._usage)
        return self._queue.failed

    def _hire(self) -> None:
        busy = sum(worker.task is not None for worker in self._workers)
        wanted = min(self._config.workers, busy + len(self._queue))
        while len(self._workers) < wanted:
            worker = _Worker(self._job_line, self._torch_threads)
            self._workers.append(worker)
            self._selector.register(worker.output, selectors.EVENT_READ, worker)

    def _assign(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if not worker.ready or worker.task is not None:
                continue
            task = self._queue.next_due(now)
            if task is None:
                return
            worker.task, worker.last_report = task, now
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
            worker.ready, worker.ready_since, self._startup_deaths = True, time.monotonic(), 0
        elif message["event"] == "broken":
            raise (TransientStorageError if message["kind"] == "transient" else TokenshardsError)(message["message"])
        elif task is None:
            raise RuntimeError(f"a worker without a task reported {message['event']}")
        elif message["event"] == "progress":
            if task.search is None:  # else a sign of life of a probe; `receive` has noted the time
                self._listener.progressed(task.shard, message["inputs"], message["bytes_in"], message["quarantined"])
        elif message["event"] == "done":
            worker.task = None
            summary = ShardSummary(**message["summary"])
            self._usage.add(summary.seconds)
            self._listener.committed(task.shard, summary)
            for note in message.get("notes", ()):
                self._listener.noted(note, shard=task.shard)
        elif message["event"] == "failed":
            worker.task = None
            self._queue.failed_once(task, message["kind"], message["message"], time.monotonic(), message.get("unreadable"))
        else:
            worker.task = None
            self._queue.answered(task, message)

    def _watch(self) -> None:
        limit = self._config.stall_timeout_seconds
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.task is not None and now - worker.last_report > limit:
                self._bury(worker, f"reported nothing for {limit:.0f} s and was killed")

    def _stop(self, worker: _Worker) -> None:
        worker.stop()
        if worker.ready:
            self._usage.count_worker(time.monotonic() - worker.ready_since)

    def _bury(self, worker: _Worker, how: str) -> None:
        self._selector.unregister(worker.output)
        self._workers.remove(worker)
        words = worker.last_words()
        self._stop(worker)
        code = worker.process.returncode
        task = worker.task
        if task is None:
            self._startup_deaths += not worker.ready
            if self._startup_deaths >= _STARTUP_DEATHS:
                raise TokenshardsError(f"workers cannot start (exit code {code}); the last one said:\n{words or '(nothing)'}")
            return
        self._queue.worker_died(task, f"{how} (exit code {code})", stderr=words)
