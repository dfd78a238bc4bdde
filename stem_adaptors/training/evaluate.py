"""Measures a classifier on labelled tokens, and predicts the classes of unlabelled tokens.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.records import TokenBatch
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.classifier import TokenClassifier
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.metrics import Accuracy, Counts

__all__ = ["class_map", "evaluate", "predict"]


def class_map(classes: Sequence[int | str], known: Sequence[int | str], where: str, *, missing_is_error: bool) -> Tensor:
    """Return, for each class index of a dataset, the index in `known` of the class with the same name; -1 where there is none.

    A number and its decimal text are the same name. Raises ConfigError for datasets that share no class with `known`. With
    `missing_is_error` a single class that `known` lacks also raises ConfigError.
    """
    index = {str(name): position for position, name in enumerate(known)}
    mapped = [index.get(str(name), -1) for name in classes]
    missing = [name for name, position in zip(classes, mapped, strict=True) if position < 0]
    if missing and (missing_is_error or len(missing) == len(mapped)):
        raise ConfigError(
            f"{where}: the classes {shorten(missing)} are unknown to the classifier, which has {len(known)}: {shorten(list(known))}. "
            "Classes are matched by name"
        )
    return torch.tensor([*mapped, -1])  # the label -1 picks the last entry


@torch.inference_mode()
def evaluate(
    model: TokenClassifier,
    batches: Iterable[Batch],
    mapping: Tensor,
    classes: int,
    ranks: Ranks,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    *,
    confusion: bool = False,
) -> Accuracy:
    """Return the accuracy over all ranks, with the confusion matrix if asked for. `mapping` is the result of `class_map`.

    Images without a known class are left out. Raises ConfigError for a matrix of too many classes.
    """
    was_training = model.training
    model.eval()
    counts = Counts(classes, device, confusion=confusion)
    try:
        for batch in batches:
            with torch.autocast(device.type, dtype=precision, enabled=precision is not torch.float32):
                logits_BC = model(batch.ids_BLQ, mask_BL=batch.mask_BL, shapes_BD=batch.shapes_BD).float()
            labels_B = mapping[batch.labels_B]
            loss_B = torch.nn.functional.cross_entropy(logits_BC, labels_B.clamp_min(0), reduction="none")
            counts.add(logits_BC, labels_B, batch.weights_B, loss_B)
    finally:
        model.train(was_training)
    return counts.gather(ranks)


@torch.inference_mode()
def predict(model: TokenClassifier, tokens: TokenBatch, device: torch.device) -> npt.NDArray[np.float32]:
    """Return class probabilities [B, C] of token rows."""
    model.eval()
    ids_BLQ = torch.from_numpy(np.ascontiguousarray(tokens.ids_BLQ)).to(device)
    lengths_B = None if tokens.lengths_B is None else torch.from_numpy(tokens.lengths_B.astype(np.int64)).to(device)
    shapes_BD = None if tokens.shapes_BD is None else torch.from_numpy(tokens.shapes_BD.astype(np.int64)).to(device)
    if shapes_BD is not None:
        lengths_B = shapes_BD.prod(dim=1)
    mask_BL = None
    if lengths_B is not None:
        mask_BL = torch.arange(ids_BLQ.shape[1], device=device) < lengths_B[:, None]
        ids_BLQ = ids_BLQ.to(torch.int64).masked_fill(~mask_BL[..., None], model.embedding.pad_id)
    probabilities: npt.NDArray[np.float32] = model(ids_BLQ, mask_BL=mask_BL, shapes_BD=shapes_BD).softmax(dim=1).cpu().numpy()
    return probabilities
