"""Tests of the Ray driver with real actors whose work is a script. The scripts cover each way in which a shard can end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from PIL import Image
from ray.exceptions import RayActorError, RayError

from tests.datasets import SilentReporter, content, convert, quarantine_of, write_images
from tests.pipeline.runners.listening import KeptListener
from tests.ray_clusters import RayCluster
from tokenshards.pipeline.activity import DECODE, ENCODE, doing
from tokenshards.pipeline.code_identity import code_digest
from tokenshards.pipeline.config import RayConfig, RetryConfig, RunConfig, SourceConfig
from tokenshards.pipeline.errors import ClusterError, TransientStorageError
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.job.shard_job import ShardProgress
from tokenshards.pipeline.runners import decode_placement, ray_decode, supervisor
from tokenshards.pipeline.runners.ray_actor import ShardActor
from tokenshards.pipeline.runners.ray_connection import joined_cluster
from tokenshards.pipeline.runners.ray_driver import ActorLimit, RayRunner
from tokenshards.pipeline.runners.ray_errors import in_one_line
from tokenshards.pipeline.storage.store import Store

# Long enough for a busy machine: a cluster has a dozen processes with slow imports. On an idle machine 120 s are enough for each test.
pytestmark = pytest.mark.timeout(300)

GUILTY = "img_0002.jpg"
STALL_SECONDS = 1.5
SUMMARY = {
    "rows": 4,
    "quarantined": 0,
    "inputs_seen": 4,
    "bytes_in": 40,
    "seconds": dict.fromkeys(("fetch", "decode", "encode", "write"), 0.1),
}


class ScriptedServer:
    """Replaces ShardServer. `plan_id` holds the script for each shard as JSON. Files below OUT tell first attempts from later ones."""

    def __init__(self, job: JobSpec) -> None:
        self.context = SimpleNamespace(out=Store(job.out_url))
        self._folder = Path(job.out_url)
        self._script: dict[str, str] = json.loads(job.plan_id)
        if self._script.get("start") == "hangs-once" and self._first("start"):
            time.sleep(600)
        if "open" in self._script and not self._first("open"):  # every actor except the first
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
        if what == "another":
            return {"event": "done", "summary": SUMMARY, "by_another": True}
        if what == "hangs-once" and self._first(str(shard)):
            with doing(DECODE, "x.jpg"):
                time.sleep(600)
        if what == "slow":
            with doing(ENCODE, "x.jpg"):
                time.sleep(4 * STALL_SECONDS)
        if what == "pauses":
            time.sleep(2.5)
        time.sleep(0.1)
        with (self._folder / "spans.jsonl").open("a") as file:
            file.write(json.dumps([shard, os.getpid(), begun, time.time()]) + "\n")
        return {"event": "done", "summary": SUMMARY}


class ScriptedActor(ShardActor):
    def _open_server(self, job: JobSpec) -> Any:
        return ScriptedServer(job)


class ImpatientActor(ShardActor):
    """Waits for a decoding task for a shorter time than real actors do."""

    def open(self) -> str:
        from tokenshards.pipeline.runners import ray_decode

        ray_decode.QUEUE_SECONDS = 1.0
        return super().open()


class PatientActor(ShardActor):
    """Does one shard, then waits for the measurement of the network before the other shards."""

    def __init__(self, name: str, job: str, decode_threads: int) -> None:
        super().__init__(name, job, decode_threads)
        self._first = threading.Lock()
        self._known = threading.Event()

    def serve(self, text: str, decode_cpus: int = 0) -> str:
        if not self._first.acquire(blocking=False):
            self._known.wait(90)
        return super().serve(text, decode_cpus)

    def network_rate(self) -> str:
        try:
            return super().network_rate()
        finally:
            self._known.set()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A cluster with room for two actors, joined by this process. One image kills every process that decodes the image."""
    fault = f"point=decode,times=1000,key={GUILTY},log={tmp_path_factory.mktemp('fault') / 'log'}"
    with RayCluster(cpus=2, env={"TOKENSHARDS_FAULT": fault}) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.client_env.items():
            patch.setenv(name, value)
        with joined_cluster(cluster.address):
            yield cluster


@pytest.fixture
def address(cluster: RayCluster) -> str:
    return cluster.address


