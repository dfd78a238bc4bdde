"""A linear probe: ridge regression from pooled embeddings to classes. It takes seconds and has no seed.

Embeddings are averaged over the whole image, its quarters and its sixteenths (Lazebnik et al. 2006, "Beyond Bags of Features", section 3),
as far as the width allows. The ridge is the one that is best on held-out fifths of the training images.

Shapes: B samples, L sites, D channels of an embedding, N samples, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding, embedding_statistics

__all__ = ["linear_probe"]

Floats = npt.NDArray[np.float32]

MOST_FEATURES = 1536
SIDES = (1, 2, 4)
"""Parts along each axis."""
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Added to the variance of each feature, which is 1."""
FOLDS = 5
BATCH = 100


@torch.inference_mode()
def linear_probe(train: TokenDataset, val: TokenDataset) -> npt.NDArray[np.bool_]:
    """Return for each labelled image of `val`, in stored order, whether its class was found."""
    embedding = TokenEmbedding(train.spec, train.codebook(), standardise=embedding_statistics(train), generator=_generator())
    (features_NF, labels_N), (measured_NF, wanted_N) = (_pooled(dataset, embedding) for dataset in (train, val))
    mean_F, std_F = features_NF.mean(axis=0), features_NF.std(axis=0)
    std_F = np.where(std_F > 1e-6, std_F, 1.0)
    features_NF, measured_NF = (((values - mean_F) / std_F).astype(np.float32) for values in (features_NF, measured_NF))
    classes, fold_N = len(train.classes), np.arange(len(labels_N)) % FOLDS
    right = np.zeros(len(RIDGES), np.int64)
    for fold in range(FOLDS):
        held = fold_N == fold
        if held.any() and not held.all():
            found = _scores(features_NF[~held], labels_N[~held], features_NF[held], classes, RIDGES)
            right += np.array([(scores_NC.argmax(axis=1) == labels_N[held]).sum() for scores_NC in found])
    ridge = RIDGES[int(right.argmax())]
    [scores_NC] = _scores(features_NF, labels_N, measured_NF, classes, (ridge,))
    found_N: npt.NDArray[np.bool_] = scores_NC.argmax(axis=1) == wanted_N
    return found_N


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)  # for tables of random numbers, where a tokenizer has no codebook


def _pooled(dataset: TokenDataset, embedding: TokenEmbedding) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return features [N, F] and classes [N] of the labelled images."""
    config = LoaderConfig(batch_size=min(BATCH, len(dataset)), order="sequential", end="pad", prefetch_batches=1)
    features, labels = [], []
    for batch in TokenLoader(dataset, config):
        x = embedding(batch.ids_BLQ, shapes_BD=batch.shapes_BD)
        mask = embedding.site_mask(batch.mask_BL, batch.shapes_BD)
        kept_B = (batch.weights_B > 0) & (batch.labels_B >= 0)
        features.append(_features(x, mask, dataset.spec.layout.scales)[kept_B].numpy())
        labels.append(batch.labels_B[kept_B].numpy())
    return np.concatenate(features), np.concatenate(labels).astype(np.int64)


def _features(x: Tensor, mask: Tensor | None, scales: Sequence[tuple[int, int]]) -> Tensor:
    """Return [B, F]: means over parts of a grid, over the scales of a pyramid, or over the real sites of anything else."""
    if x.ndim == 5:  # a video: over its frames first
        x = x.mean(dim=2)
        mask = None if mask is None else mask.any(dim=1)
    if mask is not None:
        shape = (len(x), 1, *mask.shape[1:]) if x.ndim == 4 else (*mask.shape, 1)
        real = mask.reshape(shape).to(x.dtype)
        over = (2, 3) if x.ndim == 4 else (1,)
        return (x * real).sum(dim=over) / real.sum(dim=over).clamp(min=1)
    if x.ndim == 4:
        channels = x.shape[1]
        sides = [side for place, side in enumerate(SIDES) if channels * sum(s * s for s in SIDES[: place + 1]) <= MOST_FEATURES] or [1]
        return torch.cat([F.adaptive_avg_pool2d(x, side).flatten(1) for side in sides if side <= min(x.shape[2:])], dim=1)
    parts = torch.split(x, [height * width for height, width in scales], dim=1) if scales else (x,)
    return torch.cat([part_BLD.mean(dim=1) for part_BLD in parts], dim=1)


def _scores(
    features_NF: Floats, labels_N: npt.NDArray[np.int64], measured_MF: Floats, classes: int, ridges: Sequence[float]
) -> list[Floats]:
    """Return the scores [M, C] of each ridge."""
    targets_NC = np.eye(classes, dtype=np.float32)[labels_N]
    share_C, middle_F = targets_NC.mean(axis=0), features_NF.mean(axis=0)
    apart_NF = features_NF - middle_F
    products_FF, sides_FC = apart_NF.T @ apart_NF / len(labels_N), apart_NF.T @ (targets_NC - share_C) / len(labels_N)
    eye_FF = np.eye(len(products_FF), dtype=np.float32)
    return [
        (measured_MF - middle_F) @ np.linalg.solve(products_FF + ridge * eye_FF, sides_FC) + share_C for ridge in map(np.float32, ridges)
    ]
