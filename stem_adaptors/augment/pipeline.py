"""All augmentations of a dataset, composed for its spec: first on ids, then, after the codebook lookup, on embeddings.

Shapes: B samples, G mix groups, L sites, Q ids per site, D channels, H x W grid, C classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment import embed_ops, index_ops
from tokenshards.stem_adaptors.augment.keys import SampleKeys
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig

__all__ = ["Augmentation", "allowed_augmentations", "default_augmentations", "mix_group_size"]

MOST_MIXED = 128
"""Most samples in a mix group: the batch of one GPU in SeiT."""

_NEUTRAL: dict[str, Any] = {"crop": "centre", "crop_share": 1.0}
"""The values that turn these options off; 0 turns off every other option."""


def default_augmentations(spec: TokenizerSpec) -> AugmentConfig:
    """Return the default augmentations, without those that the layout or a missing codebook rules out."""
    return allowed_augmentations(spec, AugmentConfig())


def allowed_augmentations(spec: TokenizerSpec, config: AugmentConfig) -> AugmentConfig:
    """Return the config with every operation off that the layout or a missing codebook rules out."""
    ruled_out = {option: _NEUTRAL.get(option, 0.0) for option in _refused(spec.layout, config)}
    if spec.codebook is None:
        ruled_out["synonym_prob"] = 0.0
    return dataclasses.replace(config, **ruled_out)


def mix_group_size(batch_size: int, shares: int) -> int:
    """Return the size of a mix group that lies whole in each of `shares` equal shares of a batch; 0 where there is no such size.

    The size is the largest power of two, up to MOST_MIXED, that divides a share. Rank r of n takes every n-th sample of a batch, from r on.
    So the groups of a run that starts on n ranks stay the same on every number of ranks that divides n, and on other numbers of ranks whose
    shares the groups fill.
    """
    share, rest = divmod(batch_size, shares)
    size = min(share & -share, MOST_MIXED)
    return 0 if rest or size < 2 else size


class Augmentation:
    """What training and evaluation do to token batches. The embeddings are those of `TokenEmbedding`.

    Raises ConfigError for an operation that has no meaning in the layout. Sequences, pyramids and layouts of varying size have no common
    grid (no swap, crop or CutMix); sequences and layouts of varying size have no mirror image; rows of varying size cannot be mixed.
    `draws`: version of the random draws, see `config.DRAWS`.
    """

    def __init__(self, spec: TokenizerSpec, tables: Tables, config: AugmentConfig, *, draws: int = DRAWS) -> None:
        _check(spec.layout, config)
        self.config = config
        self._apart = draws == 1
        """Whether a sample may get both noise and ColorAdapt (draws of version 1)."""
        if not self._apart and config.noise_prob + config.coloradapt_prob > 1:
            raise ConfigError(
                f"noise_prob + coloradapt_prob is {config.noise_prob + config.coloradapt_prob:g}; expected at most 1: a sample gets "
                "noise or ColorAdapt or neither"
            )
        self.layout = spec.layout
        self._id_dtype = torch.int32 if max(spec.vocabulary) < 1 << 31 else torch.int64
        metric = _synonym_metric(spec, config)
        self._synonyms = index_ops.synonym_table(tables, config.synonym_count, metric) if config.synonym_prob > 0 else []

    @property
    def out_grid(self) -> tuple[int, ...] | None:
        """(H', W') or (T, H', W') of cropped embeddings. None for a layout without a common grid, which is never cropped."""
        if not index_ops.has_plane(self.layout):
            return None
        *frames, height, width = self.layout.grid
        return *frames, _cropped(height, self.config.crop_share), _cropped(width, self.config.crop_share)

    def ids(self, ids_BLQ: Tensor, keys: SampleKeys) -> Tensor:
        """Return ids of any integer dtype as int32 (int64 where the vocabulary needs that) after Token-EDA and mirroring."""
        config = self.config
        ids_BLQ = ids_BLQ.to(self._id_dtype)
        self._synonyms = [table_KS.to(ids_BLQ.device) for table_KS in self._synonyms]
        ids_BLQ = index_ops.token_eda(
            ids_BLQ,
            keys,
            self.layout,
            self._synonyms,
            synonym_prob=config.synonym_prob,
            replace_prob=config.synonym_replace_prob,
            swap_prob=config.swap_prob,
            swap_max_share=config.swap_max_share,
        )
        if config.flip_prob > 0:
            ids_BLQ = index_ops.mirror(ids_BLQ, keys, self.layout, config.flip_prob)
        return ids_BLQ

    def embeddings(self, x: Tensor, keys: SampleKeys, targets_BC: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Crop, add noise, adapt colours, drop sites, then apply CutMix or Mixup. Return new x and the matching targets.

        x is [B, D, (T,) H, W] for a grid or video, [B, L, D] for a sequence or pyramid; x is not changed. `mask` is True at sites that
        exist (`TokenEmbedding.site_mask`); layouts that vary need a mask. Runs in float32 also under autocast.
        """
        config = self.config
        if self.layout.variable and mask is None:
            raise ConfigError("no mask for embeddings of a layout of varying size; give TokenEmbedding.site_mask(...)")
        groups = self._groups(len(x))
        with torch.autocast(x.device.type, enabled=False):
            x = self._crop(x, keys) if self.layout.grid else x.clone().transpose(1, 2)
            if config.noise_prob > 0:
                stds = {"channel_std": config.noise_channel_std, "std": config.noise_std}
                x = embed_ops.add_noise_(x, keys, share=config.noise_prob, mask=mask, **stds)
            if config.coloradapt_prob > 0:
                x = embed_ops.adapt_colour_(x, self._coloured(keys), groups)
            if config.dropout_prob > 0:
                x = embed_ops.drop_sites_(x, keys, config.dropout_prob)
            if config.cutmix_prob > 0:
                x, targets_BC = self._mix(x, keys, targets_BC, groups)
            return x if self.layout.grid else x.transpose(1, 2), targets_BC

    def evaluation(self, x: Tensor) -> Tensor:
        """Return the centre crop, a view of x. Layouts without a common grid stay whole."""
        size = self._crop_size
        return x if size is None else embed_ops.centre_crop(x, size)

    @property
    def _crop_size(self) -> tuple[int, int] | None:
        grid = self.out_grid
        return None if grid is None else (grid[-2], grid[-1])

    def _crop(self, x_BDHW: Tensor, keys: SampleKeys) -> Tensor:
        config, size = self.config, self._crop_size
        if size is not None and config.crop == "rrc":
            return embed_ops.random_resized_crop(x_BDHW, keys, size, scale_min=config.crop_scale_min, ratio_max=config.crop_ratio_max)
        if size is not None and config.crop == "random":
            return embed_ops.random_crop(x_BDHW, keys, size)
        return self.evaluation(x_BDHW).movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)

    def _coloured(self, keys: SampleKeys) -> Tensor:
        """Return bool [B]: the samples that get ColorAdapt. None of these samples gets noise."""
        config = self.config
        if self._apart:
            return keys.chosen("coloradapt", config.coloradapt_prob)
        draw_B = keys.uniform("noise")[:, 0]  # the same draw decides on noise
        return (draw_B >= config.noise_prob) & (draw_B < config.noise_prob + config.coloradapt_prob)

    def _groups(self, count: int) -> int:
        """Return the number of mix groups among `count` samples; 1 where the samples do not fill groups of the configured size."""
        size = self.config.mix_group or count
        return count // size if count and count % size == 0 else 1

    def _mix(self, x: Tensor, keys: SampleKeys, targets_BC: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        # A group that is not mixed gets lam = 1, which changes nothing: reading the draw from a GPU would cost a wait.
        config = self.config
        draw_G = keys[:groups].uniform("mix")[:, 0]
        cutmix_share = 0.0 if config.cutmix_alpha == 0 else config.cutmix_prob if config.mixup_alpha == 0 else config.cutmix_prob / 2
        if config.cutmix_alpha > 0:
            lam_G = torch.where(draw_G < cutmix_share, embed_ops.draw_lambda(keys, config.cutmix_alpha, groups), 1.0)
            x, targets_BC = embed_ops.cutmix_(x, targets_BC, keys, lam_G)
        if config.mixup_alpha > 0:
            on_G = (draw_G >= cutmix_share) & (draw_G < config.cutmix_prob)
            lam_G = torch.where(on_G, embed_ops.draw_lambda(keys, config.mixup_alpha, groups), 1.0)
            x, targets_BC = embed_ops.mixup(x, targets_BC, lam_G)
        return x, targets_BC


def _synonym_metric(spec: TokenizerSpec, config: AugmentConfig) -> str:
    """Return the metric of the config, or for `auto` the metric by which the tokenizer compares codes.

    Codes that are found by distance also differ in length. Cosine would call white and dark grey patches the best of synonyms.
    """
    if config.synonym_metric != "auto":
        return config.synonym_metric
    return "cosine" if spec.codebook is not None and spec.codebook.metric == "cosine" else "l2"


def _cropped(side: int, share: float) -> int:
    """Return a share of a side as an even number of sites, at least 2. A side below 2, or a share of 1, gives the side itself."""
    return side if share == 1 else min(side, max(2, 2 * round(side * share / 2)))


def _check(layout: Layout, config: AugmentConfig) -> None:
    for option in _refused(layout, config):
        raise ConfigError(index_ops.refusal(layout, option, getattr(config, option)))


def _refused(layout: Layout, config: AugmentConfig) -> list[str]:
    """Return the options that are on but have no meaning in the layout."""
    mixes = config.cutmix_prob > 0
    plane = index_ops.has_plane(layout)
    refused = {
        "swap_prob": config.swap_prob > 0 and not plane,
        "crop": config.crop != "centre" and not plane,
        "crop_share": config.crop_share != 1 and not plane,
        "cutmix_alpha": mixes and config.cutmix_alpha > 0 and not plane,
        "flip_prob": config.flip_prob > 0 and not index_ops.can_mirror(layout),
        "mixup_alpha": mixes and config.mixup_alpha > 0 and layout.variable,
        "coloradapt_prob": config.coloradapt_prob > 0 and layout.variable,
    }
    return [option for option, wrong in refused.items() if wrong]
