"""A worker process of the local runner. It reads JSON lines from stdin and writes JSON lines to stdout. Nothing is pickled.

The runner starts `python -m tokenshards.pipeline.runners.local_worker TORCH_THREADS DECODE_THREADS BEAT_SECONDS`. The heartbeat begins
before the slow imports. When the driver ends, stdin ends too, and the worker exits.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tokenshards.pipeline.activity import STARTING, doing
from tokenshards.pipeline.errors import TokenshardsError
from tokenshards.pipeline.fault_injection import crash_point
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.malloc import keep_freed_memory
from tokenshards.pipeline.runners.base import broken_event
from tokenshards.pipeline.runners.pulse import Pulse

__all__ = ["main"]


def main() -> None:
    """Serve commands until stdin closes."""
    torch_threads, decode_threads, beat = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # the driver must not read the prints of a library as messages
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    one_at_a_time = threading.Lock()
    pulse = Pulse()

    def listen() -> None:
        for line in sys.stdin.buffer:
            commands.put(json.loads(line))
        os._exit(0)

    def report(event: dict[str, Any]) -> None:
        line = json.dumps(event).encode() + b"\n"
        with one_at_a_time:
            channel.write(line)

    def live() -> None:
        while True:
            report(pulse.message())
            time.sleep(beat)

    for thread in (listen, live):
        threading.Thread(target=thread, daemon=True).start()
    try:
        with doing(STARTING):
            crash_point("starting")
            serve = _server(commands.get(), pulse, torch_threads, decode_threads)
    except TokenshardsError as error:
        report(broken_event(error))
        return
    report({"event": "ready"})
    while True:
        command = commands.get()
        report({**serve(command), "shard": command["shard"]})


def _server(job_json: dict[str, Any], pulse: Pulse, torch_threads: int, decode_threads: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    from tokenshards.pipeline.runners.shard_server import ShardServer

    server = ShardServer(JobSpec.from_json(job_json), decode_threads=decode_threads)
    if (torch := sys.modules.get("torch")) is not None:  # the tokenizer has networks; all other code uses one thread
        torch.set_num_threads(torch_threads)

    def serve(command: dict[str, Any]) -> dict[str, Any]:
        shard = int(command["shard"])
        pulse.begin(shard)
        try:
            return server.serve(command, partial(pulse.add, shard))
        finally:
            pulse.end(shard)

    return serve


if __name__ == "__main__":
    main()
