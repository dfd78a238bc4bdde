"""Stems: how many tokens, which sites they see, masks; SeiT's convolution is one case."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stem_adaptors.models.test_embedding import grid, make_spec
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import Layout
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.stems import ConvStem, PyramidStem, build_stem, sites_per_token


def stem_for(layout: Layout, out_grid: Any = None, channels: int = 3, width: int = 8, **config: Any) -> Any:
    return build_stem(make_spec(layout, (9,) * layout.ids_per_site, None), ModelConfig(**config), channels, out_grid, width)


@pytest.mark.parametrize(
    ("sites", "tokens"),
    [
        ((28, 28), (14, 14)),
        ((32, 32), (16, 16)),
        ((14, 14), (7, 7)),
        ((16, 16), (8, 8)),
        ((12, 12), (6, 6)),
        ((8, 8), (8, 8)),
        ((7, 7), (7, 7)),
        ((56, 56), (14, 14)),
        ((64, 64), (16, 16)),
        ((20, 44), (10, 22)),
        ((1, 1), (1, 1)),
        ((2, 200), (1, 100)),
        ((7, 15), (7, 15)),
        ((11, 13), (6, 7)),
    ],
)
def test_tokens_of_a_grid(sites: tuple[int, int], tokens: tuple[int, int]) -> None:
    assert stem_for(grid(*sites)).grid == tokens


def test_seits_stem_is_a_convolution_of_kernel_4_step_2_padding_1() -> None:
    stem = stem_for(grid(32, 32), (28, 28), channels=32, width=16)
    x_BDHW = torch.randn(2, 32, 28, 28)
    assert tuple(stem.proj.weight.shape) == (16, 32, 4, 4) and stem.tokens == 196
    expected = F.conv2d(x_BDHW, stem.proj.weight, stem.proj.bias, stride=2, padding=1)
    torch.testing.assert_close(stem(x_BDHW), expected.flatten(2).transpose(1, 2))


@settings(max_examples=30, deadline=None)
@given(
    sites=st.one_of(
        st.tuples(st.integers(1, 70), st.integers(1, 70)), st.tuples(*[st.integers(1, 17)] * 3), st.tuples(st.integers(1, 2500))
    ),
    kind=st.sampled_from(["conv", "patch"]),
    patch=st.sampled_from([0, 0, 1, 2, 3, 5]),
)
def test_every_site_reaches_a_token_and_tokens_are_counted_right(sites: tuple[int, ...], kind: str, patch: int) -> None:
    layout = Layout(kind=("sequence", "grid", "video")[len(sites) - 1], grid=sites if len(sites) > 1 else (), sites=math.prod(sites))  # type: ignore[arg-type]
    stem = stem_for(layout, channels=1, width=2, stem_patch=patch, stem="auto" if len(sites) == 1 else kind)
    torch.nn.init.ones_(stem.proj.weight)
    x = torch.zeros(1, *((*sites, 1) if len(sites) == 1 else (1, *sites)), requires_grad=True)
    tokens_BND = stem(x)
    assert tuple(tokens_BND.shape) == (1, stem.tokens, 2) and stem.tokens == math.prod(stem.grid)
    tokens_BND.sum().backward()
    assert x.grad is not None and bool((x.grad > 0).all())
    if not patch:
        assert stem.tokens <= (256 if len(sites) == 2 else 1024)
        if len(sites) == 2 and min(sites) >= 6:
            assert stem.tokens >= 36


def test_the_given_patch_decides_and_a_grid_that_it_does_not_divide_is_filled_up() -> None:
    stem = stem_for(grid(7, 10), stem="patch", stem_patch=4)
    assert stem.grid == (2, 3) and tuple(stem.proj.kernel_size) == (4, 4)
    x_BDHW = torch.randn(2, 3, 7, 10)
    expected = F.conv2d(F.pad(x_BDHW, (0, 2, 0, 1)), stem.proj.weight, stem.proj.bias, stride=4)
    torch.testing.assert_close(stem(x_BDHW), expected.flatten(2).transpose(1, 2))


def test_a_sequence_is_mapped_site_by_site() -> None:
    stem = stem_for(Layout(kind="sequence", sites=5))
    x_BLD = torch.randn(2, 5, 3)
    torch.testing.assert_close(stem(x_BLD), F.linear(x_BLD, stem.proj.weight[:, :, 0], stem.proj.bias))


def test_ragged_rows_have_a_mask_and_shorter_batches_are_filled_up() -> None:
    stem = stem_for(Layout(kind="sequence", sites=8, variable=True), stem_patch=3)
    mask_BL = torch.arange(6) < torch.tensor([4, 6])[:, None]
    x_BLD = torch.randn(2, 6, 3) * mask_BL[..., None]
    assert stem.token_mask(mask_BL).tolist() == [[True, True, False], [True, True, False]]
    assert stem.token_mask(mask_BL[:, :3]).tolist() == [[True, False, False]] * 2
    assert stem.token_mask(None) is None
    torch.testing.assert_close(stem(x_BLD), stem(F.pad(x_BLD, (0, 0, 0, 2))))


@pytest.mark.parametrize("kind", ["conv", "patch"])
def test_a_token_of_a_grid_is_real_where_one_of_its_sites_is(kind: str) -> None:
    stem = stem_for(Layout(kind="grid", grid=(7, 12), sites=84, variable=True), stem=kind, stem_patch=2)
    mask_BHW = torch.zeros(1, 7, 12, dtype=torch.bool)
    mask_BHW[0, :3, :5] = True
    real = stem.token_mask(mask_BHW).reshape(stem.grid)
    assert real.nonzero().tolist() == [[row, column] for row in range(2) for column in range(3)]


def test_scales_of_a_pyramid_are_projected_by_themselves() -> None:
    scales = ((1, 1), (2, 3), (8, 8), (12, 12))
    stem = stem_for(Layout(kind="pyramid", scales=scales, sites=215))
    assert isinstance(stem, PyramidStem) and stem.tokens == 1 + 6 + 64 + 36
    x_BLD = torch.randn(2, 215, 3)
    tokens_BNE = stem(x_BLD)
    third = F.conv2d(x_BLD[:, 7:71].transpose(1, 2).reshape(2, 3, 8, 8), stem.proj[2].proj.weight, stem.proj[2].proj.bias)
    torch.testing.assert_close(tokens_BNE[:, 7:71], third.flatten(2).transpose(1, 2) + stem.scale_embed[2])
    assert stem.token_mask(None) is None
    with pytest.raises(ConfigError, match="215"):
        stem(x_BLD[:, :200])


def test_a_video_keeps_its_frames_until_they_are_too_many() -> None:
    assert sites_per_token((4, 16, 16)) == (1, 2, 2)
    assert sites_per_token((64, 16, 16)) == (4, 2, 2)
    layout = Layout(kind="video", grid=(4, 16, 16), sites=1024)
    stem = stem_for(layout, (4, 14, 14))
    assert stem.grid == (4, 7, 7) and tuple(stem(torch.randn(1, 3, 4, 14, 14)).shape) == (1, 196, 8)


def test_stems_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="'sequence' does not fit a layout of kind 'grid'"):
        stem_for(grid(8, 8), stem="sequence")
    with pytest.raises(ConfigError, match="out_grid"):
        stem_for(grid(8, 8), (8,))
    stem = stem_for(grid(8, 8))
    assert isinstance(stem, ConvStem)
    with pytest.raises(ConfigError, match=r"built for \(8, 8\)"):
        stem(torch.randn(1, 3, 7, 8))
