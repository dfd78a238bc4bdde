"""Training on a Ray cluster of two real nodes: equal to one process, through kills of workers and nodes, with data and run on S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from tests.datasets import run_cli, start_cli
from tests.ports import free_ports
from tests.ray_clusters import RayCluster
from tests.stem_adaptors.training.small_runs import KeptReporter, tokenize_pair
from tests.submitting import foreign_folder
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.optional_packages import install_hint
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.cluster.cluster_config import ClusterConfig, parse_workers
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.training.training_job import TrainingJob

EPOCHS = 24
SECONDS = 200.0
"""Bound of every wait: where nothing else runs, a training here takes about 20 seconds."""
NODES_SEEN_SECONDS = 22.0
"""Ray Train looks every 20 seconds which nodes there are, and starts with those that it knows."""
CONFIGS: dict[str, Any] = {"model": ModelConfig(), "augment": AugmentConfig(), "loader": LoaderConfig(), "train": TrainConfig()}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "an-access-key", "AWS_SECRET_ACCESS_KEY": "a-secret-key", "AWS_REGION": "us-east-1"}


# For a busy machine: a cluster is a dozen processes, each of which imports much. Where nothing else runs, 120 s are enough for each.
pytestmark = pytest.mark.timeout(300)

OPTION_SECRET = "a-secret-given-as-an-option"


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Start an S3 server; give the environment of its clients."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
                with urllib.request.urlopen(request, timeout=5):
                    break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "moto does not answer"
                time.sleep(0.1)
        yield {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tokenize_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def cluster(s3: dict[str, str]) -> Iterator[RayCluster]:
    with RayCluster(cpus=1, env=s3) as cluster:
        cluster.add_node()
        yield cluster


def command(data: str, val: str, run: str, cache: Path) -> list[str]:
    """A training whose result does not depend on how many processes share it."""
    settings = ["model.width=16", "model.depth=1", "model.heads=2", "model.drop_path=0.0", "train.checkpoint_steps=2"]
    settings += ["augment.cutmix_prob=0.0", "augment.mixup_alpha=0.0", "augment.coloradapt_prob=0.0", "train.ema_decay=0.9"]
    sets = [word for setting in settings for word in ("--set", setting)]
    sizes = ["--epochs", str(EPOCHS), "--batch-size", "16", "--lr", "2e-4", "--device", "cpu", "--cache-dir", str(cache)]
    return ["train", data, "--val", val, "--out", run, *sizes, *sets]


def on(cluster: RayCluster, *more: str, workers: str = "2") -> list[str]:
    return ["--ray-workers", workers, "--address", cluster.address, *more]


def tensors(run: Store, name: str = "checkpoint.safetensors") -> dict[str, torch.Tensor]:
    return load(run.read(name))


def records(run: Store) -> list[dict[str, Any]]:
    """What was measured, but for the clock."""
    found = [json.loads(line) for line in run.read("metrics.jsonl").decode().splitlines()]
    return [{name: value for name, value in record.items() if name not in ("images_per_second", "data_wait_share")} for record in found]


@pytest.fixture(scope="module")
def undisturbed(
    pair: tuple[Path, Path], cluster: RayCluster, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, str, str]:
    """Train on two nodes from S3 to S3, in a folder with a `pipeline` of its own; return the run and what the terminal showed."""
    foreign = foreign_folder(tmp_path_factory.mktemp("foreign"))
    client = {"endpoint_url": s3["AWS_ENDPOINT_URL"], "key": s3["AWS_ACCESS_KEY_ID"], "secret": OPTION_SECRET}
    for folder in pair:
        place = Store(f"s3://bucket/{folder.name}", storage_options=client)
        for info in Store(str(folder)).list():
            place.write(info.path, (folder / info.path).read_bytes())
    arguments = command("s3://bucket/train", "s3://bucket/val", "s3://bucket/run", tmp_path_factory.mktemp("cache"))
    options = [word for name, value in client.items() for word in ("--storage-option", f"{name}={value}")]
    out, err = run_cli(*arguments, *options, *on(cluster, "--json"), env=cluster.client_env, cwd=foreign, timeout=SECONDS)
    return Store("s3://bucket/run", storage_options=client), out, err


def test_two_nodes_from_s3_to_s3_equal_one_process(pair: tuple[Path, Path], undisturbed: tuple[Store, str, str], tmp_path: Path) -> None:
    run, out, err = undisturbed
    alone, _ = run_cli(*command(str(pair[0]), str(pair[1]), str(tmp_path / "run"), tmp_path / "cache"), "--json", "-q", timeout=SECONDS)
    one = Store(str(tmp_path / "run"))
    expected, found = tensors(one), tensors(run)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    summary, summary_alone = json.loads(out), json.loads(alone)
    assert summary["run"] == "s3://bucket/run" and summary.keys() == summary_alone.keys()
    assert summary["val_top1"] == summary_alone["val_top1"] and len(records(run)) == EPOCHS
    assert run.info("curves.png") is not None and run.info("run.json") is not None
    lines = err.splitlines()
    assert lines[0] == "training on 2 workers of 1 CPU", err
    assert [line.split()[0] for line in lines[1:6]] == ["data", "model", "recipe", "augmentation", "place"]
    assert [line.split()[:2] for line in lines[6:-1]] == [["epoch", f"{epoch + 1}/{EPOCHS}"] for epoch in range(EPOCHS)]
    assert lines[-1] == f"{EPOCHS} epochs are done"


def test_options_with_credentials_are_in_no_log_of_ray_and_not_in_the_run(cluster: RayCluster, undisturbed: tuple[Store, str, str]) -> None:
    run, out, err = undisturbed
    secret, searched = OPTION_SECRET.encode(), 0
    for folder, _, names in os.walk(cluster.session_folder):  # links to the session's folder are not followed, the folder itself is
        for name in names:
            place = Path(folder) / name
            if place.is_file():
                searched += 1
                assert secret not in place.read_bytes(), place
    assert searched > 10
    assert all(secret not in run.read(info.path) for info in run.list())
    assert OPTION_SECRET not in out + err


@pytest.mark.parametrize(
    "victims", [("node",), *(pytest.param(several, marks=pytest.mark.soak) for several in (("controller",), ("stop", "worker", "node")))]
)
def test_a_stop_and_what_is_killed_change_nothing(
    pair: tuple[Path, Path], cluster: RayCluster, undisturbed: tuple[Store, str, str], tmp_path: Path, victims: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    arguments = [*command(str(pair[0]), str(pair[1]), str(run), tmp_path / "cache"), *on(cluster)]
    process = start_cli(*arguments, env=cluster.client_env)
    for victim in victims:
        after_checkpoints(run, process)
        if victim == "stop":
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SECONDS)
            assert process.returncode == 130 and "with a checkpoint; the same command with --resume continues" in err, err
            assert len(records(Store(str(run)))) < EPOCHS, "it ended before it was stopped"
            process = start_cli(*arguments, "--resume", env=cluster.client_env)
            continue
        if victim == "worker":
            workers(cluster)[-1].kill()
            continue
        if victim == "controller":  # Ray Train itself, whose end is that of the workers
            (controller,) = cluster.nodes[0].find("ray::TrainController")
            controller.kill()
            continue
        cluster.nodes.pop(1).kill()
        cluster.add_node()
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    again = len(victims) - ("stop" in victims)
    assert err.count("starting again from the last checkpoint") == again and err.count("training again on 2 workers") == again, err
    assert "Traceback" not in err
    expected, found = tensors(undisturbed[0]), tensors(Store(str(run)))
    assert {name for name in expected if not torch.equal(found[name], expected[name])} == set()
    assert records(Store(str(run))) == records(undisturbed[0])
    assert not list(run.glob(".tokenshards*"))


def test_the_loss_of_the_terminals_own_process_on_the_cluster_is_one_sentence(
    pair: tuple[Path, Path], cluster: RayCluster, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = command(str(pair[0]), str(pair[1]), str(run), tmp_path / "cache")
    process = start_cli(*arguments, *on(cluster), env=cluster.client_env)
    after_checkpoints(run, process)
    (board,) = cluster.nodes[0].find("ray::Board")
    board.kill()
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 3 and "or its own process there" in err and "--resume continues" in err, err
    assert "bug" not in err and "Traceback" not in err, err
    assert demands(cluster) == [], "Ray would keep these places for three minutes, although nobody wants them any more"


def test_what_ray_prints_is_not_in_the_output(cluster: RayCluster) -> None:
    code = "from tokenshards.stem_adaptors.cluster.ray_connection import connected\n"
    code += f"with connected({cluster.address!r}):\n    print('from a thread of Ray')"
    env = {**os.environ, **cluster.client_env}
    shown = subprocess.run([sys.executable, "-c", code], cwd="/", env=env, capture_output=True, text=True, timeout=SECONDS)
    assert shown.returncode == 0 and shown.stdout == "" and "from a thread of Ray" in shown.stderr, shown


def demands(cluster: RayCluster) -> list[str]:
    """Who has asked Ray for places that a training with `--ray-workers 1-3` leaves alone."""
    code = f"""import json, ray
