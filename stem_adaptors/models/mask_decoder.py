"""The decoder of masked token modelling, and its heads: scores of codes at each site of a patch, or of centroids for a patch.

Shapes: B samples, N patches, P sites of a patch, K patches that the encoder sees, D channels of an embedding, E width of the encoder (of
the features of a patch in FeatureHead), W width of the decoder, V codes of a level, R rows (sites of all patches of all samples).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.augment.targets import smoothed_cross_entropy
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models.centroids import PatchCentroids
from tokenshards.stem_adaptors.models.classifier import Block
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding
from tokenshards.stem_adaptors.models.masks import Masks

__all__ = ["CentroidHead", "CodeHead", "FeatureHead", "Scores", "TokenDecoder", "scored"]

PIECE_SCORES = 1 << 27
"""Scores of codes that are held for the gradient at once: 512 MB. More are computed again in the backward pass."""


class Scores(NamedTuple):
    """Scores vectors @ table' + bias [..., P, V], not yet computed: of the codes of a level, or of centroids."""

    vectors: Tensor
    """[..., P, D]"""
    table_VD: Tensor
    bias_V: Tensor


class TokenDecoder(nn.Module):
    """Blocks over all patches: those that the encoder saw, and at hidden ones its class output."""

    def __init__(self, width: int, config: MaskConfig, patches: int) -> None:
        super().__init__()
        own = config.decoder_width or max(32, width * 2 // 3 // 32 * 32)
        heads = config.decoder_heads or max(1, own // 32)
        if own % heads:
            raise ConfigError(f"mask.decoder_width {own} and {heads} heads; expected a width that the heads divide")
        self.width = own
        self.norm_in = nn.LayerNorm(width, eps=1e-6)
        self.embed = nn.Linear(width, own)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches, own))
        self.blocks = nn.ModuleList(Block(own, heads, 0.0) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(own, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, encoded_BKE: Tensor, masks: Masks) -> Tensor:
        """Return [B, N, W] of the encoder's output [B, 1 + K, E], class token first."""
        seen_BKW = self.embed(self.norm_in(encoded_BKE))
        class_B1W, patches = seen_BKW[:, :1], masks.masked_BN.shape[1]
        places_BKW = masks.kept_BK[..., None].expand(-1, -1, self.width)
        whole_BNW = class_B1W.expand(-1, patches, -1).scatter(1, places_BKW, seen_BKW[:, 1:])
        whole_BNW = torch.where(masks.masked_BN[..., None], class_B1W, whole_BNW)
        x_BNW = torch.cat([class_B1W, whole_BNW], dim=1) + self.pos_embed
        keys_B11N = None if masks.real_BN is None else F.pad(masks.real_BN, (1, 0), value=True)[:, None, None]
        for block in self.blocks:
            x_BNW = block(x_BNW, keys_B11N)
        out: Tensor = self.norm(x_BNW[:, 1:])
        return out


class CodeHead(nn.Module):
    """Scores every code of every level at each site of a patch: a vector for the site, times the code vectors, plus a bias for each code.

    The code vectors get no gradient from here: the encoder's input alone moves them.
    """

    def __init__(self, width: int, sites: int, embedding: TokenEmbedding) -> None:
        super().__init__()
        self.sites = sites
        self.widths = [table.shape[1] for table in embedding.tables()]
        self.linear = nn.Linear(width, sites * sum(self.widths))
        # Code vectors have channels of variance 1, so that products of normed vectors would be as large as D.
        self.norms = nn.ModuleList(nn.LayerNorm(size, eps=1e-6) for size in self.widths)
        self.biases = nn.ParameterList(torch.zeros(size) for size in embedding.vocabulary)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        for size, norm in zip(self.widths, self.norms, strict=True):
            nn.init.constant_(cast(Tensor, norm.weight), size**-0.5)

    def forward(self, x: Tensor, embedding: TokenEmbedding) -> list[Scores]:
        """Return for outputs [..., W] of the decoder the parts of the scores of each level."""
        flat = self.linear(x).view(*x.shape[:-1], self.sites, -1)
        found = []
        levels = zip(self.norms, flat.split(self.widths, dim=-1), embedding.tables(), self.biases, strict=True)
        for norm, part, table_VD, bias_V in levels:
            found.append(Scores(norm(F.gelu(part)), table_VD[: len(bias_V)].detach().float(), bias_V))  # without the row of the pad id
        return found


class CentroidHead(nn.Module):
    """Scores every centroid for a patch."""

    def __init__(self, width: int, centroids: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, centroids)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, embedding: TokenEmbedding) -> list[Scores]:
        """Return for outputs [..., W] of the decoder the parts of the scores."""
        return [Scores(x[..., None, :], self.linear.weight, self.linear.bias)]


class FeatureHead(nn.Module):
    """Predicts the features of a patch. The scores of centroids say how near each is to the prediction."""

    def __init__(self, width: int, centroids: PatchCentroids) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(centroids.std_E))
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, centroids: PatchCentroids) -> list[Scores]:
        """Return for outputs [..., W] of the decoder the parts of the scores. The vectors are the predicted features [..., 1, E]."""
        return [Scores((self.linear(x) * centroids.std_E)[..., None, :], *centroids.scoring())]


def scored(scores: Scores, wanted_R: Tensor, smoothing: float) -> Tensor:
    """Return [R, 3]: the smoothed cross-entropy, whether the best code is the wanted one, and -log p of the wanted code."""
    own_RD, rows = scores.vectors.flatten(0, 1), max(1, PIECE_SCORES // len(scores.table_VD))
    if len(own_RD) <= rows:
        return _piece(own_RD, scores.table_VD, scores.bias_V, wanted_R, smoothing)
    parts = zip(torch.split(own_RD, rows), torch.split(wanted_R, rows), strict=True)
    return torch.cat(
        [checkpoint(_piece, own, scores.table_VD, scores.bias_V, wanted, smoothing, use_reentrant=False) for own, wanted in parts]
    )


def _piece(own_RD: Tensor, table_VD: Tensor, bias_V: Tensor, wanted_R: Tensor, smoothing: float) -> Tensor:
    logits_RV = torch.addmm(bias_V, own_RD, table_VD.T)
    wanted_logit_R = logits_RV.gather(1, wanted_R[:, None])[:, 0].detach()
    loss_R, log_sums_R = smoothed_cross_entropy(logits_RV, wanted_R, smoothing)
    hits_R = (wanted_logit_R >= logits_RV.detach().amax(1)).float()
    return torch.stack([loss_R, hits_R, log_sums_R - wanted_logit_R], dim=1)
