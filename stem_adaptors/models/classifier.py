"""A small family of vision transformers with timm's parameter names, and the classifier that joins one to token embeddings.

Shapes: B samples, L sites, Q ids per site, N tokens of the transformer, E its width, C classes.

Random numbers: initial weights depend on `seed` alone; drop path uses the numbers that it is given (drop_path.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import TokenizerSpec
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.blocks import LAYER_NORM_EPS, Block, first_shares
from tokenshards.stem_adaptors.models.drop_path import draw_paths, drop_paths_of
from tokenshards.stem_adaptors.models.embedding import Statistics, TokenEmbedding
from tokenshards.stem_adaptors.models.own_code import MODELS, build_own_model, build_own_stem, is_own_model, is_own_stem, own_names
from tokenshards.stem_adaptors.models.stems import ConvStem, Stem, build_stem
from tokenshards.stem_adaptors.precision import in_float32

__all__ = ["SIZES", "Block", "TokenClassifier", "VisionTransformer", "build_classifier", "seeded"]

SIZES = {
    "vit_nano": (64, 4, 4),
    "vit_micro": (128, 6, 4),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
}
"""Width, depth and heads of each size (DeiT, 2021, table 1). The two smallest are our own, for some thousand images and a CPU."""


class VisionTransformer(nn.Module):
    """Stem, class token, learned positions, blocks. The mean over the stem's tokens is normed and goes to a linear head, as in SeiT.

    Equals timm's VisionTransformer with global_pool='avg', name by name; `stem` is timm's patch_embed. The class token takes part in
    attention and in nothing else. `stem` decides the input: embeddings, or pixels with
    `ConvStem(3, width, (224, 224), (16, 16), overlap=False)`.
    """

    def __init__(self, stem: Stem, *, classes: int, width: int, depth: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"width {width} and {heads} heads; expected a width that the heads divide")
        self.patch_embed = stem
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + stem.tokens, width))
        rates = [drop_path * block / max(1, depth - 1) for block in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, rate) for rate in rates)
        self.fc_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(width, classes)
        self._initialise()

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens of the stem along each axis."""
        return self.patch_embed.grid

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return all tokens after the last block, class token first, [B, 1 + N, E]. `mask` is True at real sites; layouts that vary need
        a mask."""
        x_BNE, keys_B11N = self.tokens(x, mask)
        for block in self.blocks:
            x_BNE = block(x_BNE, keys_B11N)
        return x_BNE

    def tokens(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return all tokens before the first block, [B, 1 + N, E], and the mask [B, 1, 1, 1 + N] of attention, None where all take part."""
        tokens_BNE = self.patch_embed(x)
        real_BN = self.patch_embed.token_mask(mask)
        x_BNE = torch.cat([self.cls_token.expand(len(tokens_BNE), -1, -1), tokens_BNE], dim=1) + self.pos_embed
        return x_BNE, None if real_BN is None else F.pad(real_BN, (1, 0), value=True)[:, None, None]

    def features_with_shares(self, x: Tensor, replaced: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of `forward_features`, and the share [B] of CutMix's partner in what the head reads of each sample.

        `replaced` [B, *sites] is True at the sites that come from the partner. The head reads the mean over the stem's tokens.
        `blocks.first_shares` and `Block.with_shares` have the formula. The stem must be a ConvStem.
        """
        shares_BN = first_shares(replaced, cast(ConvStem, self.patch_embed).step)
        x_BNE, _ = self.tokens(x)
        for block in self.blocks:
            x_BNE, shares_BN = cast(Block, block).with_shares(x_BNE, shares_BN)
        return x_BNE, shares_BN[:, 1:].mean(dim=1)

    def forward_head(self, x_BNE: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits [B, C] of the tokens of `forward_features`: mean of the real tokens, norm, linear layer."""
        real_BN = self.patch_embed.token_mask(mask)
        if real_BN is None:
            mean_BE = x_BNE[:, 1:].mean(dim=1)
        else:
            share_BN1 = (real_BN / real_BN.sum(dim=1, keepdim=True))[..., None]
            mean_BE = (x_BNE[:, 1:] * share_BN1).sum(dim=1)
        logits_BC: Tensor = self.head(self.fc_norm(mean_BE))
        return logits_BC

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits [B, C]."""
        return self.forward_head(self.forward_features(x, mask), mask)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialise as timm does: linear layers and positions from a truncated normal of 0.02, biases zero. The stem keeps torch's
        default."""
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for part in (self.blocks, self.head):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)