class Run:
    """A run of some shards that follows a script."""

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
        stall_seconds = cluster.pop("stall_seconds", 300.0)
        retry = RetryConfig(first_delay_seconds=0.05, max_delay_seconds=0.2)
        config = RunConfig(workers=1, stall_timeout_seconds=stall_seconds, retry=retry)
        self.listener = cluster.pop("listener", None) or KeptListener()
        ray_config = cluster.pop("config", None) or RayConfig(address=address, **cluster)
        runner = RayRunner(config, ray_config, actor_class=ScriptedActor)
        self.failed = runner.run(job, range(shards), self.listener)

    @property
    def committed(self) -> set[int]:
        return set(self.listener.committed_shards)

    def log(self) -> list[dict[str, Any]]:
        """Return the log lines that the actors wrote to the bucket."""
        return [json.loads(line) for path in self.out.glob("runs/run/worker-*.jsonl") for line in path.read_text().splitlines()]

    def spans(self) -> list[tuple[int, int, float, float]]:
        """Return (shard, pid, begin, end) of each finished shard."""
        return [tuple(json.loads(line)) for line in (self.out / "spans.jsonl").read_text().splitlines()]


def test_a_fatal_failure_ends_its_shard_at_once_and_says_why(address: str, tmp_path: Path) -> None:
    run = Run(tmp_path, address, 4, {"2": "fatal"})
    assert run.failed == {2: "the plan is gone"} and run.committed == {0, 1, 3}
    assert run.listener.started_shards.count(2) == 1 and run.listener.in_flight == {}
    (line,) = [line for line in run.log() if line["message"] == "failed"]
    assert (line["shard"], line["kind"], line["error"]) == (2, "fatal", "the plan is gone")
    assert run.listener.usage is not None and run.listener.usage.seconds["encode"] == pytest.approx(0.3)


def test_a_cluster_without_the_gpu_that_is_asked_for_is_said_at_once(address: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="; no node has a GPU. Nothing was lost"):
        Run(tmp_path, address, 1, {}, listener=(listener := KeptListener()), gpus_per_actor=1.0, idle_timeout_seconds=1.0)
    assert "no actor of 1 CPU and 1 GPU can start now: no node has a GPU. Waiting for a node" in listener.notes[1]


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


def test_a_slow_actor_is_left_alone_and_one_that_hangs_at_work_or_at_its_start_is_replaced(address: str, tmp_path: Path) -> None:
    script = {"1": "slow", "3": "hangs-once", "start": "hangs-once"}
    run = Run(tmp_path, address, 6, script, stall_seconds=STALL_SECONDS, shards_in_flight=1)
    assert run.failed == {} and run.committed == set(range(6))
    assert run.listener.says("an actor could not start", "in the stage starting", "was killed")
    assert run.listener.says("a worker made no progress", "in the stage decode (x.jpg) and was killed on shard 3")
    assert run.listener.started_shards.count(1) == 1, run.listener.notes
    assert run.listener.says("an actor is slow or hangs", "stage encode")
    assert any(standing["workers"].get("slow") for standing in run.listener.standings)


def test_a_slow_actor_is_not_given_up_while_it_gives_signs_of_life(address: str, tmp_path: Path) -> None:
    class Impatient(KeptListener):
        """Gives up after a second without progress, once the actor has begun."""

        cluster: RayConfig

        def started(self, shard: int) -> None:
            super().started(shard)
            object.__setattr__(self.cluster, "idle_timeout_seconds", 1.0)

    listener = Impatient()
    listener.cluster = RayConfig(address=address, max_actors=1)
    run = Run(tmp_path, address, 1, {"0": "pauses"}, listener=listener, config=listener.cluster)
    assert run.failed == {} and run.committed == {0}


def test_what_another_run_committed_is_not_counted_as_ours(address: str, tmp_path: Path) -> None:
    run = Run(tmp_path, address, 3, {"1": "another"})
    assert run.failed == {} and run.committed == {0, 2} and run.listener.shards_elsewhere == [1]
    assert run.listener.usage is not None and run.listener.usage.seconds["encode"] == pytest.approx(0.2)


@pytest.mark.usefixtures("cluster")
def test_counters_for_prometheus_name_dataset_and_run_and_leave_out_what_another_run_did(tmp_path: Path) -> None:
    job = JobSpec(
        out_url=str(tmp_path),
        out_options={},
        source_url=str(tmp_path),
        source_config=SourceConfig(),
        plan_id=json.dumps({"1": "another"}),
        retry=RetryConfig(),
        run_uuid="0123",
    )
    actor = ScriptedActor("w", json.dumps(job.to_json()), 0)
    assert json.loads(actor.open())["event"] == "ready"
    counted: dict[str, float] = {}
    for name, counter in actor._counters.items():
        assert counter._default_tags == {"out": str(tmp_path), "run": "0123"} and {"out", "run"} <= set(counter.info["tag_keys"])
        counter.inc = lambda value, tags, name=name: counted.update({name: counted.get(name, 0) + value})
    for shard in range(2):
        actor.serve(json.dumps({"op": "run", "shard": shard, "attempt": 1, "killers": []}))
    assert counted["images_total"] == 4 and counted["shards_total"] == 1


