"""One example of each reason for which inputs fail, for a run that stops by --max-bad before a shard was committed.

A process of its own looks, because an image that kills whoever decodes it may be among the inputs. It is run as `python -m`, with the job
and the shards as JSON on stdin, and prints a JSON line for each reason that it meets.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from itertools import islice

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
"""Of each shard."""


def failure_examples(store: Store, job: JobSpec | None, shards: list[int]) -> list[str]:
    """Return a line for each reason, from what is in quarantine and from the inputs of shards in work, as far as both can be read."""
    found: dict[str, str] = {}
    with contextlib.suppress(FormatError, MissingObjectError, TransientStorageError):
        for info in islice(store.list("quarantine"), MOST_SHARDS):
            for row in read_quarantine(store.read(info.path), info.path):
                found.setdefault(row["reason"], _line(row))
    if shards and job is not None:
        request = json.dumps({"job": job.to_json(), "shards": shards[:MOST_SHARDS]}).encode()
        command = [sys.executable, "-m", __name__]
        try:
            printed = subprocess.run(command, input=request, capture_output=True, timeout=LOOK_SECONDS, check=False).stdout
        except subprocess.TimeoutExpired as error:
            printed = error.stdout or b""
        for line in printed.splitlines(keepends=True):
            if line.endswith(b"\n"):  # else it was being written when the time was up
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
