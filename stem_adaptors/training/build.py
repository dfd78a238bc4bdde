"""A classifier for a dataset, in one call."""

from __future__ import annotations

from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, build_classifier
from tokenshards.stem_adaptors.training.run_directory import statistics_of

__all__ = ["build"]


def build(dataset: TokenDataset, model: str | ModelConfig = "vit_tiny", *, seed: int = 0) -> TokenClassifier:
    """Return a new classifier for the dataset's ids [B, L, Q] and classes. Its embeddings are standardised as in `train`.

    `model`: a size such as `vit_tiny`, `timm:NAME`, or a ModelConfig. Weights depend on the arguments alone.
    >>> dataset = tokenshards.open_dataset("photos.tokens")
    >>> model = tokenshards.build(dataset, "vit_nano")
    >>> model(torch.from_numpy(dataset[:4].ids_BLQ)).shape
    torch.Size([4, 3])

    Raises ConfigError where the model does not fit the dataset's layout.
    """
    config = ModelConfig(name=model) if isinstance(model, str) else model
    return build_classifier(dataset.spec, dataset.codebook(), statistics_of(dataset), config, len(dataset.classes), seed=seed)