class TokenClassifier(nn.Module):
    """Token ids to logits. `embed` and `classify` are the two halves; augmentations of embeddings fit between them.

    >>> dataset = tokenshards.open_dataset("photos.tokens")
    >>> model, transform = tokenshards.build("vit_nano", dataset)
    >>> vectors = transform.evaluation(model.embed(torch.from_numpy(dataset[:4].ids_BLQ)))  # the centre crop that `classify` expects
    >>> vectors.shape, model.classify(vectors).shape
    (torch.Size([4, 48, 14, 14]), torch.Size([4, 3]))
    """

    def __init__(self, embedding: TokenEmbedding, backbone: nn.Module, out_grid: Sequence[int]) -> None:
        super().__init__()
        self.embedding = embedding
        self.backbone = backbone
        self.out_grid = tuple(out_grid)
        """Sites along each axis of the input of `classify`."""
        self._drop_paths = drop_paths_of(self)
        self.drop_path_draws = len(self._drop_paths)
        """P, numbers in [0, 1) that `classify` takes for each sample in training."""

    def embed(self, ids_BLQ: Tensor, *, shapes_BD: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Return embeddings as `TokenEmbedding` does. `out` is memory from `embedding.buffer`, for reuse."""
        x: Tensor = self.embedding(ids_BLQ, shapes_BD=shapes_BD, out=out)
        return x

    def classify(self, x: Tensor, mask: Tensor | None = None, draws_BP: Tensor | None = None) -> Tensor:
        """Return logits [B, C] of embeddings over `out_grid`. Layouts that vary need a `mask` from `embedding.site_mask`.

        `draws_BP` decide which samples skip which branch (drop path); without them torch's generator decides.
        Final norm and head work in float32 also under autocast, as far as the backbone has `forward_head`, as ours and timm's have.
        """
        if draws_BP is not None:
            draw_paths(self._drop_paths, draws_BP)
        logits_BC = self._classified(x, mask)
        if draws_BP is not None:
            draw_paths(self._drop_paths, None)
        return logits_BC

    def _classified(self, x: Tensor, mask: Tensor | None) -> Tensor:
        backbone: Any = self.backbone
        masks = () if mask is None else (mask,)
        if not hasattr(backbone, "forward_head"):
            whole_BC: Tensor = backbone(x, *masks)
            return whole_BC
        features = backbone.forward_features(x, *masks)
        with in_float32(x.device):
            logits_BC: Tensor = backbone.forward_head(features.float(), *masks)
        return logits_BC

    def classify_with_shares(self, x: Tensor, replaced: Tensor, draws_BP: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits [B, C], and the share [B] of each sample's label that belongs to its partner in CutMix, float32 without gradient.

        `replaced` [B, *sites] is True at the sites that come from the partner. Raises what `require_label_shares` raises.
        """
        backbone = self.require_label_shares()
        if draws_BP is not None:
            draw_paths(self._drop_paths, draws_BP)
        features_BNE, shares_B = backbone.features_with_shares(x, replaced)
        with in_float32(x.device):
            logits_BC = backbone.forward_head(features_BNE.float())
        if draws_BP is not None:
            draw_paths(self._drop_paths, None)
        return logits_BC, shares_B

    def require_label_shares(self) -> VisionTransformer:
        """Return the backbone. Raises ConfigError where labels cannot follow its attention: for models and stems that are not ours."""
        backbone = self.backbone
        if isinstance(backbone, VisionTransformer) and isinstance(backbone.patch_embed, ConvStem):
            return backbone
        what = "stem" if isinstance(backbone, VisionTransformer) else f"model, a {type(backbone).__name__},"
        raise ConfigError(
            f"CutMix has labels='attention', but the attention of this {what} cannot be followed; expected one of {', '.join(SIZES)} with "
            "a stem of ours, or labels='area' (augment.cutmix_labels=area)"
        )

    def forward(self, ids_BLQ: Tensor, *, mask_BL: Tensor | None = None, shapes_BD: Tensor | None = None) -> Tensor:
        """Return logits [B, C] of whole samples, after a centre crop to `out_grid` and without augmentation."""
        return self.classify(*self._centre(ids_BLQ, mask_BL, shapes_BD))

    def forward_features(self, ids_BLQ: Tensor, *, mask_BL: Tensor | None = None, shapes_BD: Tensor | None = None) -> Tensor:
        """Return the backbone's features of whole samples after the centre crop: of our ViTs the tokens [B, 1 + N, E], class token first.

        Raises ConfigError where the backbone has no `forward_features`.
        """
        backbone: Any = self.backbone
        if not hasattr(backbone, "forward_features"):
            raise ConfigError(f"{type(backbone).__name__} has no forward_features; expected one of our ViTs, or a model of timm")
        x, mask = self._centre(ids_BLQ, mask_BL, shapes_BD)
        features: Tensor = backbone.forward_features(x) if mask is None else backbone.forward_features(x, mask)
        return features

    def _centre(self, ids_BLQ: Tensor, mask_BL: Tensor | None, shapes_BD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings of whole samples after the centre crop to `out_grid`, and their mask."""
        x = self.embed(ids_BLQ, shapes_BD=shapes_BD)
        mask = self.embedding.site_mask(mask_BL, shapes_BD)
        if self.embedding.layout.grid:
            for axis, size in enumerate(self.out_grid):
                start = (self.embedding.grid[axis] - size) // 2
                x = x.narrow(2 + axis, start, size)
                mask = None if mask is None else mask.narrow(1 + axis, start, size)
        return x, mask


def build_classifier(
    spec: TokenizerSpec,
    tables: Mapping[str, npt.NDArray[Any]],
    statistics: Statistics | None,
    config: ModelConfig,
    classes: int,
    out_grid: Sequence[int] | None = None,
    *,
    seed: int = 0,
) -> TokenClassifier:
    """Return a new classifier for datasets of one spec.

    `tables`: the dataset's codebook. `statistics`: those of its embeddings (`embedding_statistics`), unused with `config.raw_embeddings`.
    `out_grid`: sites after augmentation, the whole layout by default. Weights depend on the arguments alone.
    Raises ConfigError where the parts do not fit, or for a name that is neither a size of `SIZES`, nor `timm:NAME`, nor code (own_code.py).
    """
    if classes < 1:
        raise ConfigError(f"classes is {classes}; expected at least 1")
    sites = tuple(out_grid) if out_grid is not None else spec.layout.grid or (spec.layout.sites,)
    with seeded(seed):
        embedding = TokenEmbedding(
            spec,
            tables,
            levels=config.levels,
            learned=config.learned_codebook,
            standardise=None if config.raw_embeddings or spec.codebook is None else statistics,
        )
        backbone = _build_backbone(spec, config, embedding.channels, sites, classes)
    return TokenClassifier(embedding, backbone, sites)


def _build_backbone(spec: TokenizerSpec, config: ModelConfig, channels: int, sites: tuple[int, ...], classes: int) -> nn.Module:
    if config.name.startswith("timm:"):
        if spec.layout.kind != "grid" or spec.layout.variable:
            raise ConfigError(
                f"model {config.name!r} needs a grid of one size; this layout is {spec.layout.kind!r}, variable={spec.layout.variable}. "
                f"Use one of {', '.join(SIZES)}"
            )
        own = {name: getattr(config, name) for name in ("stem", "stem_patch", "embed_norm", "depth", "width", "heads")}
        if own != {"stem": "auto", "stem_patch": 0, "embed_norm": False, "depth": None, "width": None, "heads": None}:
            raise ConfigError(f"model {config.name!r} comes with its own sizes; {own} are for {', '.join(SIZES)}: leave them out")
        from tokenshards.stem_adaptors.models.timm_backbones import build_timm_backbone

        return build_timm_backbone(config.name.removeprefix("timm:"), channels, (sites[0], sites[1]), classes, drop_path=config.drop_path)
    if config.name not in SIZES and is_own_model(config.name):
        return build_own_model(config, channels, sites, classes)
    if config.name not in SIZES:
        names = ", ".join((*SIZES, *own_names(MODELS)))
        raise ConfigError(f"model is {config.name!r}; expected one of {names}, timm:NAME, or python:package.module:callable")
    width, depth, heads = SIZES[config.name]
    heads = config.heads or (heads if config.width is None else max(1, config.width // 64))
    width = config.width or width
    own_stem = is_own_stem(config.stem)
    stem = build_own_stem(config, channels, sites, width) if own_stem else build_stem(spec, config, channels, sites, width)
    return VisionTransformer(stem, classes=classes, width=width, depth=config.depth or depth, heads=heads, drop_path=config.drop_path)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's initialisers draw from `seed`, and restore the global generator afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
