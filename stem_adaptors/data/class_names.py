"""Classes of two datasets, matched by name.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.stem_adaptors.data.batch import Batch

__all__ = ["class_map", "own_class_map", "relabelled", "require_names"]


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


def require_names(classes: Any) -> None:
    """Raise ConfigError unless `classes` are numbers or texts in a sequence, each once."""
    names = None if isinstance(classes, str) or not hasattr(classes, "__len__") or hasattr(classes, "spec") else list(classes)
    if names is None or not all(isinstance(name, (int, str)) for name in names) or len({str(name) for name in names}) < len(names):
        raise ConfigError(f"classes is {shorten(classes)}; expected the names of classes, each once, such as run.classes or train.classes")


def own_class_map(classes: Sequence[int | str], wanted: Sequence[int | str], where: str, *, stacklevel: int) -> npt.NDArray[np.int64]:
    """Return what `class_map` returns, as an array. Warns of classes that `wanted` lacks: their samples lose their labels.

    Raises what `require_names` raises, and ConfigError where no class is shared.
    """
    require_names(wanted)
    mapping = class_map(classes, wanted, where, missing_is_error=False).numpy()
    if lacking := [name for name, place in zip(classes, mapping, strict=False) if place < 0]:
        warnings.warn(
            f"{where}: the classes {shorten(lacking)} are not among the {len(wanted)} classes given; images of them have no label (-1)",
            stacklevel=stacklevel + 1,
        )
    return np.asarray(mapping, np.int64)


def relabelled(mapping: Tensor, batch: Batch) -> Batch:
    """Return the batch with labels mapped by the result of `class_map`."""
    return replace(batch, labels_B=mapping[batch.labels_B])
