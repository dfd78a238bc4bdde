"""A training that is killed again and again ends in the weights of one that was left alone, bit for bit on a CPU."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import call_cli, keep_result, run_cli, start_cli
from tests.forks import fork_context
from tests.stem_adaptors.training.small_runs import tokenize_pair
from tokenshards.pipeline import fault_injection

EPOCHS, KILLS = 14, 10
STEPS = 4
"""Of an epoch: 70 images in batches of 16, the last incomplete one left out."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tokenize_pair(tmp_path_factory.mktemp("pair"))


def command(pair: tuple[Path, Path], run: Path, epochs: int, verb: str = "train") -> list[str]:
    train, val = pair
    settings = ["model.width=16", "model.depth=2", "model.heads=2", "model.drop_path=0.1", "train.ema_decay=0.9"]
    settings += ["train.checkpoint_steps=2"]
    mixes = ["augment.mixup_alpha=0.4", "augment.coloradapt_prob=0.3"]
    settings += mixes if verb == "train" else ["augment.flip_prob=0.5", "mask.decoder_depth=1"]
    sets = [word for setting in settings for word in ("--set", setting)]
    options = ["--epochs", str(epochs), "--batch-size", "16", "--device", "cpu", "--cache-dir", str(run.parent / "cache")]
    return [verb, str(train), "--val", str(val), "--out", str(run), "--resume", "-q", *options, *sets]


def content(run: Path) -> dict[str, Any]:
    """What must be equal: the names, weights and optimiser to the byte, and what was measured but for the clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "data_wait_share")
    measured = [{name: value for name, value in record.items() if name not in timed} for record in records]
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if "tensorboard" not in path.parts)
    best, checkpoint = (run / "best.safetensors").read_bytes(), tensors(run / "checkpoint.safetensors")
    return {"names": names, "best": best, "checkpoint": checkpoint, "records": measured}


def tensors(file: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: array.tobytes() for name, array in load_file(file).items()}


def train_and_die(arguments: list[str], log: Path, step: int) -> None:
    """What a process does that dies by SIGKILL once so many steps are done."""
    fault_injection._point = "after-training-step"
    fault_injection._settings = {"log": str(log), "skip": str(step)}  # as TOKENSHARDS_FAULT would give them to a new process
    call_cli(*arguments)


def killed_at_a_step(arguments: list[str], log: Path, step: int) -> None:
    """Train in a process of its own and die there. It forks from one that has imported torch, which spares four seconds a kill."""
    process = fork_context(__name__).Process(target=train_and_die, args=(arguments, log, step))
    process.start()
    process.join(100)
    code = process.exitcode
    process.kill()
    assert code == -signal.SIGKILL
    assert log.read_text().splitlines()[-1].split()[2] == "killed"


@pytest.mark.timeout(300)  # for a busy machine
@pytest.mark.parametrize(("verb", "kills"), [("train", KILLS), ("pretrain", 3)])
def test_kills_at_random_steps(pair: tuple[Path, Path], tmp_path: Path, verb: str, kills: int) -> None:
    seed = int(time.time())
    rng = random.Random(seed)
    call_cli(*command(pair, tmp_path / "undisturbed", EPOCHS, verb))
    arguments = command(pair, tmp_path / "run", EPOCHS, verb)
    for kill in range(kills):
        killed_at_a_step(arguments, tmp_path / f"{kill}.log", rng.randrange(6))
    call_cli(*arguments)
    assert content(tmp_path / "run") == content(tmp_path / "undisturbed"), f"seed {seed}"
    assert len(content(tmp_path / "run")["records"]) == EPOCHS


@pytest.mark.parametrize("step", [2 * STEPS - 1])
def test_a_kill_at_the_end_of_an_epoch(pair: tuple[Path, Path], tmp_path: Path, step: int) -> None:
    call_cli(*command(pair, tmp_path / "undisturbed", 2))
    killed_at_a_step(command(pair, tmp_path / "run", 2), tmp_path / "log", step)
    call_cli(*command(pair, tmp_path / "run", 2))
    assert content(tmp_path / "run") == content(tmp_path / "undisturbed")


@pytest.mark.soak
def test_kills_at_any_moment(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Kills by the clock: in the middle of a step, of a validation, of a checkpoint that is being written."""
    seed = int(os.environ.get("SOAK_SEED", "0"))
    rng, kills, epochs = random.Random(seed), 40, 400
    run_cli(*command(pair, tmp_path / "undisturbed", epochs), timeout=1800)
    arguments = command(pair, tmp_path / "run", epochs)
    for _ in range(kills):
        process = start_cli(*arguments)
        changed, deadline = checkpoint_time(tmp_path / "run"), time.monotonic() + 60
        while checkpoint_time(tmp_path / "run") == changed and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        assert process.poll() is None, f"seed {seed}: the training ended before it was killed; give it more epochs"
        process.kill()
        process.communicate()
    call_cli(*arguments)
    assert content(tmp_path / "run") == content(tmp_path / "undisturbed"), f"seed {seed}"
    keep_result("soak_training_kills", seed=seed, epochs=epochs, kills=kills, bit_equal=True)


def checkpoint_time(run: Path) -> int:
    try:
        return (run / "checkpoint.safetensors").stat().st_mtime_ns
    except FileNotFoundError:
        return 0
