"""Maps of TokenAdapt: one matrix is the same map on pixels, on cells and on sites."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.stem_adaptors.augment.layouts import keys_of
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.augment.adapt_maps import (
    MapRanges,
    affine_maps,
    product,
    random_colours,
    random_maps,
    resampled_pixels,
    sampled,
    window_maps,
)
from tokenshards.stem_adaptors.augment.crops import crop_boxes


def one(
    mirrored: bool = False, degrees: float = 0.0, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> torch.Tensor:
    values = [torch.tensor([value]) for value in (math.radians(degrees), *shear)]
    return affine_maps(torch.tensor([mirrored]), values[0], torch.tensor([shift], dtype=torch.float32), values[1], values[2])


def test_a_mirror_and_whole_shifts_move_sites_as_slices_do() -> None:
    x = torch.arange(2 * 6 * 10.0).view(1, 2, 6, 10)
    torch.testing.assert_close(sampled(x, one(mirrored=True), (6, 10)), x.flip(-1))
    moved = sampled(x, one(shift=(2 * 3 / 10, 2 * -1 / 6)), (6, 10))
    torch.testing.assert_close(moved[..., 1:, :7], x[..., :-1, 3:])
    assert max(moved[..., :1, :].max(), moved[..., 7:].max()) < 1e-4, "what comes from outside is zero"
    turned = sampled(x[..., :6], one(degrees=90), (6, 6))
    torch.testing.assert_close(turned, x[..., :6].rot90(1, (-2, -1)), atol=1e-4, rtol=0)


def test_a_map_equals_the_slow_product_of_its_parts() -> None:
    """Shears first, then shift, rotation, mirror, each as its 3 x 3 matrix."""
    degrees, shift, shear = 23.0, (0.3, -0.1), (0.2, -0.15)
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    parts = [np.diag([-1, 1, 1]), turn, np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])]
    parts += [np.array([[1, shear[0], 0], [0, 1, 0], [0, 0, 1]]), np.array([[1, 0, 0], [shear[1], 1, 0], [0, 0, 1]])]
    expected = np.linalg.multi_dot(parts)[:2]
    found = one(True, degrees, shift, shear)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    other = one(False, -40, (0.1, 0.2))
    whole = np.concatenate([expected, [[0, 0, 1]]]) @ np.concatenate([other[0].numpy(), [[0, 0, 1]]])
    np.testing.assert_allclose(product(found[None], other)[0].numpy(), whole[:2], atol=1e-6)


@pytest.mark.parametrize("grid", [(8, 8), (6, 10)])
def test_pixels_and_cells_move_alike(grid: tuple[int, int]) -> None:
    """Cells that are means of 4 x 4 pixels: moving the pixels and taking means is moving the cells, as far as a smooth image shows."""
    height, width = 8 * grid[0], 8 * grid[1]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    smooth = torch.stack([x + 0.3 * y, torch.cos(2 * x) * y, x * y])[None]
    maps = product(one(True, 15, (0.1, -0.05), (0.1, 0.05)), window_maps(one(), grid, (grid[0] - 2, grid[1] - 2)))
    moved_pixels = sampled(smooth, maps, (height - 16, width - 16))
    cells = sampled(F.avg_pool2d(smooth, 4), maps, (2 * grid[0] - 4, 2 * grid[1] - 4))
    inside = sampled(torch.ones(1, 1, height, width), maps, cells.shape[-2:])[0, 0] == 1
    assert inside.float().mean() > 0.7
    error = (F.avg_pool2d(moved_pixels, 4) - cells)[0][:, inside].abs().max()
    shifted = (F.avg_pool2d(moved_pixels, 4).roll(1, -1) - cells)[0][:, inside].abs().max()
    assert error < 0.02 < shifted, "a half or whole cell off would show"


def test_the_window_of_the_identity_is_the_centre_of_the_grid() -> None:
    x = torch.arange(9 * 7.0).view(1, 1, 9, 7)
    torch.testing.assert_close(sampled(x, window_maps(one(), (9, 7), (6, 4)), (6, 4)), x[..., 1:7, 1:5])


def test_the_crop_is_that_of_rrc() -> None:
    """A map without mirror and affine part cuts the same box as the crop of embeddings does in cells."""
    keys, ranges = keys_of(5), MapRanges(flip=0, affine=0, scale_min=0.2)
    maps = random_maps(keys, ranges, (6, 10))
    boxes = crop_boxes(keys, (12, 20), scale_min=0.2, ratio_max=4 / 3)
    x = torch.arange(12 * 20.0).view(1, 1, 12, 20).expand(5, -1, -1, -1)
    for sample, (top, left, height, width) in enumerate(boxes.tolist()):
        cut = sampled(x[sample : sample + 1], maps[sample : sample + 1], (height, width))
        torch.testing.assert_close(cut, x[:1, :, top : top + height, left : left + width], atol=1e-2, rtol=0)


def test_maps_belong_to_samples_and_are_symmetric() -> None:
    keys, ranges = keys_of(4000), MapRanges(crop=0)
    maps = random_maps(keys, ranges, (8, 8))
    torch.testing.assert_close(maps[7:9], random_maps(keys_of(2, start=7), ranges, (8, 8)))
    plain = (maps == torch.eye(2, 3)).all(2).all(1) | (maps == torch.tensor([[-1.0, 0, 0], [0, 1, 0]])).all(2).all(1)
    assert plain.float().mean() == pytest.approx(0.5 + 0.5 / 32, abs=0.03), "half are affine, each of five parts in half of them"
    assert (maps[:, 0, 0] < 0).float().mean() == pytest.approx(0.5, abs=0.03)
    upright = maps[maps[:, 0, 0] > 0]
    for row, column in ((0, 1), (1, 0), (0, 2), (1, 2)):
        values = upright[:, row, column]
        right, left = float((values > 1e-6).float().mean()), float((values < -1e-6).float().mean())
        assert right == pytest.approx(left, abs=0.05) and right > 0.1, "neither side is preferred"


def test_pixels_keep_their_size_and_black_fills() -> None:
    images = torch.full((2, 12, 12, 3), 200, dtype=torch.uint8)
    moved = resampled_pixels(images, one(shift=(1, 0)).expand(2, -1, -1))
    assert moved.dtype == torch.uint8 and moved.shape == images.shape
    assert (moved[:, :, :5] == 200).all() and (moved[:, :, 8:] == 0).all()
    torch.testing.assert_close(resampled_pixels(images, one().expand(2, -1, -1)), images)


def test_colours_are_those_of_the_formula() -> None:
    """Brightness, contrast about the mean grey of the image, saturation about the grey of each pixel, clamped after each."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    changes = torch.tensor([[0.3, -0.2, 0.5], [-0.4, 0.3, -1.0], [0, 0, 0]])
    found = resampled_pixels(torch.from_numpy(pixels), one().expand(3, -1, -1), changes).numpy()
    weights = np.array([0.299, 0.587, 0.114])
    for image, (brightness, contrast, saturation), own in zip(pixels, 1 + changes.numpy(), found, strict=True):
        x = np.clip(image * brightness, 0, 255)
        mean = (x @ weights).mean()
        x = np.clip(mean + (x - mean) * contrast, 0, 255)
        grey = (x @ weights)[..., None]
        assert np.abs(np.clip(grey + (x - grey) * saturation, 0, 255) - own).max() <= 1
    assert (found[2] == pixels[2]).all()
    drawn = random_colours(keys_of(500), MapRanges(colour=0.3))
    assert drawn is not None and drawn.shape == (500, 3) and 0.28 < drawn.abs().max() <= 0.3 and abs(drawn.mean()) < 0.02
    assert random_colours(keys_of(5), MapRanges()) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [({"flip": 2.0}, "flip is 2.0"), ({"shear": 90.0}, "shear is 90"), ({"scale_min": 0.0}, "scale_min"), ({"colour": 1.0}, "colour is 1")],
)
def test_ranges_are_checked(options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MapRanges(**options)
