"""Token-space augmentations: whole batches, on the training device, with random numbers that belong to the sample."""

from tokenshards.stem_adaptors.augment.declared import allowed_augmentations, default_augmentations, mix_group_size
from tokenshards.stem_adaptors.augment.keys import SampleKeys
from tokenshards.stem_adaptors.augment.operation import Operation
from tokenshards.stem_adaptors.augment.targets import soft_targets
from tokenshards.stem_adaptors.augment.transform import TokenTransform

__all__ = ["Operation", "SampleKeys", "TokenTransform", "allowed_augmentations", "default_augmentations", "mix_group_size", "soft_targets"]
