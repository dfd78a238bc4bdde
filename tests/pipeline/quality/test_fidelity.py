from __future__ import annotations

import math

import numpy as np
import pytest

from tokenshards.pipeline.quality.fidelity import Fidelity, code_usage, psnr
from tokenshards.pipeline.tokenizers.code_usage import order0_entropy_bits


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


def test_code_usage() -> None:
    level_0, level_1 = code_usage([np.array([5, 5, 0, 0]), np.array([3, 1])])
    assert level_0 == {"codes": 4, "used": 2, "dead": 2, "perplexity": 2.0, "entropy_bits": 1.0}
    assert level_1["entropy_bits"] == pytest.approx(0.811278, abs=1e-6)
    assert level_1["perplexity"] == pytest.approx(2**0.811278, abs=1e-5)


def test_entropy_at_the_edges() -> None:
    assert order0_entropy_bits(np.full(256, 9)) == pytest.approx(8)
    assert order0_entropy_bits(np.array([7])) == 0
    assert order0_entropy_bits(np.zeros(4, int)) == 0
    assert math.copysign(1, order0_entropy_bits(np.array([7]))) == 1, "never -0.0"