@pytest.mark.parametrize(
    ("asked", "rooms", "limits"),
    [(None, (4, 4, 2), [4, 4, 4]), (None, (0, 0, 4, 16, 8), [1, 1, 8, 32, 32]), (None, (2, 3), [2, 6]), (7, (0, 16), [7, 7])],
)
def test_the_limit_of_actors_grows_with_the_cluster_and_never_falls(asked: int | None, rooms: tuple[int, ...], limits: list[int]) -> None:
    limit = ActorLimit(asked, rooms[0])
    assert [limit.update(room) for room in rooms] == limits


def test_actors_that_cannot_start_stop_no_run_that_has_others(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STARTUP_FAILURES", 1)
    run = Run(tmp_path, address, 40, {"open": "fails"})
    assert run.failed == {} and run.committed == set(range(40))
    assert run.listener.says("an actor could not start and is tried again", "the store is away")


def test_an_image_that_kills_its_decoding_task_is_isolated(address: str, tmp_path: Path) -> None:
    write_images(tmp_path / "src", 4, classes=0)
    config = RunConfig(workers=1, worker_deaths=1, retry=RetryConfig(first_delay_seconds=0.05, max_delay_seconds=0.2))
    runner = RayRunner(config, RayConfig(address=address, decode="remote", max_actors=1))
    reporter = SilentReporter()
    convert(tmp_path / "src", tmp_path / "out", runner=runner, reporter=reporter)
    assert quarantine_of(tmp_path / "out") == {GUILTY: "killed_worker"}
    assert set(content(tmp_path / "out")) == {path.name for path in (tmp_path / "src").iterdir()} - {GUILTY}
    assert any("failed and is tried again" in line for line in reporter.lines), "the decoding task died first, like an outage"


def hold_a_cpu() -> None:
    time.sleep(600)


def test_a_decoding_task_that_finds_no_free_cpus_is_done_by_the_actor(address: str, tmp_path: Path) -> None:
    """The driver counts CPUs that no actor holds. In this test another program holds these CPUs."""
    write_images(tmp_path / "src", 2, classes=0)
    other = ray.remote(num_cpus=1)(hold_a_cpu).remote()
    try:
        runner = RayRunner(RunConfig(workers=1), RayConfig(address=address, decode="remote", max_actors=1), actor_class=ImpatientActor)
        convert(tmp_path / "src", tmp_path / "out", runner=runner)
    finally:
        ray.cancel(other, force=True)
    assert len(content(tmp_path / "out")) == 2 and quarantine_of(tmp_path / "out") == {}
    log = "".join(path.read_text() for path in tmp_path.glob("out/runs/*/worker-*.jsonl"))
    assert "decoded here, because no node had free CPUs" in log


def test_a_node_with_other_code_decodes_nothing() -> None:
    (_, begun), (_, refused) = ray_decode._decode("{}", 0, [], 1, "0123")
    assert begun == {} and "has other tokenshards code than its actor" in refused["refusal"] and code_digest() in refused["refusal"]


def test_where_to_decode_is_decided_once_from_what_was_measured(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_placement, "ENOUGH", 1e9)  # the network matters even if this machine decodes fast
    cluster.add_node(cpus=2)
    (tmp_path / "src").mkdir()
    for index in range(120):
        Image.effect_noise((40, 40), 50).save(tmp_path / "src" / f"{index}.png")
    reporter = SilentReporter()
    cluster_config = RayConfig(address=cluster.address, cpus_per_actor=2, max_actors=1)
    runner = RayRunner(RunConfig(workers=1), cluster_config, actor_class=PatientActor)
    outcome = convert(tmp_path / "src", tmp_path / "out", runner=runner, reporter=reporter, shard_rows=40)
    (said,) = [line for line in reporter.lines if "images are decoded" in line]
    assert "an actor decodes" in said and ("2 idle CPUs" in said or "the network carries" in said), said
    assert outcome.usage is not None and outcome.usage.notes == [said]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RayActorError(
                None,
                "The actor died because of an error raised in its creation task, x\nTraceback (most recent call last):\n  y\nValueError: z",
            ),
            "ValueError: z",
        ),
        (
            RayActorError(
                None, "The actor died, x\nTraceback (most recent call last):\n  y\nModuleNotFoundError: No module named 'pipeline'"
            ),
            "ModuleNotFoundError: No module named 'pipeline'; the nodes lack a package",
        ),
        (RayActorError(None, "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n\tip: 1.2.3.4\nKilled"), "Killed"),
        (RayError("x" * 1000), "x" * 400),
    ],
)
def test_errors_of_ray_are_told_in_one_line(error: RayError, says: str) -> None:
    said = in_one_line(error)
    assert said.startswith(says) and "\n" not in said
