"""Operations on embeddings, each against a loop over samples, channels and sites written from its definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.stem_adaptors.augment.layouts import GRIDS, keys_of
from tokenshards.stem_adaptors.augment import embed_ops
from tokenshards.stem_adaptors.augment.keys import SampleKeys
from tokenshards.stem_adaptors.objectives.accuracy import Counts

SHAPES = [(5, 3, *GRIDS[0]), (4, 2, *GRIDS[1]), (3, 5, *GRIDS[2]), (4, 1, *GRIDS[3])]
VIDEO = (3, 2, 3, 6, 5)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    """Embeddings as TokenEmbedding gives them: [B, D, sites] with channel-last memory."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((shape[0], *shape[2:], shape[1])).astype(np.float32))
    return x.movedim(-1, 1)


def numbers(keys: SampleKeys, sample: int) -> SampleKeys:
    return keys[sample : sample + 1]


# Random-resized crop


def drawn_box(keys: SampleKeys, sample: int, height: int, width: int, scale_min: float, ratio_max: float) -> tuple[int, int, int, int]:
    """The box of one sample, by torchvision's rule, from the sample's own numbers."""
    own = numbers(keys, sample)
    draws = own.uniform("crop.box", 2 * embed_ops.CROP_TRIES)[0].double().tolist()
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
    boxes_B4 = embed_ops.crop_boxes(keys, grid, scale_min=scale_min, ratio_max=ratio_max)
    assert boxes_B4.tolist() == [list(drawn_box(keys, sample, *grid, scale_min, ratio_max)) for sample in range(60)]


def test_a_grid_that_no_box_fits_gives_the_central_one() -> None:
    for grid, box in (((4, 40), [0, 17, 4, 5]), ((40, 4), [17, 0, 5, 4])):
        boxes_B4 = embed_ops.crop_boxes(keys_of(20), grid, scale_min=0.9, ratio_max=4 / 3)
        assert boxes_B4.tolist() == [box] * 20


def test_boxes_spread_over_scales_ratios_and_places() -> None:
    side, count = 32, 8000
    top_B, left_B, tall_B, wide_B = embed_ops.crop_boxes(keys_of(count), (side, side), scale_min=0.25, ratio_max=4 / 3).double().unbind(1)
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
    result = embed_ops.random_resized_crop(x_BDHW, keys, size, scale_min=0.08, ratio_max=4 / 3)
    for sample in range(shape[0]):
        top, left, tall, wide = drawn_box(keys, sample, *shape[2:], 0.08, 4 / 3)
        cut = x_BDHW[sample : sample + 1, :, top : top + tall, left : left + wide]
        expected = F.interpolate(cut, size, mode="bicubic", align_corners=False)
        torch.testing.assert_close(result[sample : sample + 1], expected, rtol=0, atol=1e-5)


def test_resampling_of_every_small_box() -> None:
    x_BDHW = values(1, 2, 5, 4)
    for top, left in itertools.product(range(5), range(4)):
        for tall, wide in itertools.product(range(1, 6 - top), range(1, 5 - left)):
            result = embed_ops.resample(x_BDHW, torch.tensor([[top, left, tall, wide]]), (6, 3))
            cut = x_BDHW[:, :, top : top + tall, left : left + wide]
            torch.testing.assert_close(result, F.interpolate(cut, (6, 3), mode="bicubic", align_corners=False), rtol=0, atol=1e-5)


def test_a_whole_box_of_the_same_size_changes_nothing() -> None:
    x_BDHW = values(2, 3, 6, 10)
    boxes_B4 = torch.tensor([[0, 0, 6, 10]] * 2)
    torch.testing.assert_close(embed_ops.resample(x_BDHW, boxes_B4, (6, 10)), x_BDHW, rtol=0, atol=1e-6)


def test_frames_of_a_video_are_cropped_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x, keys = values(*VIDEO), keys_of(VIDEO[0])
    resized = embed_ops.random_resized_crop(x, keys, (4, 4), scale_min=0.2, ratio_max=4 / 3)
    windows = embed_ops.random_crop(x, keys, (4, 3))
    for frame in range(VIDEO[2]):
        alone = embed_ops.random_resized_crop(x[:, :, frame], keys, (4, 4), scale_min=0.2, ratio_max=4 / 3)
        assert torch.equal(resized[:, :, frame], alone)
        assert torch.equal(windows[:, :, frame], embed_ops.random_crop(x[:, :, frame], keys, (4, 3)))
    monkeypatch.setattr(embed_ops, "PIECE_BYTES", 1)
    assert torch.equal(embed_ops.random_resized_crop(x, keys, (4, 4), scale_min=0.2, ratio_max=4 / 3), resized), "one sample at a time"


