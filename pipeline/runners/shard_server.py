"""Serve the commands of a worker, in every runner. Commands and replies are plain JSON. Nothing is pickled.

A reply fits in a kilobyte for every shard: it holds counts or the name of one input, never lists. A name is sent whole, because we find the
input by its name. Names in S3 are themselves at most a kilobyte.
"""

from __future__ import annotations

import itertools
import json
import traceback
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from tokenshards.pipeline.activity import SHARD, doing
from tokenshards.pipeline.errors import DiskFullError, TokenshardsError, TransientStorageError, UnreadableObjectError
from tokenshards.pipeline.job.batches import DecodedBatch
from tokenshards.pipeline.job.context import open_context
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary
from tokenshards.pipeline.job.shard_job import JobContext, ShardProgress, encode_blank, list_sample_ids, probe_shard, tokenize_shard

__all__ = ["ShardServer"]

MAX_MESSAGE_BYTES = 900
"""Limit on the escaped JSON text. A non-ASCII character takes 6 or 12 bytes."""

MAX_NAME = 200
"""Limit on the characters of the name of an example object."""

Batches = Callable[[int, frozenset[str]], Generator[DecodedBatch]]


class ShardServer:
    """Opens a job once and serves commands. Several threads may call `serve`; they take turns at the tokenizer."""

    def __init__(self, job: JobSpec, *, decode_threads: int = 0) -> None:
        pa.set_cpu_count(max(1, decode_threads))
        self.context: JobContext = open_context(job, decode_threads=decode_threads)

    def serve(
        self, command: dict[str, Any], on_progress: Callable[[ShardProgress], None], batches: Batches | None = None
    ) -> dict[str, Any]:
        """Do a command of `ShardTask.command` and return the event. `batches` decodes elsewhere. Every failure is an event."""
        try:
            with doing(SHARD, str(command["shard"])):
                return self._serve(command, on_progress, batches)
        except DiskFullError as error:
            return _failure("disk_full", str(error))
        except UnreadableObjectError as error:
            objects = {"count": len(error.objects), "examples": [name[:MAX_NAME] for name in error.objects[:2]]}
            return {**_failure("unreadable", str(error)[:MAX_NAME]), "unreadable": objects}
        except (TransientStorageError, MemoryError) as error:
            return _failure("transient", f"{type(error).__name__}: {error}")
        except TokenshardsError as error:
            return _failure("fatal", str(error))
        except Exception as error:
            traceback.print_exc()
            return _failure("transient", f"{type(error).__name__}: {error}")

    def _serve(self, command: dict[str, Any], on_progress: Callable[[ShardProgress], None], batches: Batches | None) -> dict[str, Any]:
        shard, killers = int(command["shard"]), frozenset(command["killers"])
        match command["op"]:
            case "run":
                decoded = None if batches is None else batches(shard, killers)
                commit = tokenize_shard(
                    self.context, shard, attempt=command["attempt"], killers=killers, on_progress=on_progress, batches=decoded
                )
                event: dict[str, Any] = {"event": "done", "summary": asdict(ShardSummary.of(commit))}
                if commit.made_by.get("run") != self.context.run_uuid:  # another driver made this commit
                    return {**event, "by_another": True}
                notes = commit.made_by.get("notes")
                return {**event, "notes": notes} if notes else event
            case "count":
                return {"event": "counted", "inputs": sum(1 for _ in list_sample_ids(self.context, shard, killers))}
            case "find":
                places = (
                    index for index, found in enumerate(list_sample_ids(self.context, shard, killers)) if found == command["sample_id"]
                )
                return {"event": "found", "index": next(places, None)}
            case "name":
                ids = list_sample_ids(self.context, shard, killers)
                return {"event": "named", "sample_id": next(itertools.islice(ids, int(command["index"]), None), None)}
            case "probe":
                probe_shard(self.context, shard, command["start"], command["stop"], killers)
                return {"event": "survived"}
            case "control":
                encode_blank(self.context)
                return {"event": "survived"}
        raise ValueError(f"unknown command {command['op']!r}")


def _failure(kind: str, message: str) -> dict[str, Any]:
    sizes = itertools.accumulate(len(json.dumps(letter)) - 2 for letter in message[:MAX_MESSAGE_BYTES])
    kept = sum(size <= MAX_MESSAGE_BYTES for size in sizes)
    return {"event": "failed", "kind": kind, "message": message if kept == len(message) else f"{message[:kept]}…"}