ray.init(address={cluster.address!r}, log_to_driver=False, logging_level="ERROR")
coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
print(json.dumps(ray.get(coordinator.__ray_call__.remote(lambda self: list(self._ongoing_reqs)))))
"""
    env = {**os.environ, **cluster.client_env}
    shown = subprocess.run([sys.executable, "-c", code], cwd="/", env=env, capture_output=True, text=True, timeout=SECONDS, check=True)
    return json.loads(shown.stdout)


def workers(cluster: RayCluster) -> list[Any]:
    return [process for node in cluster.nodes for process in node.find("ray::", "RayTrainWorker")]


def after_checkpoints(run: Path, process: subprocess.Popen[str], count: int = 2) -> None:
    """Wait until so many more checkpoints have been written."""
    seen, deadline = set[int](), time.monotonic() + SECONDS
    while len(seen) <= count:
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < deadline, "no checkpoint came"
        if (run / "checkpoint.safetensors").exists():
            seen.add((run / "checkpoint.safetensors").stat().st_mtime_ns)
        elif not seen:
            seen.add(0)
        time.sleep(0.005)


def test_too_few_cpus_end_in_one_sentence_after_the_wait(pair: tuple[Path, Path], cluster: RayCluster, tmp_path: Path) -> None:
    arguments = command(str(pair[0]), str(pair[1]), str(tmp_path / "run"), tmp_path / "cache")
    _, err = run_cli(*arguments, *on(cluster, "--ray-wait", "2", workers="3"), env=cluster.client_env, expect=2)
    assert "asked for 3 workers of 1 CPU each; the cluster has 2 nodes with 2 CPU and 0 GPU, of which 2 CPU and 0 GPU are free" in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "run" / "run.json").exists(), err


def test_a_run_that_is_there_and_a_cluster_that_is_not(tmp_path: Path) -> None:
    from tokenshards.stem_adaptors.cluster.ray_train import train_on_cluster

    place = f"127.0.0.1:{free_ports(1)[0]}"
    asked = ClusterConfig(workers=(2, 2), address=place)
    many = ClusterConfig(workers=(2, 2000), address=place)
    job = TrainingJob(data_url="s3://bucket/train", val_url=None, out_url=str(tmp_path), **CONFIGS)
    with pytest.raises(ConfigError, match="--ray-workers is 2000; expected at most --batch-size, which is"):
        train_on_cluster(job, many, KeptReporter(), resume=False)
    with pytest.raises(ConfigError, match=f"--address {place}: no Ray cluster answers there .* Start one with"):
        train_on_cluster(job, asked, KeptReporter(), resume=False)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a run. Add --resume"):
        train_on_cluster(job, asked, KeptReporter(), resume=False)
    with pytest.raises(ConfigError, match="--address is 'http://head:8265'; expected auto or HOST:PORT"):
        train_on_cluster(job, ClusterConfig(workers=(2, 2), address="http://head:8265"), KeptReporter(), resume=True)


def test_a_missing_token_is_named(pair: tuple[Path, Path], cluster: RayCluster, tmp_path: Path) -> None:
    arguments = command(str(pair[0]), str(pair[1]), str(tmp_path / "run"), tmp_path / "cache")
    without = {**cluster.client_env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "", "HOME": str(tmp_path)}
    _, err = run_cli(*arguments, *on(cluster), env=without, expect=2)
    assert "asks for a token" in err and "RAY_AUTH_TOKEN" in err and len(err.splitlines()) == 1, err


def test_ray_that_is_not_installed_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')")
    arguments = command(str(pair[0]), str(pair[1]), str(tmp_path / "run"), tmp_path / "cache")
    _, err = run_cli(*arguments, "--ray-workers", "2", env={"PYTHONPATH": str(tmp_path)}, expect=2)
    assert "--ray-workers needs Ray, here and on the nodes, which cannot be imported (No module named 'ray')" in err, err
    assert err.endswith(f"; run: {install_hint('train,ray')}\n"), err


@pytest.mark.parametrize(
    ("text", "expected"), [("4", (4, 4)), ("2-8", (2, 8)), ("x", None), ("2-", None), ("-2", None), ("8-2", None), ("0", None)]
)
def test_numbers_of_workers(text: str, expected: tuple[int, int] | None) -> None:
    if expected is not None:
        assert ClusterConfig(workers=parse_workers(text)).workers == expected
        return
    with pytest.raises(ConfigError, match="--ray-workers is"):
        ClusterConfig(workers=parse_workers(text))


@pytest.mark.soak
def test_fewer_nodes_go_on_where_fewer_are_allowed_and_three_share_a_batch_of_16(
    pair: tuple[Path, Path], cluster: RayCluster, undisturbed: tuple[Store, str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*command(str(pair[0]), str(pair[1]), str(run), tmp_path / "cache"), *on(cluster, workers="1-3")]
    cluster.add_node()
    time.sleep(NODES_SEEN_SECONDS)
    process = start_cli(*arguments, env=cluster.client_env)
    after_checkpoints(run, process)
    cluster.nodes.pop().kill()
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0 and "training on 3 workers" in err and "training again on 2 workers" in err, err
    for name, tensor in tensors(undisturbed[0]).items():
        torch.testing.assert_close(tensors(Store(str(run)))[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_resume_soon_after_the_terminal_was_killed_waits_until_ray_forgets_what_that_asked_for(
    pair: tuple[Path, Path], cluster: RayCluster, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*command(str(pair[0]), str(pair[1]), str(run), tmp_path / "cache"), *on(cluster, "--ray-wait", "20", workers="2-3")]
    process = start_cli(*arguments, env=cluster.client_env)
    after_checkpoints(run, process)
    process.kill()
    process.communicate(timeout=SECONDS)
    assert len(demands(cluster)) == 1
    _, err = run_cli(*arguments, "--resume", env=cluster.client_env, timeout=600)
    assert "waiting: there is room, but Ray keeps it for another training" in err and "training on 2 workers" in err, err
    assert len(records(Store(str(run)))) == EPOCHS