def test_half_precision_is_resampled_in_float32() -> None:
    x_BDHW, keys = values(4, 3, 8, 8).bfloat16(), keys_of(4)
    result = embed_ops.random_resized_crop(x_BDHW, keys, (7, 7), scale_min=0.08, ratio_max=4 / 3)
    expected = embed_ops.random_resized_crop(x_BDHW.float(), keys, (7, 7), scale_min=0.08, ratio_max=4 / 3)
    assert torch.equal(result, expected.bfloat16())


# Plain crops


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_and_centre_crop(shape: tuple[int, ...]) -> None:
    keys, x_BDHW = keys_of(shape[0]), values(*shape)
    height, width = shape[2:]
    size = (height - 2, width - 3)
    result = embed_ops.random_crop(x_BDHW, keys, size)
    for sample in range(shape[0]):
        top, left = int(numbers(keys, sample).integers("crop.y", 3)), int(numbers(keys, sample).integers("crop.x", 4))
        assert torch.equal(result[sample], x_BDHW[sample, :, top : top + size[0], left : left + size[1]])
    assert torch.equal(embed_ops.centre_crop(x_BDHW, size), x_BDHW[:, :, 1 : 1 + size[0], 1 : 1 + size[1]])


def test_seits_centre_crop_takes_rows_2_to_29() -> None:
    x_BDHW = torch.arange(32.0).view(1, 1, 32, 1).expand(1, 1, 32, 32)
    assert embed_ops.centre_crop(x_BDHW, (28, 28))[0, 0, :, 0].tolist() == list(range(2, 30))


def test_places_of_random_crops_are_even() -> None:
    x_BDHW = torch.arange(12.0).view(1, 1, 3, 4).expand(6000, 1, 3, 4)
    corners = embed_ops.random_crop(x_BDHW, keys_of(6000), (2, 2))[:, 0, 0, 0]
    counts = np.bincount(corners.long().numpy(), minlength=12).reshape(3, 4)[:2, :3]
    assert counts.sum() == 6000 and abs(counts - 1000).max() < 5 * (6000 * 1 / 6 * 5 / 6) ** 0.5


# Noise


def noisy_by_loop(x: torch.Tensor, keys: SampleKeys, share: float, channel_std: float, std: float, mask: torch.Tensor | None) -> np.ndarray:
    """x [B, D, sites] as [B, sites, D]: value i of a sample's numbers belongs to site i // D and channel i % D."""
    rows = x.movedim(1, -1).flatten(1, -2).double().numpy().copy()
    samples, sites, channels = rows.shape
    for sample in range(samples):
        own = numbers(keys, sample)
        if float(own.uniform("noise")) >= share:
            continue
        levels = own.normal("noise.channel", channels)[0].tolist()
        each = own.normal("noise.value", sites * channels)[0].tolist()
        for site in range(sites):
            if mask is None or mask[sample].flatten()[site]:
                for channel in range(channels):
                    rows[sample, site, channel] += channel_std * levels[channel] + std * each[site * channels + channel]
    return rows


@pytest.mark.parametrize("shape", [*SHAPES, VIDEO, (6, 3, 7), (1, 3, 5)], ids=str)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_noise(shape: tuple[int, ...], share: float) -> None:
    x, keys = values(*shape), keys_of(shape[0])
    expected = noisy_by_loop(x, keys, share, 1.5, 0.5, None)
    result = embed_ops.add_noise_(x, keys, share=share, channel_std=1.5, std=0.5)
    np.testing.assert_allclose(result.movedim(1, -1).flatten(1, -2).numpy(), expected, atol=1e-5)


