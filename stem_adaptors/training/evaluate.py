"""Measures an objective on a dataset, and predicts the classes of unlabelled tokens.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from tokenshards.pipeline.records import TokenBatch
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.classifier import TokenClassifier
from tokenshards.stem_adaptors.objectives.base import Align, Measure, Objective
from tokenshards.stem_adaptors.precision import autocast

__all__ = ["evaluate", "predict"]

Sums = TypeVar("Sums", bound=Measure)


@torch.inference_mode()
def evaluate(objective: Objective, batches: Iterable[Batch], align: Align, precision: torch.dtype, measure: Sums) -> Sums:
    """Add the answers to all batches of this rank to `measure`, and return it. The model is in evaluation mode meanwhile."""
    model = objective.model
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for batch in batches:
            aligned = align(batch)
            with autocast(aligned.ids_BLQ.device, precision):
                answers = objective.answers(aligned)
            measure.add(aligned, answers)
    finally:
        for module, training in modes.items():
            module.training = training
    return measure


@torch.inference_mode()
def predict(
    model: TokenClassifier, tokens: TokenBatch, device: torch.device, precision: torch.dtype = torch.float32
) -> npt.NDArray[np.float32]:
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
    with autocast(device, precision):
        logits_BC = model(ids_BLQ, mask_BL=mask_BL, shapes_BD=shapes_BD)
    probabilities: npt.NDArray[np.float32] = logits_BC.float().softmax(dim=1).cpu().numpy()
    return probabilities
