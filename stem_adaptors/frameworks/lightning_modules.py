"""Lightning: the data module reads token shards, the module trains a classifier as `train` does.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.augment import TokenTransform
from tokenshards.stem_adaptors.config import LoaderConfig, TrainConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.class_names import class_map, relabelled
from tokenshards.stem_adaptors.data.given import loader_config, require_data
from tokenshards.stem_adaptors.data.labels import require_labels
from tokenshards.stem_adaptors.data.loader import TokenLoader, TrainingData
from tokenshards.stem_adaptors.data.same_tokenizer import require_same_tokenizer
from tokenshards.stem_adaptors.models.classifier import TokenClassifier
from tokenshards.stem_adaptors.training.parameter_groups import parameter_groups, spared_names
from tokenshards.stem_adaptors.training.schedule import learning_rate
from tokenshards.stem_adaptors.training.validation import seen_in_training

with optional_import("TokenDataModule and TokenClassifierModule need Lightning", package="lightning"):
    from lightning.pytorch import LightningDataModule, LightningModule

__all__ = ["TokenClassifierModule", "TokenDataModule"]


class TokenDataModule(LightningDataModule):  # type: ignore[misc]
    """Batches of a training set and, optionally, of a validation and a test set.

    >>> dataset = tokenshards.open_dataset("photos.tokens")
    >>> data = tokenshards.TokenDataModule(dataset, val=tokenshards.open_dataset("more.tokens"), batch_size=24)
    >>> [len(batch) for batch in data.train_dataloader()]
    [24, 24, 24]

    Its loaders are TokenLoaders: each rank reads its share, which torch.distributed tells, and Lightning adds no sampler. A checkpoint of
    Lightning holds the place in the epoch. Class indices of the validation set become those of the training set, by name.
    """

    def __init__(
        self,
        train: TrainingData,
        val: TokenDataset | None = None,
        *,
        test: TokenDataset | None = None,
        config: LoaderConfig | None = None,
        **settings: Any,
    ) -> None:
        """`config` and `settings` are those of TokenLoader; `batch_size` is that of all ranks together.

        `test` is the set of Trainer.test and Trainer.predict, by default the validation set. Raises OtherTokenizerError for sets of another
        tokenizer. Raises ConfigError where the validation set is part of a mix to train on, has no labels, or has classes that the training
        set lacks.
        """
        super().__init__()
        self.train_data, self.val_data, self.test_data = train, val, val if test is None else test
        require_data(train, val, test)
        self.config = loader_config(config, settings)
        self._loader: TokenLoader | None = None
        self._place: dict[str, Any] | None = None
        for measured in (val, test):
            if measured is not None:
                require_same_tokenizer(measured, train.spec, "the training set")
        if val is None:
            return
        note = seen_in_training(val, train)
        if note is not None:
            warnings.warn(note, stacklevel=2)
        require_labels(val, "Without labels nothing can be measured")
        self._classes = class_map(val.classes, train.classes, val.store.url, missing_is_error=True)

    def __repr__(self) -> str:
        return short_repr(self, train=self.train_data, val=self.val_data, batch_size=self.config.batch_size)

    __str__ = __repr__  # that of Lightning takes datasets apart

    def train_dataloader(self) -> Epochs:
        """Return the loader of the training set, one epoch per iteration."""
        if self._loader is None:
            self._loader = TokenLoader(self.train_data, self.config)
            if self._place is not None:
                self._loader.load_state_dict(self._place)
        return Epochs(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training set, for a checkpoint."""
        if self._loader is None:
            return {} if self._place is None else self._place
        state = self._loader.state_dict()
        if state["next_global_index"] < len(self._loader) * self.config.batch_size:
            return state
        # Lightning saves at the end of an epoch, before the loader moves on.
        return {**state, "epoch": state["epoch"] + 1, "next_global_index": 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the place of a checkpoint. Raises ConfigError, at the latest when the loader is made, for other data."""
        self._place = state_dict or None
        if self._loader is not None and state_dict:
            self._loader.load_state_dict(state_dict)

    def val_dataloader(self) -> Measured | list[Any]:
        """Return the loader of the whole validation set, in the order stored."""
        return [] if self.val_data is None else self._whole(self.val_data, functools.partial(relabelled, self._classes))

    def test_dataloader(self) -> Measured | list[Any]:
        """Return the loader of the whole test set. Raises ConfigError where it has no labels, or classes that the training set lacks."""
        if self.test_data is None:
            return []
        require_labels(self.test_data, "Trainer.predict needs none")
        classes = class_map(self.test_data.classes, self.train_data.classes, self.test_data.store.url, missing_is_error=True)
        return self._whole(self.test_data, functools.partial(relabelled, classes))

    def predict_dataloader(self) -> Measured | list[Any]:
        """Return the loader of the whole test set, whatever its labels are."""
        return [] if self.test_data is None else self._whole(self.test_data, lambda batch: batch)

    def _whole(self, data: TokenDataset, align: Callable[[Batch], Batch]) -> Measured:
        return Measured(TokenLoader(data, replace(self.config, order="sequential", end="pad")), align)


class Epochs:
    """A TokenLoader without its state: what Lightning keeps of a loader's state, it drops when the number of steps is asked for early."""

    def __init__(self, loader: TokenLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)


class Measured:
    """The first epoch of a loader at every iteration, also after one that was not finished."""

    def __init__(self, loader: TokenLoader, align: Callable[[Batch], Batch]) -> None:
        self.loader, self._align = loader, align

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return map(self._align, self.loader.epoch(0))


class TokenClassifierModule(LightningModule):  # type: ignore[misc]
    """A classifier and the transform of its training; logs `train_loss`, `val_loss` and `val_top1`, `test_loss` and `test_top1`.

    >>> model, transform = tokenshards.build("vit_nano", tokenshards.open_dataset("photos.tokens"))
    >>> module = tokenshards.TokenClassifierModule(model, transform, tokenshards.TrainConfig(lr=2e-3, warmup_epochs=2))
    >>> module(next(iter(tokenshards.TokenDataModule(tokenshards.open_dataset("photos.tokens"), batch_size=24).train_dataloader()))).shape
    torch.Size([24, 3])

    Optimiser, weight decay, schedule, layer decay and clipping are those of `train` for this TrainConfig; override `configure_optimizers`
    for others. Number of epochs, precision, accumulation and devices are those of Lightning's Trainer.
    """

    def __init__(self, model: TokenClassifier, transform: TokenTransform, config: TrainConfig | None = None) -> None:
        super().__init__()
        self.model, self.config = model, config or TrainConfig()
        self._transform = [transform]  # in a list: a checkpoint holds the model alone, and the transform follows the batch's device itself

    def forward(self, batch: Batch) -> Tensor:
        """Return logits [B, C] of a batch as it is."""
        logits_BC: Tensor = self.model(batch.ids_BLQ, mask_BL=batch.mask_BL, shapes_BD=batch.shapes_BD)
        return logits_BC

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the augmented batch."""
        loss = self._transform[0].loss(self.model, batch)
        self.log("train_loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to `val_loss` and `val_top1`; padding and images without a label do not count."""
        self._measure(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to `test_loss` and `test_top1`, as `validation_step` does."""
        self._measure(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return logits [B, C] of the images of a batch, without those of padding."""
        logits_BC: Tensor = self(batch)
        return logits_BC[batch.weights_B > 0]

    def _measure(self, batch: Batch, part: str) -> None:
        logits_BC = self(batch).float()
        counts_B = (batch.weights_B > 0) & (batch.labels_B >= 0)
        labels_B = batch.labels_B.clamp_min(0)
        losses_B = torch.nn.functional.cross_entropy(logits_BC, labels_B, reduction="none")
        images = int(counts_B.sum())
        for name, values_B in (("loss", losses_B), ("top1", (logits_BC.argmax(dim=1) == labels_B).float())):
            mean = (values_B * counts_B).sum() / max(1, images)
            self.log(f"{part}_{name}", mean, batch_size=images, on_epoch=True, sync_dist=True, prog_bar=name == "top1")

    def configure_optimizers(self) -> Any:
        """Return AdamW and the schedule of the learning rate, step by step."""
        config, model = self.config, self.model
        groups = parameter_groups(model, config.weight_decay, spared_names(model), config.layer_decay)
        for group in groups:
            group["lr"] = config.lr * group["lr_scale"]
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))
        total = int(self.trainer.estimated_stepping_batches)
        warmup = min(round(config.warmup_epochs * total / max(1, self.trainer.max_epochs or 1)), total // 2)

        def share(step: int) -> float:
            last = min(step, total - 1)
            return learning_rate(last, total_steps=total, warmup_steps=warmup, peak=config.lr, floor=config.min_lr) / config.lr

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the Trainer says, else to the norm of the TrainConfig."""
        value = gradient_clip_val if gradient_clip_val is not None else self.config.clip_grad_norm or None
        self.clip_gradients(optimizer, gradient_clip_val=value, gradient_clip_algorithm=gradient_clip_algorithm or "norm")
