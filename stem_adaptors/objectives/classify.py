"""The objective of a classifier: augmentation, model and loss of a batch.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from tokenshards.stem_adaptors.augment import Augmentation, SampleKeys, soft_targets
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.classifier import TokenClassifier
from tokenshards.stem_adaptors.models.drop_path import draw_paths, drop_paths_of

__all__ = ["ClassifyObjective", "sample_weights"]


class ClassifyObjective(nn.Module):
    """Augmentation, classifier and loss as one module, so that DistributedDataParallel sees one forward pass."""

    def __init__(self, model: TokenClassifier, augmentation: Augmentation, classes: int, smoothing: float, draws: int) -> None:
        super().__init__()
        self.model = model
        self.augmentation = augmentation
        self.classes, self.smoothing = classes, smoothing
        self._drop_paths = drop_paths_of(model) if draws > 1 else []

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample and its logits."""
        keys = SampleKeys.from_batch(batch)
        ids_BLQ = self.augmentation.ids(batch.ids_BLQ, keys)
        targets_BC = soft_targets(batch.labels_B, self.classes, self.smoothing)
        if self._drop_paths:
            draw_paths(self._drop_paths, keys.uniform("drop path", len(self._drop_paths)))
        mask = self.model.embedding.site_mask(batch.mask_BL, batch.shapes_BD)
        x, targets_BC = self.augmentation.embeddings(self.model.embed(ids_BLQ, shapes_BD=batch.shapes_BD), keys, targets_BC, mask)
        logits_BC = self.model.classify(x, mask)
        loss_B = -(targets_BC * logits_BC.float().log_softmax(dim=1)).sum(dim=1)
        return loss_B, logits_BC


def sample_weights(batch: Batch) -> Tensor:
    """Return the weight of each sample in the loss: 0 for padding and for samples without a label."""
    return batch.weights_B * (batch.labels_B >= 0)
