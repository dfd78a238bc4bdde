"""Several processes under torchrun's environment do what one does, and can be fewer or more after a stop."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.datasets import ROOT, convert
from tests.forks import fork_context
from tests.masked_images import write_masked_images
from tests.ports import free_ports
from tests.stem_adaptors.training.small_runs import FIT, MODEL, KeptReporter, Stopped, death_after, fit, request_for, tokenize_pair
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.devices import choose_device
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment import PRESETS
from tokenshards.stem_adaptors.augment.adapt_file import save_adapter
from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter
from tokenshards.stem_adaptors.augment.adapt_sizes import AdaptSizes
from tokenshards.stem_adaptors.config import AugmentConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.ranks import Ranks, joined_ranks
from tokenshards.stem_adaptors.segment_config import SegmentConfig
from tokenshards.stem_adaptors.training.checkpoints import read_checkpoint
from tokenshards.stem_adaptors.training.run_directory import load_run
from tokenshards.stem_adaptors.training.trainer import Trainer

PER_SAMPLE = AugmentConfig(flip_prob=0.5, crop_share=1.0, cutmix_prob=0.0, mixup_alpha=0.0, dropout_prob=0.2)
"""All that looks at one sample at a time, so that three ranks may share a batch of 16."""
SETTINGS: dict[str, Any] = {
    "model": replace(MODEL, drop_path=0.0),
    "augment": PER_SAMPLE,
    "epochs": 5,
    "loader": {"end": "pad"},
}

Reported = tuple[list[float], list[dict[str, Any]]]
"""The losses of a process, and its records."""


def threads_of(process: int) -> list[str]:
    return [file.read_text().strip() for file in Path(f"/proc/{process}/task").glob("*/comm")]


def wrap_and_leave(rank: int, world_size: int, port: int, job: tuple[()], answers: Any) -> None:
    """Wrap a model, leave the group and forget the model; put the threads of gloo that are left, and those of the process forked from."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with joined_ranks("cpu") as (ranks, device):
        wrapped = ranks.wrap(torch.nn.Linear(2, 2), device)
        wrapped(torch.ones(1, 2)).sum().backward()
    del wrapped
    gc.collect()
    answers.put((rank, [name for name in threads_of(os.getpid()) if "gloo" in name], threads_of(os.getppid())))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists the threads of a process")
def test_a_model_never_frees_the_group() -> None:
    """A model frees with Python's lock held. The group would then wait for a thread that waits for the lock, and the rank for ever."""
    for gloo, parent in train_with(2, target=wrap_and_leave):
        assert len(gloo) > 0, "the group is gone with the model"
        assert len(parent) == 1, "these processes fork from one that has more threads, whose locks nobody would release"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tokenize_pair(tmp_path_factory.mktemp("pair"))


