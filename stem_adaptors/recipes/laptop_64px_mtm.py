"""Masked token modelling for some thousand images of 64 px: minutes on the two cores of a laptop. No label is read.

    tokenshards pretrain photos.tokens --val photos_val.tokens --out mtm --recipe laptop_64px_mtm

Cost: 40 epochs of 4,500 images, 4 to 6 minutes on two cores.
Expected: a start for `laptop_64px_finetune`. The settings are ours, those of infra/bench/seitpp.py: three of four patches of every image
are hidden, the encoder sees none of these, and features of what they show are predicted.
"""

from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig

MODEL = ModelConfig(name="vit_micro", width=96, depth=4, heads=3, stem="patch", stem_patch=2, learned_codebook=True, embed_norm=True)
AUGMENT = AugmentConfig(synonym_prob=0.0, swap_prob=0.0, flip_prob=0.5, crop="random", noise_prob=0.0, cutmix_prob=0.0)
MASK = MaskConfig(
    ratio_mean=0.75,
    ratio_std=0.0,
    ratio_min=0.75,
    ratio_max=0.75,
    drop_share=0.75,
    targets="features",
    embed_dropout=0.0,
    decoder_width=64,
    decoder_depth=1,
)
LOADER = LoaderConfig(batch_size=32)
TRAIN = TrainConfig(epochs=40, lr=2e-3, min_lr=2e-5, warmup_epochs=4, weight_decay=0.05, beta2=0.95, label_smoothing=0.0)
