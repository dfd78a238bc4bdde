"""The transformer against timm's, masks, drop path, and classifiers of every layout."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.stem_adaptors.models.test_embedding import grid, make_ids, make_spec, make_tables
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import Layout, TokenizerSpec
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.classifier import SIZES, TokenClassifier, VisionTransformer, build_classifier
from tokenshards.stem_adaptors.models.drop_path import draw_paths, drop_paths_of
from tokenshards.stem_adaptors.models.stems import ConvStem, Stem
from tokenshards.stem_adaptors.training.parameter_groups import parameter_groups

SMALL = ModelConfig(depth=2, width=32, heads=2)


def make_vit(stem: Stem, **changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(stem, **{"classes": 5, "width": 32, "depth": 3, "heads": 2, **changes})


def make_classifier(spec: TokenizerSpec, config: ModelConfig = SMALL, **changes: Any) -> TokenClassifier:
    return build_classifier(spec, make_tables(spec), None, config, changes.pop("classes", 5), **changes).eval()


@pytest.fixture(scope="module")
def timm() -> Any:
    allow_torchvision()
    return pytest.importorskip("timm", reason="timm (an extra) is not installed")


@pytest.mark.parametrize(
    ("stem", "image", "options"),
    [
        (lambda: ConvStem(32, 192, (28, 28), (2, 2), overlap=False), (28, 28), {"patch_size": 2, "in_chans": 32}),
        (lambda: ConvStem(3, 192, (32, 64), (16, 16), overlap=False), (32, 64), {"patch_size": 16, "in_chans": 3}),
    ],
    ids=["tokens", "pixels"],
)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_weights_move_to_timm_and_back(timm: Any, name: str, stem: Any, image: tuple[int, int], options: dict[str, int]) -> None:
    theirs = timm.create_model(name, img_size=image, num_classes=5, global_pool="avg", depth=3, **options).eval()
    ours = make_vit(stem(), width=192, heads=3).eval()
    assert {n: p.shape for n, p in theirs.state_dict().items()} == {n: p.shape for n, p in ours.state_dict().items()}
    x = torch.randn(3, options["in_chans"], *image)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        before = ours(x)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        assert (ours(x) - before).abs().max() > 0.01
        other = make_vit(stem(), width=192, heads=3).eval()
        theirs.load_state_dict(other.state_dict())
        torch.testing.assert_close(theirs(x), other(x), rtol=1e-5, atol=1e-5)


def test_initial_weights_are_distributed_as_timms(timm: Any) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=2, num_classes=9, global_pool="avg", depth=2).state_dict()
    ours = make_vit(ConvStem(3, 192, (16, 16), (2, 2), overlap=False), width=192, heads=3, depth=2, classes=9).state_dict()
    for name, tensor in ours.items():
        assert float(tensor.std()) == pytest.approx(float(theirs[name].std()), rel=0.25, abs=2e-6), name


@pytest.mark.parametrize(
    ("layout", "out_grid", "tokens"),
    [
        (grid(32, 32), (28, 28), 196),
        (grid(16, 16, 2), (14, 14), 49),
        (grid(6, 9), None, 54),
        (Layout(kind="grid", grid=(8, 8), sites=64, ids_per_site=3, combine="concat"), None, 64),
        (Layout(kind="sequence", sites=24), None, 24),
        (Layout(kind="pyramid", scales=((1, 1), (3, 3), (6, 6)), sites=46), None, 46),
        (Layout(kind="video", grid=(2, 8, 8), sites=128), (2, 7, 7), 98),
    ],
    ids=["seit", "residual", "oblong", "concat", "sequence", "pyramid", "video"],
)
@pytest.mark.parametrize("learned", [False, True])
def test_a_classifier_of_every_layout_learns(layout: Layout, out_grid: Any, tokens: int, learned: bool) -> None:
    spec = make_spec(layout, (11,) * layout.ids_per_site, (4,) * layout.ids_per_site)
    config = ModelConfig(depth=1, width=32, heads=2, learned_codebook=learned)
    model = make_classifier(spec, config, out_grid=out_grid).train()
    assert model.backbone.patch_embed.tokens == tokens
    ids_BLQ, labels_B = make_ids(spec, 8), torch.arange(8) % 5
    optimiser = torch.optim.AdamW(parameter_groups(model, 0.05), lr=3e-3)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(ids_BLQ), labels_B)
        optimiser.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05


def test_the_halves_of_a_classifier_are_the_whole_with_a_centre_crop_between() -> None:
    spec = make_spec(grid(16, 16), (11,), (4,))
    model, ids_BLQ = make_classifier(spec, out_grid=(14, 12)), make_ids(spec, 3)
    x_BDHW = model.embed(ids_BLQ, out=model.embedding.buffer(3))
    torch.testing.assert_close(model.classify(x_BDHW[:, :, 1:15, 2:14]), model(ids_BLQ))


def test_what_stands_behind_the_end_of_a_ragged_row_changes_nothing() -> None:
    spec = make_spec(Layout(kind="sequence", sites=12, variable=True), (9,), (4,))
    model, lengths_B = make_classifier(spec), torch.tensor([12, 5, 1])
    ids_BLQ = make_ids(spec, 3)
    mask_BL = torch.arange(12) < lengths_B[:, None]
    padded = torch.where(mask_BL[..., None], ids_BLQ.long(), 9)
    logits_BC = model(padded, mask_BL=mask_BL)
    torch.testing.assert_close(model(ids_BLQ, mask_BL=mask_BL), logits_BC)
    torch.testing.assert_close(model(padded[1:, :5], mask_BL=mask_BL[1:, :5]), logits_BC[1:])
    assert (model(padded) - logits_BC).abs().max() > 1e-4


def test_a_small_grid_gives_the_same_beside_larger_ones() -> None:
    spec = make_spec(Layout(kind="grid", grid=(14, 16), sites=224, variable=True), (9,), (4,))
    model = make_classifier(spec)
    ids_BLQ = make_ids(spec, 2).long()
    ids_BLQ[1, 30:] = 9
    shapes_BD = torch.tensor([[14, 16], [5, 6]])
    both_BC = model(ids_BLQ, shapes_BD=shapes_BD)
    torch.testing.assert_close(model(ids_BLQ[1:, :30], shapes_BD=shapes_BD[1:]), both_BC[1:])
    ids_BLQ[1, 29] = (ids_BLQ[1, 29] + 1) % 9
    assert (model(ids_BLQ, shapes_BD=shapes_BD)[1] - both_BC[1]).abs().max() > 1e-6


def test_a_mask_of_real_tokens_alone_is_no_mask() -> None:
    vit = make_vit(ConvStem(4, 32, (6, 6), (1, 1), overlap=True)).eval()
    x_BDHW = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(vit(x_BDHW, torch.ones(2, 6, 6, dtype=torch.bool)), vit(x_BDHW))


def test_drop_path_leaves_out_whole_samples_and_keeps_the_mean() -> None:
    vit = make_vit(ConvStem(4, 32, (6, 6), (1, 1), overlap=True), drop_path=0.5)
    assert [block.drop_path2.share for block in vit.blocks] == [0.0, 0.25, 0.5]
    assert len(drop_paths_of(vit)) == 4
    place = copy.deepcopy(vit.blocks[2].drop_path1)
    branch_BNE = torch.ones(4000, 2, 32)
    torch.manual_seed(1)
    kept_BNE = place(branch_BNE)
    assert set(kept_BNE.unique().tolist()) == {0.0, 2.0} and bool((kept_BNE == kept_BNE[:, :1, :1]).all())
    assert float(kept_BNE.mean()) == pytest.approx(1.0, abs=0.08)
    torch.manual_seed(1)
    assert torch.equal(place(branch_BNE), kept_BNE)
    draws_BN = torch.linspace(0, 0.999, 4000)[:, None]
    draw_paths([place], draws_BN)
    assert torch.equal(place(branch_BNE)[:, 0, 0], 2.0 * (draws_BN[:, 0] >= 0.5))
    assert torch.equal(place.eval()(branch_BNE), branch_BNE)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    spec = make_spec(grid(8, 8), (9,), None)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = make_classifier(spec, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected), "the global generator was used"
    second, third = make_classifier(spec, seed=1).state_dict(), make_classifier(spec, seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["backbone.head.weight"], third["backbone.head.weight"])
    assert not torch.equal(first["embedding.level_0"], third["embedding.level_0"])


def test_embeddings_are_standardised_unless_raw_ones_are_asked_for() -> None:
    spec = make_spec(grid(8, 8), (9,), (4,))
    tables, statistics = make_tables(spec), (np.full(4, 0.5, np.float32), np.full(4, 2.0, np.float32))
    ids_BLQ = make_ids(spec, 2)
    raw = build_classifier(spec, tables, statistics, ModelConfig(depth=1, raw_embeddings=True), 5).embed(ids_BLQ)
    torch.testing.assert_close(build_classifier(spec, tables, statistics, ModelConfig(depth=1), 5).embed(ids_BLQ), (raw - 0.5) / 2.0)


@pytest.mark.parametrize(("name", "expected"), [("vit_tiny", 5.7), ("vit_small", 21.7), ("vit_base", 85.8)])
def test_sizes_are_those_of_deit(name: str, expected: float) -> None:
    with torch.device("meta"):
        width, depth, heads = SIZES[name]
        stem = ConvStem(32, width, (28, 28), (2, 2), overlap=True)
        vit = VisionTransformer(stem, classes=1000, width=width, depth=depth, heads=heads)
    millions = sum(parameter.numel() for parameter in vit.parameters()) / 1e6
    assert millions == pytest.approx(expected, rel=0.02)


def test_weights_alone_are_decayed() -> None:
    model = make_classifier(make_spec(Layout(kind="pyramid", scales=((1, 1), (2, 2)), sites=5), (9,), None))
    decayed, spared = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {names.pop(id(p)).rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    left = {names.pop(id(p)) for p in spared["params"]}
    assert not names
    assert {"backbone.pos_embed", "backbone.cls_token", "backbone.patch_embed.scale_embed", "embedding.level_0"} <= left
    model.backbone.head.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == len(list(model.parameters())) - 2


def test_arguments_that_cannot_be_are_named() -> None:
    spec = make_spec(grid(8, 8), (9,), (4,))
    for config, expected in (
        (ModelConfig(name="vit_huge"), "vit_tiny, vit_small, vit_base, timm:NAME, or python:"),
        (ModelConfig(width=50, depth=1), None),
        (ModelConfig(width=200, depth=1), "width 200 and 3 heads"),
        (ModelConfig(name="timm:resnet18", depth=2), "leave them out"),
    ):
        if expected is None:
            make_classifier(spec, config)
            continue
        with pytest.raises(ConfigError, match=expected):
            make_classifier(spec, config)
    with pytest.raises(ConfigError, match="classes"):
        make_classifier(spec, classes=0)
    ragged = make_spec(Layout(kind="sequence", sites=4), (9,), (4,))
    with pytest.raises(ConfigError, match="needs a grid"):
        make_classifier(ragged, ModelConfig(name="timm:resnet18"))
