"""Classes of two datasets, matched by name.

Shapes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.stem_adaptors.data.batch import Batch

__all__ = ["class_map", "relabelled"]


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


def relabelled(mapping: Tensor, batch: Batch) -> Batch:
    """Return the batch with labels mapped by the result of `class_map`."""
    return replace(batch, labels_B=mapping[batch.labels_B])
