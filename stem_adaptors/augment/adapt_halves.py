"""The half batches of SeiT++ (Lee et al. 2024): half of each mix group is cropped as it is, the other half goes through TokenAdapt."""

from __future__ import annotations

from dataclasses import replace

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.named_code import PREFIX
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.augment.composed import HalfBatch
from tokenshards.stem_adaptors.augment.declared import operations_of
from tokenshards.stem_adaptors.augment.language import text_of
from tokenshards.stem_adaptors.augment.on_embeddings import RandomCrop, RandomResizedCrop
from tokenshards.stem_adaptors.augment.registry import make_operation
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig

__all__ = ["with_token_adapt"]


def with_token_adapt(config: AugmentConfig, spec: TokenizerSpec, file: str, *, to_ids: bool = False) -> AugmentConfig:
    """Return the augmentation with `half_batch([rrc(…)], [token_adapt(file, …)])` in the place of its `rrc(…)`, of the same strengths.

    A crop that resamples nothing (`random_crop`) is replaced alike; the other half is resized from `crop_scale_min` on.

    `to_ids`: what is learned needs ids at the end. Where nothing follows the crop, its half is quantised there, and the other half's ids
    stay those of the networks.

    Raises ConfigError where the augmentation has no random crop of whole batches.
    """
    if config.ops.startswith(PREFIX):
        raise ConfigError(f"--tokenadapt cannot change {config.ops}; let that code return half_batch with token_adapt itself")
    operations = operations_of(spec, config, draws=DRAWS)
    crops = [(place, operation) for place, operation in enumerate(operations) if isinstance(operation, RandomResizedCrop | RandomCrop)]
    if not crops:
        raise ConfigError(
            "--tokenadapt takes the place of the crop in half of each batch, and there is none in: "
            f"{text_of(operations) or 'no operation'}. Give an augmentation with rrc or random_crop, such as --augment seitpp, or write "
            "half_batch([...], [token_adapt(file=...)]) yourself"
        )
    place, crop = crops[0]
    resizing = crop if isinstance(crop, RandomResizedCrop) else RandomResizedCrop(crop.share, config.crop_scale_min, config.crop_ratio_max)
    given = {"share": crop.share, "scale_min": resizing.scale_min, "ratio_max": resizing.ratio_max}
    usual = RandomResizedCrop()
    options = {name: value for name, value in given.items() if value != getattr(usual, name)}
    last = to_ids and place == len(operations) - 1
    cropped = [crop, make_operation("quantise", {})] if last else [crop]
    operations[place] = HalfBatch(cropped, [make_operation("token_adapt", {"file": file, **options})])
    return replace(AugmentConfig(ops=text_of(operations)), mix_group=config.mix_group)
