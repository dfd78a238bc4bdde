"""A classifier that starts from `laptop_64px_mtm`, for some thousand images of 64 px: minutes on the two cores of a laptop.

    tokenshards train photos.tokens --val photos_val.tokens --out fine --pretrained mtm --recipe laptop_64px_finetune

`mtm` is the run of `laptop_64px_mtm`. Cost: 20 epochs of 4,500 images, 2 to 3 minutes on two cores. Expected: more than `laptop_64px` has
where few images have labels (`--fraction 0.1`). The settings are ours.
"""

from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig

MODEL = ModelConfig(
    name="vit_micro", width=96, depth=4, heads=3, stem="patch", stem_patch=2, learned_codebook=True, embed_norm=True, drop_path=0.1
)
AUGMENT = AugmentConfig(crop_scale_min=0.35, noise_prob=0.25, noise_std=0.5, noise_channel_std=0.5, coloradapt_prob=0.125, cutmix_prob=0.5)
LOADER = LoaderConfig(batch_size=64)
TRAIN = TrainConfig(epochs=20, lr=2e-3, warmup_epochs=2, layer_decay=0.75)
