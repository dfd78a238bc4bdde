"""What does a shard cost the driver of a Ray run? CPU and retained memory per shard over 100,000 shards.

    python infra/bench/driver_scale.py

The driver is the real one: RayRunner, its queue, and the listener of `tokenize`. The 8 actor processes of one local cluster, each with 25
shards in flight, are real too, except that a shard is a short sleep. CPU is that of the whole driver process with all its threads, Ray's
included. Memory is what the process still holds after a garbage collection. Both are measured between two moments with equally many shards
in flight, so that start-up cancels: when the first --warm-up shards are committed, and shortly before the end. Bars: 1 ms and 1 KB per
shard; `ratio` is the worse of the two over its bar and should be at most 1. Afterwards the same process makes bare calls to such actors,
with as few instructions as possible; `floor_cpu_milliseconds` is the cost of one call, which is Ray's own part. --sleep-milliseconds sets
the pace: slow shards reach the driver one by one; a busy driver receives several at once.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import resource
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import ray  # noqa: E402
from survey_scale import SHARD_ROWS, made_plan  # noqa: E402

from tokenshards.pipeline.config import RayConfig, RetryConfig, RunConfig, SourceConfig  # noqa: E402
from tokenshards.pipeline.conversion.request import TokenizeRequest  # noqa: E402
from tokenshards.pipeline.conversion.resume import PlanRun  # noqa: E402
from tokenshards.pipeline.job.job_spec import JobSpec, ShardSummary  # noqa: E402
from tokenshards.pipeline.reports.terminal import TerminalReporter  # noqa: E402
from tokenshards.pipeline.runners.ray_actor import ShardActor  # noqa: E402
from tokenshards.pipeline.runners.ray_driver import RayRunner  # noqa: E402
from tokenshards.pipeline.storage.store import Store  # noqa: E402

CPU_BAR_SECONDS = 1e-3
MEMORY_BAR_BYTES = 1024
SAMPLES = 10


class SleepingServer:
    """Stands in for ShardServer: a shard takes `seconds` on average, give or take half, and reports once in between."""

    def __init__(self, job: JobSpec, seconds: float) -> None:
        self.context = SimpleNamespace(out=Store(job.out_url))
        self._seconds = seconds

    def serve(self, command: dict[str, Any], on_progress: Callable[[Any], None], batches: object = None) -> dict[str, Any]:
        seconds = self._seconds * random.uniform(0.5, 1.5)
        time.sleep(seconds / 2)
        on_progress(SimpleNamespace(inputs=SHARD_ROWS // 2, bytes_in=SHARD_ROWS * 55_000, quarantined=0))
        time.sleep(seconds / 2)
        stages = {"fetch": 1.2345, "decode": 40.1234, "encode": 20.4321, "write": round(seconds, 4)}
        summary = {"rows": SHARD_ROWS, "quarantined": 0, "inputs_seen": SHARD_ROWS, "bytes_in": SHARD_ROWS * 110_000, "seconds": stages}
        return {"event": "done", "summary": summary}


class SleepingActor(ShardActor):
    def _open_server(self, job: JobSpec) -> Any:
        return SleepingServer(job, float(os.environ["DRIVER_SCALE_SECONDS"]))


class MeasuredRun(PlanRun):
    """The listener of `tokenize`, which also takes a mark at some counts of committed shards."""

    def mark_at(self, counts: list[int]) -> None:
        self._counts = deque(counts)
        self.marks: list[dict[str, float]] = []

    def committed(self, shard: int, summary: ShardSummary) -> None:
        super().committed(shard, summary)
        if self._counts and self.tally.shards == self._counts[0]:
            self.marks.append({"shards": self._counts.popleft(), **mark()})


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def mark() -> dict[str, float]:
    """Return what the process has used and holds. The cost of the mark itself is not counted, because CPU is read first."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory that glibc keeps for later does not count as retained
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    traced = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0
    return {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "resident_bytes": resident,
        "traced_bytes": traced,
        "own_cpu_seconds": cpu_seconds() - cpu,
    }


