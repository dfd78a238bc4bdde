"""The model of masked token modelling: an encoder that sees the patches that are not dropped, and a decoder that predicts hidden ids.

The encoder is the embedding and the backbone of a classifier, under the same names, so that fine-tuning loads both. The equations are
those of SeiT++ (Lee et al. 2024, section 3.1), which joins MAE (He et al. 2022: dropped patches) and MAGE (Li et al. 2023: masked ones).

Shapes: B samples, L sites, Q ids per site, N patches, P sites of a patch, K patches that the encoder sees, D channels of an embedding, E
width of the encoder, W width of the decoder, V codes of a level, R rows (sites of all patches of all samples).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models.classifier import SIZES, Block, VisionTransformer, build_classifier, seeded
from tokenshards.stem_adaptors.models.embedding import Statistics, TokenEmbedding
from tokenshards.stem_adaptors.models.masks import Masks
from tokenshards.stem_adaptors.precision import in_float32

__all__ = ["MaskedTokenModel", "Predictions", "build_masked_model", "cropped_spec"]

PIECE_SCORES = 1 << 27
"""Scores of codes that are held for the gradient at once: 512 MB. More are computed again in the backward pass."""


class Predictions(NamedTuple):
    """What is predicted for the hidden patches of a batch, summed over their ids."""

    loss_B: Tensor
    """float32 mean loss of the hidden patches of each sample."""
    sums_B3: Tensor
    """float32: right ids, ids, and the sum of -log p of the ids, without smoothing."""


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

    def forward(self, x_BNW: Tensor) -> list[Tensor]:
        """Return the vector of each level, [B, N, P, D of the level]."""
        flat = self.linear(x_BNW).view(*x_BNW.shape[:2], self.sites, -1)
        return [norm(F.gelu(part)) for norm, part in zip(self.norms, flat.split(self.widths, dim=-1), strict=True)]


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
        self.head = CodeHead(self.decoder.width, sites_NP.shape[1], embedding)
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

    def vectors(self, x: Tensor, masks: Masks) -> list[Tensor]:
        """Return for each level the float32 vectors [B, N, P, D] that are compared with the codes."""
        decoded_BNW = self.decoder(self.encode(x, masks), masks)
        with in_float32(x.device):
            found: list[Tensor] = self.head(decoded_BNW.float())
        return found

    def forward(self, x: Tensor, ids_BLQ: Tensor, masks: Masks, site_mask_BL: Tensor | None = None, smoothing: float = 0.0) -> Predictions:
        """Return what is predicted for the hidden patches.

        `x`: embeddings of `ids_BLQ`, which may have dropout. `site_mask_BL`: sites that exist. The loss of a patch is the mean over its
        ids; the loss of a sample is the mean over its hidden patches.
        """
        vectors = self.vectors(x, masks)
        sites_NP = self.sites_NP
        wanted_BNPQ = ids_BLQ[:, sites_NP.clamp_min(0)]
        there_BNP = (sites_NP >= 0) & masks.masked_BN[..., None]
        if site_mask_BL is not None:
            there_BNP = there_BNP & site_mask_BL[:, sites_NP.clamp_min(0)]
        losses, sums = [], []
        with in_float32(x.device):
            for level, (own_BNPD, table_VD, bias_V) in enumerate(zip(vectors, self.embedding.tables(), self.head.biases, strict=True)):
                codes = len(bias_V)
                wanted_R = torch.where(there_BNP, wanted_BNPQ[..., level], 0).flatten().long()
                found_R3 = _scored(own_BNPD.flatten(0, 2), table_VD[:codes].detach().float(), bias_V, wanted_R, smoothing)
                found_BNP3 = found_R3.view(*there_BNP.shape, 3) * there_BNP[..., None]
                losses.append(found_BNP3[..., 0])
                sums.append(torch.stack([found_BNP3[..., 1], there_BNP.float(), found_BNP3[..., 2]], dim=-1).sum((1, 2)))
            count_BN = there_BNP.sum(2)
            patch_BN = torch.stack(losses).mean(0).sum(2) / count_BN.clamp_min(1)
            loss_B = patch_BN.sum(1) / (count_BN > 0).sum(1).clamp_min(1)
        return Predictions(loss_B, torch.stack(sums).sum(0).detach())

    def best_ids(self, x: Tensor, masks: Masks) -> Tensor:
        """Return the most probable ids of all sites, [B, L, Q], also of those that are not hidden."""
        vectors, sites_NP = self.vectors(x, masks), self.sites_NP
        out = []
        for own_BNPD, table_VD, bias_V in zip(vectors, self.embedding.tables(), self.head.biases, strict=True):
            out.append((own_BNPD @ table_VD[: len(bias_V)].float().T + bias_V).argmax(-1))
        best_BNPQ = torch.stack(out, dim=-1)
        real_NP = sites_NP >= 0
        ids_BLQ = best_BNPQ.new_zeros(len(best_BNPQ), int(sites_NP.max()) + 1, len(out))
        ids_BLQ[:, sites_NP[real_NP]] = best_BNPQ[:, real_NP]
        return ids_BLQ


def _scored(own_RD: Tensor, table_VD: Tensor, bias_V: Tensor, wanted_R: Tensor, smoothing: float) -> Tensor:
    """Return [R, 3]: the smoothed cross-entropy, whether the best code is the wanted one, and -log p of the wanted code."""
    rows = max(1, PIECE_SCORES // len(table_VD))
    if len(own_RD) <= rows:
        return _piece(own_RD, table_VD, bias_V, wanted_R, smoothing)
    parts = zip(torch.split(own_RD, rows), torch.split(wanted_R, rows), strict=True)
    return torch.cat([checkpoint(_piece, own, table_VD, bias_V, wanted, smoothing, use_reentrant=False) for own, wanted in parts])


def _piece(own_RD: Tensor, table_VD: Tensor, bias_V: Tensor, wanted_R: Tensor, smoothing: float) -> Tensor:
    logits_RV = torch.addmm(bias_V, own_RD, table_VD.T)
    logs_RV = logits_RV.log_softmax(1)
    nll_R = -logs_RV.gather(1, wanted_R[:, None])[:, 0]
    loss_R = nll_R if smoothing == 0 else (1 - smoothing) * nll_R - smoothing * logs_RV.mean(1)
    hits_R = (logits_RV.detach().argmax(1) == wanted_R).float()
    return torch.stack([loss_R, hits_R, nll_R.detach()], dim=1)


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