def one_rank(rank: int, world_size: int, port: int, job: tuple[str, str, str, dict[str, Any], int], answers: Any) -> None:
    """Train as one process of several; put the losses and records that it reported."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train, val, out, settings, death = job
    reporter = KeptReporter()
    with joined_ranks("cpu") as (ranks, device):
        settings = {"val": open_dataset(val), **settings}
        request = request_for(open_dataset(train), out, Path(out).parent / "cache", **settings)
        trainer = Trainer(request, ranks, device, reporter)
        if rank:
            time.sleep(0.5)  # the main rank begins the run meanwhile, which must not look like an older run to this one
        try:
            with death_after(death or 10**6):
                trainer.fit()
        except Stopped:
            answers.put((rank, reporter.losses, reporter.records))
            answers.close()
            answers.join_thread()
            os._exit(1)  # as a kill does: no goodbye to the group
    answers.put((rank, reporter.losses, reporter.records))


def train_with(world_size: int, *job: Any, target: Callable[..., None] = one_rank) -> list[Any]:
    """Train with so many processes; return what each reported. They fork from a process that has imported torch, once for all."""
    context = fork_context(__name__)
    answers, (port,) = context.Queue(), free_ports(1)
    processes = [context.Process(target=target, args=(rank, world_size, port, job, answers)) for rank in range(world_size)]
    for process in processes:
        process.start()
    try:
        found = {rank: (losses, records) for rank, losses, records in (answers.get(timeout=100) for _ in processes)}
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [found[rank] for rank in range(world_size)]


@pytest.fixture(scope="module")
def undisturbed(places: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """What one process of a group of one reports."""
    return train_with(1, *map(str, places), str(tmp_path_factory.mktemp("undisturbed") / "run"), SETTINGS, 0)[0]


# Three share a batch of 16 as 6, 5 and 5.
@pytest.mark.parametrize(("count", "more"), [(2, {}), (3, {})])
def test_several_processes_equal_one_with_the_global_batch(
    places: tuple[Path, Path], undisturbed: Reported, tmp_path: Path, count: int, more: dict[str, Any]
) -> None:
    several = train_with(count, *map(str, places), str(tmp_path / "several"), {**SETTINGS, **more}, 0)
    (losses, records), (losses_of_several, records_of_several) = undisturbed, several[0]
    assert all(other == ([], []) for other in several[1:])  # the other ranks say nothing
    assert len(losses) == len(losses_of_several) == 5 * 4  # 70 images pad to 5 steps, the last of an epoch is in its record
    torch.testing.assert_close(torch.tensor(losses_of_several), torch.tensor(losses), rtol=1e-5, atol=0)
    for found, expected in zip(records_of_several, records, strict=True):
        for name in ("train_loss", "val_loss", "ema_val_loss"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5)
        for name in ("train_top1", "val_top1", "val_images", "step"):
            assert found[name] == expected[name]


# CutMix, Mixup and ColorAdapt pair samples, drop path skips layers: all of it is drawn by sample and by mix group.
DEFAULTS: dict[str, Any] = {
    "model": replace(MODEL, drop_path=0.3),
    "augment": AugmentConfig(crop_share=1.0, mixup_alpha=0.8, coloradapt_prob=0.25, mix_group=4),
    "epochs": 2,
}


def alone(places: tuple[Path, Path], out: Path, **settings: Any) -> KeptReporter:
    """Train in this process."""
    train, val = (open_dataset(str(place)) for place in places)
    return fit(request_for(train, out, out.parent / "cache", val=val, **settings))


@pytest.mark.parametrize("labels", ["area", "attention"])
def test_two_processes_equal_one_with_the_default_augmentation(places: tuple[Path, Path], tmp_path: Path, labels: str) -> None:
    settings = {**DEFAULTS, "augment": replace(DEFAULTS["augment"], cutmix_labels=labels)}
    expected = alone(places, tmp_path / "one", **settings)
    losses, records = train_with(2, *map(str, places), str(tmp_path / "two"), {**settings, "accumulate": 2}, 0)[0]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected.losses), rtol=1e-5, atol=0)
    for found, record in zip(records, expected.records, strict=True):
        for name in ("train_loss", "val_loss", "ema_val_loss"):
            assert found[name] == pytest.approx(record[name], rel=1e-5)


def test_two_processes_equal_one_with_token_adapt(places: tuple[Path, Path], tmp_path: Path) -> None:
    """Each half of a mix group, and the maps of its images, are those of one process; every process reads the fitted networks itself."""
    dataset = open_dataset(str(places[0]))
    adapter = TokenAdapter(dataset.spec, dataset.codebook(), AdaptSizes(out_grid=(4, 4), width=16, heads=1, hidden=16))
    save_adapter(adapter, dataset.spec, Store(str(tmp_path / "adapt")), "", settings={}, fidelity={})
    ops = f"half_batch([rrc()], [token_adapt(file='{tmp_path / 'adapt'}')]), 0.5*noise(), cutmix()"
    settings = {**DEFAULTS, "augment": AugmentConfig(ops=ops, mix_group=4)}
    expected = alone(places, tmp_path / "one", **settings)
    losses, _ = train_with(2, *map(str, places), str(tmp_path / "two"), {**settings, "accumulate": 2}, 0)[0]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected.losses), rtol=1e-5, atol=0)


@pytest.mark.parametrize("targets", ["ids", "features"])
def test_a_pretraining_on_two_processes_equals_one(places: tuple[Path, Path], tmp_path: Path, targets: str) -> None:
    """Masks, dropout, drop path and crops belong to the sample."""
    settings: dict[str, Any] = {
        "objective": "mtm",
        "mask": MaskConfig(decoder_depth=1, targets=targets, centroids=12),
        "model": replace(MODEL, drop_path=0.3, stem="patch", learned_codebook=True, embed_norm=True),
        "augment": PRESETS["mtm"],
        "epochs": 2,
        "loader": {"end": "pad"},
    }
    expected = alone(places, tmp_path / "one", **settings)
    losses, records = train_with(2, *map(str, places), str(tmp_path / "two"), {**settings, "accumulate": 2}, 0)[0]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected.losses), rtol=1e-5, atol=0)
    names = ["train_loss", "val_loss", "ema_val_loss", "train_masked_accuracy", "val_images", *["val_perplexity"] * (targets == "ids")]
    for found, record in zip(records, expected.records, strict=True):
        for name in names:
            assert found[name] == pytest.approx(record[name], rel=1e-4)


def test_a_segmenter_of_two_processes_equals_that_of_one(tmp_path: Path) -> None:
    """Label maps are moved with their sample, and boxes of CutMix with their mix group."""
    write_masked_images(tmp_path / "masked", 40, seed=4)
    source = SourceConfig(masks=str(tmp_path / "masked" / "masks"), yes=True)
    convert(tmp_path / "masked" / "images", tmp_path / "tokens", source=source, fit=FIT)
    settings: dict[str, Any] = {
        "objective": "segment",
        "segment": SegmentConfig(head="upernet", channels=8),
        "augment": AugmentConfig(ops="0.5*flip(), 0.5*swap(), rrc(share=1.0), cutmix()", mix_group=4),
        "epochs": 2,
        "loader": {"end": "pad"},
    }
    place = (tmp_path / "tokens", tmp_path / "tokens")
    expected = alone(place, tmp_path / "one", **settings)
    losses, records = train_with(2, *map(str, place), str(tmp_path / "two"), {**settings, "accumulate": 2}, 0)[0]
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected.losses), rtol=1e-5, atol=0)
    for found, record in zip(records, expected.records, strict=True):
        for name in ("train_loss", "val_loss", "ema_val_loss", "train_miou", "val_images"):
            assert found[name] == pytest.approx(record[name], rel=1e-3)


def test_mix_groups_are_those_of_the_first_start(places: tuple[Path, Path], tmp_path: Path) -> None:
    settings = {**DEFAULTS, "augment": replace(DEFAULTS["augment"], mix_group=None), "checkpoint_steps": 3}
    train_with(2, *map(str, places), str(tmp_path / "run"), settings, 4)
    continued = alone(places, tmp_path / "run", **settings, resume=True)
    assert load_run(Store(str(tmp_path / "run"))).augment.mix_group == 8  # 16 samples on 2 ranks
    whole = alone(places, tmp_path / "whole", **{**settings, "augment": replace(DEFAULTS["augment"], mix_group=8)})
    torch.testing.assert_close(torch.tensor(continued.losses), torch.tensor(whole.losses[-len(continued.losses) :]), rtol=1e-5, atol=0)


def five_steps(trainer: Trainer) -> list[tuple[float, np.ndarray]]:
    """Loss over all ranks and gradients (after clipping, which a norm below 1e9 does not do here) of five steps."""
    trainer._begin()
    found: list[tuple[float, np.ndarray]] = []
    gradients: list[np.ndarray] = []

    def keep(*_: object) -> None:
        parts = [parameter.grad.flatten() for parameter in trainer.model.parameters() if parameter.grad is not None]
        gradients.append(torch.cat(parts).numpy().copy())

    trainer.optimisation.optimizer.register_step_pre_hook(keep)
    trainer.optimisation.train_mode()
    for batch in itertools.islice((batch for epoch in range(2) for batch in trainer.loader.epoch(epoch)), 5):
        loss = trainer._train_step(batch)
        trainer.step += 1
        found.append((float(trainer.ranks.sum(loss.clone())), gradients[-1]))
    return found


def rank_of_five_steps(rank: int, world_size: int, port: int, job: tuple[str, str, str, dict[str, Any], int], answers: Any) -> None:
    """Make five steps as one process of several; put what `five_steps` returns as losses and gradients."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train, _, out, settings, _ = job
    with joined_ranks("cpu") as (ranks, device):
        request = request_for(open_dataset(train), out, Path(out).parent / "cache", **settings)
        losses, gradients = zip(*five_steps(Trainer(request, ranks, device, KeptReporter())), strict=True)
    answers.put((rank, losses, gradients))


