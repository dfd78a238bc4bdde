"""The Ray runner on real two-node clusters of this machine: the same dataset as the local runner, whatever is lost on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.datasets import ROOT, content, convert, quarantine_of, run_cli, run_json, start_cli, write_images
from tests.ray_clusters import Node, RayCluster
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.storage.store import Store

# For a busy machine: a cluster is a dozen processes, each of which imports much. Where nothing else runs, 120 s are enough for each.
pytestmark = pytest.mark.timeout(300)

TOKEN = "0123456789abcdef" * 4
ACTOR = "ray::ShardActor"
GUILTY = "class_1/img_0004_guilty.jpg"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_images(folder / "src", 90, bad=6)
    convert(folder / "src", folder / "out", shard_rows=12, batch_rows=64)
    return folder / "src", folder / "out"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Two nodes of one CPU, which die of one image, wherever it is decoded; one test alone has it."""
    fault = f"point=decode,times=1000,key={GUILTY},log={tmp_path_factory.mktemp('fault') / 'log'}"
    with RayCluster(cpus=1, token=TOKEN, env={"TOKENSHARDS_FAULT": fault}) as cluster:
        cluster.add_node()
        yield cluster


def command(src: Path, out: Path, reference: Path, cluster: RayCluster, *more: str) -> list[str]:
    same = ["--tokenizer", f"{reference}/tokenizer", "--shard-rows", "12", "--max-bad", "1"]
    return ["tokenize", str(src), str(out), *same, "--runner", "ray", "--address", cluster.address, *more]


def check_same(out: Path, reference: Path) -> None:
    assert content(out) == content(reference)
    assert quarantine_of(out) == quarantine_of(reference)
    found = verify_dataset(Store(str(out)))
    assert found.ok, found.problems


def committed(out: Path) -> int:
    return sum(1 for _ in out.glob("commits/*/*.json"))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened within 60 s"
        time.sleep(0.02)


def actors(nodes: list[Node]) -> list[psutil.Process]:
    return [process for node in nodes for process in node.find(ACTOR)]


def is_created(actor: psutil.Process) -> bool:
    """Return whether Ray is creating an actor, by the title that it gives its process."""
    try:
        return f"{ACTOR}.__init__" in " ".join(actor.cmdline())
    except psutil.Error:  # it has ended
        return True


@pytest.mark.parametrize("more", [(), ("--max-actors", "1", "--decode", "remote")])
def test_equal_to_the_local_runner(undisturbed: tuple[Path, Path], cluster: RayCluster, tmp_path: Path, more: tuple[str, ...]) -> None:
    src, reference = undisturbed
    arguments = command(src, tmp_path / "out", reference, cluster, *more)
    report = run_json(*arguments, env=cluster.client_env)
    check_same(tmp_path / "out", reference)
    assert report["complete"] and report["busy"]["decode"] > 0
    again, _ = run_cli(*arguments, env=cluster.client_env)
    assert "already complete" in again


def test_a_tokenizer_that_the_driver_fits_makes_the_same_bytes_everywhere(
    undisturbed: tuple[Path, Path], cluster: RayCluster, tmp_path: Path
) -> None:
    src, _ = undisturbed
    same = ["--kind", "layered-kmeans", "--shard-rows", "12", "--max-bad", "1"]
    run_cli("tokenize", str(src), str(tmp_path / "local"), *same, "--workers", "2")
    cluster_options = ["--runner", "ray", "--address", cluster.address]
    run_cli("tokenize", str(src), str(tmp_path / "out"), *same, *cluster_options, env=cluster.client_env)
    check_same(tmp_path / "out", tmp_path / "local")
    local, remote = ({file.name: file.read_bytes() for file in (tmp_path / name).glob("*s/*.parquet")} for name in ("local", "out"))
    assert local == remote and len(local) >= 8


