"""Token-space augmentations: whole batches, on the training device, with random numbers that belong to the sample."""

from stem_adaptors.augment.keys import SampleKeys
from stem_adaptors.augment.pipeline import Augmentation, default_augmentations
from stem_adaptors.augment.targets import soft_targets

__all__ = ["Augmentation", "SampleKeys", "default_augmentations", "soft_targets"]
