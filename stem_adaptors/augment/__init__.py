"""Token-space augmentations: whole batches, on the training device, with random numbers that belong to the sample."""

from tokenshards.stem_adaptors.augment.keys import SampleKeys
from tokenshards.stem_adaptors.augment.pipeline import Augmentation, allowed_augmentations, default_augmentations, mix_group_size
from tokenshards.stem_adaptors.augment.targets import soft_targets

__all__ = ["Augmentation", "SampleKeys", "allowed_augmentations", "default_augmentations", "mix_group_size", "soft_targets"]
