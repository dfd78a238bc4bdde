"""What each augmentation does to some samples, as ids that a tokenizer can decode to pixels.

Shapes: B samples, L sites, Q ids per site, D channels, K codes of a level.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.records import TokenBatch
from pipeline.shards.codebook import Tables
from pipeline.shards.spec import TokenizerSpec
from stem_adaptors.augment.keys import SampleKeys
from stem_adaptors.augment.pipeline import Augmentation, default_augmentations
from stem_adaptors.config import AugmentConfig
from stem_adaptors.embedding import TokenEmbedding

__all__ = ["augmented_views", "nearest_ids"]

DROPPED_SHARE = 0.25

# Each operation alone, in every sample. All outputs keep the whole grid, so that they can be decoded.
_WHOLE = dataclasses.replace(AugmentConfig.off(), crop_share=1.0)
_IDS_ONLY = {
    "block swap": dataclasses.replace(_WHOLE, swap_prob=1.0),
    "mirror": dataclasses.replace(_WHOLE, flip_prob=1.0),
}
_WITH_VECTORS = {
    "synonyms": dataclasses.replace(_WHOLE, synonym_prob=1.0),
    "resized crop": dataclasses.replace(_WHOLE, crop="rrc"),
    "noise": dataclasses.replace(_WHOLE, noise_prob=1.0),
    "ColorAdapt": dataclasses.replace(_WHOLE, coloradapt_prob=1.0),
    "dropout": dataclasses.replace(_WHOLE, dropout_prob=DROPPED_SHARE),
    "CutMix": dataclasses.replace(_WHOLE, cutmix_prob=1.0, mixup_alpha=0.0),
    "Mixup": dataclasses.replace(_WHOLE, cutmix_prob=1.0, cutmix_alpha=0.0, mixup_alpha=1.0),
}


def augmented_views(spec: TokenizerSpec, tables: Tables, tokens: TokenBatch, *, seed: int = 0) -> list[tuple[str, TokenBatch]]:
    """Return (name, tokens): unchanged, after each operation that the layout allows, and after the default list of them.

    Embeddings are standardised by the samples' own statistics before they are augmented, as in training by the dataset's, and come back
    as the ids of the nearest codes. Raises ConfigError for layouts of varying size, and where nothing can be shown.
    """
    if spec.layout.variable:
        raise ConfigError("samples of varying size cannot be shown augmented; leave --augment out")
    ids_BLQ = torch.from_numpy(tokens.ids_BLQ.astype(np.int64))
    keys = SampleKeys(seed, 0, torch.arange(len(ids_BLQ)))
    configs = dict(_IDS_ONLY)
    if spec.codebook is not None:
        configs |= _WITH_VECTORS
        configs["all"] = dataclasses.replace(default_augmentations(spec), crop_share=1.0)
    views = [("tokens", tokens)]
    for name, config in configs.items():
        try:
            augmentation = Augmentation(spec, tables, config)
        except ConfigError:
            continue  # the layout has no such operation
        changed_BLQ = augmentation.ids(ids_BLQ, keys)
        if name in _IDS_ONLY:
            shown = changed_BLQ.numpy().astype(spec.id_dtype)
        else:
            shown = _through_embeddings(spec, tables, changed_BLQ, augmentation, keys)
        views.append((name, TokenBatch(shown)))
    return views


def _through_embeddings(
    spec: TokenizerSpec, tables: Tables, ids_BLQ: Tensor, augmentation: Augmentation, keys: SampleKeys
) -> npt.NDArray[np.unsignedinteger[Any]]:
    x = TokenEmbedding(spec, tables)(ids_BLQ)
    x_BLD = x.flatten(2).transpose(1, 2) if spec.layout.grid else x
    std_D, mean_D = torch.std_mean(x_BLD.flatten(0, 1), 0)
    std_D = torch.where(std_D > 1e-6 * std_D.max(), std_D, 1.0)
    standard = ((x_BLD - mean_D) / std_D).transpose(1, 2).view(x.shape) if spec.layout.grid else (x_BLD - mean_D) / std_D
    augmented, _ = augmentation.embeddings(standard, keys, torch.zeros(len(x), 1))
    augmented_BLD = augmented.flatten(2).transpose(1, 2) if spec.layout.grid else augmented
    return nearest_ids(spec, tables, augmented_BLD * std_D + mean_D)


def nearest_ids(spec: TokenizerSpec, tables: Tables, x_BLD: Tensor) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return ids [B, L, Q] of the codes nearest to embeddings: of each part (`concat`), else level by level of what is still missing.

    Nearest by cosine where the codebook's metric says so, else by Euclidean distance. Raises ConfigError without a codebook.
    """
    if spec.codebook is None:
        raise ConfigError(f"tokenizer family {spec.family!r} has no codebook; its embeddings have no nearest ids")
    concat = spec.layout.combine == "concat"
    ids_BLQ = np.empty((*x_BLD.shape[:2], spec.layout.ids_per_site), spec.id_dtype)
    for sample, x_LD in enumerate(x_BLD.float()):
        rest_LD, start = x_LD, 0
        for level in range(spec.layout.ids_per_site):
            table_KD = torch.from_numpy(np.asarray(tables[f"level_{level}"], np.float32))
            part_LD = rest_LD[:, start : start + table_KD.shape[1]] if concat else rest_LD
            if spec.codebook.metric == "cosine":
                nearest_L = (part_LD @ F.normalize(table_KD, dim=1).T).argmax(1)
            else:
                nearest_L = (part_LD @ table_KD.T - table_KD.square().sum(1) / 2).argmax(1)
            ids_BLQ[sample, :, level] = nearest_L.numpy()
            if concat:
                start += table_KD.shape[1]
            else:
                rest_LD = rest_LD - table_KD[nearest_L]
    return ids_BLQ
