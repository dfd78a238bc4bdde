"""Configuration of reading and training: one frozen dataclass for each part, which sees no other part. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from tokenshards.pipeline.errors import require
from tokenshards.pipeline.named_code import names_code
from tokenshards.stem_adaptors.field_types import check_types

__all__ = ["CUTMIX_LABELS", "DRAWS", "AugmentConfig", "STEMS", "LoaderConfig", "ModelConfig", "TrainConfig"]

DRAWS = 4
"""Version of the rules for random draws and optimisation. A run keeps its version to its end; run.json names it.

Version 1 (until 0.1.0): noise and ColorAdapt are drawn independently, drop path is keyed by rank and step, micro-batches are slices, a
linear probe trains in train mode, and weight decay goes by names alone. Version 2: a sample gets noise, ColorAdapt or neither; drop path
is keyed by sample; micro-batches hold whole mix groups; a linear probe keeps the backbone in evaluation mode; weight decay also spares
what timm's model lists. Version 3: the noise of a site is one of 16,384 vectors of normal numbers, in place of a number of its own for
each value. Version 4: ColorAdapt takes the statistics of a partner without the partner's noise.
"""

_ORDERS = ("global", "windowed", "sequential")
_END_POLICIES = ("drop", "pad")
CUTMIX_LABELS = ("area", "attention")
_STEMS = ("auto", "conv", "patch", "sequence", "pyramid")
STEMS = "tokenshards.stems"
"""Group of entry points for stems: `name = "package.module:callable"`."""


def _require_share(option: str, value: float) -> None:
    require(0.0 <= value <= 1.0, option, value, "a number from 0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """How a dataset is read: the order of samples, the batches, and which copies may be kept on disk.

    >>> tokenshards.LoaderConfig(batch_size=32, order="sequential", end="pad").batch_size
    32
    """

    batch_size: int = 256
    """G, samples per step over all ranks together."""
    order: str = "global"
    """`global`: a true permutation of a decoded copy; `windowed`: shards, then samples within windows; `sequential`: as stored.
    An image may be stored with several views. `global` and `windowed` draw one view of each image for each epoch. `sequential`, which
    evaluation uses, reads view 0."""
    seed: int = 0
    """Seed of the order, the views and the augmentation."""
    window_shards: int = 64
    """W, shards per window of the windowed order."""
    lanes: int = 1
    """Independent streams of the windowed order, so that a node reads only its share of the windows."""
    end: str = "drop"
    """`drop` leaves out the last N mod G samples of an epoch, `pad` repeats the first ones with weight 0."""
    cache_dir: str | None = None
    """Folder of decoded and downloaded copies. None: $TOKENSHARDS_CACHE, or else the user's cache folder."""
    cache_gb: float = 64.0
    """Most gigabytes (1e9 bytes) that the copies of one dataset may take."""
    prefetch_batches: int = 4
    """Whole batches that a thread makes ahead; 0 makes batches in the calling thread."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.order in _ORDERS, "order", self.order, f"one of {', '.join(_ORDERS)}")
        require(self.window_shards >= 1, "window_shards", self.window_shards, "at least 1")
        require(self.lanes >= 1, "lanes", self.lanes, "at least 1")
        require(self.end in _END_POLICIES, "end", self.end, f"one of {', '.join(_END_POLICIES)}")
        require(self.cache_gb > 0, "cache_gb", self.cache_gb, "more than 0")
        require(self.prefetch_batches >= 0, "prefetch_batches", self.prefetch_batches, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Token-space augmentations. A probability is the share of all samples that get the operation; probabilities never multiply.

    >>> config = tokenshards.AugmentConfig(flip_prob=0.5, noise_prob=0.25, cutmix_prob=0.5)
    >>> model, transform = tokenshards.build("vit_nano", tokenshards.open_dataset("photos.tokens"), augment=config)

    The defaults are those of SeiT (Park et al. 2023), whose Token-EDA draws one of synonyms, swap, nothing for each sample.
    """

    synonym_prob: float = 0.25
    """Share of samples whose ids are replaced by synonyms (Token-EDA)."""
    synonym_replace_prob: float = 0.25
    """Share of ids replaced in such a sample."""
    synonym_metric: str = "auto"
    """`cosine` (SeiT), `l2` (distance), or `auto`: as the tokenizer compares its codes."""
    synonym_count: int = 5
    """Number of most similar codes that a replacement is drawn from; the code itself is not among them."""
    swap_prob: float = 0.25
    """Share of samples in which two blocks change places (Token-EDA). A sample gets synonyms or a swap, never both."""
    swap_max_share: float = 0.25
    """Longest side of a swapped block as a share of the shorter side of the grid."""
    flip_prob: float = 0.0
    """Share of samples mirrored left to right."""
    dropout_prob: float = 0.0
    """Share of sites, in every sample, whose embedding becomes zero (the mean, where embeddings are standardised)."""
    crop: str = "rrc"
    """`rrc`: random-resized crop, bicubic; `random`: plain random crop; `centre`: no randomness."""
    crop_share: float = 0.875
    """Side of the crop's output as a share of the grid's (SeiT: 28 of 32); rounded to an even number of sites."""
    crop_scale_min: float = 0.08
    """Least share of the area in a random-resized crop."""
    crop_ratio_max: float = 4 / 3
    """Largest aspect ratio in a random-resized crop; the least is its inverse."""
    noise_prob: float = 0.5
    """Share of samples that get Emb-Noise. A sample gets noise or ColorAdapt, never both."""
    noise_channel_std: float = 1.0
    """Standard deviation of the noise that all sites of a channel share."""
    noise_std: float = 1.0
    """Standard deviation of the noise that each value gets for itself."""
    coloradapt_prob: float = 0.0
    """Share of samples that take the channel statistics of the sample at the mirrored place of the mix group (ColorAdapt)."""
    cutmix_prob: float = 1.0
    """Share of mix groups that get CutMix or Mixup."""
    cutmix_alpha: float = 1.0
    """Beta parameter of Token-CutMix; 0 turns it off."""
    cutmix_labels: str = "area"
    """`area`: CutMix mixes labels by the share of sites replaced; `attention`: by what attention carries to the head (our ViTs)."""
    mixup_alpha: float = 0.0
    """Beta parameter of Token-Mixup; 0 turns it off. With both on, each mix group gets one or the other with equal probability."""
    mix_group: int | None = None
    """Samples in one mix group: one draw decides how they are mixed with each other. None: the first start chooses a size and records it.
    0: all samples that a rank has of a batch."""
    ops: str = ""
    """The operations in their order, as calls: `one_of(0.25*synonyms(), 0.25*swap()), rrc(), 0.5*noise(std=1), cutmix()`. Empty: those
    that the other fields describe. A text replaces all other fields but `mix_group`."""

    def __post_init__(self) -> None:
        check_types(self)
        names = "synonym_prob synonym_replace_prob swap_prob swap_max_share flip_prob dropout_prob noise_prob coloradapt_prob cutmix_prob"
        for name in names.split():
            _require_share(name, getattr(self, name))
        require(self.synonym_prob + self.swap_prob <= 1.0, "synonym_prob + swap_prob", self.synonym_prob + self.swap_prob, "at most 1")
        require(self.synonym_metric in ("auto", "cosine", "l2"), "synonym_metric", self.synonym_metric, "auto, cosine or l2")
        require(self.synonym_count >= 1, "synonym_count", self.synonym_count, "at least 1")
        require(self.crop in ("rrc", "random", "centre"), "crop", self.crop, "rrc, random or centre")
        require(0.0 < self.crop_share <= 1.0, "crop_share", self.crop_share, "above 0, at most 1")
        require(0.0 < self.crop_scale_min <= 1.0, "crop_scale_min", self.crop_scale_min, "above 0, at most 1")
        require(self.crop_ratio_max >= 1.0, "crop_ratio_max", self.crop_ratio_max, "at least 1")
        require(self.cutmix_labels in CUTMIX_LABELS, "cutmix_labels", self.cutmix_labels, " or ".join(CUTMIX_LABELS))
        for name in ("noise_channel_std", "noise_std", "cutmix_alpha", "mixup_alpha"):
            require(getattr(self, name) >= 0.0, name, getattr(self, name), "0 or more")
        require((self.mix_group or 0) >= 0, "mix_group", self.mix_group, "0 or more")

    @property
    def mixes(self) -> bool:
        """Whether an augmentation combines different samples."""
        return self.coloradapt_prob > 0 or (self.cutmix_prob > 0 and (self.cutmix_alpha > 0 or self.mixup_alpha > 0))

    @classmethod
    def off(cls) -> AugmentConfig:
        """Return a config without any randomness: the centre crop alone, as in evaluation."""
        return cls(synonym_prob=0.0, swap_prob=0.0, crop="centre", noise_prob=0.0, cutmix_prob=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which classifier: our own ViT by size name, any timm model as `timm:NAME`, or code of yours as `python:package.module:callable`.

    >>> config = tokenshards.ModelConfig(name="vit_tiny", depth=2, drop_path=0.1)
    >>> len(tokenshards.build(config, tokenshards.open_dataset("photos.tokens"))[0].backbone.blocks)
    2
    """

    name: str = "vit_tiny"
    """`vit_nano`, `vit_micro`, `vit_tiny`, `vit_small`, `vit_base`, `timm:NAME` (extra `timm`), `python:package.module:callable`, or a name
    that an installed package offers (entry points, group `tokenshards.models`)."""
    stem: str = "auto"
    """`conv` (overlapping, SeiT), `patch` (no overlap, SeiT++), `sequence`, `pyramid`; `auto` chooses by the layout. Code of yours as
    `python:package.module:callable`, or of an installed package (group `tokenshards.stems`)."""
    stem_patch: int = 0
    """Sites per side that become one token of the backbone; 0 chooses by the grid."""
    levels: str = "auto"
    """How the vectors of a site's Q ids become one: `sum`, `concat`; `auto` follows the spec."""
    learned_codebook: bool = False
    """Train the code vectors, starting from the stored ones; they stay fixed otherwise."""
    raw_embeddings: bool = False
    """Keep embeddings as stored (SeiT) instead of standardising each channel."""
    embed_norm: bool = False
    """Norm the channels of each site's embedding before the stem (SeiT++)."""
    drop_path: float = 0.0
    """Largest share of the samples that skip a block (stochastic depth)."""
    depth: int | None = None
    """Blocks of our own ViT; None takes the number of the size name."""
    width: int | None = None
    """Channels of a token of our own ViT; None takes the number of the size name."""
    heads: int | None = None
    """Attention heads, which divide the width; None takes the number of the size name."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.stem not in _STEMS:
            require(names_code(self.stem, STEMS), "stem", self.stem, f"{', '.join(_STEMS)}, or python:package.module:callable")
        require(self.levels in ("auto", "sum", "concat"), "levels", self.levels, "auto, sum or concat")
        require(self.stem_patch >= 0, "stem_patch", self.stem_patch, "0 or more")
        require(0.0 <= self.drop_path < 1.0, "drop_path", self.drop_path, "0 or more, less than 1")
        for name in ("depth", "width", "heads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        if self.width is not None and self.heads is not None:
            require(self.width % self.heads == 0, "width", self.width, f"a multiple of heads ({self.heads})")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a classifier is optimised.

    >>> config = tokenshards.TrainConfig(epochs=20, lr=2e-3, layer_decay=0.75)
    >>> config.beta1, config.beta2
    (0.9, 0.999)
    """

    epochs: int = 100
    """Passes over the training set."""
    lr: float = 1e-3
    """Peak learning rate; no other setting scales this number."""
    min_lr: float = 1e-5
    """Learning rate at the end of the schedule."""
    warmup_epochs: float = 5.0
    """Epochs in which the learning rate rises from 0 to its peak."""
    weight_decay: float = 0.05
    """Decay of AdamW, which spares biases, norms and embeddings."""
    layer_decay: float = 1.0
    """Factor of the rate from each layer to the one before it: below 1, the first layers learn least (for fine-tuning)."""
    beta1: float = 0.9
    """Decay of AdamW's average of gradients."""
    beta2: float = 0.999
    """Decay of AdamW's average of squared gradients."""
    label_smoothing: float = 0.1
    """Share of each target that all classes divide among them."""
    ema_decay: float = 0.0
    """Decay per step of an average of the weights, which is evaluated too; 0 keeps no average."""
    clip_grad_norm: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    accumulate: int = 1
    """Micro-batches per step."""
    precision: str = "auto"
    """`fp32`, `bf16`, `fp16`; `auto` takes bf16 where the device has it, fp32 on a CPU."""
    compile: bool = False
    """Compile augmentation and model with torch.compile; it pays on a GPU."""
    train_part: str = "all"
    """`all`, `head` (linear probe) or `attention` (attention, stem and head)."""
    seed: int = 0
    """Seed of the first weights and of dropout."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    checkpoint_seconds: float = 600.0
    """Seconds between checkpoints within an epoch; the end of an epoch always writes one."""
    checkpoint_steps: int = 0
    """Steps between checkpoints, in place of seconds; 0 uses `checkpoint_seconds`."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.epochs >= 1, "--epochs", self.epochs, "at least 1")
        require(self.lr > 0, "--lr", self.lr, "more than 0")
        for name in ("min_lr", "warmup_epochs", "weight_decay", "clip_grad_norm", "checkpoint_steps"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "more than 0, at most 1")
        require(0 <= self.beta1 < 1, "beta1", self.beta1, "0 or more, less than 1")
        require(0 <= self.beta2 < 1, "beta2", self.beta2, "0 or more, less than 1")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "0 or more, less than 1")
        require(0 <= self.ema_decay < 1, "--ema", self.ema_decay, "0 or more, less than 1")
        require(self.accumulate >= 1, "accumulate", self.accumulate, "at least 1")
        require(self.precision in ("auto", "fp32", "bf16", "fp16"), "--precision", self.precision, "auto, fp32, bf16 or fp16")
        require(self.train_part in ("all", "head", "attention"), "--train-part", self.train_part, "all, head or attention")
        require(self.checkpoint_seconds > 0, "checkpoint_seconds", self.checkpoint_seconds, "more than 0")
