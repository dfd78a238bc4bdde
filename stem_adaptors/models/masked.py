"""The model of masked token modelling: the encoder sees the patches that are not dropped, the decoder predicts hidden ones.

The encoder is the embedding and the backbone of a classifier, under the same names, so that fine-tuning loads both. The equations are
those of SeiT++ (Lee et al. 2024, section 3.1), which joins MAE (He et al. 2022: dropped patches) and MAGE (Li et al. 2023: masked ones).

Shapes: B samples, L sites, Q ids per site, N patches, P sites of a patch, K patches that the encoder sees, M patches of all samples, D
channels of an embedding, E width of the encoder, W width of the decoder, V codes of a level, R rows (sites of all patches of all samples).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.augment.keys import all_rows
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models.centroids import PatchCentroids
from tokenshards.stem_adaptors.models.classifier import SIZES, VisionTransformer, build_classifier, seeded
from tokenshards.stem_adaptors.models.embedding import Statistics, TokenEmbedding
from tokenshards.stem_adaptors.models.mask_decoder import CentroidHead, CodeHead, FeatureHead, Scores, TokenDecoder, scored
from tokenshards.stem_adaptors.models.masks import Masks
from tokenshards.stem_adaptors.models.stems import ConvStem, Stem
from tokenshards.stem_adaptors.precision import in_float32

__all__ = ["MaskedTokenModel", "Predictions", "build_masked_model", "cropped_spec"]


class Predictions(NamedTuple):
    """What is predicted for the hidden patches of a batch, summed over their ids."""

    loss_B: Tensor
    """float32 mean loss of the hidden patches of each sample."""
    sums_B3: Tensor
    """float32: right ids, ids, and the sum of -log p of the ids, without smoothing."""


@dataclass(frozen=True)
class _Targets:
    """What is to be predicted of M patches."""

    wanted_MPQ: Tensor
    """Ids of sites, or with P = Q = 1 the nearest centroid."""
    there_MP: Tensor
    """False where there is nothing to predict."""
    features_ME: Tensor | None = None

    def rows(self, chosen_M: Tensor) -> _Targets:
        """Return the targets of some patches."""
        features_ME = None if self.features_ME is None else self.features_ME[chosen_M]
        return _Targets(self.wanted_MPQ[chosen_M], self.there_MP[chosen_M], features_ME)


class MaskedTokenModel(nn.Module):
    """Ids and masks to predictions. `embedding` and `backbone` are those of a TokenClassifier, without its head."""

    sites_NP: Tensor

    def __init__(self, embedding: TokenEmbedding, backbone: VisionTransformer, config: MaskConfig) -> None:
        """Raises ConfigError for a stem whose patches overlap: the neighbours of a hidden patch would show a part of it."""
        super().__init__()
        stem = backbone.patch_embed
        if stem.overlap:
            raise ConfigError(
                "masked token modelling got a stem whose patches overlap, so that the neighbours of a hidden patch would show a part of "
                "it; expected --set model.stem=patch"
            )
        self.embedding, self.backbone = embedding, backbone
        backbone.head, backbone.fc_norm = nn.Identity(), nn.Identity()  # type: ignore[assignment]  # the head of a classifier
        width = backbone.pos_embed.shape[2]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        sites_NP = stem.token_sites()
        self.decoder = TokenDecoder(width, config, len(sites_NP))
        self.centroids = None if config.targets == "ids" else _room_for_centroids(embedding, stem, config)
        self.head: CodeHead | CentroidHead | FeatureHead
        if self.centroids is None:
            self.head = CodeHead(self.decoder.width, sites_NP.shape[1], embedding)
        elif config.targets == "centroids":
            self.head = CentroidHead(self.decoder.width, config.centroids)
        else:
            self.head = FeatureHead(self.decoder.width, self.centroids)
        self.register_buffer("sites_NP", sites_NP, persistent=False)

    def encode(self, x: Tensor, masks: Masks) -> Tensor:
        """Return the encoder's output [B, 1 + K, E], class token first, for embeddings of all sites."""
        backbone = self.backbone
        tokens_BNE = backbone.patch_embed(x)
        tokens_BNE = torch.where(masks.masked_BN[..., None], self.mask_token.to(tokens_BNE.dtype), tokens_BNE) + backbone.pos_embed[:, 1:]
        seen_BKE = tokens_BNE.gather(1, masks.kept_BK[..., None].expand(-1, -1, tokens_BNE.shape[2]))
        class_B1E = (backbone.cls_token + backbone.pos_embed[:, :1]).expand(len(seen_BKE), -1, -1)
        keys_B11N = None
        if masks.real_BN is not None:
            keys_B11N = F.pad(masks.real_BN.gather(1, masks.kept_BK), (1, 0), value=True)[:, None, None]
        y_BKE = torch.cat([class_B1E, seen_BKE], dim=1)
        for block in backbone.blocks:
            y_BKE = block(y_BKE, keys_B11N)
        return y_BKE

    def decode(self, x: Tensor, masks: Masks) -> Tensor:
        """Return float32 [B, N, W], the decoder's output for embeddings of all sites."""
        decoded_BNW: Tensor = self.decoder(self.encode(x, masks), masks)
        return decoded_BNW.float()

    def forward(self, x: Tensor, ids_BLQ: Tensor, masks: Masks, site_mask_BL: Tensor | None = None, smoothing: float = 0.0) -> Predictions:
        """Return what is predicted for the hidden patches that are predicted.

        `x`: embeddings of `ids_BLQ`, which may have dropout. `site_mask_BL`: sites that exist. The loss of a patch is the mean over its
        ids; the loss of a sample is the mean over these patches.
        """
        decoded_MW, predicted_M = self.decode(x, masks).flatten(0, 1), masks.predicted_BN.flatten()
        with in_float32(x.device):
            targets = self._targets(ids_BLQ, site_mask_BL)
            if all_rows(x.device):
                targets = replace(targets, there_MP=targets.there_MP & predicted_M[:, None])
            else:
                decoded_MW, targets = decoded_MW[predicted_M], targets.rows(predicted_M)
            loss_M, sums_M3 = self._patch_losses(decoded_MW, targets, smoothing)
        counted_M = targets.there_MP.any(1).float()
        found_M5 = torch.cat([loss_M[:, None], counted_M[:, None], sums_M3], dim=1)
        if not all_rows(x.device):
            found_M5 = found_M5.new_zeros(len(predicted_M), 5).index_copy(0, predicted_M.nonzero().flatten(), found_M5)
        sums_B5 = found_M5.view(len(ids_BLQ), -1, 5).sum(1)
        return Predictions(sums_B5[:, 0] / sums_B5[:, 1].clamp_min(1), sums_B5[:, 2:].detach())

    def _targets(self, ids_BLQ: Tensor, site_mask_BL: Tensor | None) -> _Targets:
        """Return what is to be predicted of all patches."""
        if self.centroids is not None:
            features_BNE = self.centroids.features(ids_BLQ)
            wanted_M11 = self.centroids.nearest(features_BNE).view(-1, 1, 1)
            return _Targets(wanted_M11, torch.ones_like(wanted_M11[..., 0], dtype=torch.bool), features_BNE.flatten(0, 1))
        places_NP = self.sites_NP.clamp_min(0)
        there_MP = (self.sites_NP >= 0).repeat(len(ids_BLQ), 1)
        if site_mask_BL is not None:
            there_MP = there_MP & site_mask_BL[:, places_NP].flatten(0, 1)
        return _Targets(ids_BLQ[:, places_NP].flatten(0, 1), there_MP)

    def _patch_losses(self, decoded_MW: Tensor, targets: _Targets, smoothing: float) -> tuple[Tensor, Tensor]:
        """Return the mean loss [M] over the targets of each patch, and their sums as in Predictions, [M, 3]; zeros where nothing is
        there."""
        loss_M, sums_M3, there_MP = decoded_MW.new_zeros(len(decoded_MW)), decoded_MW.new_zeros(len(decoded_MW), 3), targets.there_MP
        levels = self._scores(decoded_MW)
        for level, scores in enumerate(levels):
            wanted_R = torch.where(there_MP, targets.wanted_MPQ[..., level], 0).flatten().long()
            found_R3 = scored(scores, wanted_R, smoothing)
            found_M3 = (found_R3.view(*there_MP.shape, 3) * there_MP[..., None]).sum(1)
            loss_M = loss_M + found_M3[:, 0]
            sums_M3 = sums_M3 + torch.stack([found_M3[:, 1], there_MP.sum(1).float(), found_M3[:, 2]], dim=1).detach()
        if isinstance(self.head, FeatureHead) and self.centroids is not None and targets.features_ME is not None:
            loss_M = self.centroids.squared_errors(levels[0].vectors[:, 0], targets.features_ME) * there_MP[:, 0]
        return loss_M / (there_MP.sum(1) * len(levels)).clamp_min(1), sums_M3

    def _scores(self, decoded: Tensor) -> list[Scores]:
        scores: list[Scores]
        if isinstance(self.head, FeatureHead) and self.centroids is not None:
            scores = self.head(decoded, self.centroids)
        else:
            scores = self.head(decoded, self.embedding)
        return scores

    def best_ids(self, x: Tensor, masks: Masks) -> Tensor:
        """Return the most probable ids of all sites, [B, L, Q], also of those that are not hidden; of a centroid those of its example."""
        sites_NP = self.sites_NP
        best = [(part.vectors @ part.table_VD.T + part.bias_V).argmax(-1) for part in self._scores(self.decode(x, masks))]
        best_BNPQ = torch.stack(best, dim=-1) if self.centroids is None else self.centroids.examples_KPQ[best[0][..., 0]]
        real_NP = sites_NP >= 0
        ids_BLQ = best_BNPQ.new_zeros(len(best_BNPQ), int(sites_NP.max()) + 1, best_BNPQ.shape[-1])
        ids_BLQ[:, sites_NP[real_NP]] = best_BNPQ[:, real_NP]
        return ids_BLQ