def run_shards(out: Path, shards: int, warm_up: int, cluster: RayConfig, *, quiet: bool) -> list[dict[str, float]]:
    """Run warm-up, shards and some more through the real runner; return the marks, the first at the end of the warm-up."""
    every = warm_up + shards + 4 * (cluster.max_actors or 1) * cluster.shards_in_flight
    store, plan = Store(str(out)), made_plan(every)
    config = RunConfig(workers=1)
    request = TokenizeRequest(source_url="made", out_url=str(out), run=config)
    listener = MeasuredRun(store, plan, request, RayRunner(config, cluster), TerminalReporter(quiet=quiet))
    listener.mark_at([warm_up + shards * part // SAMPLES for part in range(SAMPLES + 1)])
    job = JobSpec(
        out_url=str(out),
        out_options={},
        source_url=str(out),
        source_config=SourceConfig(),
        plan_id=plan.plan_id,
        retry=RetryConfig(),
        run_uuid="driver-scale",
    )
    failed = RayRunner(config, cluster, actor_class=SleepingActor).run(job, list(range(every)), listener)
    assert not failed and listener.tally.shards == every, (failed, listener.tally.shards)
    return listener.marks


def bare_calls(out: Path, calls: int, cluster: RayConfig) -> float:
    """Return the CPU milliseconds of one call with the same arguments to the same kind of actor, without any other work."""
    job = JobSpec(
        out_url=str(out),
        out_options={},
        source_url=str(out),
        source_config=SourceConfig(),
        plan_id="",
        retry=RetryConfig(),
        run_uuid="driver-scale-bare",
    )
    options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": cluster.shards_in_flight}
    kind = ray.remote(**options, concurrency_groups={"control": 2})(SleepingActor)
    actors = [kind.remote(f"bare{index}", json.dumps(job.to_json()), 0) for index in range(cluster.max_actors or 1)]
    ray.get([actor.open.remote() for actor in actors])
    command = json.dumps({"op": "run", "shard": 123456, "attempt": 1, "killers": []})
    flying: deque[Any] = deque()

    def call(count: int) -> float:
        before = cpu_seconds()
        for index in range(count):
            if len(flying) == len(actors) * cluster.shards_in_flight:
                ray.get(flying.popleft())
            # concurrent calls of an actor must be for different shards, because the actor counts them by number
            flying.append(actors[index % len(actors)].serve.remote(command.replace("123456", str(index)), 0))
        while flying:
            ray.get(flying.popleft())
        return cpu_seconds() - before

    call(min(calls, 2000))
    spent = call(calls) / calls
    for actor in actors:
        ray.kill(actor)
    return round(1e3 * spent, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--warm-up", type=int, default=10_000)
    parser.add_argument("--actors", type=int, default=8)
    parser.add_argument("--in-flight", type=int, default=25, help="shards of one actor at once")
    parser.add_argument("--sleep-milliseconds", type=float, default=20.0, help="length of a shard on average")
    parser.add_argument("--traced-shards", type=int, default=5_000, help="shards of a second run with tracemalloc; 0 leaves it out")
    parser.add_argument("--bare-calls", type=int, default=10_000, help="calls of the floor; 0 leaves it out")
    parser.add_argument("--verbose", action="store_true", help="let the driver report as `tokenize` does, on stderr")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["DRIVER_SCALE_SECONDS"] = str(options.sleep_milliseconds / 1e3)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    cluster = RayConfig(max_actors=options.actors, shards_in_flight=options.in_flight)
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="driver-scale-") as folder:
        ray.init(
            num_cpus=options.actors,
            include_dashboard=False,
            object_store_memory=200 << 20,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=tempfile.mkdtemp(prefix="ray", dir=folder),
        )
        try:
            quiet = not options.verbose
            marks = run_shards(Path(folder) / "out", options.shards, options.warm_up, cluster, quiet=quiet)
            floor = bare_calls(Path(folder) / "out", options.bare_calls, cluster) if options.bare_calls else None
            traced = None
            if options.traced_shards:
                tracemalloc.start()
                traced = run_shards(Path(folder) / "out", options.traced_shards, 1000, cluster, quiet=quiet)
                tracemalloc.stop()
        finally:
            ray.shutdown()
    first, last = marks[0], marks[-1]
    own = sum(taken["own_cpu_seconds"] for taken in marks[:-1])
    cpu = (last["cpu_seconds"] - first["cpu_seconds"] - own) / options.shards
    memory = (last["resident_bytes"] - first["resident_bytes"]) / options.shards
    late = marks[SAMPLES // 2]
    python_bytes = round((traced[-1]["traced_bytes"] - traced[0]["traced_bytes"]) / options.traced_shards, 1) if traced else None
    result = {
        "name": "driver_scale",
        "ratio": round(max(cpu / CPU_BAR_SECONDS, memory / MEMORY_BAR_BYTES), 3),
        "limit": 1,
        "shards": options.shards,
        "cpu_milliseconds_per_shard": round(1e3 * cpu, 4),
        "floor_cpu_milliseconds": floor,
        "retained_bytes_per_shard": round(memory, 1),
        "retained_bytes_per_shard_second_half": round(2 * (last["resident_bytes"] - late["resident_bytes"]) / options.shards, 1),
        "python_bytes_per_shard": python_bytes,
        "shards_per_second": round(options.shards / (last["wall_seconds"] - first["wall_seconds"]), 1),
        "actors": options.actors,
        "in_flight": options.in_flight,
        "sleep_milliseconds": options.sleep_milliseconds,
        "load_average_before": [round(value, 2) for value in load],
        "cpu_count": os.cpu_count(),
        "resident_megabytes": [round(taken["resident_bytes"] / 1e6, 2) for taken in marks],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
