"""What a transform needs of a model, and an embedding that stands in its place.

Shapes: B samples, L sites, Q ids per site, D channels, C classes, P places of a model that draw.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

__all__ = ["DROP_PATH", "Lookup", "TokenModel"]

DROP_PATH = "drop path"
"""The stream of a model's stochastic depth."""


class TokenModel(Protocol):
    """What a transform needs of a model; `TokenClassifier` has it."""

    embedding: Any
    """A TokenEmbedding: it has `channels`, `check` and `site_mask`."""
    drop_path_draws: int
    """P, numbers in [0, 1) that `classify` takes for each sample."""

    def embed(self, ids_BLQ: Tensor, *, shapes_BD: Tensor | None = None) -> Tensor:
        """Return embeddings [B, D, *sites], or [B, L, D] for sequences and pyramids."""

    def classify(self, x: Tensor, mask: Tensor | None = None, draws_BP: Tensor | None = None) -> Tensor:
        """Return logits [B, C]."""

    def classify_with_shares(self, x: Tensor, replaced: Tensor, draws_BP: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [B, C] and the share [B] of CutMix's partners in what the head reads; only for CutMix with labels by attention."""


class Lookup:
    """An embedding in the place of a model, for a transform whose result no classifier gets."""

    drop_path_draws = 0

    def __init__(self, embedding: Any) -> None:
        self.embedding = embedding

    def embed(self, ids_BLQ: Tensor, *, shapes_BD: Tensor | None = None) -> Tensor:
        """Return embeddings."""
        x: Tensor = self.embedding(ids_BLQ, shapes_BD=shapes_BD)
        return x

    def classify(self, x: Tensor, mask: Tensor | None = None, draws_BP: Tensor | None = None) -> Tensor:
        """Raise TypeError: there is no classifier."""
        raise TypeError("Lookup has no classifier; give the transform a TokenClassifier")

    def classify_with_shares(self, x: Tensor, replaced: Tensor, draws_BP: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raise TypeError: there is no classifier."""
        raise TypeError("Lookup has no classifier; give the transform a TokenClassifier")
