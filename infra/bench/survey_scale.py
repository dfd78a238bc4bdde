"""What do 100,000 finished shards cost the driver? CPU seconds and memory per shard of a resume and of the end of a run.

    python infra/bench/survey_scale.py

The dataset is generated: commit records with the histogram and the labels of real ones, and sparse files of the right size in place of the
shards. In a fresh process the real code surveys the dataset twice, as a resumed `tokenize` does before and after its work, closes the
generation, which writes the manifest, and reads the manifest back. Bars for the whole driver: 1 ms of CPU and 1 KB of memory per shard.
Peak memory is judged; memory that stays allocated is shown. `ratio` is the worse of the two over its bar and should be at most 1. The
commits lie under --scratch and are removed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHILD = "--child"
CPU_BAR_SECONDS = 1e-3
MEMORY_BAR_BYTES = 1024
SHARD_ROWS = 10_000
SITES = 1_024
FAILED_EVERY = 10
"""One of so many shards has quarantined inputs."""


def made_plan(shards: int) -> Any:
    """Return the plan of the generated dataset: 10,000 files a shard, the default tokenizer."""
    import numpy as np

    from tokenshards.pipeline.planning.plan import Plan
    from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import PatchKMeans, default_preprocess

    tables = [np.zeros((256, 48), np.float32) for _ in range(2)]
    spec = PatchKMeans(tables, patch=4, preprocess=default_preprocess(128, "pillow")).spec
    return Plan(
        plan_id="ab" * 32,
        fingerprint=spec.fingerprint,
        shard_rows=SHARD_ROWS,
        batch_rows=64,
        codec="default",
        order_seed=0,
        view_policy="one",
        source={"url": "made", "root": "made", "kind": "folder", "options": {}},
        tokenizer_objects={},
        tokenizer_json=json.dumps({"spec": spec.to_json()}),
        label_type="string",
        meta_types={},
        classes=(),
        images_planned=shards * SHARD_ROWS,
        tars_planned=0,
        first_shard=0,
        shards=shards,
        parts=(),
        matched=(),
        card={},
        generation=1,
        earlier_plans=(),
    )


def make_dataset(folder: Path, shards: int, classes: int) -> None:
    """Write the commits, and a sparse file for each object that they name."""
    import numpy as np

    from tokenshards.pipeline.shards.commit import Commit, ObjectRef, commit_path, object_path, pack_counts

    plan = made_plan(shards)
    rng = np.random.default_rng(0)
    histograms = [[pack_counts(rng.multinomial(SHARD_ROWS * SITES, np.full(256, 1 / 256))) for _ in range(2)] for _ in range(16)]
    for name in ("shards", "quarantine", f"commits/{plan.plan_id}"):
        (folder / name).mkdir(parents=True)

    def reference(name: str, shard: int, size: int) -> ObjectRef:
        sha256 = rng.bytes(32).hex()
        path = object_path(name, shard, sha256)
        with (folder / path).open("wb") as file:
            file.truncate(size)
        return ObjectRef(path=path, sha256=sha256, size=size)

    for shard in range(shards):
        failed = 3 if shard % FAILED_EVERY == 0 else 0
        rows = SHARD_ROWS - failed
        counts = rng.multinomial(rows, np.full(classes, 1 / classes)).tolist()
        commit = Commit(
            plan_id=plan.plan_id,
            shard=shard,
            data=reference("shards", shard, 11_000_000 + shard),
            quarantine=reference("quarantine", shard, 20_000 + shard) if failed else None,
            rows=rows,
            quarantined=failed,
            reasons={"truncated": failed} if failed else {},
            inputs_seen=SHARD_ROWS,
            bytes_in=110_000 * rows,
            token_bytes=1_097 * rows,
            id_count=2 * SITES * rows,
            labels=[[f"n{number:08d}", count] for number, count in enumerate(counts) if count],
            histogram=histograms[shard % 16],
            seconds={"fetch": 1.0, "decode": 40.0, "encode": 20.0, "write": 1.0},
            made_by={"tokenshards": "0.1.0", "host": "made", "source": "made/"},
        )
        (folder / commit_path(plan.plan_id, shard)).write_bytes(commit.to_bytes())


def resume_once(folder: Path, shards: int) -> None:
    """Survey twice, close, read the manifest; print CPU seconds and bytes of each step, in this process."""
    from tokenshards.pipeline.ledger.closing import close_generation
    from tokenshards.pipeline.ledger.survey import survey_plan
    from tokenshards.pipeline.storage.store import Store

    plan, store = made_plan(shards), Store(str(folder))
    spec = plan.spec
    unit = 1 if sys.platform == "darwin" else 1024

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def retained() -> int:
        import pyarrow as pa

        gc.collect()
        pa.default_memory_pool().release_unused()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    close_generation(store, made_plan(0), survey_plan(store, made_plan(0), spec), spec, None)  # imports everything that loads lazily
    base_peak, base, steps = peak(), retained(), []
    wall, cpu = time.perf_counter(), time.process_time()

    def step(name: str) -> None:
        nonlocal wall, cpu
        now_wall, now_cpu = time.perf_counter(), time.process_time()
        steps.append(
            {
                "step": name,
                "wall_seconds": round(now_wall - wall, 3),
                "cpu_seconds": round(now_cpu - cpu, 3),
                "peak_bytes_per_shard": round((peak() - base_peak) / shards),
                "retained_bytes_per_shard": round((retained() - base) / shards),
            }
        )
        wall, cpu = time.perf_counter(), time.process_time()

    survey = survey_plan(store, plan, spec)
    assert survey.balanced and not survey.problems, survey.problems[:1]
    step("survey")
    del survey  # as PlanRun does before its work
    survey = survey_plan(store, plan, spec)
    step("survey again")
    manifest = close_generation(store, plan, survey, spec, None)
    step("close")
    assert len(manifest.shards) == shards and manifest.totals["images_committed"] == survey.rows
    print(json.dumps(steps))


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        resume_once(Path(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100, help="labels met in each shard")
    parser.add_argument("--scratch", help="where the dataset is made; the system's temporary folder by default")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="survey-scale-", dir=options.scratch) as folder:
        make_dataset(Path(folder), options.shards, options.classes)
        command = [sys.executable, __file__, CHILD, folder, str(options.shards)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    steps: list[dict[str, Any]] = json.loads(run.stdout)
    cpu = sum(step["cpu_seconds"] for step in steps) / options.shards
    peak = steps[-1]["peak_bytes_per_shard"]
    for step in steps:
        print(step, flush=True)
    result = {
        "name": "survey_scale",
        "ratio": round(max(cpu / CPU_BAR_SECONDS, peak / MEMORY_BAR_BYTES), 3),
        "limit": 1,
        "shards": options.shards,
        "classes": options.classes,
        "cpu_milliseconds_per_shard": round(cpu * 1e3, 4),
        "peak_bytes_per_shard": peak,
        "retained_bytes_per_shard": steps[-1]["retained_bytes_per_shard"],
        "steps": steps,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
