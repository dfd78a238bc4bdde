"""One step of a training: gradients of a batch, in parts and over all ranks; optimiser, rate and precision; averaged weights.

Shapes: B samples of this rank.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tokenshards.pipeline.canonical import keyed_hash64
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.config import TrainConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, parameter_groups
from tokenshards.stem_adaptors.objectives.classify import sample_weights
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.checkpoints import Checkpoint, load_optimizer
from tokenshards.stem_adaptors.training.ema import AveragedWeights
from tokenshards.stem_adaptors.training.metrics import Counts
from tokenshards.stem_adaptors.training.pretrained import trainable_parameters
from tokenshards.stem_adaptors.training.schedule import learning_rate

__all__ = ["Optimisation"]


class Optimisation:
    """Changes the weights of a model, in a training of a given number of steps. `draws`: see `config.DRAWS`."""

    def __init__(
        self, model: TokenClassifier, config: TrainConfig, ranks: Ranks, device: torch.device, *, epoch_steps: int, draws: int
    ) -> None:
        self._model, self._config, self._ranks, self._device, self._draws = model, config, ranks, device, draws
        self.total_steps = config.epochs * epoch_steps
        self._warmup_steps = min(round(config.warmup_epochs * epoch_steps), self.total_steps // 2)
        trainable_parameters(model, config.train_part)
        groups = parameter_groups(model, config.weight_decay, spared_names(model) if draws > 1 else set())
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=device.type in ("cpu", "cuda"))
        self.precision = _precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.average = AveragedWeights(model, config.ema_decay) if config.ema_decay else None

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def train_mode(self) -> None:
        """Set the layers of the model to train mode; a linear probe keeps the backbone in evaluation mode."""
        # A linear probe measures the backbone as it is. Train mode would change its batch statistics.
        self._model.train(self._draws == 1 or self._config.train_part != "head")

    def step(self, number: int, objective: nn.Module, batch: Batch, counts: Counts) -> Tensor:
        """Make step `number`, counted from 0, and count the model's answers. Return the loss of this rank's share.

        `objective` is the ClassifyObjective; with several ranks it is wrapped by DistributedDataParallel.
        """
        config = self._config
        rate = learning_rate(number, total_steps=self.total_steps, warmup_steps=self._warmup_steps, peak=config.lr, floor=config.min_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Dropout of timm's models draws from torch's generator. The generator is keyed by the step, so its state needs no saving.
        torch.manual_seed(keyed_hash64(f"step {config.seed}", f"{number} {self._ranks.rank}"))
        total = self._gradients(objective, batch, counts)
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

    def _gradients(self, objective: nn.Module, batch: Batch, counts: Counts) -> Tensor:
        """Add up the gradients of a batch; return its loss."""
        ranks = self._ranks
        weights = ranks.sum(sample_weights(batch).sum())
        total = torch.zeros((), device=self._device)
        pieces = _pieces(len(batch), self._config.accumulate, in_a_row=self._draws == 1)
        for index, piece in enumerate(pieces):
            part = batch[piece]
            last = index == len(pieces) - 1
            sync = nullcontext() if last or ranks.world_size == 1 else objective.no_sync()  # type: ignore[operator]
            with sync:
                with torch.autocast(self._device.type, dtype=self.precision, enabled=self.precision is not torch.float32):
                    loss_B, logits_BC = objective(part)
                # DistributedDataParallel takes the mean over ranks, but the loss is the mean over all samples of the step.
                loss = (loss_B * sample_weights(part)).sum() * ranks.world_size / weights.clamp_min(1.0)
                self.scaler.scale(loss).backward()
            total += loss.detach() / ranks.world_size
            counts.add(logits_BC.detach(), part.labels_B, part.weights_B, loss_B.detach())
        return total

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        load_optimizer(self.optimizer, checkpoint.optimizer)
        if self.average is not None:
            self.average.load(checkpoint.average)
        if checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])


def spared_names(model: TokenClassifier) -> set[str]:
    """Return the parameters that timm's model excludes from weight decay, beyond those that their own names exclude."""
    names: Any = getattr(model.backbone, "no_weight_decay", set)
    return {f"backbone.{name}" for name in names()}


def _pieces(rows: int, count: int, *, in_a_row: bool) -> list[slice]:
    """Cut rows into `count` nearly equal slices, none empty. Unless `in_a_row`, slices take every count-th row, so mix groups stay
    whole."""
    if not in_a_row:
        return [slice(start, None, count) for start in range(min(rows, count))]
    edges = [rows * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if stop > start]


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        # torch also reports bf16 as supported where it is emulated, at a fraction of the speed of float32.
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if precision is torch.float16 and device.type != "cuda":
        raise ConfigError(f"--precision is fp16 on {device.type}; expected fp32 or bf16 there")
    return precision
