"""From a configuration to the list of operations, and what a dataset rules out of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.named_code import require_allowed
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment import index_ops
from tokenshards.stem_adaptors.augment.composed import HalfBatch, OneOf, late_reader
from tokenshards.stem_adaptors.augment.language import named_code, parse_operations
from tokenshards.stem_adaptors.augment.mixing import ColorAdapt, CutMix, Mixup
from tokenshards.stem_adaptors.augment.on_embeddings import CentreCrop, DropSites, Noise, RandomCrop, RandomResizedCrop
from tokenshards.stem_adaptors.augment.on_ids import Flip, Swap, Synonyms
from tokenshards.stem_adaptors.augment.operation import Operation
from tokenshards.stem_adaptors.augment.quantise import Quantise
from tokenshards.stem_adaptors.config import AugmentConfig

__all__ = ["allowed_augmentations", "default_augmentations", "mix_group_size", "mixes", "operations_of", "require_own_operations_allowed"]

MOST_MIXED = 128
"""Most samples in a mix group: the batch of one GPU in SeiT."""

_NEUTRAL: dict[str, Any] = {"crop": "centre", "crop_share": 1.0}
"""The values that turn these options off; 0 turns off every other option."""


def default_augmentations(spec: TokenizerSpec) -> AugmentConfig:
    """Return the default augmentations, without those that the layout or a missing codebook rules out."""
    return allowed_augmentations(spec, AugmentConfig())


def allowed_augmentations(spec: TokenizerSpec, config: AugmentConfig) -> AugmentConfig:
    """Return the config with every operation off that the layout or a missing codebook rules out."""
    if config.ops:
        return config
    ruled_out = {option: _NEUTRAL.get(option, 0.0) for option in _refused(spec.layout, config)}
    if spec.codebook is None:
        ruled_out["synonym_prob"] = 0.0
    return dataclasses.replace(config, **ruled_out)


def mixes(config: AugmentConfig) -> bool:
    """Whether an augmentation combines different samples."""
    if not config.ops:
        return config.mixes
    return any(member.mixes for operation in parse_operations(config.ops) for member in operation.members())


def require_own_operations_allowed(config: AugmentConfig) -> None:
    """Raise ConfigError where a file's config names code of a user that $TOKENSHARDS_ALLOW_PYTHON does not name."""
    for target in named_code(config.ops) if config.ops else ():
        require_allowed(target, "this run", ConfigError)


def mix_group_size(batch_size: int, shares: int) -> int:
    """Return the size of a mix group that lies whole in each of `shares` equal shares of a batch; 0 for shares that are not equal.

    The size is the largest power of two, up to MOST_MIXED, that divides a share; an odd share is one group. Rank r of n takes every n-th
    sample of a batch, from r on. So the groups of a run that starts on n ranks stay the same on every number of ranks that divides n, and
    on other numbers of ranks whose shares the groups fill.
    """
    share, rest = divmod(batch_size, shares)
    if rest:
        return 0
    return share if share % 2 else min(share & -share, MOST_MIXED)


def operations_of(spec: TokenizerSpec, config: AugmentConfig, *, draws: int) -> list[Operation]:
    """Return the operations that a config names. `draws`: version of the random draws, see `config.DRAWS`.

    Raises ConfigError for an operation that has no meaning in the layout. Sequences, pyramids and layouts of varying size have no common
    grid (no swap, crop or CutMix); sequences and layouts of varying size have no mirror image; rows of varying size cannot be mixed.
    """
    if config.ops:
        operations = parse_operations(config.ops)
        for operation in operations:
            if (reason := operation.refusal(spec.layout)) is not None:
                raise ConfigError(f"augment.ops: {reason}")
        _require_cuts_last(operations)
        if (late := late_reader([operation for operation in operations if operation.stage == "embeddings"])) is not None:
            raise ConfigError(
                f"augment.ops: {late.name} stands after another operation on embeddings, whose result it would throw away; expected it "
                "first among them, or first in a half of half_batch"
            )
        return operations
    for option in _refused(spec.layout, config):
        raise ConfigError(index_ops.refusal(spec.layout, option, getattr(config, option)))
    if draws > 1 and config.noise_prob + config.coloradapt_prob > 1:
        raise ConfigError(
            f"noise_prob + coloradapt_prob is {config.noise_prob + config.coloradapt_prob:g}; expected at most 1: a sample gets "
            "noise or ColorAdapt or neither"
        )
    synonyms = config.synonym_prob, lambda: Synonyms(config.synonym_replace_prob, config.synonym_count, config.synonym_metric)
    noise = config.noise_prob, lambda: Noise(config.noise_std, config.noise_channel_std)
    colour = config.coloradapt_prob, ColorAdapt
    cut = functools.partial(CutMix, config.cutmix_alpha, config.cutmix_labels)
    cuts, blends = config.cutmix_alpha > 0, config.mixup_alpha > 0
    each = config.cutmix_prob / 2 if cuts and blends else config.cutmix_prob
    found = [
        _one_of("eda", synonyms, (config.swap_prob, lambda: Swap(config.swap_max_share))),
        _one_of("flip", (config.flip_prob, Flip)),
        _crop(spec.layout, config),
        *([_one_of("noise", noise), _one_of("coloradapt", colour)] if draws == 1 else [_one_of("noise", noise, colour)]),
        DropSites(config.dropout_prob) if config.dropout_prob > 0 else None,
        _one_of("mix", (each * cuts, cut), (each * blends, lambda: Mixup(config.mixup_alpha))),
    ]
    return [operation for operation in found if operation is not None]


def _require_cuts_last(operations: Sequence[Operation]) -> None:
    """Raise ConfigError where an operation follows CutMix with labels by attention: sites or labels might change after they were noted."""
    for operation, *rest in (operations[start:] for start in range(len(operations))):
        for half in operation.halves if isinstance(operation, HalfBatch) else ():
            _require_cuts_last(half)
        late = [found.text() for found in rest if not isinstance(found, Quantise)]
        if late and any(isinstance(member, CutMix) and member.follows_attention for member in operation.members()):
            raise ConfigError(
                f"augment.ops: {late[0]} follows cutmix(labels='attention'); expected it to come last (quantise() alone may follow): the "
                "model gets the places of the replaced sites"
            )


def _one_of(stream: str, *choices: tuple[float, Any]) -> OneOf | None:
    """Return the choice among those operations that have a chance; None where none has."""
    # An operation without a chance keeps its place: the interval of the next one must not depend on it, and does not.
    used = [(chance, make()) for chance, make in choices if chance > 0]
    return OneOf(*used, stream=stream) if used else None


def _crop(layout: Layout, config: AugmentConfig) -> Operation | None:
    if not index_ops.has_plane(layout):
        return None
    if config.crop == "rrc":
        return RandomResizedCrop(config.crop_share, config.crop_scale_min, config.crop_ratio_max)
    return RandomCrop(config.crop_share) if config.crop == "random" else CentreCrop(config.crop_share)


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
