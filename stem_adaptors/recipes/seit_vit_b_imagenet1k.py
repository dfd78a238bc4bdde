r"""SeiT, ViT-B on ImageNet-1k tokens of a ViT-VQGAN (32 x 32 sites, 391 codes), with SeiT's hyper-parameters.

    torchrun --nproc-per-node 8 --no-python \
        tokenshards train IN1K_TRAIN --val IN1K_VAL --out run --recipe seit_vit_b_imagenet1k

Cost: the authors used 8 V100 GPUs; 384 M images in all (300 epochs of 1.28 M). Expected: 74.0 % top-1 from 1.4 GB of tokens, as the
paper reports it. We have not run it: it takes GPUs for days. Tokens come from `tokenshards import seit`.
Three things are ours: the rate changes at each step (SeiT: each epoch), the average of weights warms up, and `--precision auto` takes
bf16 on GPUs that have it (SeiT: fp16).
"""

from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig

MODEL = ModelConfig(name="vit_base", stem="conv", raw_embeddings=True, drop_path=0.1)
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
