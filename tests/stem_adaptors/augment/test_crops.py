"""Crops of embeddings, each against a loop or torch's own interpolation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.stem_adaptors.augment.layouts import GRIDS, keys_of
from tests.stem_adaptors.augment.test_embed_ops import SHAPES, VIDEO, numbers, values
from tokenshards.stem_adaptors.augment import crops
from tokenshards.stem_adaptors.augment.keys import SampleKeys


def resized_crop(x: Tensor, keys: SampleKeys, size: tuple[int, int], scale_min: float) -> Tensor:
    boxes_B4 = crops.crop_boxes(keys, (x.shape[-2], x.shape[-1]), scale_min=scale_min, ratio_max=4 / 3)
    return crops.resample(x, boxes_B4, size)


def window_crop(x: Tensor, keys: SampleKeys, size: tuple[int, int]) -> Tensor:
    return crops.cut_windows(x, crops.window_boxes(keys, (x.shape[-2], x.shape[-1]), size), size)


def drawn_box(keys: SampleKeys, sample: int, height: int, width: int, scale_min: float, ratio_max: float) -> tuple[int, int, int, int]:
    """The box of one sample, by torchvision's rule, from the sample's own numbers."""
    own = numbers(keys, sample)
    draws = own.uniform("crop.box", 2 * crops.CROP_TRIES)[0].double().tolist()
    for area_draw, ratio_draw in zip(draws[::2], draws[1::2], strict=True):
        area = height * width * (scale_min + (1 - scale_min) * area_draw)
        ratio = math.exp(-math.log(ratio_max) + 2 * math.log(ratio_max) * ratio_draw)
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            top = int(own.integers("crop.y", height - tall + 1))
            left = int(own.integers("crop.x", width - wide + 1))
            return top, left, tall, wide
    if width / height < 1 / ratio_max:
        tall, wide = round(width * ratio_max), width
    elif width / height > ratio_max:
        tall, wide = height, round(height * ratio_max)
    else:
        tall, wide = height, width
    return (height - tall) // 2, (width - wide) // 2, tall, wide


@pytest.mark.parametrize("grid", [*GRIDS, (4, 40), (33, 3)])
@pytest.mark.parametrize(("scale_min", "ratio_max"), [(0.08, 4 / 3), (0.9, 2.0), (1.0, 1.0)])
def test_boxes_are_those_of_the_rule(grid: tuple[int, int], scale_min: float, ratio_max: float) -> None:
    keys = keys_of(60)
    boxes_B4 = crops.crop_boxes(keys, grid, scale_min=scale_min, ratio_max=ratio_max)
    assert boxes_B4.tolist() == [list(drawn_box(keys, sample, *grid, scale_min, ratio_max)) for sample in range(60)]


def test_a_grid_that_no_box_fits_gives_the_central_one() -> None:
    for grid, box in (((4, 40), [0, 17, 4, 5]), ((40, 4), [17, 0, 5, 4])):
        boxes_B4 = crops.crop_boxes(keys_of(20), grid, scale_min=0.9, ratio_max=4 / 3)
        assert boxes_B4.tolist() == [box] * 20


def test_boxes_spread_over_scales_ratios_and_places() -> None:
    side, count = 32, 8000
    top_B, left_B, tall_B, wide_B = crops.crop_boxes(keys_of(count), (side, side), scale_min=0.25, ratio_max=4 / 3).double().unbind(1)
    area_B = tall_B * wide_B / side**2
    assert area_B.min() > 0.22 and area_B.max() <= 1
    # Half a site of rounding on sides of at least 14 is 1.5 / 14 of the ratio.
    ratio_B = wide_B / tall_B
    assert 3 / 4 * 0.88 < ratio_B.min() < 0.78 and 1.28 < ratio_B.max() < 4 / 3 * 1.12
    assert ratio_B.log().mean().abs() < 0.01, "as many wide as tall boxes"
    # Boxes up to 9/16 of the area fit whatever their ratio: there, the area is uniform.
    free_B = area_B[area_B < 0.55]
    thirds = torch.histc(free_B, bins=3, min=0.25, max=0.55)
    assert (thirds / thirds.sum() - 1 / 3).abs().max() < 0.03
    assert (top_B + tall_B).max() == side and (left_B + wide_B).max() == side and top_B.min() == left_B.min() == 0
    room_B = side - tall_B
    place_B = (top_B / room_B)[room_B >= 8]
    assert place_B.mean().item() == pytest.approx(0.5, abs=0.02), "uniform over the room there is"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [(4, 4), (7, 7), (5, 9), (14, 11)])
def test_resized_crop_equals_crop_and_interpolate(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    keys = keys_of(shape[0])
    x_BDHW = values(*shape)
    result = resized_crop(x_BDHW, keys, size, scale_min=0.08)
    for sample in range(shape[0]):
        top, left, tall, wide = drawn_box(keys, sample, *shape[2:], 0.08, 4 / 3)
        cut = x_BDHW[sample : sample + 1, :, top : top + tall, left : left + wide]
        expected = F.interpolate(cut, size, mode="bicubic", align_corners=False)
        torch.testing.assert_close(result[sample : sample + 1], expected, rtol=0, atol=1e-5)


def test_resampling_of_every_small_box() -> None:
    x_BDHW = values(1, 2, 5, 4)
    for top, left in itertools.product(range(5), range(4)):
        for tall, wide in itertools.product(range(1, 6 - top), range(1, 5 - left)):
            result = crops.resample(x_BDHW, torch.tensor([[top, left, tall, wide]]), (6, 3))
            cut = x_BDHW[:, :, top : top + tall, left : left + wide]
            torch.testing.assert_close(result, F.interpolate(cut, (6, 3), mode="bicubic", align_corners=False), rtol=0, atol=1e-5)


def test_a_whole_box_of_the_same_size_changes_nothing() -> None:
    x_BDHW = values(2, 3, 6, 10)
    boxes_B4 = torch.tensor([[0, 0, 6, 10]] * 2)
    torch.testing.assert_close(crops.resample(x_BDHW, boxes_B4, (6, 10)), x_BDHW, rtol=0, atol=1e-6)


def test_frames_of_a_video_are_cropped_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x, keys = values(*VIDEO), keys_of(VIDEO[0])
    resized = resized_crop(x, keys, (4, 4), scale_min=0.2)
    windows = window_crop(x, keys, (4, 3))
    for frame in range(VIDEO[2]):
        alone = resized_crop(x[:, :, frame], keys, (4, 4), scale_min=0.2)
        assert torch.equal(resized[:, :, frame], alone)
        assert torch.equal(windows[:, :, frame], window_crop(x[:, :, frame], keys, (4, 3)))
    monkeypatch.setattr(crops, "PIECE_BYTES", 1)
    assert torch.equal(resized_crop(x, keys, (4, 4), scale_min=0.2), resized), "one sample at a time"


def test_half_precision_is_resampled_in_float32() -> None:
    x_BDHW, keys = values(4, 3, 8, 8).bfloat16(), keys_of(4)
    result = resized_crop(x_BDHW, keys, (7, 7), scale_min=0.08)
    expected = resized_crop(x_BDHW.float(), keys, (7, 7), scale_min=0.08)
    assert torch.equal(result, expected.bfloat16())


# Plain crops


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_and_centre_crop(shape: tuple[int, ...]) -> None:
    keys, x_BDHW = keys_of(shape[0]), values(*shape)
    height, width = shape[2:]
    size = (height - 2, width - 3)
    result = window_crop(x_BDHW, keys, size)
    for sample in range(shape[0]):
        top, left = int(numbers(keys, sample).integers("crop.y", 3)), int(numbers(keys, sample).integers("crop.x", 4))
        assert torch.equal(result[sample], x_BDHW[sample, :, top : top + size[0], left : left + size[1]])
    assert torch.equal(crops.centre_crop(x_BDHW, size), x_BDHW[:, :, 1 : 1 + size[0], 1 : 1 + size[1]])


def test_seits_centre_crop_takes_rows_2_to_29() -> None:
    x_BDHW = torch.arange(32.0).view(1, 1, 32, 1).expand(1, 1, 32, 32)
    assert crops.centre_crop(x_BDHW, (28, 28))[0, 0, :, 0].tolist() == list(range(2, 30))


def test_places_of_random_crops_are_even() -> None:
    x_BDHW = torch.arange(12.0).view(1, 1, 3, 4).expand(6000, 1, 3, 4)
    corners = window_crop(x_BDHW, keys_of(6000), (2, 2))[:, 0, 0, 0]
    counts = np.bincount(corners.long().numpy(), minlength=12).reshape(3, 4)[:2, :3]
    assert counts.sum() == 6000 and abs(counts - 1000).max() < 5 * (6000 * 1 / 6 * 5 / 6) ** 0.5
