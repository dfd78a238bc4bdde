"""Run shards in worker processes of this machine. Each has one BLAS thread; networks get an equal share of the cores or a GPU.

This module handles only processes and pipes. The supervisor decides what a worker's messages, silence and death mean.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

from tokenshards.pipeline.code_identity import own_module
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.errors import TokenshardsError
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.runners.deadlines import Verdict
from tokenshards.pipeline.runners.local_devices import VISIBLE_DEVICES, Place, available_cores, choose_places, visible_gpus
from tokenshards.pipeline.runners.pulse import ALIVE
from tokenshards.pipeline.runners.supervisor import TICK_SECONDS, Supervisor, Worker, beat_seconds
from tokenshards.pipeline.words import counted

__all__ = ["LocalRunner"]

_ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
}
# Let waiting threads of torch sleep: beside other busy processes, spinning made small networks many times slower.
_SLEEP_IDLE = {"OMP_WAIT_POLICY": "PASSIVE"}
MOST_BEAT_SECONDS = 1.0
KILL_SECONDS = 10.0
"""A process that waits for a dead disk cannot be killed. The run then goes on without the exit code."""


class _Process(Worker):
    """A worker process and its pipes."""

    def __init__(self, job_line: bytes, place: Place, beat: float) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        command, environment = own_module("tokenshards.pipeline.runners.local_worker")
        pinned = {} if place.gpu is None else {VISIBLE_DEVICES: place.gpu}
        self._process = subprocess.Popen(
            [*command, str(place.torch_threads), str(place.decode_threads), str(beat)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**_SLEEP_IDLE, **environment, **_ONE_THREAD, **pinned},
        )
        super().__init__(name=str(self._process.pid), heard_at=time.monotonic())
        self.place = place
        self._partial = b""
        self.send(job_line)

    @property
    def output(self) -> IO[bytes]:
        stdout = self._process.stdout
        if stdout is None:
            raise RuntimeError("a worker was started without a pipe")
        return stdout

    def send(self, line: bytes) -> None:
        stdin = self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # we notice the worker's death at the end of its output
            if stdin is not None:
                stdin.write(line + b"\n")
                stdin.flush()

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages that have arrived, or None after the worker has ended."""
        data = os.read(self.output.fileno(), 1 << 20)
        if not data:
            return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def last_words(self) -> str:
        """Return the end of the worker's stderr."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 2000))
        return self._errors.read().decode("utf-8", "replace").strip()

    def stop(self) -> int | None:
        """Kill the process, close its pipes and return the exit code, or None if the kernel cannot end the process yet."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()
        return self._process.returncode


class LocalRunner:
    """Runs shards in `config.workers` processes of this machine."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        """Return the shards that stay uncommitted, each with its last error."""
        from tokenshards.pipeline.job.context import uses_gpu  # a slow import that only a run needs

        gpus = visible_gpus()
        places = choose_places(self._config.workers, len(shards), gpus if gpus and uses_gpu(job) else [], available_cores())
        if places[0].gpu is not None:
            shown = f"{counted(len(places), 'worker')} on {counted(len(gpus), 'GPU')}"
            listener.noted(f"{shown}, with {places[0].decode_threads} decoding threads each; --workers asks for another number")
        return _LocalRun(self._config, job, shards, listener, places).run()


class _LocalRun:
    def __init__(self, config: RunConfig, job: JobSpec, shards: Sequence[int], listener: RunListener, places: list[Place]) -> None:
        self._job_line = json.dumps(job.to_json()).encode()
        self._listener = listener
        self._places = places
        self._beat = beat_seconds(config.stall_timeout_seconds, MOST_BEAT_SECONDS)
        self._supervisor: Supervisor[_Process] = Supervisor(shards, config, listener, beat_seconds=self._beat)
        self._selector = selectors.DefaultSelector()

    def run(self) -> dict[int, str]:
        supervisor = self._supervisor
        try:
            while supervisor.unfinished():
                self._hire()
                for worker, task in supervisor.assign():
                    worker.send(json.dumps(task.command()).encode())
                for key, _ in self._selector.select(TICK_SECONDS):
                    self._hear(key.data)
                for worker, verdict in supervisor.hanging():
                    self._bury(worker, verdict)
                self._listener.tick()
        finally:
            for worker in list(supervisor.workers):
                self._drop(worker)
            self._selector.close()
            self._listener.measured(supervisor.usage)
        return supervisor.queue.failed

    def _hire(self) -> None:
        supervisor = self._supervisor
        while len(supervisor.workers) < supervisor.wanted(len(self._places)) and supervisor.may_hire():
            held = [worker.place for worker in supervisor.workers]
            place = min(self._places, key=lambda place: held.count(place) - self._places.count(place))
            worker = _Process(self._job_line, place, self._beat)
            supervisor.workers.append(worker)
            self._selector.register(worker.output, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Process) -> None:
        messages = worker.receive()
        if messages is None:
            self._bury(worker, None)
            return
        for message in messages:
            match message["event"]:
                case "ready":
                    self._supervisor.became_ready(worker)
                case "broken":
                    self._drop(worker)
                    self._supervisor.broken(message)
                    return
                case _ if message["event"] == ALIVE:
                    self._supervisor.heard(worker, message)
                case _:
                    self._supervisor.served(worker, int(message["shard"]), message)

    def _drop(self, worker: _Process) -> int | None:
        self._selector.unregister(worker.output)
        code = worker.stop()
        self._supervisor.removed(worker, decode_threads=worker.place.decode_threads)
        return code

    def _bury(self, worker: _Process, verdict: Verdict | None) -> None:
        """Replace a worker that died, or that hangs by a verdict of the supervisor."""
        words = worker.last_words()
        code = self._drop(worker)
        how = f"{'died' if verdict is None else verdict.describe()} (exit code {'unknown' if code is None else code})"
        if worker.tasks:
            self._supervisor.lost(worker, how, verdict=verdict, stderr=words)
        elif not worker.ready:
            self._supervisor.failed_to_start(
                TokenshardsError(f"workers cannot start: the last one {how}, and said:\n{words or '(nothing)'}")
            )
