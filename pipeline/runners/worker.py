"""A worker process of the local runner: JSON lines in on stdin, JSON lines out on stdout, nothing pickled.

Started as `python -m pipeline.runners.worker`. It dies with its driver: the end of stdin is the driver's end.
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
from typing import Any

from pipeline.errors import CorruptObjectError, TokenshardsError, TransientStorageError

__all__ = ["main"]


def main() -> None:
    """Serve commands until stdin closes."""
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not reach the driver as a message
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            commands.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()

    def report(event: str, **fields: Any) -> None:
        channel.write(json.dumps({"event": event, **fields}).encode() + b"\n")

    try:
        serve = _server(commands.get(), report)
    except TokenshardsError as error:
        report("broken", message=str(error))
        return
    report("ready")
    while True:
        command = commands.get()
        try:
            serve(command)
        except (TransientStorageError, MemoryError) as error:
            report("failed", kind="transient", message=f"{type(error).__name__}: {error}")
        except CorruptObjectError as error:
            report("failed", kind="fatal", message=str(error))
        except TokenshardsError as error:
            report("failed", kind="fatal", message=f"{error}")
        except Exception as error:
            import traceback

            traceback.print_exc()
            report("failed", kind="transient", message=f"{type(error).__name__}: {error}")


def _server(job_json: dict[str, Any], report: Callable[..., None]) -> Callable[[dict[str, Any]], None]:
    import pyarrow as pa

    from pipeline.context import open_context
    from pipeline.job import ShardProgress, list_sample_ids, probe_shard, tokenize_shard
    from pipeline.runners.base import JobSpec

    pa.set_cpu_count(1)
    context = open_context(JobSpec.from_json(job_json))

    def progress(done: ShardProgress) -> None:
        report("progress", **asdict(done))

    def serve(command: dict[str, Any]) -> None:
        shard, killers = int(command["shard"]), frozenset(command["killers"])
        match command["op"]:
            case "run":
                commit = tokenize_shard(context, shard, attempt=command["attempt"], killers=killers, on_progress=progress)
                names = ("rows", "quarantined", "inputs_seen", "bytes_in", "seconds")
                report("done", summary={name: getattr(commit, name) for name in names})
            case "list":
                report("listed", sample_ids=list_sample_ids(context, shard, killers))
            case "probe":
                probe_shard(context, shard, command["start"], command["stop"], killers, lambda done: report("alive"))
                report("survived")

    return serve


if __name__ == "__main__":
    main()
