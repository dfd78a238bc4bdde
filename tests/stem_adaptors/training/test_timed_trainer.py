"""A training that ends when its seconds are spent: only the clock is made up, one second a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tokenshards.stem_adaptors.training.timed_trainer as timed_module
from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tests.stem_adaptors.training.small_runs import AUGMENT, FIT, request_for
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.stem_adaptors.training.optimisation import Optimisation
from tokenshards.stem_adaptors.training.timed_trainer import RESERVED_SECONDS, TimedTrainer, clock_of

STEPS = 2
"""Of an epoch."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("timed")
    write_images(folder / "src", 16 * STEPS, seed=1)
    convert(folder / "src", folder / "tokens", fit=FIT, runner=InlineRunner())
    return open_dataset(str(folder / "tokens"))


class Clock:
    """Reads one second more after each step."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.now, self.seconds = 100.0, seconds
        self.places: list[tuple[int, float]] = []

    def __call__(self, device: torch.device) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """The clock of trainings; `places` are the places in the schedule that were asked for, and the rates."""
    clock, step = Clock(), Optimisation.step

    def stepped(self: Optimisation, place: int, *given: Any) -> torch.Tensor:
        found = step(self, place, *given)
        clock.places.append((place, self.lr))
        clock.now += clock.seconds
        return found

    monkeypatch.setattr(timed_module, "clock_of", clock)
    monkeypatch.setattr(Optimisation, "step", stepped)
    yield clock


@pytest.fixture
def train(dataset: TokenDataset, tmp_path: Path) -> Callable[..., TimedTrainer]:
    def trained(seconds: float, warmup: float = 0.0, lr: float = 1e-3, **more: int) -> TimedTrainer:
        request = request_for(dataset, tmp_path / "run", tmp_path / "cache", ema_decay=0.0, lr=lr)
        request = replace(request, augment=replace(AUGMENT, mixup_alpha=0.0))
        trainer = TimedTrainer(request, torch.device("cpu"), begun=100.0, seconds=seconds, warmup=warmup, **more)
        trainer.train()
        return trainer

    return trained


def test_it_ends_when_its_seconds_are_spent(clock: Clock, train: Callable[..., TimedTrainer]) -> None:
    trainer = train(10.0)  # a tenth is for the weights
    assert trainer.step == len(clock.places) == 9 and trainer.spent_seconds == 9.0
    figures = trainer.figures()
    assert (figures["steps"], figures["epochs"], figures["cpu_seconds"]) == (9, 4.5, 9.0) and figures["loss"] > 0


def test_two_seconds_at_most_are_reserved(clock: Clock, train: Callable[..., TimedTrainer]) -> None:
    clock.seconds = 2.0
    assert train(60.0).step == (60 - RESERVED_SECONDS) / 2


def test_at_least_one_step_is_made(clock: Clock, train: Callable[..., TimedTrainer]) -> None:
    clock.now += 1000
    trainer = train(5.0)
    assert trainer.step == 1 and trainer.figures()["epochs"] == 0.5


def test_the_schedule_follows_the_share_of_the_seconds(clock: Clock, train: Callable[..., TimedTrainer]) -> None:
    trainer = train(22.0, warmup=0.25)  # 20 seconds for steps
    places, rates = zip(*clock.places, strict=True)
    assert list(places) == [int(step / 20 * (trainer.total_steps - 1)) for step in range(20)]
    assert rates[0] < rates[2] < rates[5] == pytest.approx(1e-3, rel=1e-3), "it rises in the first quarter"
    assert list(rates[5:]) == sorted(rates[5:], reverse=True) and rates[-1] < 0.1e-3, "and falls to the end"


def test_the_last_weights_are_kept(clock: Clock, train: Callable[..., TimedTrainer], tmp_path: Path) -> None:
    trainer = train(5.0)
    kept = load_file(tmp_path / "run" / "best.safetensors")
    assert kept and all(torch.equal(tensor, kept[name]) for name, tensor in trainer.model.state_dict().items())


def test_epochs_of_few_steps_do_not_all_write_their_end(clock: Clock, train: Callable[..., TimedTrainer], tmp_path: Path) -> None:
    trainer = train(12.0, steps_between_ends=3)  # 10.8 of them for steps, two an epoch
    assert [record["step"] for record in trainer.log.records] == [4, 8] and trainer.step == 11
    kept = load_file(tmp_path / "run" / "best.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in trainer.model.state_dict().items()), "the last weights"


def test_a_stop_does_not_wait_for_an_end(clock: Clock, train: Callable[..., TimedTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimedTrainer, "_train_step", stops_after(TimedTrainer._train_step, STEPS))
    with pytest.raises(SystemExit):
        train(1000.0, steps_between_ends=100)
    assert len(clock.places) == STEPS


def stops_after(step: Callable[..., torch.Tensor], steps: int) -> Callable[..., torch.Tensor]:
    def stepped(self: TimedTrainer, *given: Any) -> torch.Tensor:
        loss = step(self, *given)
        if self.step == steps - 1:
            self.request_stop(15)
        return loss

    return stepped


def test_seconds_of_a_cpu_are_those_that_the_process_used() -> None:
    import time

    begun = clock_of(torch.device("cpu"))
    time.sleep(0.2)
    assert clock_of(torch.device("cpu")) - begun < 0.1
    begun = clock_of(torch.device("cuda"))
    time.sleep(0.2)
    assert clock_of(torch.device("cuda")) - begun >= 0.2