def test_noise_leaves_sites_that_do_not_exist() -> None:
    x, keys = values(4, 3, 7), keys_of(4)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5])[:, None]
    expected = noisy_by_loop(x, keys, 1.0, 1.0, 1.0, mask)
    result = embed_ops.add_noise_(x.clone(), keys, share=1.0, channel_std=1.0, std=1.0, mask=mask)
    np.testing.assert_allclose(result.movedim(1, -1).numpy(), expected, atol=1e-5)
    assert torch.equal(result.movedim(1, -1)[~mask], x.movedim(1, -1)[~mask])
    short = embed_ops.add_noise_(x[:, :, :5].clone(), keys, share=1.0, channel_std=1.0, std=1.0, mask=mask[:, :5])
    assert torch.equal(short[1], result[1, :, :5]), "the width of the batch does not matter"


def test_statistics_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, keys = 400, keys_of(400)
    zeros = torch.zeros(samples, 8, 8, 4).movedim(-1, 1)
    level = embed_ops.add_noise_(zeros.clone(), keys, share=0.5, channel_std=2.0, std=0.0)
    assert torch.equal(level, level[:, :, :1, :1].expand_as(level)), "one number per sample and channel"
    hit_B = (level != 0).flatten(1).any(1)
    assert torch.equal(hit_B, keys.chosen("noise", 0.5)) and 150 < hit_B.sum() < 250
    assert level[hit_B][..., 0, 0].std().item() == pytest.approx(2.0, abs=0.25)
    each = embed_ops.add_noise_(zeros.clone(), keys, share=0.5, channel_std=0.0, std=1.5)
    assert not each[~hit_B].any()
    assert each[hit_B].mean().item() == pytest.approx(0, abs=0.03) and each[hit_B].std().item() == pytest.approx(1.5, abs=0.03)
    together = embed_ops.add_noise_(zeros.clone(), keys, share=0.5, channel_std=2.0, std=1.5)
    torch.testing.assert_close(together, level + each)
    monkeypatch.setattr(embed_ops, "PIECE_BYTES", 5000)
    assert torch.equal(embed_ops.add_noise_(zeros.clone(), keys, share=0.5, channel_std=2.0, std=1.5), together)


# Dropped sites


@pytest.mark.parametrize("shape", [SHAPES[1], VIDEO, (6, 3, 7)], ids=str)
def test_dropped_sites_are_zero_in_all_channels(shape: tuple[int, ...]) -> None:
    x, keys = values(*shape), keys_of(shape[0])
    result = embed_ops.drop_sites_(x.clone(), keys, 0.3).movedim(1, -1).flatten(1, -2)
    rows = x.movedim(1, -1).flatten(1, -2)
    for sample in range(shape[0]):
        for site, draw in enumerate(numbers(keys, sample).uniform("dropout", rows.shape[1])[0].tolist()):
            assert torch.equal(result[sample, site], rows[sample, site] * (draw >= 0.3))


def test_share_of_dropped_sites() -> None:
    kept = embed_ops.drop_sites_(torch.ones(200, 1, 10, 10), keys_of(200), 0.3)
    assert kept.mean().item() == pytest.approx(0.7, abs=5 * (0.21 / 20_000) ** 0.5)
    assert 0.02 < kept.mean((1, 2, 3)).std() < 0.08, "every site on its own"


# ColorAdapt


def adapted_by_loop(x: torch.Tensor, keys: SampleKeys, share: float) -> np.ndarray:
    rows = x.flatten(2).double().numpy()
    result = rows.copy()
    for sample in range(len(rows)):
        if float(numbers(keys, sample).uniform("coloradapt")) >= share:
            continue
        for channel in range(rows.shape[1]):
            own, other = rows[sample, channel], rows[len(rows) - 1 - sample, channel]
            mean, mean_2 = own.mean(), other.mean()
            sd = math.sqrt(sum((value - mean) ** 2 for value in own) / (len(own) - 1))
            sd_2 = math.sqrt(sum((value - mean_2) ** 2 for value in other) / (len(own) - 1))
            result[sample, channel] = sd_2 * (own - mean) / (sd + embed_ops.COLOUR_EPSILON) + mean_2
    return result


@pytest.mark.parametrize("shape", [*SHAPES, VIDEO, (6, 3, 7), (1, 2, 4, 4)], ids=str)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_colour_adaptation(shape: tuple[int, ...], share: float) -> None:
    x, keys = values(*shape) * 3 + 1, keys_of(shape[0])
    expected = adapted_by_loop(x, keys, share)
    found = embed_ops.adapt_colour_(x, keys.chosen("coloradapt", share))
    np.testing.assert_allclose(found.flatten(2).numpy(), expected, atol=2e-4)


