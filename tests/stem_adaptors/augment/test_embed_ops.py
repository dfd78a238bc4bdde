"""Operations on embeddings, each against a loop over samples, channels and sites written from its definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.stem_adaptors.augment.layouts import GRIDS, keys_of
from tokenshards.stem_adaptors.augment import crops, embed_ops
from tokenshards.stem_adaptors.augment.keys import SampleKeys

SHAPES = [(5, 3, *GRIDS[0]), (4, 2, *GRIDS[1]), (3, 5, *GRIDS[2]), (4, 1, *GRIDS[3])]
VIDEO = (3, 2, 3, 6, 5)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    """Embeddings as TokenEmbedding gives them: [B, D, sites] with channel-last memory."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((shape[0], *shape[2:], shape[1])).astype(np.float32))
    return x.movedim(-1, 1)


def numbers(keys: SampleKeys, sample: int) -> SampleKeys:
    return keys[sample : sample + 1]


# Noise


def noisy(x: torch.Tensor, keys: SampleKeys, share: float, *, channel_std: float, std: float, mask: Any = None) -> torch.Tensor:
    return embed_ops.add_noise_(x, keys, keys.chosen("noise", share), channel_std=channel_std, std=std, mask=mask)


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
    result = noisy(x, keys, share, channel_std=1.5, std=0.5)
    np.testing.assert_allclose(result.movedim(1, -1).flatten(1, -2).numpy(), expected, atol=1e-5)


def test_noise_leaves_sites_that_do_not_exist() -> None:
    x, keys = values(4, 3, 7), keys_of(4)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5])[:, None]
    expected = noisy_by_loop(x, keys, 1.0, 1.0, 1.0, mask)
    result = noisy(x.clone(), keys, 1.0, channel_std=1.0, std=1.0, mask=mask)
    np.testing.assert_allclose(result.movedim(1, -1).numpy(), expected, atol=1e-5)
    assert torch.equal(result.movedim(1, -1)[~mask], x.movedim(1, -1)[~mask])
    short = noisy(x[:, :, :5].clone(), keys, 1.0, channel_std=1.0, std=1.0, mask=mask[:, :5])
    assert torch.equal(short[1], result[1, :, :5]), "the width of the batch does not matter"