def _room_for_centroids(embedding: TokenEmbedding, stem: Stem, config: MaskConfig) -> PatchCentroids:
    """Return centroids without values. Raises ConfigError where patches have no neighbours on a plane."""
    layout = embedding.layout
    if layout.kind != "grid" or layout.variable or not isinstance(stem, ConvStem):
        kind = f"{layout.kind} of varying size" if layout.variable else layout.kind
        raise ConfigError(f"mask.targets is {config.targets!r} in a layout of kind {kind}; expected a grid of one size. Predict ids")
    return PatchCentroids(embedding.vocabulary, embedding.channels, stem, config.centroids)


def cropped_spec(spec: TokenizerSpec, grid: tuple[int, ...] | None) -> TokenizerSpec:
    """Return the spec of samples that were cropped to a grid; the spec itself where there is none."""
    if grid is None or grid == spec.layout.grid:
        return spec
    sites = 1
    for side in grid:
        sites *= side
    return replace(spec, layout=replace(spec.layout, grid=grid, sites=sites))


def build_masked_model(
    spec: TokenizerSpec,
    tables: Mapping[str, npt.NDArray[Any]],
    statistics: Statistics | None,
    model: ModelConfig,
    mask: MaskConfig,
    grid: tuple[int, ...] | None,
    *,
    seed: int = 0,
) -> MaskedTokenModel:
    """Return a new model for ids over a grid, by default the whole layout. Weights depend on the arguments alone.

    Raises ConfigError for a model that is not one of our ViTs, whose patches overlap, or whose codebook is not learned.
    """
    if model.name not in SIZES:
        raise ConfigError(f"masked token modelling got the model {model.name!r}; expected one of our ViTs: {', '.join(SIZES)}")
    small = cropped_spec(spec, grid)
    classifier = build_classifier(small, tables, statistics, model, 1, seed=seed)
    embedding, backbone = classifier.embedding, classifier.backbone
    if not embedding.learned or not isinstance(backbone, VisionTransformer):
        raise ConfigError("masked token modelling learns the code vectors; expected --set model.learned_codebook=true")
    with seeded(seed):
        return MaskedTokenModel(embedding, backbone, mask)
