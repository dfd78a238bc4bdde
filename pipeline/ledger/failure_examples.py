"""One example of each quarantine reason, for a run that --max-bad stops before a shard is committed.

The search runs in its own process, because an input may be poison and kill the process that decodes it. The process is started with
`python -m`, gets job and shards as JSON on stdin, and prints one JSON line per reason.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from itertools import islice

from tokenshards.pipeline.code_identity import own_module
from tokenshards.pipeline.errors import FormatError, MissingObjectError, TransientStorageError
from tokenshards.pipeline.job.context import open_inputs
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.job.shard_job import shard_batches
from tokenshards.pipeline.shards.writer import read_quarantine
from tokenshards.pipeline.storage.store import Store

__all__ = ["failure_examples"]

LOOK_SECONDS = 30.0
MOST_SHARDS = 4
MOST_INPUTS = 1024
"""Most inputs to try per shard."""


def failure_examples(store: Store, job: JobSpec | None, shards: list[int]) -> list[str]:
    """Return one line per reason, from quarantine objects and from inputs of shards in flight, as far as these can be read."""
    found: dict[str, str] = {}
    with contextlib.suppress(FormatError, MissingObjectError, TransientStorageError):
        for info in islice(store.list("quarantine"), MOST_SHARDS):
            for row in read_quarantine(store.read(info.path), info.path):
                found.setdefault(row["reason"], _line(row))
    if shards and job is not None:
        request = json.dumps({"job": job.to_json(), "shards": shards[:MOST_SHARDS]}).encode()
        command, environment = own_module("tokenshards.pipeline.ledger.failure_examples")
        try:
            printed = subprocess.run(command, env=environment, input=request, capture_output=True, timeout=LOOK_SECONDS, check=False).stdout
        except subprocess.TimeoutExpired as error:
            printed = error.stdout or b""
        for line in printed.splitlines(keepends=True):
            if line.endswith(b"\n"):  # a line without an end was cut off by the time limit
                row = json.loads(line)
                found.setdefault(row["reason"], _line(row))
    return [found[reason] for reason in sorted(found)]


def _line(row: dict[str, str]) -> str:
    return f"  {row['reason']}: {row['sample_id']} ({row['detail'][:200]})"


def main() -> None:
    """Print the first failed input of each reason."""
    request = json.load(sys.stdin)
    context = open_inputs(JobSpec.from_json(request["job"]))
    seen: set[str] = set()
    for shard in request["shards"]:
        inputs = 0
        for batch in shard_batches(context, shard):
            for row in batch.failed:
                if row["reason"] not in seen:
                    seen.add(row["reason"])
                    print(json.dumps({name: row.get(name) or "" for name in ("sample_id", "reason", "detail")}), flush=True)
            inputs += batch.inputs
            if inputs >= MOST_INPUTS:
                break


if __name__ == "__main__":
    main()
