from __future__ import annotations

import numpy as np
import pytest

from tokenshards.pipeline.tokenizers.psnr import MAX_PSNR_DB, image_psnr_db, psnr_db


def test_decibels_of_known_errors_and_their_limits() -> None:
    assert psnr_db(255.0**2) == 0 and psnr_db(65.025) == pytest.approx(30)
    assert psnr_db(0) == psnr_db(1e-12) == MAX_PSNR_DB == 100


def test_each_image_has_its_own_and_equal_ones_98() -> None:
    originals = np.full((3, 4, 4, 3), 100, np.uint8)
    drawn = originals.copy()
    drawn[1] += 8
    drawn[2, :2] += 8
    expected = [10 * np.log10(255**2 / error) for error in (1e-5, 64, 32)]
    assert image_psnr_db(originals, drawn) == pytest.approx(expected, abs=1e-3)
