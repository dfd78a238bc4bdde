r"""SeiT++'s fine-tuning: a ViT-B pre-trained by masked token modelling learns the classes of ImageNet-1k from the same tokens.

    torchrun --nproc-per-node 8 --no-python \
        tokenshards train IN1K_TRAIN --val IN1K_VAL --out fine --pretrained mtm --recipe seitpp_finetune_vit_b_imagenet1k

`mtm` is the run of `seitpp_mtm_vit_b_imagenet1k`. Cost: the authors used 8 V100 GPUs; 128 M images in all (100 epochs of 1.28 M). Expected,
from notes of others on the paper, whose tables we could not read: 75.1 % top-1 after masked token modelling alone, 77.8 % with TokenAdapt
and ColorAdapt too, from 1.4 GB of tokens. We have not run it: it takes GPUs for days. Half of the authors' batch goes through TokenAdapt:
`--tokenadapt ADAPT`, with a file of `fit-tokenadapt`, adds it.
Four things are ours: code vectors, the first layer, learn at the lowest rate of the layer decay (SeiT++: at the highest), noise and
ColorAdapt change embeddings (SeiT++: what they change becomes ids again), the rate warms up from 0, and `--precision auto` takes bf16 on
GPUs that have it (SeiT++: fp16).
"""

from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig

MODEL = ModelConfig(name="vit_base", stem="patch", stem_patch=2, learned_codebook=True, embed_norm=True, drop_path=0.1)
AUGMENT = AugmentConfig(synonym_prob=0.0, swap_prob=0.0, noise_prob=0.375, coloradapt_prob=0.125)
LOADER = LoaderConfig(batch_size=1024)
TRAIN = TrainConfig(
    epochs=100,
    lr=1e-3 * 1024**0.5 / 8,
    min_lr=1e-6,
    warmup_epochs=5,
    weight_decay=0.1,
    layer_decay=0.65,
    label_smoothing=0.1,
    clip_grad_norm=0.0,
)
