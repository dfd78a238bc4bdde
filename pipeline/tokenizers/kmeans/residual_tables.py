"""Residual k-means of rows that all weigh the same, such as latents and features.

Shapes: N rows, K codes of a level, D values of a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.tokenizers.kmeans.lloyd import kmeans
from tokenshards.pipeline.tokenizers.nearest_code import nearest_rows

__all__ = ["residual_tables"]

Floats = npt.NDArray[np.float32]


def residual_tables(
    rows_ND: Floats, codes: int, levels: int, *, iterations: int, rng: np.random.Generator
) -> tuple[list[Floats], list[npt.NDArray[np.intp]], Floats]:
    """Return the table of each level, the id of each row in it, and what all levels left of the rows."""
    rest_ND, tables, used = rows_ND.copy(), list[Floats](), list[npt.NDArray[np.intp]]()
    for _ in range(levels):
        nothing = np.zeros((1 if tables else 0, rest_ND.shape[1]), np.float32)  # rows without an error must keep none
        tables.append(_ordered(kmeans(rest_ND, np.ones(len(rest_ND)), codes, pinned_PD=nothing, iterations=iterations, rng=rng)))
        used.append(nearest_rows(rest_ND, tables[-1]))
        rest_ND -= tables[-1][used[-1]]
    return tables, used, rest_ND


def _ordered(table_KD: Floats) -> Floats:
    """Sort codes along the first principal component, so that neighbouring ids look alike and compress better."""
    centred_KD = table_KD - table_KD.mean(axis=0)
    direction_D = np.linalg.svd(centred_KD, full_matrices=False)[2][0]
    sign = np.sign(direction_D[np.abs(direction_D).argmax()])  # the sign of a direction is arbitrary: fix it
    return table_KD[np.argsort(sign * (centred_KD @ direction_D), kind="stable")]
