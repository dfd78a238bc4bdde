from __future__ import annotations

import math

import numpy as np
import pytest

from tokenshards.pipeline.tokenizers.code_usage import code_usage, order0_entropy_bits


def test_code_usage() -> None:
    level_0, level_1 = code_usage(np.array([5, 5, 0, 0])), code_usage(np.array([3, 1]))
    assert level_0 == {"codes": 4, "used_codes": 2, "dead_codes": 2, "usage_share": 0.5, "perplexity": 2.0, "entropy_bits": 1.0}
    assert level_1["entropy_bits"] == pytest.approx(0.811278, abs=1e-6)
    assert level_1["perplexity"] == pytest.approx(2**0.811278, abs=1e-5)


def test_entropy_at_the_edges() -> None:
    assert order0_entropy_bits(np.full(256, 9)) == pytest.approx(8)
    assert order0_entropy_bits(np.array([7])) == 0
    assert order0_entropy_bits(np.zeros(4, int)) == 0
    assert math.copysign(1, order0_entropy_bits(np.array([7]))) == 1, "never -0.0"
