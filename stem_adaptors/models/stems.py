"""Stem adaptors: embeddings of any layout become the tokens of a transformer. The dataset's layout alone decides how.

Shapes: B samples, D channels of an embedding, H x W grid, T frames, L sites, N tokens of the backbone, E its width.

Sites per token (`sites_per_token`): 2 a side, as in SeiT; 1 where 2 would leave fewer than 36 tokens; doubled while more than 256 tokens
remain. 28 x 28 gives 14 x 14 (SeiT), 14 x 14 gives 7 x 7, 8 x 8 stays 8 x 8, 64 x 64 gives 16 x 16. A video follows the rule for its
frames, then joins frames while more than 1,024 tokens remain. A sequence joins neighbours while more than 1,024 tokens remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import TokenizerSpec
from tokenshards.stem_adaptors.config import ModelConfig

__all__ = ["ConvStem", "PyramidStem", "Stem", "build_stem", "sites_per_token"]

LEAST_TOKENS, MOST_TOKENS = 36, 256
MOST_LONG_TOKENS = 1024
"""Most tokens of a video or a sequence."""

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def sites_per_token(grid: Sequence[int]) -> tuple[int, ...]:
    """Return the sites along each axis of (L,), (H, W) or (T, H, W) that become one token, by the rule at the top of this module."""

    def tokens(*steps: int) -> int:
        return math.prod(math.ceil(size / step) for size, step in zip(grid[-len(steps) :], steps, strict=True))

    first = 1
    if len(grid) == 1:
        while tokens(first) > MOST_LONG_TOKENS:
            first *= 2
        return (first,)
    step = 2 if tokens(2, 2) >= LEAST_TOKENS else 1
    while tokens(step, step) > MOST_TOKENS:
        step *= 2
    sides = (min(step, grid[-2]), min(step, grid[-1]))
    if len(grid) == 2:
        return sides
    while first < grid[0] and tokens(first, *sides) > MOST_LONG_TOKENS:
        first *= 2
    return (min(first, grid[0]), *sides)


class Stem(nn.Module):
    """Embeddings in, tokens [B, N, E] and their mask out."""

    grid: tuple[int, ...]
    """Tokens along each axis; (N,) where they have no grid."""
    overlap: bool = True
    """Whether a token also sees sites of its neighbours."""

    @property
    def tokens(self) -> int:
        """N, tokens of a sample."""
        return math.prod(self.grid)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, E]. ConfigError for embeddings of a shape that the stem was not built for."""
        raise NotImplementedError

    def token_mask(self, mask: Tensor | None) -> Tensor | None:
        """Return [B, N], True for tokens with at least one real site. `mask` comes from `TokenEmbedding.site_mask`."""
        raise NotImplementedError

    def token_sites(self) -> Tensor:
        """Return int64 [N, P]: the P sites of each token, without the overlap, row-major; -1 where a token has fewer sites."""
        raise NotImplementedError


