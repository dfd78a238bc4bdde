"""The driver of a Ray run against real actors whose work is a script: what it does about each way that a shard can end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import RayConfig, RetryConfig, RunConfig, SourceConfig
from pipeline.errors import TransientStorageError
from pipeline.job import ShardProgress
from pipeline.runners import ray_jobs
from pipeline.runners.base import JobSpec
from pipeline.runners.ray_actor import ShardActor
from pipeline.runners.ray_cluster import joined_cluster
from pipeline.runners.ray_jobs import RayRunner
from pipeline.storage import Store
from tests.datasets import SilentReporter, content, convert, quarantine_of, write_images
from tests.pipeline.runners.listening import KeptListener
from tests.ray_clusters import RayCluster

# For a busy machine: a cluster is a dozen processes, each of which imports much. Where nothing else runs, 120 s are enough for each.
pytestmark = pytest.mark.timeout(300)

GUILTY = "img_0002.jpg"
SUMMARY = {
    "rows": 4,
    "quarantined": 0,
    "inputs_seen": 4,
    "bytes_in": 40,
    "seconds": dict.fromkeys(("fetch", "decode", "encode", "write"), 0.1),
}


class ScriptedServer:
    """Stands in for ShardServer: what it does with a shard stands in `plan_id`, as JSON; files below OUT tell first times from later."""

    def __init__(self, job: JobSpec) -> None:
        self.context = SimpleNamespace(out=Store(job.out_url))
        self._folder = Path(job.out_url)
        self._script: dict[str, str] = json.loads(job.plan_id)
        if "open" in self._script and not self._first("open"):  # all actors but the first
            time.sleep(0.3)
            raise TransientStorageError("the store is away")

    def _first(self, name: str) -> bool:
        try:
            (self._folder / f"{name}.seen").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def serve(self, command: dict[str, Any], on_progress: Callable[[ShardProgress], None], batches: object = None) -> dict[str, Any]:
        shard = command["shard"]
        begun = time.time()
        on_progress(ShardProgress(2, 20, 0))
        what = self._script.get(str(shard), "done")
        if what == "fatal":
            return {"event": "failed", "kind": "fatal", "message": "the plan is gone"}
        if what == "fails-once" and self._first(str(shard)):
            return {"event": "failed", "kind": "transient", "message": "the store is away"}
        if what == "raises-once" and self._first(str(shard)):
            raise RuntimeError("a mistake of ours")
        if what == "dies-once" and self._first(str(shard)):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
        with (self._folder / "spans.jsonl").open("a") as file:
            file.write(json.dumps([shard, os.getpid(), begun, time.time()]) + "\n")
        return {"event": "done", "summary": SUMMARY}


class ScriptedActor(ShardActor):
    def _open_server(self, job: JobSpec) -> Any:
        return ScriptedServer(job)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster with room for two actors, joined by this process; one picture kills whatever decodes it there."""
    fault = f"point=decode,times=1000,key={GUILTY},log={tmp_path_factory.mktemp('fault') / 'log'}"
    with RayCluster(cpus=2, env={"TOKENSHARDS_FAULT": fault}) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.client_env.items():
            patch.setenv(name, value)
        with joined_cluster(cluster.address):
            yield cluster.address


class Run:
    """A run of some shards by a script."""

    def __init__(self, out: Path, address: str, shards: int, script: dict[str, str], **cluster: Any) -> None:
        self.out = out
        job = JobSpec(
            out_url=str(out),
            out_options={},
            source_url=str(out),
            source_config=SourceConfig(),
            plan_id=json.dumps(script),
            retry=RetryConfig(),
            run_uuid="run",
        )
        config = RunConfig(workers=1, retry=RetryConfig(first_delay_seconds=0.05, max_delay_seconds=0.2))
        self.listener = KeptListener()
        runner = RayRunner(config, RayConfig(address=address, **cluster), actor_class=ScriptedActor)
        self.failed = runner.run(job, range(shards), self.listener)

    @property
    def committed(self) -> set[int]:
        return set(self.listener.committed_shards)

    def log(self) -> list[dict[str, Any]]:
        """Return what the actors wrote in the bucket."""
        return [json.loads(line) for path in self.out.glob("runs/run/worker-*.jsonl") for line in path.read_text().splitlines()]

    def spans(self) -> list[tuple[int, int, float, float]]:
        """Return (shard, pid, begin, end) of each shard that came to its end."""
        return [tuple(json.loads(line)) for line in (self.out / "spans.jsonl").read_text().splitlines()]


def test_a_fatal_failure_ends_its_shard_at_once_and_says_why(address: str, tmp_path: Path) -> None:
    run = Run(tmp_path, address, 4, {"2": "fatal"})
    assert run.failed == {2: "the plan is gone"} and run.committed == {0, 1, 3}
    assert run.listener.started_shards.count(2) == 1 and run.listener.in_flight == {}
    (line,) = [line for line in run.log() if line["message"] == "failed"]
    assert (line["shard"], line["kind"], line["error"]) == (2, "fatal", "the plan is gone")
    assert run.listener.usage is not None and run.listener.usage.seconds["encode"] == pytest.approx(0.3)


@pytest.mark.parametrize("how", ["fails-once", "raises-once"])
def test_a_failure_that_passes_is_tried_again(address: str, tmp_path: Path, how: str) -> None:
    run = Run(tmp_path, address, 3, {"1": how})
    assert run.failed == {} and run.committed == {0, 1, 2} and run.listener.in_flight == {}
    assert run.listener.started_shards.count(1) == 2 and run.listener.says("shard 1 failed and is tried again")


def test_suspects_do_not_wait_for_the_end_and_have_an_actor_to_themselves(address: str, tmp_path: Path) -> None:
    run = Run(tmp_path, address, 60, {"3": "dies-once"}, max_actors=1)
    assert run.failed == {} and run.committed == set(range(60)) and run.listener.in_flight == {}
    spans = run.spans()
    order = [shard for shard, *_ in spans]
    assert order.index(3) < 20, "it came to its turn while others still waited"
    begin, end = next((begin, end) for shard, _, begin, end in spans if shard == 3)
    beside = [shard for shard, _, other_begin, other_end in spans if shard != 3 and other_begin < end and other_end > begin]
    assert beside == []


def test_actors_that_cannot_start_stop_no_run_that_has_others(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "STARTUP_FAILURES", 1)
    run = Run(tmp_path, address, 40, {"open": "fails"})
    assert run.failed == {} and run.committed == set(range(40))
    assert run.listener.says("an actor could not start and is tried again", "the store is away")


def test_a_picture_that_kills_the_task_which_decodes_it_is_isolated(address: str, tmp_path: Path) -> None:
    write_images(tmp_path / "src", 4, classes=0)
    config = RunConfig(workers=1, worker_deaths=1, retry=RetryConfig(first_delay_seconds=0.05, max_delay_seconds=0.2))
    runner = RayRunner(config, RayConfig(address=address, decode="remote", max_actors=1))
    reporter = SilentReporter()
    convert(tmp_path / "src", tmp_path / "out", runner=runner, reporter=reporter)
    assert quarantine_of(tmp_path / "out") == {GUILTY: "killed_worker"}
    assert set(content(tmp_path / "out")) == {path.name for path in (tmp_path / "src").iterdir()} - {GUILTY}
    assert any("failed and is tried again" in line for line in reporter.lines), "the first to die was the task, which looks like an outage"
