"""One step of a training: gradients of a batch, in parts and over all ranks; optimiser, rate and precision; averaged weights.

Shapes: B samples of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from tokenshards.pipeline.canonical import keyed_hash64
from tokenshards.stem_adaptors.config import TrainConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.classifier import VisionTransformer
from tokenshards.stem_adaptors.objectives.base import Answers, Measure, Objective
from tokenshards.stem_adaptors.precision import autocast, precision_of
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.checkpoints import Checkpoint, load_optimizer
from tokenshards.stem_adaptors.training.ema import AveragedWeights
from tokenshards.stem_adaptors.training.parameter_groups import parameter_groups, spared_names
from tokenshards.stem_adaptors.training.pretrained import trainable_parameters
from tokenshards.stem_adaptors.training.schedule import learning_rate

__all__ = ["Optimisation"]


class Optimisation:
    """Changes the weights of an objective's model, in a training of a given number of steps. `draws`: see `config.DRAWS`."""

    def __init__(
        self, objective: Objective, config: TrainConfig, ranks: Ranks, device: torch.device, *, epoch_steps: int, draws: int
    ) -> None:
        model = objective.model
        self._objective, self._model, self._config, self._ranks, self._device, self._draws = objective, model, config, ranks, device, draws
        self.total_steps = config.epochs * epoch_steps
        self._rate = config.lr
        self._warmup_steps = min(round(config.warmup_epochs * epoch_steps), self.total_steps // 2)
        trainable_parameters(model, config.train_part)
        spared = spared_names(model) if draws > 1 else set()
        groups = parameter_groups(model, config.weight_decay, spared, config.layer_decay)
        betas = (config.beta1, config.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=device.type in ("cpu", "cuda"))
        self._draws_numbers = draws == 1 or not isinstance(getattr(model, "backbone", None), VisionTransformer)
        self.precision = precision_of(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.average = AveragedWeights(model, config.ema_decay) if config.ema_decay else None
        self._wrapped = ranks.wrap(objective, device)

    @property
    def lr(self) -> float:
        """The learning rate of the last step, before the scale of a layer."""
        return self._rate

    def train_mode(self) -> None:
        """Set the layers of the model to train mode; a linear probe keeps the backbone in evaluation mode."""
        # A linear probe measures the backbone as it is. Train mode would change its batch statistics.
        self._model.train(self._draws == 1 or self._config.train_part != "head")

    def step(self, number: int, batch: Batch, measure: Measure) -> Tensor:
        """Make step `number`, counted from 0, and add the model's answers to the measure. Return the loss of this rank's share."""
        config = self._config
        self._rate = learning_rate(
            number, total_steps=self.total_steps, warmup_steps=self._warmup_steps, peak=config.lr, floor=config.min_lr
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * group["lr_scale"]
        with self._own_generator(number):
            total = self._gradients(batch, measure)
        if config.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self._model.parameters(), config.clip_grad_norm)
            if not self.scaler.is_enabled():  # an enabled scaler skips a step whose gradients are not finite
                total = torch.where(norm.isfinite(), total, norm)  # such gradients spoil the weights, even where the loss was finite
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(number)
        return total

    def _gradients(self, batch: Batch, measure: Measure) -> Tensor:
        """Add up the gradients of a batch; return its loss."""
        ranks, objective, wrapped = self._ranks, self._objective, self._wrapped
        weights = ranks.start_sum(objective.weights_B(batch).sum())  # runs beside the first forward pass
        total = torch.zeros((), device=self._device)
        pieces = _pieces(len(batch), self._config.accumulate, in_a_row=self._draws == 1)
        for index, piece in enumerate(pieces):
            part = batch[piece]
            last = index == len(pieces) - 1
            sync = nullcontext() if last or ranks.world_size == 1 else wrapped.no_sync()  # type: ignore[operator]
            with sync:
                with autocast(self._device, self.precision):
                    answers: Answers = wrapped(part)
                # DistributedDataParallel takes the mean over ranks, but the loss is the mean over all samples of the step.
                loss = (answers.loss_B * objective.weights_B(part)).sum() * ranks.world_size / weights().clamp_min(1.0)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() / ranks.world_size
            measure.add(part, answers)
        return total

    @contextmanager
    def _own_generator(self, number: int) -> Iterator[None]:
        """Let dropout of foreign models draw numbers that the step decides, and give the caller's generator back.

        So there is no generator to save, and a resumed run draws the same numbers.
        """
        if not self._draws_numbers:
            yield
            return
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(keyed_hash64(f"step {self._config.seed}", f"{number} {self._ranks.rank}"))
            yield

    def share_buffers(self) -> None:
        """Give every rank the main rank's buffers, such as batch statistics: each rank measures a share of the validation set."""
        names = [name for name, _ in self._model.named_buffers() if not name.startswith("embedding.")]
        live = dict(self._model.named_buffers())
        for name in names:
            self._ranks.share(live[name])
            if self.average is not None and name in self.average.tensors:
                self._ranks.share(self.average.tensors[name])

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        load_optimizer(self.optimizer, checkpoint.optimizer)
        if self.average is not None:
            self.average.load(checkpoint.average)
        if checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])


def _pieces(rows: int, count: int, *, in_a_row: bool) -> list[slice]:
    """Cut rows into `count` nearly equal slices, none empty. Unless `in_a_row`, slices take every count-th row, so mix groups stay
    whole."""
    if not in_a_row:
        return [slice(start, None, count) for start in range(min(rows, count))]
    edges = [rows * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if stop > start]
