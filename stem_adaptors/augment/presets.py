"""Augmentations by name, for `train --augment NAME`."""

from __future__ import annotations

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.named_code import PREFIX
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.words import near_names
from tokenshards.stem_adaptors.augment.declared import allowed_augmentations
from tokenshards.stem_adaptors.config import AugmentConfig

__all__ = ["PRESETS", "augmentation_named"]

PRESETS: dict[str, AugmentConfig] = {
    "seit": AugmentConfig(),
    "seitpp": AugmentConfig(noise_prob=0.375, coloradapt_prob=0.125),
    "seitpp_small": AugmentConfig(
        crop_scale_min=0.35, noise_prob=0.25, noise_std=0.5, noise_channel_std=0.5, coloradapt_prob=0.125, cutmix_prob=0.5
    ),
    "mild": AugmentConfig(crop_scale_min=0.35, noise_prob=0.25, noise_std=0.5, noise_channel_std=0.5, cutmix_prob=0.5),
    "mtm": AugmentConfig(synonym_prob=0.0, swap_prob=0.0, crop_scale_min=0.2, noise_prob=0.0, cutmix_prob=0.0),
    "none": AugmentConfig.off(),
}
"""`seit`: SeiT (Park et al. 2023). `seitpp`: 37.5 % noise and 12.5 % ColorAdapt (SeiT++, Lee et al. 2024). `mild`: ours, for small sets.
`seitpp_small`: `mild` with 12.5 % ColorAdapt. `mtm`: SeiT++'s pre-training. `none`: the centre crop alone. No preset has TokenAdapt, which
needs a file that `fit-tokenadapt` makes: `train --tokenadapt FILE` adds it to any of them."""


def augmentation_named(name: str, spec: TokenizerSpec) -> AugmentConfig:
    """Return a preset without what the layout or a missing codebook rules out; or the config of a text such as `rrc(), cutmix()`.

    Raises ConfigError for another name.
    """
    if name in PRESETS:
        return allowed_augmentations(spec, PRESETS[name])
    if "(" in name or name.startswith(PREFIX):
        return AugmentConfig(ops=name)
    raise ConfigError(
        f"--augment is {name!r}{near_names(name, PRESETS)}; expected one of {', '.join(PRESETS)}, or operations such as "
        "'rrc(), 0.5*noise()' (see augment.ops)"
    )
