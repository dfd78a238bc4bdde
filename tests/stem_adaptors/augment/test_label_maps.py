"""Label maps under every operation that moves sites: against loops, and against the sites of the tokens that they belong to."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.stem_adaptors.augment.layouts import CODES, batch_at, grid, ids_of, keys_of, spec_of, tables_of
from tests.stem_adaptors.augment.test_embed_ops import draw_lambda, sides_of
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.augment import TokenTransform, crops, embed_ops, index_ops, label_maps
from tokenshards.stem_adaptors.augment.token_model import Lookup
from tokenshards.stem_adaptors.config import AugmentConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding

SIZES = [((8, 8), (32, 32)), ((6, 10), (30, 30)), ((5, 7), (32, 24)), ((4, 4), (4, 4)), ((7, 7), (5, 6))]
"""Sites, and pixels of the map: whole pixels a site or not, also fewer pixels than sites."""


def random_maps(samples: int, size: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (samples, *size))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize(("sites", "size"), SIZES)
def test_a_cropped_map_takes_the_pixel_of_each_centre(sites: tuple[int, int], size: tuple[int, int], dtype: torch.dtype) -> None:
    maps_BHW, keys = random_maps(9, size, dtype=dtype), keys_of(9)
    boxes_B4 = crops.crop_boxes(keys, sites, scale_min=0.1, ratio_max=4 / 3)
    out = (max(1, sites[0] - 1), max(1, sites[1] - 2))
    found = label_maps.cropped(maps_BHW, boxes_B4, sites, out)
    assert found.dtype == dtype
    rows, columns = (max(1, round(Fraction(size[axis] * out[axis], sites[axis]) + Fraction(1, 10**6))) for axis in (0, 1))
    assert found.shape == (9, rows, columns)
    for sample, (top, left, height, width) in enumerate(boxes_B4.tolist()):
        for row in range(rows):
            for column in range(columns):
                y = (top + (row + Fraction(1, 2)) * height / rows) * size[0] / sites[0]
                x = (left + (column + Fraction(1, 2)) * width / columns) * size[1] / sites[1]
                assert found[sample, row, column] == maps_BHW[sample, int(y), int(x)]


@pytest.mark.parametrize(("sites", "size"), SIZES)
def test_boxes_of_cutmix_are_filled_from_partners(sites: tuple[int, int], size: tuple[int, int]) -> None:
    maps_BHW, keys = random_maps(8, size), keys_of(8)
    edges_G4 = embed_ops.cutmix_box(keys, sites, sides_of(draw_lambda(keys, 1.0, 2), (8, 1, *sites)))
    found = label_maps.with_boxes_filled(maps_BHW, edges_G4, sites)
    for sample in range(8):
        top, left, bottom, right = edges_G4[sample % 2].tolist()
        partner = 8 - 2 - sample // 2 * 2 + sample % 2
        for row in range(size[0]):
            for column in range(size[1]):
                y = int((row + Fraction(1, 2)) * sites[0] / size[0])
                x = int((column + Fraction(1, 2)) * sites[1] / size[1])
                source = partner if top <= y < bottom and left <= x < right else sample
                assert found[sample, row, column] == maps_BHW[source, row, column]


def test_blocks_that_do_not_end_at_pixels_move_by_whole_pixels() -> None:
    maps_BHW = torch.arange(30 * 30).view(1, 30, 30)
    corners_B22 = torch.tensor([[[0, 0], [4, 5]]])
    found = label_maps.swapped(maps_BHW, corners_B22, torch.tensor([2]), (8, 8))
    # Sites have 3.75 pixels. The second block begins at pixel 15 and 19, and takes pixels 15 and 19 before (4 and 5 sites).
    assert found[0, 15, 19] == maps_BHW[0, 0, 0] and found[0, 0, 0] == maps_BHW[0, 15, 19]
    assert (found[0, 22:] == maps_BHW[0, 22:]).all() and (found[0, :, 27:] == maps_BHW[0, :, 27:]).all()
    moved = (found != maps_BHW).sum()
    assert 2 * 49 <= moved <= 2 * 64


# Maps and tokens together: each site of a sample has one id, and its pixels have the id as their class.


def pixels_of(ids_BLQ: Tensor, sites: tuple[int, int], step: int) -> Tensor:
    plane = ids_BLQ[..., 0].reshape(len(ids_BLQ), *sites).to(torch.uint8)
    return plane.repeat_interleave(step, 1).repeat_interleave(step, 2)


def moved_together(config: AugmentConfig, sites: tuple[int, int] = (8, 8), samples: int = 12, step: int = 4) -> tuple[Tensor, Tensor]:
    """Return the id that each embedding of a transformed batch belongs to, [B, h, w], and the transformed maps."""
    spec = spec_of(grid(*sites))
    transform = TokenTransform(spec, tables_of(spec), config)
    transform.require_maps_fit()
    model, ids_BLQ, keys = Lookup(TokenEmbedding(spec, tables_of(spec))), ids_of(spec, samples), keys_of(samples)
    batch = dataclasses.replace(batch_at(ids_BLQ, keys), maps_BHW=pixels_of(ids_BLQ, sites, step))
    found = transform.transformed(model, transform.inputs(model, batch))
    assert found.maps_BHW is not None
    table_KD = model.embedding.tables()[0]
    best = torch.cdist(found.x.permute(0, 2, 3, 1).reshape(-1, table_KD.shape[1]), table_KD).argmin(1)
    return best.view(samples, *found.x.shape[2:]), found.maps_BHW


@pytest.mark.parametrize("sites", [(8, 8), (6, 10)], ids=str)
@pytest.mark.parametrize(
    "ops",
    [
        "flip()",
        "0.5*flip()",
        "swap(max_share=0.5)",
        "one_of(0.5*swap(max_share=0.5))",
        "swap(max_share=0.8)",
        "random_crop(share=0.7)",
        "centre_crop(share=0.7)",
        "cutmix()",
        "0.5*flip(), 0.5*swap(max_share=0.5), random_crop(share=0.7), cutmix()",
        "half_batch([cutmix()], [color_adapt()])",
        "half_batch([random_crop(share=0.7), cutmix()], [centre_crop(share=0.7)])",
    ],
)
def test_maps_follow_the_tokens(ops: str, sites: tuple[int, int]) -> None:
    best_Bhw, maps_BHW = moved_together(AugmentConfig(ops=ops.replace("[color_adapt()]", "[noise(std=0.0, channel_std=0.0)]")), sites)
    expected = best_Bhw.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(maps_BHW.long(), expected)
    plain = pixels_of(ids_of(spec_of(grid(*sites)), 12), sites, 4)
    assert maps_BHW.shape != plain.shape or "flip" in ops or not torch.equal(maps_BHW, plain), "the operation changed something"


def test_groups_of_cutmix_hold_for_maps_too() -> None:
    config = AugmentConfig(ops="cutmix()", mix_group=4)
    best_Bhw, maps_BHW = moved_together(config)
    assert torch.equal(maps_BHW.long(), best_Bhw.repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_the_pixels_of_a_resized_crop_show_what_its_embeddings_show() -> None:
    spec = spec_of(grid(8, 8))
    transform = TokenTransform(spec, tables_of(spec), AugmentConfig(ops="rrc(share=1.0, scale_min=0.3)"))
    ids_BLQ = torch.zeros(40, 8, 8, dtype=torch.uint8)
    ids_BLQ[:, :, 4:] = 1  # two halves with an edge at the middle
    ids_BLQ = ids_BLQ.view(40, 64, 1)
    model, keys = Lookup(TokenEmbedding(spec, tables_of(spec))), keys_of(40)
    batch = dataclasses.replace(batch_at(ids_BLQ, keys), maps_BHW=pixels_of(ids_BLQ, (8, 8), 4))
    found = transform.transformed(model, transform.inputs(model, batch))
    assert found.maps_BHW is not None
    table_KD = model.embedding.tables()[0]
    towards = table_KD[1] - table_KD[0]
    share_Bhw = ((found.x.permute(0, 2, 3, 1) - table_KD[0]) @ towards) / towards.square().sum()
    pixels_Bhw = torch.nn.functional.avg_pool2d(found.maps_BHW.float(), 4)
    assert (share_Bhw - pixels_Bhw).abs().max() < 0.45, "bicubic edges are a site wide"
    assert (share_Bhw - pixels_Bhw).abs().mean() < 0.04
    assert (found.maps_BHW.float().diff(dim=2) < 0).sum() == 0, "one edge, from 0 to 1"


def test_the_centre_of_a_measurement_is_that_of_the_embeddings() -> None:
    spec = spec_of(grid(8, 8))
    transform = TokenTransform(spec, tables_of(spec), dataclasses.replace(AugmentConfig.off(), crop_share=0.75))
    ids_BLQ = ids_of(spec, 3)
    maps = pixels_of(ids_BLQ, (8, 8), 4)
    assert transform.out_grid == (6, 6)
    assert torch.equal(transform.evaluation_maps(maps), maps[:, 4:28, 4:28])
    whole = TokenTransform(spec, tables_of(spec), dataclasses.replace(AugmentConfig.off(), crop_share=1.0))
    assert torch.equal(whole.evaluation_maps(maps), maps)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (AugmentConfig(ops="mixup()"), "mixup"),
        (AugmentConfig(ops="half_batch([mixup()], [noise()])"), "mixup"),
        (AugmentConfig(ops="0.5*cutmix(labels='attention')"), "labels='area'"),
    ],
)
def test_what_masks_cannot_follow_is_refused(config: AugmentConfig, word: str) -> None:
    spec = spec_of(grid(8, 8))
    with pytest.raises(ConfigError, match=word):
        TokenTransform(spec, tables_of(spec), config).require_maps_fit()


def test_maps_change_no_number_of_the_tokens() -> None:
    spec = spec_of(grid(8, 8))
    config = AugmentConfig(flip_prob=0.5, cutmix_prob=1.0)
    transform, model, ids_BLQ = (
        TokenTransform(spec, tables_of(spec), config),
        Lookup(TokenEmbedding(spec, tables_of(spec))),
        ids_of(spec, 9),
    )
    batch: Batch = batch_at(ids_BLQ, keys_of(9))
    alone = transform.transformed(model, transform.inputs(model, batch))
    with_maps = dataclasses.replace(batch, maps_BHW=pixels_of(ids_BLQ, (8, 8), 2))
    together = transform.transformed(model, transform.inputs(model, with_maps))
    assert alone.maps_BHW is None and torch.equal(alone.x, together.x)
    assert index_ops.has_plane(spec.layout) and CODES < 256