def test_channels_without_variance_adapt_to_their_partners_mean() -> None:
    x = values(4, 3, 6, 6).contiguous()
    x[0, 1] = 0.75  # a mean without rounding: the variance is exactly zero
    x[3, 2] = -1.25
    keys = keys_of(4)
    expected = adapted_by_loop(x, keys, 1.0)
    learned = x.clone().requires_grad_()
    result = embed_ops.adapt_colour_(learned.clone(), torch.ones(4, dtype=torch.bool))
    np.testing.assert_allclose(result.detach().flatten(2).numpy(), expected, atol=0.02)
    torch.testing.assert_close(result[0, 1].detach(), x[3, 1].mean().expand(6, 6), rtol=0, atol=0.02)
    result.square().sum().backward()
    assert learned.grad is not None and learned.grad.isfinite().all(), "a learned codebook gets a gradient"


# CutMix and Mixup


def box_by_loop(keys: SampleKeys, height: int, width: int, lam: float) -> set[tuple[int, int]]:
    inside = []
    for name, side in (("y", height), ("x", width)):
        length = math.floor(side * math.sqrt(1 - lam))
        start = int(numbers(keys, 0).integers(f"cutmix.{name}", side)) - length // 2
        inside.append([place for place in range(start, start + length) if 0 <= place < side])
    return set(itertools.product(*inside))


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.63, 1.0])
@pytest.mark.parametrize("shape", [*SHAPES, VIDEO, (1, 2, 4, 6)], ids=str)
def test_cutmix_fills_one_box_from_the_mirrored_partner(shape: tuple[int, ...], lam: float) -> None:
    samples, (height, width) = shape[0], shape[-2:]
    for start in range(4):
        x, targets_BC = values(*shape), values(samples, 7).softmax(1)
        keys = keys_of(samples, start)
        inside = box_by_loop(keys, height, width, lam)
        expected, expected_targets = x.clone(), targets_BC.clone()
        kept = 1 - len(inside) / (height * width)
        for sample in range(samples):
            for row, column in inside:
                expected[sample, ..., row, column] = x[samples - 1 - sample, ..., row, column]
            expected_targets[sample] = kept * targets_BC[sample] + (1 - kept) * targets_BC[samples - 1 - sample]
        lam_ = torch.tensor([lam], dtype=torch.float64)
        masked = embed_ops._filled_by_mask(x, *embed_ops.cutmix_box(keys, (height, width), lam_))
        result, targets = embed_ops.cutmix_(x, targets_BC, keys, lam_)
        assert torch.equal(result, expected) and torch.equal(masked, expected)
        torch.testing.assert_close(targets, expected_targets)


def test_centres_of_boxes_are_even() -> None:
    lam = torch.tensor([0.9375], dtype=torch.float64)  # a side of 2 of 8
    tops = [int(embed_ops.cutmix_box(keys_of(1, start), (8, 8), lam)[0]) for start in range(1000)]
    counts = np.bincount(tops, minlength=8)
    assert len(counts) == 8 and counts[0] == pytest.approx(250, abs=70), "centres 0 and 1 begin at the edge"
    assert abs(counts[1:7] - 125).max() < 55


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [*SHAPES, (6, 3, 7), (1, 2, 5)], ids=str)
def test_mixup(shape: tuple[int, ...], lam: float) -> None:
    x, targets_BC = values(*shape), values(shape[0], 7).softmax(1)
    mixed, targets = embed_ops.mixup(x, targets_BC, torch.tensor([lam], dtype=torch.float64))
    for sample in range(shape[0]):
        partner = shape[0] - 1 - sample
        torch.testing.assert_close(mixed[sample], lam * x[sample] + (1 - lam) * x[partner])
        torch.testing.assert_close(targets[sample], lam * targets_BC[sample] + (1 - lam) * targets_BC[partner])
    assert lam < 1 or torch.equal(mixed, x)


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("shape", [(12, 3, 6, 8), (6, 2, 3, 6, 5)], ids=str)
def test_groups_are_mixed_as_batches_of_their_own(shape: tuple[int, ...], groups: int) -> None:
    x, targets_BC, keys = values(*shape), values(shape[0], 7).softmax(1), keys_of(shape[0])
    lam_G = embed_ops.draw_lambda(keys, 1.0, groups)
    assert lam_G.unique().numel() == groups
    hit_B = keys.chosen("coloradapt", 0.6)
    cut, cut_targets = embed_ops.cutmix_(x.clone(), targets_BC, keys, lam_G)
    masked = embed_ops._filled_by_mask(x, *embed_ops.cutmix_box(keys, (shape[-2], shape[-1]), lam_G))
    mixed, mixed_targets = embed_ops.mixup(x, targets_BC, lam_G)
    coloured = embed_ops.adapt_colour_(x.clone(), hit_B, groups)
    assert torch.equal(cut, masked)
    for group in range(groups):
        own = slice(group, None, groups)
        lam = embed_ops.draw_lambda(keys[own], 1.0)
        assert torch.equal(lam, lam_G[group : group + 1])
        for found, expected in zip(
            (cut[own], cut_targets[own], mixed[own], mixed_targets[own], coloured[own]),
            (
                *embed_ops.cutmix_(x[own].clone(), targets_BC[own], keys[own], lam),
                *embed_ops.mixup(x[own], targets_BC[own], lam),
                embed_ops.adapt_colour_(x[own].clone(), hit_B[own]),
            ),
            strict=True,
        ):
            assert torch.equal(found, expected)


