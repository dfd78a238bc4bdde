"""A classifier and its transform for a dataset, in one call."""

from __future__ import annotations

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.augment import TokenTransform, augmentation_named
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.data.given import require_data
from tokenshards.stem_adaptors.data.selection import Selection
from tokenshards.stem_adaptors.models.classifier import TokenClassifier
from tokenshards.stem_adaptors.objectives.base import Blueprint
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective
from tokenshards.stem_adaptors.training.defaults import default_configs
from tokenshards.stem_adaptors.training.run_directory import statistics_of

__all__ = ["build"]


def build(
    model: str | ModelConfig,
    dataset: TokenDataset | Selection,
    *,
    augment: str | AugmentConfig | None = None,
    label_smoothing: float = 0.1,
    seed: int = 0,
) -> tuple[TokenClassifier, TokenTransform]:
    """Return a new classifier for the dataset's ids [B, L, Q] and classes, and the transform of its training, as `train` makes them.

    >>> dataset = tokenshards.open_dataset("photos.tokens")
    >>> loader = tokenshards.TokenLoader(dataset, batch_size=24)
    >>> model, transform = tokenshards.build("vit_nano", dataset, augment="seit")
    >>> batch = next(iter(loader))
    >>> loss = transform.loss(model, batch)  # the mean over the labelled samples of the augmented batch
    >>> loss.backward()
    >>> model.eval()(batch.ids_BLQ).shape  # logits of the batch as it is
    torch.Size([24, 3])

    `model`: a size such as `vit_tiny`, `timm:NAME`, code of yours, or a ModelConfig. `augment`: the name of a preset (`seit`, `seitpp`,
    `seitpp_small`, `mild`, `none`), operations as a text, an AugmentConfig, or None for what `train` takes for a dataset of this size. The
    model's embeddings are standardised. Its weights depend on the arguments alone, and no generator is reseeded. Raises ConfigError where a
    part does not fit the dataset's layout, or where no image has a label.
    """
    if isinstance(model, TokenDataset | Selection):
        raise ConfigError('build got the dataset first; expected the model first, such as build("vit_tiny", dataset)')
    require_data(dataset)
    ClassifyObjective.require(dataset)
    whole = dataset.dataset if isinstance(dataset, Selection) else dataset
    objective = ClassifyObjective.build(
        Blueprint(
            spec=dataset.spec,
            tables=whole.codebook(),
            statistics=statistics_of(whole),
            classes=dataset.classes,
            model=ModelConfig(name=model) if isinstance(model, str) else model,
            augment=_augmentation(augment, dataset),
            label_smoothing=label_smoothing,
            seed=seed,
            draws=DRAWS,
        )
    )
    return objective.model, objective.transform


def _augmentation(augment: str | AugmentConfig | None, dataset: TokenDataset | Selection) -> AugmentConfig:
    if isinstance(augment, AugmentConfig):
        return augment
    if augment is None:
        config: AugmentConfig = default_configs(dataset)["augment"]
        return config
    return augmentation_named(augment, dataset.spec)
