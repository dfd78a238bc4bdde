"""Which patches a pre-training hides: counts, shares and the arrangement of each layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stem_adaptors.augment.layouts import grid, keys_of, pyramid, sequence, spec_of, video
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models.masks import MaskDraws, parents_of, ratio_quantiles
from tokenshards.stem_adaptors.models.stems import PyramidStem, Stem, build_stem


def stem_of(layout: Any, patch: int = 0) -> Stem:
    return build_stem(spec_of(layout), ModelConfig(stem="patch", stem_patch=patch), 4, width=8)


def drawn(layout: Any, config: MaskConfig, samples: int = 64, *, patch: int = 0, real: Any = None, ratio: float | None = None) -> Any:
    draws = MaskDraws(config, layout, stem_of(layout, patch))
    return draws, draws(keys_of(samples), real, ratio=ratio)


def test_the_ratio_is_a_normal_number_between_two_ends() -> None:
    """The distribution is compared with samples that are drawn until they lie between the ends."""
    config = MaskConfig()
    rng = np.random.default_rng(0)
    values = rng.normal(config.ratio_mean, config.ratio_std, 400_000)
    values = values[(values >= config.ratio_min) & (values <= config.ratio_max)]
    found = ratio_quantiles(config).numpy()
    assert found.min() >= config.ratio_min and found.max() <= config.ratio_max
    assert found.mean() == pytest.approx(values.mean(), abs=2e-3) and found.mean() == pytest.approx(0.607, abs=5e-4)
    levels = np.linspace(0.05, 0.95, 7)
    assert np.quantile(found, levels) == pytest.approx(np.quantile(values, levels), abs=4e-3)


def test_the_counts_are_those_of_the_paper() -> None:
    """Of 196 patches ceil(196 r) are hidden, 79 of them dropped: the encoder sees 117."""
    draws, masks = drawn(grid(28, 28), MaskConfig(), 512)
    hidden_B = masks.masked_BN.sum(1)
    ratios_B = draws.ratios_R[keys_of(512).integers("mask.ratio", 65536)[:, 0]]
    assert masks.masked_BN.shape == (512, 196) and draws.kept == masks.kept_BK.shape[1] == 117
    assert hidden_B.tolist() == [math.ceil(196 * ratio - 1e-4) for ratio in ratios_B.tolist()]
    assert hidden_B.float().mean() / 196 == pytest.approx(0.61, abs=0.02) and len(hidden_B.unique()) > 50
    seen_BN = torch.zeros(512, 196).scatter_add_(1, masks.kept_BK, torch.ones(512, 117))
    assert seen_BN.max() == 1  # no patch twice
    assert not (~masks.masked_BN & (seen_BN == 0)).any()  # what is dropped is hidden
    assert (masks.masked_BN.float().mean(0) - 0.61).abs().max() < 0.12  # no place is preferred


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.floats(0.05, 1.0), st.floats(0, 0.9), st.integers(0, 10_000))
def test_any_share_of_any_grid(height: int, width: int, ratio: float, drop: float, start: int) -> None:
    drop = min(drop, ratio)
    draws = MaskDraws(
        MaskConfig(ratio_mean=ratio, ratio_std=0, ratio_min=ratio, ratio_max=ratio, drop_share=drop, val_ratio=1.0),
        grid(height, width),
        stem_of(grid(height, width), 1),
    )
    patches = height * width
    masks = draws(keys_of(3, start))
    assert masks.masked_BN.sum(1).tolist() == [max(1, math.ceil(patches * ratio - 1e-4))] * 3
    assert masks.kept_BK.shape == (3, patches - math.ceil(max(0.0, patches * drop - 1e-4)))
    assert all(len(set(row)) == len(row) for row in masks.kept_BK.tolist())


def test_a_sample_has_the_same_mask_in_every_batch() -> None:
    layout = grid(8, 8)
    draws = MaskDraws(MaskConfig(), layout, stem_of(layout))
    whole, part = draws(keys_of(10)), draws(keys_of(10)[3:7])
    assert torch.equal(whole.masked_BN[3:7], part.masked_BN) and torch.equal(whole.kept_BK[3:7], part.kept_BK)
    assert not torch.equal(draws(keys_of(10, epoch=2)).masked_BN, whole.masked_BN)


def test_a_video_hides_the_same_places_in_all_frames() -> None:
    layout = video(4, 12, 12)
    _, masks = drawn(layout, MaskConfig(drop_share=0.0, ratio_min=0.5, ratio_max=0.5, ratio_mean=0.5, ratio_std=0))
    frames_BTN = masks.masked_BN.view(64, 4, -1)
    assert torch.equal(frames_BTN, frames_BTN[:, :1].expand_as(frames_BTN)) and masks.masked_BN.float().mean() == 0.5


def test_a_sequence_hides_spans() -> None:
    config = MaskConfig(span_sites=4)
    _, masks = drawn(sequence(64), config, 256, ratio=0.5)
    hidden_BN = masks.masked_BN.int()
    runs = (hidden_BN[:, 1:] != hidden_BN[:, :-1]).sum(1).float().mean()
    assert hidden_BN.sum(1).eq(32).all()
    assert runs < 20  # single sites would change 32 times on average; spans of four sites about 8 to 16 times
    singles = MaskDraws(MaskConfig(span_sites=1), sequence(64), stem_of(sequence(64)))(keys_of(256), ratio=0.5).masked_BN.int()
    assert (singles[:, 1:] != singles[:, :-1]).sum(1).float().mean() > 28


@pytest.mark.parametrize("scales", [((1, 1), (2, 2), (4, 4), (8, 8)), ((2, 3), (4, 6), (5, 7)), ((1, 1), (3, 3), (4, 4))])
def test_a_coarse_patch_of_a_pyramid_is_hidden_after_the_finer_ones_below_it(scales: tuple[tuple[int, int], ...]) -> None:
    layout = pyramid(*scales)
    stem = stem_of(layout, 1)
    assert isinstance(stem, PyramidStem)
    parents, starts = parents_of(stem), np.cumsum([0, *stem.scale_tokens])
    for ratio in (0.5, 0.8, 0.95):
        _, masks = drawn(layout, MaskConfig(), 64, patch=1, ratio=ratio)
        assert masks.masked_BN.sum(1).eq(math.ceil(layout.sites * ratio - 1e-4)).all()
        for scale in range(1, len(scales)):
            for patch in range(stem.scale_tokens[scale]):
                parent = starts[scale - 1] + int(parents[starts[scale] + patch])
                assert not (masks.masked_BN[:, parent] & ~masks.masked_BN[:, starts[scale] + patch]).any()
                # The centre of the patch lies in its parent.
                row, column = divmod(patch, scales[scale][1])
                coarse_row, coarse_column = divmod(int(parents[starts[scale] + patch]), scales[scale - 1][1])
                for place, side, coarse, coarse_side in (
                    (row, scales[scale][0], coarse_row, scales[scale - 1][0]),
                    (column, scales[scale][1], coarse_column, scales[scale - 1][1]),
                ):
                    assert coarse / coarse_side <= (place + 0.5) / side < (coarse + 1) / coarse_side


def test_ragged_rows_lose_a_share_of_what_they_have() -> None:
    layout = sequence(20, variable=True)
    lengths = torch.tensor([20, 13, 7, 2, 1])
    real_BN = torch.arange(20) < lengths[:, None]
    draws, masks = drawn(layout, MaskConfig(), 5, real=real_BN, ratio=0.6)
    assert masks.masked_BN.sum(1).tolist() == [max(1, math.ceil(n * 0.6 - 1e-4)) for n in lengths.tolist()]
    assert not (masks.masked_BN & ~real_BN).any()
    kept_real_B = real_BN.gather(1, masks.kept_BK).sum(1)
    assert kept_real_B.tolist() == [n - math.ceil(n * 0.4 - 1e-4) for n in lengths.tolist()] and draws.kept == 12


@pytest.mark.parametrize("layout", [grid(8, 8), sequence(30), pyramid((1, 1), (4, 4))], ids=str)
def test_a_share_of_the_hidden_patches_is_predicted(layout: Any) -> None:
    config = MaskConfig(predict_share=0.3)
    draws, masks = drawn(layout, config, 256)
    assert not (masks.predicted_BN & ~masks.masked_BN).any()
    hidden_B, found_B = masks.masked_BN.sum(1), masks.predicted_BN.sum(1)
    assert found_B.tolist() == [max(1, math.ceil(count * 0.3 - 1e-4)) for count in hidden_B.tolist()]
    shares_N = masks.predicted_BN.sum(0) / masks.masked_BN.sum(0).clamp_min(1)
    assert shares_N[masks.masked_BN.sum(0) > 60].sub(0.3).abs().max() < 0.25, "no place is preferred"
    assert torch.equal(drawn(layout, MaskConfig(), 256)[1].masked_BN, masks.masked_BN)  # what is hidden stays the same
    measured = draws(keys_of(256), ratio=0.75)
    assert torch.equal(measured.predicted_BN, measured.masked_BN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop_share": 0.5}, "mask.drop_share is 0.5; expected at most ratio_min"),
        ({"ratio_min": 0.0}, "mask.ratio_min is 0.0; expected above 0"),
        ({"ratio_mean": 0.2, "ratio_std": 0.0}, "mask.ratio_mean is 0.2"),
        ({"val_ratio": 0.1}, "mask.val_ratio is 0.1"),
        ({"predict_share": 0.0}, "mask.predict_share is 0.0"),
        ({"decoder_depth": 0}, "mask.decoder_depth is 0"),
        ({"embed_dropout": 1.0}, "mask.embed_dropout is 1.0"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskConfig(**changes)
