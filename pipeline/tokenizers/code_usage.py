"""How much of a codebook is used, in plain JSON types.

Shapes: K codes of a level, D values of a code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["code_moments", "code_usage", "entropy_per_id", "order0_entropy_bits", "rounded"]


def code_usage(counts_K: npt.NDArray[Any]) -> dict[str, Any]:
    """Return a summary of counted, or weighted, ids: codes, used and unused codes, share in use, entropy in bits per id, and perplexity
    (2 to the entropy).
    """
    codes, used, bits = len(counts_K), int(np.count_nonzero(counts_K)), order0_entropy_bits(counts_K)
    return {
        "codes": codes,
        "used_codes": used,
        "dead_codes": codes - used,
        "usage_share": rounded([used / codes])[0],
        "perplexity": rounded([2.0**bits])[0],
        "entropy_bits": rounded([bits])[0],
    }


def order0_entropy_bits(counts_K: npt.NDArray[Any]) -> float:
    """Return the entropy in bits per id of independent ids with these counts or weights; 0 without any."""
    present = counts_K[counts_K > 0].astype(np.float64)
    share = present / present.sum()
    return abs(float(-(share * np.log2(share)).sum()))


def code_moments(table_KD: npt.NDArray[np.float32], counts_K: npt.NDArray[Any]) -> dict[str, list[float]]:
    """Return mean and standard deviation of each channel over the rows of the counted ids. Training reads them as `embedding`."""
    rows_KD = table_KD.astype(np.float64)
    mean_D = np.average(rows_KD, axis=0, weights=counts_K)
    std_D = np.sqrt(np.average(np.square(rows_KD - mean_D), axis=0, weights=counts_K))
    return {"mean": rounded(mean_D), "std": rounded(std_D)}


def rounded(values: Iterable[float]) -> list[float]:
    """Round to six significant digits: further digits differ between machines and carry no information."""
    return [float(f"{value:.6g}") for value in values]


def entropy_per_id(histograms: Sequence[npt.NDArray[np.int64]] | None) -> float | None:
    """Return the order-0 entropy in bits per id, levels weighted by their ids; None where nothing was counted."""
    total = sum(int(counts.sum()) for counts in histograms or ())
    bits = sum(order0_entropy_bits(counts) * int(counts.sum()) for counts in histograms or ())
    return round(bits / total, 4) if total else None
