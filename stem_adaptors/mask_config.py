"""Configuration of masked token modelling. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from tokenshards.pipeline.errors import require
from tokenshards.stem_adaptors.field_types import check_types

__all__ = ["MaskConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskConfig:
    """What a pre-training hides, and the decoder that finds it again. The defaults are those of SeiT++ (Lee et al. 2024).

    >>> config = tokenshards.MaskConfig(ratio_mean=0.55, decoder_depth=2)
    >>> config.drop_share
    0.4

    A patch is what the stem makes one token of: 2 x 2 sites in SeiT++.
    """

    ratio_mean: float = 0.45
    """Mean of the normal distribution that the share of masked patches is drawn from, for each sample; the ends below cut it."""
    ratio_std: float = 0.25
    """Its standard deviation; 0 masks the same share of every sample."""
    ratio_min: float = 0.4
    """Least share of masked patches."""
    ratio_max: float = 1.0
    """Largest share of masked patches."""
    drop_share: float = 0.4
    """Share of the patches, all of them masked, that the encoder does not see; the other masked ones enter as a learned vector."""
    targets: str = "ids"
    """What is predicted of a hidden patch: the `ids` of its sites (SeiT++), `features` of what the patch shows (MaskFeat), or the nearest
    of the centroids of these features (`centroids`, CCViT)."""
    centroids: int = 256
    """Centroids of the features of patches. With `features` as targets they are measured and drawn alone."""
    predict_share: float = 1.0
    """Share of the hidden patches, drawn for each sample, that are predicted; a CPU saves the scores of the others."""
    span_sites: int = 4
    """Neighbours that are masked together in a sequence."""
    embed_dropout: float = 0.1
    """Dropout of the values of embeddings."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    decoder_width: int | None = None
    """Channels of a token of the decoder; None takes two thirds of the encoder's, as 512 of 768."""
    decoder_heads: int | None = None
    """Attention heads of the decoder; None takes one for 32 channels."""
    val_ratio: float = 0.75
    """Share of masked patches in a measurement."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            0 < self.ratio_min <= self.ratio_max <= 1, "mask.ratio_min", self.ratio_min, "above 0, at most ratio_max, which is at most 1"
        )
        require(self.ratio_std >= 0, "mask.ratio_std", self.ratio_std, "0 or more")
        inside = self.ratio_std > 0 or self.ratio_min <= self.ratio_mean <= self.ratio_max
        require(inside, "mask.ratio_mean", self.ratio_mean, "a number from ratio_min to ratio_max, where ratio_std is 0")
        require(0 <= self.drop_share < 1, "mask.drop_share", self.drop_share, "0 or more, less than 1")
        ok = self.drop_share <= self.ratio_min
        require(ok, "mask.drop_share", self.drop_share, f"at most ratio_min ({self.ratio_min:g}): dropped patches are masked ones")
        require(self.targets in ("ids", "features", "centroids"), "mask.targets", self.targets, "ids, features or centroids")
        require(self.centroids >= 2, "mask.centroids", self.centroids, "at least 2")
        require(0 < self.predict_share <= 1, "mask.predict_share", self.predict_share, "above 0, at most 1")
        require(self.span_sites >= 1, "mask.span_sites", self.span_sites, "at least 1")
        require(0 <= self.embed_dropout < 1, "mask.embed_dropout", self.embed_dropout, "0 or more, less than 1")
        require(self.decoder_depth >= 1, "mask.decoder_depth", self.decoder_depth, "at least 1")
        for name in ("decoder_width", "decoder_heads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"mask.{name}", value, "at least 1")
        require(self.drop_share <= self.val_ratio <= 1, "mask.val_ratio", self.val_ratio, "a number from drop_share to 1")
