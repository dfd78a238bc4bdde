"""A classifier whose output has loss and logits, for loops that call the model with a whole batch, as the Trainer of transformers does.

Shapes: B samples, L sites, Q ids per site, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.stem_adaptors.augment import TokenTransform
from tokenshards.stem_adaptors.data.batch import Batch, require_ids
from tokenshards.stem_adaptors.models.classifier import TokenClassifier
from tokenshards.stem_adaptors.ranks import found_ranks

__all__ = ["ClassifierOutput", "ClassifierWithLoss"]

_STEPS = "steps"


class ClassifierOutput(dict[str, Tensor]):
    """`loss` and `logits` [B, C], as attributes and as entries: the Trainer of transformers and accelerate take a dict apart."""

    @property
    def loss(self) -> Tensor | None:
        """The mean loss over the labelled samples; None without labels."""
        return self.get("loss")

    @property
    def logits(self) -> Tensor:
        """Logits [B, C]."""
        return self["logits"]


class ClassifierWithLoss(nn.Module):
    """`output = model(input_ids, labels)` has `output.loss` and `output.logits`.

    >>> dataset = tokenshards.open_dataset("photos.tokens")
    >>> model = tokenshards.ClassifierWithLoss(*tokenshards.build("vit_nano", dataset, augment="mild"))
    >>> batch = next(iter(torch.utils.data.DataLoader(tokenshards.TokenSamples(dataset), batch_size=24)))
    >>> output = model(**batch)  # in train mode the transform augments, and CutMix mixes the targets of the loss
    >>> output.loss.backward()
    >>> tokens_match = model.eval()(batch["input_ids"]).logits.argmax(dim=1) == batch["labels"]

    In train mode, with labels, the loss is the transform's; the transform draws new numbers at each call, by `seed`, rank and the number of
    the call, which the state dict keeps (`steps`). In evaluation mode, or without a transform, it is the cross-entropy of the batch as it
    is. Samples with a negative label have no part in the loss.
    """

    def __init__(self, model: TokenClassifier, transform: TokenTransform | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self._transform = [transform]  # in a list, so that a state dict holds the weights of the classifier alone
        self._seed, self._steps = seed, 0

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> ClassifierOutput:
        """Return logits and, with labels [B], the loss of ids [B, L, Q], or [B, L] where a site has one id."""
        require_ids(input_ids)
        ids_BLQ = input_ids if input_ids.ndim == 3 else input_ids[..., None]
        transform = self._transform[0]
        if self.training and labels is not None and transform is not None:
            return self._augmented(transform, ids_BLQ, labels)
        logits_BC = self.model(ids_BLQ)
        if labels is None:
            return ClassifierOutput(logits=logits_BC)
        loss_B = F.cross_entropy(logits_BC.float(), labels.clamp_min(0), reduction="none")
        return ClassifierOutput(loss=_mean(loss_B, labels), logits=logits_BC)

    def _augmented(self, transform: TokenTransform, ids_BLQ: Tensor, labels_B: Tensor) -> ClassifierOutput:
        count = len(ids_BLQ)
        positions_B = torch.arange(count, device=ids_BLQ.device) + found_ranks()[0] * count
        batch = Batch(
            ids_BLQ=ids_BLQ,
            labels_B=labels_B,
            weights_B=torch.ones(count, device=ids_BLQ.device),
            positions_B=positions_B,
            rows_B=positions_B,
            epoch=self._steps,
            seed=self._seed,
        )
        self._steps += 1
        loss_B, logits_BC = transform.answers(self.model, transform.inputs(self.model, batch))
        return ClassifierOutput(loss=_mean(loss_B, labels_B), logits=logits_BC)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + _STEPS] = torch.tensor(self._steps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # A plain number beside the weights: a buffer would live on the GPU, where each step would wait for its value.
        if prefix + _STEPS in state_dict:
            self._steps = int(state_dict.pop(prefix + _STEPS))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _mean(loss_B: Tensor, labels_B: Tensor) -> Tensor:
    weights_B = (labels_B >= 0).float()
    return (loss_B * weights_B).sum() / weights_B.sum().clamp_min(1.0)
