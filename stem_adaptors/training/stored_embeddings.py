"""Which embeddings weights learned from: the code vectors in their file are those of the codebook, raw or standardised, or others.

Shapes: K codes of a level, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.models.embedding import Statistics, TokenEmbedding

__all__ = ["Standardising", "same_tables", "standardising_of"]


class Standardising(NamedTuple):
    """How code vectors in a file follow from the codebook."""

    raw: bool
    """The code vectors are those of the codebook."""
    statistics: Statistics | None
    """Mean and standard deviation that standardise the codebook to them; None where they are raw."""


def standardising_of(
    stored: Sequence[Tensor],
    spec: TokenizerSpec,
    tables: Mapping[str, npt.NDArray[Any]],
    usual: Statistics | None,
    *,
    levels: str = "auto",
) -> Standardising | None:
    """Return how the tables of a file follow from a codebook: raw, by the `usual` statistics, or by others; None where they do not.

    Statistics that were measured on another dataset of the same tokenizer are found by least squares, channel by channel.
    """
    raw = TokenEmbedding(spec, tables, levels=levels)
    if same_tables(stored, raw):
        return Standardising(True, None)
    sizes = [tuple(table.shape) for table in _level_tables(raw)]
    cut = [table[: size[0]] for table, size in zip(stored, sizes, strict=True)]
    if [tuple(table.shape) for table in cut] != sizes:
        return None
    for statistics in (usual, _fitted(cut, raw)):
        if statistics is not None and same_tables(stored, TokenEmbedding(spec, tables, levels=levels, standardise=statistics)):
            return Standardising(False, statistics)
    return None


def same_tables(stored: Sequence[Tensor], embedding: TokenEmbedding) -> bool:
    """Whether tables of a file are those of an embedding, up to the rounding of their format. Rows of padding do not count."""
    for found, wanted_KD in zip(stored, _level_tables(embedding), strict=True):
        found_KD = found[: len(wanted_KD)].float()
        if found_KD.shape != wanted_KD.shape:
            return False
        share = 1e-4 if found.dtype in (torch.float32, torch.float64) else 1e-2
        if not torch.allclose(found_KD, wanted_KD, rtol=share, atol=share * float(wanted_KD.std())):
            return False
    return True


def _level_tables(embedding: TokenEmbedding) -> list[Tensor]:
    """Return the tables [K, D] of an embedding without rows of padding."""
    return [getattr(embedding, f"level_{level}").detach().cpu()[:size] for level, size in enumerate(embedding.vocabulary)]


def _fitted(stored: Sequence[Tensor], raw: TokenEmbedding) -> Statistics | None:
    """Return mean and deviation that lead from the raw tables to the stored ones, as far as there are any.

    Of summed levels all are divided by one deviation, and the first alone loses the mean.
    """
    pairs = [(before.double().numpy(), after.double().numpy()) for before, after in zip(_level_tables(raw), stored, strict=True)]
    if raw.concat:
        parts = [_line([pair]) for pair in pairs]
        mean_D, std_D = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    else:
        mean_D, std_D = _line(pairs)
    if not (np.isfinite(mean_D).all() and np.isfinite(std_D).all() and (std_D > 0).all()):
        return None
    return mean_D.astype(np.float32), std_D.astype(np.float32)


def _line(pairs: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]) -> tuple[Any, Any]:
    """Return (mean_D, std_D) with after = (before - mean) / std in the first pair, after = before / std in the others, by least squares."""
    centred = [(before - before.mean(0), after - after.mean(0)) for before, after in pairs]
    squares_D = np.sum([(before**2).sum(0) for before, _ in centred], axis=0)
    products_D = np.sum([(before * after).sum(0) for before, after in centred], axis=0)
    still_D = squares_D <= 1e-12 * squares_D.max(initial=0.0)  # a channel without variance is not divided
    with np.errstate(divide="ignore", invalid="ignore"):
        std_D = np.where(still_D, 1.0, squares_D / products_D)
    before, after = pairs[0]
    return before.mean(0) - std_D * after.mean(0), std_D
