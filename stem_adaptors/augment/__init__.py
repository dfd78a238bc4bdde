"""Token-space augmentations: whole batches, on the training device, with random numbers that belong to the sample."""

from tokenshards.stem_adaptors.augment.declared import (
    allowed_augmentations,
    default_augmentations,
    mix_group_size,
    mixes,
    require_own_operations_allowed,
)
from tokenshards.stem_adaptors.augment.keys import SampleKeys
from tokenshards.stem_adaptors.augment.operation import Operation
from tokenshards.stem_adaptors.augment.presets import PRESETS, augmentation_named
from tokenshards.stem_adaptors.augment.registry import register_augmentation
from tokenshards.stem_adaptors.augment.targets import smoothed_cross_entropy, soft_cross_entropy, soft_targets
from tokenshards.stem_adaptors.augment.transform import TokenTransform

__all__ = [
    "PRESETS",
    "Operation",
    "SampleKeys",
    "TokenTransform",
    "allowed_augmentations",
    "augmentation_named",
    "default_augmentations",
    "mix_group_size",
    "mixes",
    "register_augmentation",
    "require_own_operations_allowed",
    "smoothed_cross_entropy",
    "soft_cross_entropy",
    "soft_targets",
]