def test_losses_and_gradients_of_two_ranks_are_those_of_one_with_seits_augmentation(places: tuple[Path, Path], tmp_path: Path) -> None:
    """CutMix on, drop path on, float32, equal mix groups."""
    settings: dict[str, Any] = {"model": replace(MODEL, drop_path=0.3), "augment": AugmentConfig(mix_group=8), "clip_grad_norm": 1e9}
    request = request_for(open_dataset(str(places[0])), tmp_path / "one", tmp_path / "cache", **settings)
    alone = five_steps(Trainer(request, Ranks(), torch.device("cpu"), KeptReporter()))
    job = (*map(str, places), str(tmp_path / "two"), settings, 0)
    for losses, gradients in train_with(2, *job, target=rank_of_five_steps):
        for (loss, gradient), found, found_gradient in zip(alone, losses, gradients, strict=True):
            assert found == pytest.approx(loss, rel=1e-5)
            assert np.linalg.norm(found_gradient - gradient) < 1e-5 * np.linalg.norm(gradient)
    assert len({round(loss, 6) for loss, _ in alone}) == 5


class Several(Ranks):
    """Ranks as far as numbers go."""

    def wrap(self, model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        return model

    def any(self, flag: bool, device: torch.device) -> bool:
        return flag

    def wait_for_all(self) -> None:
        pass


def test_a_start_that_would_cut_mix_groups_is_refused(places: tuple[Path, Path], tmp_path: Path) -> None:
    data, cpu, reporter = open_dataset(str(places[0])), torch.device("cpu"), KeptReporter()

    def start(world_size: int, **settings: Any) -> Trainer:
        request = request_for(data, tmp_path / "run", tmp_path, **{"augment": AugmentConfig(), **settings})
        trainer = Trainer(request, Several(world_size=world_size), cpu, reporter)
        trainer._begin()
        return trainer

    with pytest.raises(ConfigError, match="16 images cannot be shared evenly by 3 processes.*--batch-size 15 or 18"):
        start(3)
    assert start(1).run.augment.mix_group == 16
    with pytest.raises(ConfigError, match="groups of 16; 2 processes do not get whole groups of a batch of 16.*start 1 of them"):
        start(2, resume=True)
    start(1, resume=True)
    assert not any(line.startswith("note") for line in reporter.lines)
    # Nothing is mixed, or somebody wants it so.
    request = request_for(data, tmp_path / "plain", tmp_path, augment=PER_SAMPLE)
    Trainer(request, Several(world_size=3), cpu, reporter)
    request = request_for(data, tmp_path / "wanted", tmp_path, augment=AugmentConfig(mix_group=0))
    Trainer(request, Several(world_size=3), cpu, reporter)._begin()
    assert any("3 shares of a batch of 16 do not hold whole mix groups" in line for line in reporter.lines)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_continues(
    places: tuple[Path, Path], undisturbed: Reported, tmp_path: Path, before: int, after: int
) -> None:
    (train, val), whole = map(str, places), undisturbed
    settings = {**SETTINGS, "checkpoint_steps": 3}
    train_with(before, train, val, str(tmp_path / "run"), settings, 8)
    assert read_checkpoint(request_for(open_dataset(train), tmp_path / "run", tmp_path).out, "checkpoint.safetensors").state["step"] == 6
    continued = train_with(after, train, val, str(tmp_path / "run"), {**settings, "resume": True}, 0)[0]
    assert len(continued[0]) == 3 + 3 * 4  # steps 7 to 9 of the second epoch, then three more epochs
    torch.testing.assert_close(torch.tensor(continued[0]), torch.tensor(whole[0][-len(continued[0]) :]), rtol=1e-5, atol=0)
    for found, expected in zip(continued[1], whole[1][1:], strict=True):
        assert found["train_top1"] == expected["train_top1"] and found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)


def test_torchrun_trains_with_the_command_of_one_process(places: tuple[Path, Path], tmp_path: Path) -> None:
    train, val = map(str, places)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_ports(1)[0]),
        str(ROOT / "cli.py"),
    ]
    options = ["--val", val, "--out", str(tmp_path / "run"), "--epochs", "2", "--device", "cpu", "--json", "-q"]
    sizes = ["--batch-size", "16", "--set", "model.width=16", "--set", "model.depth=1", "--set", "model.heads=2"]
    environment = {**os.environ, "TOKENSHARDS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "train", train, *options, *sizes], capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"best_top1"') == 1, done.stdout
    assert (tmp_path / "run" / "curves.png").exists()


def test_a_device_that_is_not_there_and_a_broken_environment_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--device is 'gpu'; expected auto, cpu"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="does not have; available: cpu"):
            choose_device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 'two'; expected a number"), joined_ranks("cpu"):
        pass