def test_views_decoded_elsewhere_are_the_same(undisturbed: tuple[Path, Path], cluster: RayCluster, tmp_path: Path) -> None:
    src, reference = undisturbed
    convert(src, tmp_path / "local", views="3", tokenizer=f"{reference}/tokenizer", shard_rows=12, batch_rows=64)
    arguments = command(src, tmp_path / "out", reference, cluster, "--views", "3", "--max-actors", "1", "--decode", "remote")
    report = run_json(*arguments, env=cluster.client_env)
    assert (report["images_committed"], report["views"]) == (90, 3) and verify_dataset(Store(str(tmp_path / "out"))).ok
    local, remote = ({file.name: file.read_bytes() for file in (tmp_path / name).glob("*s/*.parquet")} for name in ("local", "out"))
    assert local == remote and len(local) >= 8


def test_every_worker_keeps_a_log_in_the_bucket(undisturbed: tuple[Path, Path], cluster: RayCluster, tmp_path: Path) -> None:
    src, reference = undisturbed
    run_cli(*command(src, tmp_path / "out", reference, cluster, "--max-actors", "2"), env=cluster.client_env)
    logs = sorted(tmp_path.glob("out/runs/*/worker-*.jsonl"))
    assert 1 <= len(logs) <= 2
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert sorted(line["shard"] for line in lines if line["message"] == "done") == list(range(8))
    assert sum(line["message"] == "worker ready" for line in lines) == len(logs)
    driver = next(tmp_path.glob("out/runs/*/driver.jsonl")).read_text()
    assert "Ray cluster: " in driver and "how busy the workers were" in driver


def test_actors_and_driver_are_killed_and_a_resubmission_continues(
    undisturbed: tuple[Path, Path], cluster: RayCluster, tmp_path: Path
) -> None:
    _, reference = undisturbed
    src = tmp_path / "src"
    write_images(src, 500, side=200)
    convert(src, tmp_path / "reference", shard_rows=12, batch_rows=64, tokenizer=f"{reference}/tokenizer")
    total = committed(tmp_path / "reference")
    arguments = command(src, tmp_path / "out", reference, cluster, "--join")
    process = start_cli(*arguments, env=cluster.client_env)
    for goal in (1, 6):
        wait_until(lambda goal=goal: committed(tmp_path / "out") >= goal and bool(actors(cluster.nodes)), process)  # type: ignore[misc]
        for actor in actors(cluster.nodes):
            actor.kill()
    wait_until(lambda: committed(tmp_path / "out") >= 12, process)
    process.kill()
    out, _ = process.communicate()
    assert out == "", "what raylets say of killed workers must not reach stdout"
    assert 6 <= committed(tmp_path / "out") < total
    _, errors = run_cli(*arguments, env=cluster.client_env)
    assert "shards are done" in errors
    check_same(tmp_path / "out", tmp_path / "reference")


def test_a_frozen_actor_is_replaced(undisturbed: tuple[Path, Path], cluster: RayCluster, tmp_path: Path) -> None:
    _, reference = undisturbed
    src = tmp_path / "src"
    write_images(src, 240, side=160)  # enough work, so that some is left when the actors freeze
    convert(src, tmp_path / "reference", shard_rows=12, batch_rows=64, tokenizer=f"{reference}/tokenizer")
    process = start_cli(*command(src, tmp_path / "out", reference, cluster, "--stall-timeout", "3"), env=cluster.client_env)
    # Ray keeps the CPU of an actor that is frozen while it is created. After a first commit at least one actor is at work.
    wait_until(lambda: committed(tmp_path / "out") >= 1, process)
    frozen = [actor for actor in actors(cluster.nodes) if not is_created(actor)]
    for actor in frozen:
        actor.suspend()
    assert frozen and committed(tmp_path / "out") < 20
    try:
        _, errors = process.communicate(timeout=90)
    finally:
        for actor in frozen:
            if actor.is_running():
                actor.send_signal(signal.SIGCONT)
    assert process.returncode == 0, errors
    check_same(tmp_path / "out", tmp_path / "reference")


