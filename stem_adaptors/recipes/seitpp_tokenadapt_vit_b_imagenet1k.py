r"""SeiT++ without its pre-training: SeiT with TokenAdapt and ColorAdapt, ViT-B on ImageNet-1k tokens of a ViT-VQGAN.

    torchrun --nproc-per-node 8 --no-python \
        tokenshards train IN1K_TRAIN --val IN1K_VAL --out run --tokenadapt ADAPT --recipe seitpp_tokenadapt_vit_b_imagenet1k

ADAPT is what `fit-tokenadapt` makes of images. Cost: the authors used 8 V100 GPUs; 384 M images in all (300 epochs of 1.28 M), and two
blocks of width 384 more on half of them. Expected, from notes of others on the paper, whose tables we could not read: 75.5 % top-1 from
1.4 GB of tokens (SeiT: 74.0 %). We have not run it: it takes GPUs for days.
Five things are ours: each image has its own flip, rotation and shear (SeiT++: each half batch), and shears to both sides; noise, ColorAdapt
and CutMix follow TokenAdapt (SeiT++: noise and ColorAdapt come before it, CutMix or Mixup act within it); the rate changes at each step
(SeiT++: each epoch); the average of weights warms up; and `--precision auto` takes bf16 on GPUs that have it (SeiT++: fp16).
"""

from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig

MODEL = ModelConfig(name="vit_base", stem="conv", raw_embeddings=True, drop_path=0.1)
AUGMENT = AugmentConfig(noise_prob=0.375, coloradapt_prob=0.125)
LOADER = LoaderConfig(batch_size=1024)
TRAIN = TrainConfig(
    epochs=300,
    lr=7.5e-4 * 1024 / 512,
    min_lr=1e-5,
    warmup_epochs=30,
    weight_decay=0.1,
    label_smoothing=0.1,
    ema_decay=0.99996,
    clip_grad_norm=0.0,
)
