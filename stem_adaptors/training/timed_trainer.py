"""A training that ends when its seconds are spent, for comparisons at equal time."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.trainer import Trainer
from tokenshards.stem_adaptors.training.training_request import TrainRequest

__all__ = ["Silent", "TimedTrainer", "clock_of"]

EPOCHS = 10_000_000
"""More than any time allows, even with one step each. The schedule is laid over their steps, and a step takes the rate at the share of the
seconds spent."""
RESERVED_SECONDS = 2.0
"""For what comes after the last step: the weights and the curves of the run."""


class Spent(Exception):
    """The seconds of the training are spent."""


class Silent:
    """A reporter that says nothing."""

    def say(self, message: str) -> None:
        """Say nothing."""

    def step(self, epoch: int, step: int, steps: int, images_per_second: float, loss: float) -> None:
        """Show nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Show nothing."""


def clock_of(device: torch.device) -> float:
    """Return the seconds that count on a device: of a CPU those that this process used, all threads together; of a GPU those that pass."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


class TimedTrainer(Trainer):
    """The usual trainer. Only its end and the place in its schedule follow the seconds of `clock_of`.

    So a training can't be repeated step by step: a machine that is slower for a while takes fewer steps.
    """

    def __init__(
        self, request: TrainRequest, device: torch.device, *, begun: float, seconds: float, warmup: float, steps_between_ends: int = 1
    ) -> None:
        """`begun`: value of `clock_of` from which seconds count. `warmup`: share of the seconds in which the rate rises.

        `steps_between_ends`: steps from the end of an epoch, which writes weights and curves, to the next end that does. Otherwise few
        images, whose epochs take few steps, would spend half of their seconds on ends.
        """
        self._begun, self._started = begun, time.perf_counter()
        self._steps_between_ends, self._ended = steps_between_ends, 0
        self._step_seconds = seconds - min(RESERVED_SECONDS, seconds / 10)
        self.spent_seconds = self.seconds = 0.0
        train = replace(request.train, epochs=EPOCHS, warmup_epochs=warmup * EPOCHS)
        super().__init__(replace(request, train=train), Ranks(), device, Silent())

    def train(self) -> None:
        """Train until the seconds are spent, then write the weights. At least one step is made."""
        try:
            self.fit()
        except Spent:
            self.spent_seconds, self.seconds = clock_of(self.device) - self._begun, time.perf_counter() - self._started

    def figures(self) -> dict[str, float]:
        """Return what the last whole epoch showed, or the first one while it lasts; then steps and epochs, and the seconds."""
        names, records = self.objective.training_figures, self.log.records
        shown = {name: records[-1][f"train_{name}"] for name in names} if records else self._measure.record(self.ranks)
        return {
            **{name: round(shown[name], 4) for name in names},
            "steps": self.step,
            "epochs": round(self.step / len(self.loader), 2),
            "cpu_seconds" if self.device.type == "cpu" else "device_seconds": round(self.spent_seconds, 1),
            "seconds": round(self.seconds, 1),
        }

    def _train_epoch(self) -> None:
        try:
            super()._train_epoch()
        except Spent:
            if self._writer is not None:  # as after each epoch: what starts from this run takes these weights
                self._writer.best(self.model.state_dict(), {"epoch": self.epoch, "weights": "last"})
            raise

    def _end_epoch(self) -> None:
        if self.step - self._ended < self._steps_between_ends and not self._stop:
            return
        self._ended = self.step
        super()._end_epoch()

    def _train_step(self, batch: Batch) -> Tensor:
        spent = (clock_of(self.device) - self._begun) / self._step_seconds
        if spent >= 1 and self.step:
            raise Spent
        return self.optimisation.step(int(min(spent, 1.0) * (self.total_steps - 1)), batch, self._measure)
