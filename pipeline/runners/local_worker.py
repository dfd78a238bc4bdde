"""A worker process of the local runner: JSON lines in on stdin, JSON lines out on stdout, nothing pickled.

Started as `python -m tokenshards.pipeline.runners.local_worker THREADS`, the threads that torch may use where the tokenizer has networks.
The worker dies with its driver: the end of stdin is the driver's end.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tokenshards.pipeline.errors import TokenshardsError, TransientStorageError
from tokenshards.pipeline.malloc import keep_freed_memory

if TYPE_CHECKING:
    from tokenshards.pipeline.job.shard_job import ShardProgress

__all__ = ["main"]


def main() -> None:
    """Serve commands until stdin closes."""
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not reach the driver as a message
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            commands.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()

    def report(event: dict[str, Any]) -> None:
        channel.write(json.dumps(event).encode() + b"\n")

    try:
        serve = _server(commands.get(), report)
    except TokenshardsError as error:
        kind = "transient" if isinstance(error, TransientStorageError) else "fatal"
        report({"event": "broken", "kind": kind, "message": str(error)})
        return
    report({"event": "ready"})
    while True:
        report(serve(commands.get()))


def _server(job_json: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    from tokenshards.pipeline.runners.base import JobSpec
    from tokenshards.pipeline.runners.shard_server import ShardServer

    server = ShardServer(JobSpec.from_json(job_json))
    if (torch := sys.modules.get("torch")) is not None:  # the tokenizer has networks; all else keeps to one thread
        torch.set_num_threads(int(sys.argv[1]))

    def progress(done: ShardProgress) -> None:
        report({"event": "progress", **asdict(done)})

    return lambda command: server.serve(command, progress)


if __name__ == "__main__":
    main()
