"""SSIM against its published formula, window by window in plain loops, and what is known of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tokenshards.pipeline.quality.ssim import ssim


def images(count: int, height: int = 15, width: int = 19, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def smooth(count: int = 3, side: int = 32) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    waves = [127 + 100 * np.sin(x / (4 + one)) * np.cos(y / (5 + one)) for one in range(count)]
    return np.repeat(np.stack(waves)[..., None], 3, axis=-1).round().astype(np.uint8)


def published(left: np.ndarray, right: np.ndarray) -> float:
    """Equations 13 to 17 of the paper, on luma, for every 11 x 11 window inside the image."""
    window = np.array([[math.exp(-((y - 5) ** 2 + (x - 5) ** 2) / (2 * 1.5**2)) for x in range(11)] for y in range(11)])
    window /= window.sum()
    x, y = ((0.299 * p[..., 0] + 0.587 * p[..., 1] + 0.114 * p[..., 2]) for p in (left.astype(float), right.astype(float)))
    values = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = (p[row : row + 11, column : column + 11] for p in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            variance_a, variance_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append(
                (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
            )
    return sum(values) / len(values)


def test_it_is_the_published_formula() -> None:
    left, noise = images(3), images(3, seed=1)
    near = np.clip(left.astype(int) + (noise.astype(int) - 128) // 8, 0, 255).astype(np.uint8)
    for other in (noise, near):
        assert ssim(left, other) == pytest.approx([published(a, b) for a, b in zip(left, other, strict=True)], abs=1e-9)


def test_equal_images_give_one_and_the_order_does_not_matter() -> None:
    left, right = images(4), images(4, seed=1)
    assert ssim(left, left) == pytest.approx(np.ones(4), abs=1e-12)
    assert ssim(left, right) == pytest.approx(ssim(right, left), abs=1e-12)
    assert (ssim(left, right) < 0.2).all()


def test_more_noise_gives_less_and_an_inverted_image_less_than_zero() -> None:
    clean, rng = smooth(), np.random.default_rng(0)
    last = np.ones(3)
    for strength in (4, 16, 64):
        noisy = np.clip(clean + rng.normal(0, strength, clean.shape), 0, 255).astype(np.uint8)
        assert (ssim(clean, noisy) < last).all()
        last = ssim(clean, noisy)
    assert (ssim(clean, 255 - clean) < 0).all()


def test_two_flat_images_differ_by_their_luminance_alone() -> None:
    flat = np.full((1, 11, 11, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(flat, flat + 50)[0] == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


def test_what_has_no_window_is_refused() -> None:
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(images(1, 10, 20), images(1, 10, 20))
    with pytest.raises(ValueError, match="equal shapes"):
        ssim(images(2), images(1))
