r"""SeiT++'s pre-training: masked token modelling, ViT-B on ImageNet-1k tokens of a ViT-VQGAN (32 x 32 sites, 391 codes). No label is read.

    torchrun --nproc-per-node 8 --no-python \
        tokenshards pretrain IN1K_TRAIN --val IN1K_VAL --out mtm --recipe seitpp_mtm_vit_b_imagenet1k

Cost: the authors used 8 V100 GPUs; 512 M images in all (400 epochs of 1.28 M), of which the encoder sees 60 % of the patches. Expected: a
start for `seitpp_finetune_vit_b_imagenet1k`; that recipe has the figures. We have not run it: it takes GPUs for days. Half of the authors'
batch goes through TokenAdapt: `--tokenadapt ADAPT`, with a file of `fit-tokenadapt`, adds it.
Four things are ours: each image has its own mask ratio (SeiT++: each batch of a process), code vectors begin at the stored ones (SeiT++: at
random), positions of the encoder are learned (SeiT++: fixed sines and cosines), and `--precision auto` takes bf16 on GPUs that have it
(SeiT++: fp16).
"""

from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig

MODEL = ModelConfig(name="vit_base", stem="patch", stem_patch=2, learned_codebook=True, embed_norm=True)
AUGMENT = AugmentConfig(synonym_prob=0.0, swap_prob=0.0, crop_scale_min=0.2, noise_prob=0.0, cutmix_prob=0.0)
MASK = MaskConfig(
    ratio_mean=0.45,
    ratio_std=0.25,
    ratio_min=0.4,
    ratio_max=1.0,
    drop_share=0.4,
    embed_dropout=0.1,
    decoder_width=512,
    decoder_depth=4,
    decoder_heads=16,
)
LOADER = LoaderConfig(batch_size=4096)
TRAIN = TrainConfig(
    epochs=400,
    lr=1.5e-4 * 4096 / 256,
    min_lr=0.0,
    warmup_epochs=40,
    weight_decay=0.05,
    beta2=0.95,
    label_smoothing=0.0,
    clip_grad_norm=0.0,
    accumulate=4,
)
