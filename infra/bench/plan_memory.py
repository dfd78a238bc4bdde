"""Does planning stay in bounded memory? Peak memory of the main process for 1,000 and for 1,000,000 listed inputs.

    python infra/bench/plan_memory.py

The listing is generated: rows of about 60 characters of path, with class labels, sizes and versions, as a bucket of photographs would give
them. Each size runs in a fresh process through what `tokenize` does with a listing: sample for the fit, spool, partition, and publish
the plan to a folder. The last line is one JSON object; `ratio` is the growth of the peak over the limit of 50 MB and should be below 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 50_000_000
SAMPLE = 20_000
CHILD = "--child"


def plan_once(count: int) -> None:
    """Plan `count` generated inputs in this process; print peak bytes, and the seconds of listing and of planning."""
    from pipeline.config import PlanConfig
    from pipeline.plan import load_plan
    from pipeline.planning import Listing, PlanRequest, write_plan
    from pipeline.records import PlanRow
    from pipeline.storage import Store

    def rows() -> Iterator[PlanRow]:
        for index in range(count):
            noise = hashlib.md5(index.to_bytes(8, "big"), usedforsecurity=False).hexdigest()
            folder = f"n{index % 1000:08d}"
            path = f"train/{folder}/{folder}_{index:08d}_{noise[:24]}.JPEG"
            size = 40_000 + int(noise[:4], 16)
            yield PlanRow(kind="file", sample_id=path, path=path, size=size, version=noise, inputs=1, label=folder)

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        start = time.perf_counter()
        with Listing(rows(), order_seed=0, keep_order=False, sample=SAMPLE, sample_seed=0) as listing:
            listed = time.perf_counter()
            request = PlanRequest(
                fingerprint="0" * 64, config=PlanConfig(), source={}, tokenizer_objects={}, tokenizer_json="{}", label_type="string"
            )
            write_plan(store, listing, request, 1)
            planned = time.perf_counter()
        plan = load_plan(store)
        assert plan is not None and plan.images_planned == sum(part.rows for part in plan.parts) == count, plan
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"peak_bytes": peak, "list_seconds": listed - start, "plan_seconds": planned - listed}))


def in_fresh_process(count: int) -> dict[str, float]:
    command = [sys.executable, __file__, CHILD, str(count)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"{count:>9,} inputs: peak {found['peak_bytes'] / 1e6:.1f} MB; "
        f"listed in {found['list_seconds']:.2f} s, planned in {found['plan_seconds']:.2f} s",
        flush=True,
    )
    return found


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        plan_once(int(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each size; the largest growth counts")
    options = parser.parse_args()
    few = [in_fresh_process(options.few) for _ in range(options.repeats)]
    many = [in_fresh_process(options.many) for _ in range(options.repeats)]
    growth = max(run["peak_bytes"] for run in many) - min(run["peak_bytes"] for run in few)
    seconds = min(run["list_seconds"] + run["plan_seconds"] for run in many)
    result = {
        "name": "plan_memory",
        "ratio": round(growth / LIMIT_BYTES, 3),
        "limit": 1,
        "growth_bytes": growth,
        "limit_bytes": LIMIT_BYTES,
        "inputs": [options.few, options.many],
        "peak_bytes": [[run["peak_bytes"] for run in runs] for runs in (few, many)],
        "sample": SAMPLE,
        "seconds_per_million": round(seconds / options.many * 1e6, 2),
        "runs": {"few": few, "many": many},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
