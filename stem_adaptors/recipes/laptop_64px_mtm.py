"""Masked token modelling for some thousand images of 64 px: minutes on the two cores of a laptop. No label is read.

    tokenshards pretrain photos.tokens --val photos_val.tokens --out mtm --recipe laptop_64px_mtm

Cost: 60 epochs of 4,500 images, 10 to 15 minutes on two cores: an image takes 1.4 times as long as with the recipe `laptop_64px`.
Expected: a start for `laptop_64px_finetune`. The settings are ours.
"""

from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig

MODEL = ModelConfig(name="vit_micro", width=96, depth=4, heads=3, stem="patch", stem_patch=2, learned_codebook=True, embed_norm=True)
AUGMENT = AugmentConfig(synonym_prob=0.0, swap_prob=0.0, crop_scale_min=0.35, noise_prob=0.0, cutmix_prob=0.0)
MASK = MaskConfig(decoder_width=64, decoder_depth=2, decoder_heads=2)
LOADER = LoaderConfig(batch_size=64)
TRAIN = TrainConfig(epochs=60, lr=2e-3, min_lr=0.0, warmup_epochs=6, weight_decay=0.05, beta2=0.95, label_smoothing=0.0)
