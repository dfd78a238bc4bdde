r"""SeiT, ViT-S on ImageNet-1k tokens of a ViT-VQGAN (32 x 32 sites, 391 codes), with SeiT's hyper-parameters.

    torchrun --nproc-per-node 8 --no-python \
        tokenshards train IN1K_TRAIN --val IN1K_VAL --out run --recipe seit_vit_s_imagenet1k

Cost: about a quarter of ViT-B's arithmetic, 384 M images in all (300 epochs of 1.28 M). Expected: the paper reports no ViT-S figure for
ImageNet-1k that we know of (on ImageNet-100 it is 77.3 % without, 81.4 % with SeiT++'s augmentations). We have not run it.
Three things are ours: the rate changes at each step (SeiT: each epoch), the average of weights warms up, and `--precision auto` takes
bf16 on GPUs that have it (SeiT: fp16).
"""

from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig

MODEL = ModelConfig(name="vit_small", stem="conv", raw_embeddings=True, drop_path=0.1)
AUGMENT = AugmentConfig()
LOADER = LoaderConfig(batch_size=1024)
TRAIN = TrainConfig(
    epochs=300,
    lr=7.5e-4 * 1024 / 512,
    min_lr=1e-5,
    warmup_epochs=5,
    weight_decay=0.1,
    label_smoothing=0.1,
    ema_decay=0.99996,
    clip_grad_norm=0.0,
)