def test_a_node_leaves_and_pending_actors_start_on_one_that_joins(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    _, reference = undisturbed
    src = tmp_path / "src"
    write_images(src, 240, side=160)
    convert(src, tmp_path / "reference", shard_rows=12, batch_rows=64, tokenizer=f"{reference}/tokenizer")
    with RayCluster(cpus=0, token=TOKEN) as cluster:
        first = cluster.add_node(cpus=1)
        process = start_cli(*command(src, tmp_path / "out", reference, cluster), env=cluster.client_env)
        wait_until(lambda: committed(tmp_path / "out") >= 3, process)
        first.kill()
        second = cluster.add_node(cpus=2)
        wait_until(lambda: bool(actors([second])), process)
        held = actors([second])
        for actor in held:  # else it may do all the work before the other one starts
            actor.suspend()
        wait_until(lambda: len(actors([second])) >= 2, process)  # the limit of actors followed the cluster
        for actor in held:
            actor.resume()
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        assert "is gone, out of reach or out of memory, with" in errors
        assert second.process.poll() is None
    check_same(tmp_path / "out", tmp_path / "reference")


def test_an_input_that_kills_its_actor_is_isolated(undisturbed: tuple[Path, Path], cluster: RayCluster, tmp_path: Path) -> None:
    src, reference = undisturbed
    innocent = "class_1/img_0004.jpg"
    shutil.copytree(src, tmp_path / "src")
    (tmp_path / "src" / innocent).rename(tmp_path / "src" / GUILTY)
    run_cli(*command(tmp_path / "src", tmp_path / "out", reference, cluster), env=cluster.client_env)
    expected = content(reference)
    del expected[innocent]
    assert content(tmp_path / "out") == expected
    assert quarantine_of(tmp_path / "out") == {**quarantine_of(reference), GUILTY: "killed_worker"}
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


@pytest.mark.parametrize(
    ("more", "env", "expected"),
    [
        ((), {"RAY_AUTH_MODE": "disabled"}, "wants a token and got none"),
        ((), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}, "wants a token and got another token"),
        (("--address", "127.0.0.1:1"), {}, "no Ray head answers at this address"),
        (("--address", "http://127.0.0.1:8265"), {}, "Use `tokenshards submit`"),
        (("--gpus-per-actor", "1", "--give-up-after", "3"), {}, "; no node has a GPU. Nothing was lost"),
        (("--decode", "nowhere"), {}, "expected one of auto, local, remote"),
    ],
)
def test_what_keeps_a_run_from_working_is_one_sentence(
    undisturbed: tuple[Path, Path], cluster: RayCluster, tmp_path: Path, more: tuple[str, ...], env: dict[str, Any], expected: str
) -> None:
    src, reference = undisturbed
    arguments = [*command(src, tmp_path / "out", reference, cluster), *more]
    code = 2 if "nowhere" in more else 3
    _, errors = run_cli(*arguments, "-q", env={**cluster.client_env, **env}, expect=code)
    assert expected in errors
    assert errors.strip().count("\n") == 0, errors


def test_other_code_on_a_node_is_refused(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    src, reference = undisturbed
    other = tmp_path / "other"
    shutil.copytree(ROOT / "tokenshards", other / "tokenshards", ignore=shutil.ignore_patterns("__pycache__"))  # the files of its links
    with (other / "tokenshards" / "pipeline" / "job" / "shard_job.py").open("a") as source:
        source.write("\n# edited\n")
    with RayCluster(cpus=1, env={"PYTHONPATH": str(other)}) as cluster:
        # -P: else Ray shows the folder of cli.py to the workers too, since it is there on this machine
        line = [sys.executable, "-P", str(ROOT / "cli.py"), *command(src, tmp_path / "out", reference, cluster, "-q")]
        env = {**os.environ, **cluster.client_env, "PYTHONPATH": ""}
        result = subprocess.run(line, capture_output=True, text=True, timeout=100, env=env)
    errors = result.stderr
    assert result.returncode == 3, errors
    assert "has other tokenshards code than this driver" in errors


def test_two_drivers_share_a_cluster_and_a_dataset(undisturbed: tuple[Path, Path], cluster: RayCluster, tmp_path: Path) -> None:
    src, reference = undisturbed
    arguments = command(src, tmp_path / "out", reference, cluster, "--join", "--max-actors", "1")
    outcomes: list[subprocess.Popen[str]] = [start_cli(*arguments, env=cluster.client_env) for _ in range(2)]
    readers = [threading.Thread(target=process.communicate) for process in outcomes]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(100)
    assert [process.returncode for process in outcomes] == [0, 0]
    check_same(tmp_path / "out", reference)
