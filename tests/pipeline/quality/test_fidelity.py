from __future__ import annotations

import math

import numpy as np
import pytest

from tokenshards.pipeline.quality.fidelity import Fidelity, psnr, usage_rows
from tokenshards.pipeline.tokenizers.code_usage import code_usage


def grey(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


def test_psnr_of_known_errors() -> None:
    assert psnr(grey(100), grey(110)) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(grey(0), grey(255)) == pytest.approx(0)
    assert psnr(grey(110), grey(100)) == psnr(grey(100), grey(110)), "uint8 must not wrap around"
    assert psnr(grey(7), grey(7)) == 100.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 3\).*\(1, 1, 4, 3\)"):
        psnr(grey(1), grey(1)[:1])


def test_fidelity_over_batches() -> None:
    fidelity = Fidelity()
    assert math.isnan(fidelity.mean_psnr_db) and math.isnan(fidelity.pixel_psnr_db)
    fidelity.add(np.stack([grey(0), grey(0)]), np.stack([grey(1), grey(100)]))
    fidelity.add(grey(0)[None], grey(10)[None])
    each = [20 * math.log10(255 / error) for error in (1, 100, 10)]
    assert fidelity.images == 3
    assert fidelity.mean_psnr_db == pytest.approx(sum(each) / 3)
    assert fidelity.worst_psnr_db == pytest.approx(each[1])
    assert fidelity.pixel_psnr_db == pytest.approx(10 * math.log10(255**2 / ((1 + 10000 + 100) / 3)))


def test_usage_is_a_row_a_level() -> None:
    usage = [code_usage(np.array([5, 5, 0, 0])), code_usage(np.array([3, 1]))]
    assert usage_rows(usage) == [
        ("level 0", "2 of 4 used, 2 dead, perplexity 2, 1.00 bits"),
        ("level 1", "2 of 2 used, 0 dead, perplexity 2, 0.81 bits"),
    ]