class _NoDoubles(TorchDispatchMode):
    """Fails where a number of 64 bits would come to lie on a device that is not the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            doubled = isinstance(value, torch.Tensor) and value.device.type != "cpu" and value.dtype == torch.float64
            assert not doubled, f"{func} makes float64, which Apple's GPUs do not have"
        return result


def test_no_float64_comes_to_a_device_that_may_have_none() -> None:
    """Torch's meta device stands for Apple's GPU: like it, it is neither a CPU nor CUDA."""
    device = torch.device("meta")
    keys = SampleKeys(0, 0, torch.arange(8, device=device))
    x_BDHW, targets_BC = torch.empty(8, 3, 6, 6, device=device), torch.empty(8, 5, device=device)
    with pytest.raises(AssertionError, match="float64"), _NoDoubles():
        torch.zeros(2, device=device, dtype=torch.float64)
    with _NoDoubles():
        embed_ops.random_resized_crop(x_BDHW, keys, (4, 4), scale_min=0.1, ratio_max=4 / 3)
        embed_ops.cutmix_(x_BDHW, targets_BC, keys, embed_ops.draw_lambda(keys, 0.7, 2))
        embed_ops.mixup(x_BDHW, targets_BC, embed_ops.draw_lambda(keys, 0.7, 2))
        embed_ops.add_noise_(x_BDHW.clone(), keys, share=0.5, channel_std=1.0, std=1.0)
        Counts(5, device).add(targets_BC, torch.zeros(8, dtype=torch.int64, device=device), torch.ones(8, device=device))


def test_lambda_is_beta_distributed() -> None:
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    cpu = torch.device("cpu")
    torch.testing.assert_close(embed_ops.beta_quantiles(1.0, cpu), middles, rtol=0, atol=1e-6)
    arcsine = (middles * math.pi / 2).sin().square()
    torch.testing.assert_close(embed_ops.beta_quantiles(0.5, cpu), arcsine, rtol=0, atol=1e-5)
    x = embed_ops.beta_quantiles(2.0, cpu)
    torch.testing.assert_close(3 * x**2 - 2 * x**3, middles, rtol=0, atol=1e-5)
    draws = torch.stack([embed_ops.draw_lambda(keys_of(2, start), 0.8) for start in range(1500)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.04)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.012), "1 / (4 (2 a + 1))"


def test_computing_all_samples_as_a_gpu_does_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, keys = values(6, 3, 5, 7), keys_of(6)

    def both() -> list[torch.Tensor]:
        noisy = embed_ops.add_noise_(x.clone(), keys, share=0.5, channel_std=1.0, std=1.0)
        return [noisy, embed_ops.adapt_colour_(x.clone(), keys.chosen("coloradapt", 0.5))]

    few = both()
    monkeypatch.setattr(embed_ops, "affected_rows", lambda hit_B: torch.arange(len(hit_B)))
    for found, expected in zip(both(), few, strict=True):
        assert torch.equal(found, expected)
