"""Classes of two datasets, matched by name.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.stem_adaptors.data.batch import Batch

__all__ = ["class_map", "own_class_map", "relabelled"]


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


def own_class_map(classes: Sequence[int | str], wanted: Sequence[int | str], where: str, *, stacklevel: int) -> npt.NDArray[np.int64]:
    """Return what `class_map` returns, as an array. Warns of classes that `wanted` lacks: their samples lose their labels.

    Raises ConfigError for a text in the place of names, for a name that comes twice, and where no class is shared.
    """
    names = [str(name) for name in wanted]
    if isinstance(wanted, str) or len(set(names)) < len(names):
        raise ConfigError(f"classes is {shorten(wanted)}; expected the names of classes, each once, such as run.classes or train.classes")
    mapping = class_map(classes, wanted, where, missing_is_error=False).numpy()
    if lacking := [name for name, place in zip(classes, mapping, strict=False) if place < 0]:
        warnings.warn(
            f"{where}: the classes {shorten(lacking)} are not among the {len(names)} classes given; images of them have no label (-1)",
            stacklevel=stacklevel + 1,
        )
    return np.asarray(mapping, np.int64)


def relabelled(mapping: Tensor, batch: Batch) -> Batch:
    """Return the batch with labels mapped by the result of `class_map`."""
    return replace(batch, labels_B=mapping[batch.labels_B])