class SiteNorm(nn.LayerNorm):
    """Norms the D channels of each site of [B, D, *sites]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        """Return the same shape, in channel-last memory."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ConvStem(Stem):
    """One convolution over a grid, a video or a sequence. Its name is `proj`, so that in a ViT it is timm's `patch_embed.proj`.

    Takes [B, D, H, W], [B, D, T, H, W] or [B, L, D]. With `overlap` the kernel is twice the step, as in SeiT (kernel 4, step 2, padding 1
    for two sites a token; kernel 3, padding 1 for one site); otherwise kernel = step. A grid that the step does not divide is padded with
    zeros. With `norm` the channels of each site are normed first.
    """

    def __init__(self, channels: int, width: int, sites: Sequence[int], step: Sequence[int], *, overlap: bool, norm: bool = False) -> None:
        super().__init__()
        self.sites, self.step, self.overlap = tuple(sites), tuple(step), overlap
        kernel = tuple((3 if side == 1 else 2 * side) if overlap else side for side in step)
        padding = tuple((side + 1) // 2 if overlap else 0 for side in step)
        self._fill = [-size % side for size, side in zip(sites, step, strict=True)]
        self.grid = tuple(math.ceil(size / side) for size, side in zip(sites, step, strict=True))
        self.embed_norm = SiteNorm(channels) if norm else None
        self.proj = _CONVOLUTIONS[len(self.sites)](channels, width, kernel, self.step, padding)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, E], row-major over the grid."""
        if len(self.sites) == 1:
            x = x.transpose(1, 2)
        if tuple(x.shape[2:]) != self.sites and not (len(self.sites) == 1 and x.shape[2] < self.sites[0]):
            raise ConfigError(f"embeddings with {tuple(x.shape[2:])} sites; this stem was built for {self.sites}: build it for that grid")
        if any(self._fill) or x.shape[2] != self.sites[0]:
            missing = [size + fill - found for size, fill, found in zip(self.sites, self._fill, x.shape[2:], strict=True)]
            x = F.pad(x, [value for last in reversed(missing) for value in (0, last)])
        if self.embed_norm is not None:  # after padding: a missing site is the same whether the batch or the stem adds it
            x = self.embed_norm(x)
        y: Tensor = self.proj(x)
        return y.flatten(2).transpose(1, 2)

    def token_mask(self, mask: Tensor | None) -> Tensor | None:
        """Return [B, N]: whether the step x step sites of a token, without the overlap, hold a real site."""
        if mask is None:
            return None
        real = mask
        for axis, (side, count) in enumerate(zip(self.step, self.grid, strict=True), start=1):
            missing = side * count - real.shape[axis]
            real = real.movedim(axis, -1)
            real = F.pad(real, (0, missing)).reshape(*real.shape[:-1], count, side).any(-1).movedim(-1, axis)
        return real.flatten(1)

    def token_sites(self) -> Tensor:
        """Return int64 [N, P], see Stem."""
        places = torch.arange(math.prod(self.sites)).view(self.sites)
        places = F.pad(places, [value for fill in reversed(self._fill) for value in (0, fill)], value=-1)
        pairs = [value for count, side in zip(self.grid, self.step, strict=True) for value in (count, side)]
        axes = len(self.sites)
        return places.view(pairs).permute(*range(0, 2 * axes, 2), *range(1, 2 * axes, 2)).reshape(self.tokens, -1)


class PyramidStem(Stem):
    """Scales of a pyramid [B, L, D], coarse to fine. Each scale has its own convolution and a learned marker; tokens are concatenated."""

    def __init__(
        self, channels: int, width: int, scales: Sequence[tuple[int, int]], *, overlap: bool, step: int = 0, norm: bool = False
    ) -> None:
        super().__init__()
        self.scales, self.overlap = tuple(scales), overlap
        self.embed_norm = nn.LayerNorm(channels, eps=1e-6) if norm else None
        steps = [(min(step, h), min(step, w)) if step else sites_per_token((h, w)) for h, w in self.scales]
        # A token of one site has no neighbours to overlap with. A plain kernel makes a 1 x 1 scale a linear map.
        self.proj = nn.ModuleList(
            ConvStem(channels, width, scale, side, overlap=overlap and max(side) > 1)
            for scale, side in zip(self.scales, steps, strict=True)
        )
        self.scale_embed = nn.Parameter(torch.empty(len(self.scales), width))
        nn.init.trunc_normal_(self.scale_embed, std=0.02)
        self.grid = (sum(stem.tokens for stem in self._stems),)

    @property
    def scale_grids(self) -> tuple[tuple[int, int], ...]:
        """Tokens of each scale along both axes."""
        return tuple((stem.grid[0], stem.grid[1]) for stem in self._stems)

    @property
    def scale_tokens(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(stem.tokens for stem in self._stems)

    @property
    def _stems(self) -> list[ConvStem]:
        return [stem for stem in self.proj if isinstance(stem, ConvStem)]

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, E], coarse scales first."""
        sizes = [h * w for h, w in self.scales]
        if x.ndim != 3 or x.shape[1] != sum(sizes):
            raise ConfigError(f"embeddings of shape {tuple(x.shape)}; this stem expects [samples, {sum(sizes)}, channels]")
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        parts = []
        for stem, part_BLD, scale_E in zip(self._stems, torch.split(x, sizes, dim=1), self.scale_embed, strict=True):
            parts.append(stem(part_BLD.transpose(1, 2).reshape(len(x), -1, *stem.sites)) + scale_E)
        return torch.cat(parts, dim=1)

    def token_mask(self, mask: Tensor | None) -> Tensor | None:
        """Return None: the scales of a pyramid are always whole."""
        return None

    def token_sites(self) -> Tensor:
        """Return int64 [N, P], see Stem."""
        parts, start = [], 0
        for stem, (height, width) in zip(self._stems, self.scales, strict=True):
            own_NP = stem.token_sites()
            parts.append(torch.where(own_NP < 0, -1, own_NP + start))
            start += height * width
        widest = max(part_NP.shape[1] for part_NP in parts)
        return torch.cat([F.pad(part_NP, (0, widest - part_NP.shape[1]), value=-1) for part_NP in parts])


def build_stem(
    spec: TokenizerSpec, config: ModelConfig, in_channels: int, out_grid: Sequence[int] | int | None = None, width: int = 192
) -> Stem:
    """Return the stem for embeddings of a layout.

    `out_grid`: sites after augmentation, (H, W), (T, H, W) or L; by default those of the layout. Raises ConfigError where `config.stem`
    does not fit the layout.
    """
    layout = spec.layout
    plane, line = ("conv", "patch"), ("sequence", "patch")
    fitting = {"grid": plane, "video": plane, "sequence": line, "pyramid": ("pyramid", "patch")}[layout.kind]
    kind = fitting[0] if config.stem == "auto" else config.stem
    if kind not in fitting:
        raise ConfigError(
            f"stem {kind!r} does not fit a layout of kind {layout.kind!r}; expected auto, {' or '.join(fitting)}, "
            "or python:package.module:callable"
        )
    if layout.kind == "pyramid":
        overlap, norm = kind == "pyramid", config.embed_norm
        return PyramidStem(in_channels, width, layout.scales, overlap=overlap, step=config.stem_patch, norm=norm)
    given = out_grid if out_grid is not None else layout.grid or layout.sites
    sites = (given,) if isinstance(given, int) else tuple(given)
    if len(sites) != max(1, len(layout.grid)) or any(size < 1 for size in sites):
        raise ConfigError(f"out_grid is {sites}; expected {max(1, len(layout.grid))} positive sizes for a layout of kind {layout.kind!r}")
    step = sites_per_token(sites)
    if config.stem_patch:
        first = step[:1] if layout.kind == "video" else ()
        step = (*first, *(min(config.stem_patch, size) for size in sites[len(first) :]))
    return ConvStem(in_channels, width, sites, step, overlap=kind == "conv", norm=config.embed_norm)
