"""timm's backbones behind adaptors: what stage 1 gets, a training step, names that do not work."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.stem_adaptors.models.test_embedding import grid, make_ids, make_spec, make_tables
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.optional_packages import install_hint
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.classifier import build_classifier
from tokenshards.stem_adaptors.models.drop_path import draw_paths, drop_paths_of
from tokenshards.stem_adaptors.models.timm_backbones import build_timm_backbone

allow_torchvision()
pytest.importorskip("timm", reason="timm (an extra) is not installed")

FAMILIES: dict[str, tuple[dict[str, Any], str, tuple[int, ...], tuple[int, ...]]] = {
    # name: options that make it tiny, stage 1, what it gets from 28 x 28 tokens (as from 224 pixels) and from 14 x 14
    "vit_tiny_patch16_224": ({"depth": 1, "embed_dim": 48}, "blocks.0", (197, 48), (197, 48)),
    "deit_tiny_distilled_patch16_224": ({"depth": 1, "embed_dim": 48}, "blocks.0", (198, 48), (198, 48)),
    "swin_tiny_patch4_window7_224": ({"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2)}, "layers.0", (56, 56, 24), (56, 56, 24)),
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}, "stages.0", (8, 56, 56), (8, 56, 56)),
    "resnet50": ({"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}, "layer1", (64, 56, 56), (64, 56, 56)),
    "resnet26d": ({"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}, "layer1", (64, 56, 56), (64, 56, 56)),
    "regnety_002": ({}, "s1", (32, 112, 112), (32, 56, 56)),
    "mobilenetv3_small_050": ({}, "blocks", (16, 112, 112), (16, 56, 56)),
    "efficientnet_b0": ({}, "blocks", (32, 112, 112), (32, 56, 56)),
    "densenet121": ({"block_config": (1, 1), "growth_rate": 8}, "features.denseblock1", (16, 56, 56), (16, 56, 56)),
    "levit_128s": ({"embed_dim": (16, 16, 16), "depth": (1, 1, 1), "key_dim": 8}, "stages.0", (196, 16), (196, 16)),
}


def stage_input(model: nn.Module, stage: str, x: torch.Tensor) -> tuple[int, ...]:
    seen: list[Any] = []
    hooks = [m.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for m in model.get_submodule(stage).modules()]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return next(tuple(x.shape[1:]) for x in seen if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("name", FAMILIES)
def test_stage_1_gets_the_map_it_was_made_for_and_a_step_reaches_every_weight(name: str) -> None:
    options, stage, full, half = FAMILIES[name]
    model = build_timm_backbone(name, 5, (28, 28), 4, options=options)
    assert stage_input(model, stage, torch.randn(2, 5, 28, 28)) == full

    small = build_timm_backbone(name, 5, (14, 14), 4, options=options)
    x_BDHW, labels_B = torch.randn(4, 5, 14, 14), torch.arange(4)
    assert stage_input(small, stage, x_BDHW) == half
    stem = next(parameter for parameter in small.parameters() if parameter.ndim == 4)
    before = stem.detach().clone()
    optimiser = torch.optim.SGD(small.parameters(), lr=0.1)
    out = small.train()(x_BDHW)
    loss = F.cross_entropy(out[0] if isinstance(out, tuple) else out, labels_B)
    loss.backward()
    optimiser.step()
    assert bool(torch.isfinite(loss))
    assert not torch.equal(before, stem), "the adaptor learns"
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.parametrize(
    ("name", "sites"), [("vit_tiny_patch16_224", (8, 12)), ("swin_tiny_patch4_window7_224", (9, 12)), ("resnet18", (8, 12))]
)
def test_grids_that_are_no_square_and_no_power_of_two_run(name: str, sites: tuple[int, int]) -> None:
    model = build_timm_backbone(name, 3, sites, 4).eval()
    with torch.no_grad():
        assert tuple(model(torch.randn(1, 3, *sites)).shape) == (1, 4)


def test_what_a_timm_model_skips_belongs_to_the_sample() -> None:
    model = build_timm_backbone("resnet18", 3, (8, 8), 4, drop_path=0.9).train()
    for parameter in model.parameters():
        parameter.data.add_(0.5 * (parameter.ndim == 1))  # the scales of branches begin at 0
    places = drop_paths_of(model)
    assert len(places) > 4
    x_BDHW, draws_BN = torch.randn(1, 3, 8, 8).expand(6, -1, -1, -1), torch.zeros(6, len(places))
    draw_paths(places, draws_BN.index_fill(0, torch.tensor([1, 4]), 0.99))  # these two skip nothing
    found_BC = model(x_BDHW)
    torch.testing.assert_close(found_BC[1], found_BC[4])
    torch.testing.assert_close(found_BC[0], found_BC[5])
    assert not torch.allclose(found_BC[0], found_BC[1], atol=1e-4)


def test_a_classifier_takes_a_timm_backbone_by_name_and_its_weights_follow_the_seed() -> None:
    spec = make_spec(grid(16, 16), (9,), (4,))
    config = ModelConfig(name="timm:resnet18", drop_path=0.1)
    models = [build_classifier(spec, make_tables(spec), None, config, 3, (14, 14), seed=seed) for seed in (1, 1, 2)]
    first, second, third = (model.eval()(make_ids(spec, 2)) for model in models)
    assert tuple(first.shape) == (2, 3)
    assert torch.equal(first, second) and not torch.equal(first, third)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("no_such_model", {}, "timm has no model 'no_such_model'"),
        ("repvgg_a0", {}, "no single first convolution"),
        ("resnet18", {"wings": 2}, "wings"),
    ],
)
def test_models_that_cannot_be_used_are_named(name: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build_timm_backbone(name, 3, (14, 14), 4, options=options)


def test_without_timm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=re.escape(install_hint("timm"))):
        build_timm_backbone("resnet18", 3, (14, 14), 4)
