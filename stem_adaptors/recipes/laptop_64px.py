"""A small ViT for some thousand images of 64 px, such as ten classes of Tiny ImageNet: minutes on the two cores of a laptop.

    tokenshards train photos.tokens --val photos_val.tokens --out run --recipe laptop_64px

Cost: 20 epochs of 4,500 images, 2 to 3 minutes on two cores. Expected: 69 % top-1 on the 500 held-out images of ten classes
of Tiny ImageNet, from the default tokens (two levels, 16 x 16 sites, 489 bytes an image): one run, seed 0, gave 69.6 %. Augmentation is
mild, because a small model that sees few epochs has more to learn than to forget.
"""

from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig

MODEL = ModelConfig(name="vit_micro", width=96, depth=4, heads=3, stem="conv", stem_patch=2)
AUGMENT = AugmentConfig(crop_scale_min=0.35, noise_prob=0.25, noise_std=0.5, noise_channel_std=0.5, cutmix_prob=0.5)
LOADER = LoaderConfig(batch_size=64)
TRAIN = TrainConfig(epochs=20, lr=2e-3, warmup_epochs=2)