@pytest.mark.parametrize("shape", [SHAPES[0], VIDEO, (6, 70, 7)], ids=str)
def test_noise_of_a_pool_gives_each_site_one_of_its_vectors(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x, keys, pool = values(*shape), keys_of(shape[0]), embed_ops.noise_pool()
    hit_B, channels, sites = torch.arange(shape[0]) % 2 == 0, shape[1], math.prod(shape[2:])
    expected = x.movedim(1, -1).flatten(1, -2).clone()
    places_BL = keys.integers("noise.site", 1 << 14, sites)
    levels_BD = keys.normal("noise.channel", channels)
    for sample in hit_B.nonzero().flatten().tolist():
        for site in range(sites):
            start = 32 * int(places_BL[sample, site])
            expected[sample, site] += 0.5 * pool[start : start + channels] + 1.5 * levels_BD[sample]
    options = {"channel_std": 1.5, "std": 0.5, "mask": None, "pool": pool}
    found = embed_ops.add_noise_(x.clone(), keys, hit_B, **options)
    torch.testing.assert_close(found.movedim(1, -1).flatten(1, -2), expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(embed_ops, "all_rows", lambda device: True)
    torch.testing.assert_close(embed_ops.add_noise_(x.clone(), keys, hit_B, **options), found, rtol=0, atol=1e-6)


def test_the_pool_of_noise_is_normal_and_its_vectors_are_independent() -> None:
    pool = embed_ops.noise_pool()
    assert abs(pool.mean().item()) < 0.005 and pool.std().item() == pytest.approx(1, abs=0.005)
    assert pool.pow(4).mean().item() == pytest.approx(3, abs=0.05)
    vectors = pool[: 32 * 10_000].view(10_000, 32)
    correlations = torch.corrcoef(vectors.T) - torch.eye(32)
    assert correlations.abs().max() < 0.05 and vectors.mean(0).abs().max() < 0.05
    zeros, keys = torch.zeros(300, 8, 8, 4).movedim(-1, 1), keys_of(300)
    noise = embed_ops.add_noise_(zeros, keys, None, channel_std=0.0, std=1.0, mask=None, pool=pool)
    assert noise.std().item() == pytest.approx(1, abs=0.02) and noise.mean().item() == pytest.approx(0, abs=0.02)
    first, second = noise.flatten(1)[:-1], noise.flatten(1)[1:]
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs() < 0.02, "samples"


def test_statistics_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, keys = 400, keys_of(400)
    zeros = torch.zeros(samples, 8, 8, 4).movedim(-1, 1)
    level = noisy(zeros.clone(), keys, 0.5, channel_std=2.0, std=0.0)
    assert torch.equal(level, level[:, :, :1, :1].expand_as(level)), "one number per sample and channel"
    hit_B = (level != 0).flatten(1).any(1)
    assert torch.equal(hit_B, keys.chosen("noise", 0.5)) and 150 < hit_B.sum() < 250
    assert level[hit_B][..., 0, 0].std().item() == pytest.approx(2.0, abs=0.25)
    each = noisy(zeros.clone(), keys, 0.5, channel_std=0.0, std=1.5)
    assert not each[~hit_B].any()
    assert each[hit_B].mean().item() == pytest.approx(0, abs=0.03) and each[hit_B].std().item() == pytest.approx(1.5, abs=0.03)
    together = noisy(zeros.clone(), keys, 0.5, channel_std=2.0, std=1.5)
    torch.testing.assert_close(together, level + each)
    monkeypatch.setattr(crops, "PIECE_BYTES", 5000)
    assert torch.equal(noisy(zeros.clone(), keys, 0.5, channel_std=2.0, std=1.5), together)


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


def draw_lambda(keys: SampleKeys, alpha: float, groups: int = 1) -> torch.Tensor:
    """As CutMix and Mixup draw it: the key is the first sample of each group."""
    return embed_ops.beta_quantiles(alpha).index_select(0, keys[:groups].integers("lambda", 1 << 16)[:, 0])


def sides_of(lam_G: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return (torch.tensor(shape[-2:]) * (1 - lam_G)[:, None].sqrt()).long()


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
        sides_G2 = sides_of(torch.tensor([lam], dtype=torch.float64), shape)
        masked = embed_ops._filled_by_mask(x, embed_ops.cutmix_box(keys, (height, width), sides_G2))
        result, targets = embed_ops.cutmix_(x, targets_BC, embed_ops.cutmix_box(keys, (height, width), sides_G2))
        assert torch.equal(result, expected) and torch.equal(masked, expected)
        torch.testing.assert_close(targets, expected_targets)


def test_centres_of_boxes_are_even() -> None:
    tops = [int(embed_ops.cutmix_box(keys_of(1, start), (8, 8), torch.tensor([[2, 2]]))[0, 0]) for start in range(1000)]
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
    lam_G = draw_lambda(keys, 1.0, groups)
    assert lam_G.unique().numel() == groups
    hit_B = keys.chosen("coloradapt", 0.6)
    edges_G4 = embed_ops.cutmix_box(keys, (shape[-2], shape[-1]), sides_of(lam_G, shape))
    cut, cut_targets = embed_ops.cutmix_(x.clone(), targets_BC, edges_G4)
    masked = embed_ops._filled_by_mask(x, edges_G4)
    mixed, mixed_targets = embed_ops.mixup(x, targets_BC, lam_G)
    coloured = embed_ops.adapt_colour_(x.clone(), hit_B, groups)
    assert torch.equal(cut, masked)
    for group in range(groups):
        own = slice(group, None, groups)
        lam = draw_lambda(keys[own], 1.0)
        assert torch.equal(lam, lam_G[group : group + 1])
        edges_14 = embed_ops.cutmix_box(keys[own], (shape[-2], shape[-1]), sides_of(lam, shape))
        for found, expected in zip(
            (cut[own], cut_targets[own], mixed[own], mixed_targets[own], coloured[own]),
            (
                *embed_ops.cutmix_(x[own].clone(), targets_BC[own], edges_14),
                *embed_ops.mixup(x[own], targets_BC[own], lam),
                embed_ops.adapt_colour_(x[own].clone(), hit_B[own]),
            ),
            strict=True,
        ):
            assert torch.equal(found, expected)


def test_lambda_is_beta_distributed() -> None:
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    torch.testing.assert_close(embed_ops.beta_quantiles(1.0), middles, rtol=0, atol=1e-6)
    arcsine = (middles * math.pi / 2).sin().square()
    torch.testing.assert_close(embed_ops.beta_quantiles(0.5), arcsine, rtol=0, atol=1e-5)
    x = embed_ops.beta_quantiles(2.0)
    torch.testing.assert_close(3 * x**2 - 2 * x**3, middles, rtol=0, atol=1e-5)
    draws = torch.stack([draw_lambda(keys_of(2, start), 0.8) for start in range(1500)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.04)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.012), "1 / (4 (2 a + 1))"


def test_computing_all_samples_as_a_gpu_does_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, keys = values(6, 3, 5, 7), keys_of(6)

    def both() -> list[torch.Tensor]:
        noise = noisy(x.clone(), keys, 0.5, channel_std=1.0, std=1.0)
        return [noise, embed_ops.adapt_colour_(x.clone(), keys.chosen("coloradapt", 0.5))]

    few = both()
    monkeypatch.setattr(embed_ops, "all_rows", lambda device: True)
    for found, expected in zip(both(), few, strict=True):
        assert torch.equal(found, expected)
