"""Exactly once: kills at every named crash point, and at random moments, end in the dataset of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.datasets import call_cli, content, convert, keep_result, quarantine_of, run_cli, start_cli, write_images
from tokenshards.pipeline.config import PlanConfig
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.storage.store import Store

KILLS = 3
BATCH_ROWS = PlanConfig().batch_rows
"""What the command takes: in other batches an id at a tie may be another."""
PLAN_POINTS = ("after-listing", "after-plan-part", "after-plan-json")
WORK_POINTS = ("after-data-put", "after-quarantine-put", "after-commit-put")
END_POINTS = ("after-last-commit", "between-manifest-and-pointer")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_images(folder / "src", 90, bad=6)
    convert(folder / "src", folder / "out", shard_rows=24, batch_rows=BATCH_ROWS)
    return folder / "src", folder / "out"


def command(src: Path, out: Path, tokenizer: Path, workers: int = 2) -> list[str]:
    fit = ["--tokenizer", str(tokenizer / "tokenizer")]
    return ["tokenize", str(src), str(out), *fit, "--shard-rows", "24", "--max-bad", "1", "--workers", str(workers), "-q"]


def check_same(out: Path, reference: Path) -> None:
    assert content(out) == content(reference)
    assert quarantine_of(out) == quarantine_of(reference)
    found = verify_dataset(Store(str(out)))
    assert found.ok, found.problems


@pytest.mark.parametrize(
    ("point", "victim"),
    [
        *((point, "self") for point in PLAN_POINTS),
        *((point, victim) for point in WORK_POINTS for victim in ("worker", "driver")),
        *((point, "self") for point in END_POINTS),
    ],
)
def test_three_kills_at_a_crash_point(undisturbed: tuple[Path, Path], tmp_path: Path, point: str, victim: str) -> None:
    src, reference = undisturbed
    log = tmp_path / "fault.log"
    env = {"TOKENSHARDS_FAULT": f"point={point},times={KILLS},victim={victim},log={log}"}
    # One worker where it kills the driver: two would spend two kills on one death.
    arguments = command(src, tmp_path / "out", reference, workers=1 if victim == "driver" else 2)
    for _ in range(1 if victim == "worker" else KILLS):
        process = start_cli(*arguments, env=env)
        _, errors = process.communicate(timeout=100)
        if victim == "worker":
            assert process.returncode == 0, errors
        else:
            assert process.returncode == -signal.SIGKILL, errors
            assert not (tmp_path / "out" / "manifest.json").exists()
    call_cli(*arguments)
    assert log.read_text().count(f"{point} ") >= KILLS
    assert log.read_text().count(" killed ") == KILLS
    check_same(tmp_path / "out", reference)


def test_random_kills(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    random_kills(tmp_path, kills=4, seed=int(time.time()))


@pytest.mark.soak
def test_random_kills_for_long(tmp_path: Path) -> None:
    seed = int(os.environ.get("SOAK_SEED", "0"))
    killed = random_kills(tmp_path, kills=15, seed=seed)
    keep_result("soak_random_kills", seed=seed, images=500 + 15 * 300 + 10, killed=killed, equal_to_undisturbed=True)


def random_kills(folder: Path, *, kills: int, seed: int) -> dict[str, int]:
    """Kill a driver, or one of its workers and then the driver, `kills` times while shards are made; return what was killed."""
    rng = random.Random(seed)
    write_images(folder / "src", 500 + 300 * kills, bad=10, side=96, seed=seed % 1000)
    convert(folder / "src", folder / "reference", shard_rows=30, workers=2, batch_rows=BATCH_ROWS)
    arguments = command(folder / "src", folder / "out", folder / "reference")
    arguments[arguments.index("24")] = "30"
    killed = {"driver": 0, "worker": 0}
    while sum(killed.values()) < kills:
        process = start_cli(*arguments)
        seen = committed(folder / "out")
        deadline = time.monotonic() + 60
        while committed(folder / "out") == seen and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))
        assert process.poll() is None, f"seed {seed}: the job ended after {killed}; give it more images\n{process.communicate()}"
        workers = psutil.Process(process.pid).children()
        if rng.random() < 0.5 and workers:
            rng.choice(workers).kill()
            killed["worker"] += 1
            time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.communicate()
        killed["driver"] += 1
    run_cli(*arguments)
    check_same(folder / "out", folder / "reference")
    return killed


def committed(out: Path) -> int:
    return sum(1 for _ in out.glob("commits/*/*.json"))


def test_ctrl_c_stops_in_seconds_and_a_rerun_continues(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    _, reference = undisturbed
    write_images(tmp_path / "src", 600, side=64)
    arguments = command(tmp_path / "src", tmp_path / "out", reference)
    process = start_cli(*arguments)
    while committed(tmp_path / "out") < 2 and process.poll() is None:
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole group
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "it continues" in errors and "Traceback" not in errors
    assert not any(worker.is_running() for worker in workers)
    assert 2 <= committed(tmp_path / "out") < 25
    run_cli(*arguments)
    assert len(content(tmp_path / "out")) == 600


def test_an_input_that_kills_its_worker_is_isolated(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    src, reference = undisturbed
    guilty = "class_1/img_0004.jpg"
    env = {"TOKENSHARDS_FAULT": f"point=decode,times=1000,key={guilty},log={tmp_path / 'fault.log'}"}
    run_cli(*command(src, tmp_path / "out", reference), env=env)
    expected = content(reference)
    del expected[guilty]
    assert content(tmp_path / "out") == expected
    assert quarantine_of(tmp_path / "out") == {**quarantine_of(reference), guilty: "killed_worker"}
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


def test_a_hanging_worker_is_replaced(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    src, reference = undisturbed
    process = start_cli(*command(src, tmp_path / "out", reference), "--stall-timeout", "2")
    while committed(tmp_path / "out") < 1 and process.poll() is None:
        time.sleep(0.005)
    for worker in psutil.Process(process.pid).children():
        worker.suspend()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    check_same(tmp_path / "out", reference)
