"""Weights from files: names, shapes, positions of another grid; parts of a model that are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from tests.stem_adaptors.models.test_embedding import grid, make_ids, make_spec, make_tables
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import Layout
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, VisionTransformer, build_classifier
from tokenshards.stem_adaptors.models.stems import ConvStem
from tokenshards.stem_adaptors.training.pretrained import load_pretrained, trainable_parameters


def make_vit(side: int = 6, channels: int = 4, classes: int = 5, seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(ConvStem(channels, 32, (side, side), (1, 1), overlap=True), classes=classes, width=32, depth=2, heads=2)


def make_classifier(learned: bool = False, layout: Layout | None = None) -> TokenClassifier:
    spec = make_spec(layout or grid(6, 6), (9,), (4,))
    return build_classifier(
        spec, make_tables(spec), None, ModelConfig(depth=2, width=32, heads=2, learned_codebook=learned), 5, seed=7
    ).eval()


def save(path: Path, state: dict[str, Any]) -> str:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path)


@pytest.mark.parametrize(
    "wrapped", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": {f"module.{n}": t for n, t in s.items()}}]
)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_checkpoint_of_torch_is_loaded_whole(tmp_path: Path, wrapped: Any, suffix: str) -> None:
    source, target = make_vit(seed=1).eval(), make_vit(seed=2).eval()
    report = load_pretrained(target, save(tmp_path / f"weights{suffix}", wrapped(source.state_dict())))
    x_BDHW = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(target(x_BDHW), source(x_BDHW))
    assert set(report.loaded) == set(source.state_dict()) and not report.fresh and not report.ignored


def test_a_prefix_is_what_lies_before_the_names_of_the_model(tmp_path: Path) -> None:
    """A module of the model's own may have the name of a wrapper, and averaged weights may lie beside the ones wanted."""

    class Own(nn.Module):
        def __init__(self, fill: float) -> None:
            super().__init__()
            self.model = nn.Linear(3, 2)
            nn.init.constant_(self.model.weight, fill)

    state = Own(1.0).state_dict()
    for prefix in ("", "module.", "a.b."):
        target = Own(0.0)
        extra = {f"ema.{name}": -tensor for name, tensor in state.items()} if prefix == "module." else {"steps": torch.tensor(3)}
        path = save(tmp_path / "own.pt", {f"{prefix}{name}": tensor for name, tensor in state.items()} | extra)
        assert not load_pretrained(target, path).fresh and bool((target.model.weight == 1).all())


def test_a_run_s_weights_fill_the_backbone_and_leave_the_codebook(tmp_path: Path) -> None:
    source, target = make_classifier(), make_classifier()
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.add_(torch.randn_like(tensor))
    codes_KD = target.embedding.level_0.clone()
    report = load_pretrained(target, save(tmp_path / "weights.safetensors", source.state_dict()))
    assert torch.equal(target.embedding.level_0, codes_KD)
    assert report.ignored == ("embedding.level_0",) and not report.fresh
    assert "they learned from other code vectors than the model's" in str(report)
    same = load_pretrained(target, save(tmp_path / "same.safetensors", make_classifier().state_dict()))
    assert not same.other_codes and "code vectors" not in str(same)
    load_pretrained(target, str(tmp_path / "weights.safetensors"))
    for name, tensor in source.backbone.state_dict().items():
        assert torch.equal(target.backbone.state_dict()[name], tensor)


def test_stem_and_head_of_another_shape_stay_fresh_and_positions_are_interpolated(tmp_path: Path) -> None:
    pixels = make_vit(side=10, channels=3, classes=8)
    target = make_classifier()
    fresh = {name: tensor.clone() for name, tensor in target.backbone.state_dict().items()}
    report = load_pretrained(target, save(tmp_path / "pixels.safetensors", pixels.state_dict()))
    assert set(report.fresh) == {"head.bias", "head.weight", "patch_embed.proj.weight"}
    assert set(report.ignored) == {"head.bias", "head.weight", "patch_embed.proj.weight"}
    assert "3 left fresh" in str(report) and "head.bias" in str(report)
    state = target.backbone.state_dict()
    assert all(torch.equal(state[name], fresh[name]) for name in report.fresh)
    positions_1NE = pixels.pos_embed.detach()
    map_1EHW = positions_1NE[:, 1:].transpose(1, 2).reshape(1, 32, 10, 10)
    expected_1EHW = F.interpolate(map_1EHW, (6, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(state["pos_embed"][:, 1:], expected_1EHW.flatten(2).transpose(1, 2))
    torch.testing.assert_close(state["pos_embed"][:, :1], positions_1NE[:, :1])


def test_positions_of_a_distilled_model_lose_the_second_class_token(tmp_path: Path) -> None:
    source, target = make_vit(), make_vit(seed=3)
    state = source.state_dict()
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], torch.ones(1, 1, 32), state["pos_embed"][:, 1:]], dim=1)
    load_pretrained(target, save(tmp_path / "distilled.pt", state))
    torch.testing.assert_close(target.pos_embed, source.pos_embed)


def test_positions_of_a_sequence_are_interpolated_along_it(tmp_path: Path) -> None:
    source = make_classifier(layout=Layout(kind="sequence", sites=10))
    target = make_classifier(layout=Layout(kind="sequence", sites=20))
    load_pretrained(target, save(tmp_path / "sequence.pt", source.state_dict()))
    row_1EN = source.backbone.pos_embed.detach()[:, 1:].transpose(1, 2)
    torch.testing.assert_close(target.backbone.pos_embed[:, 1:], F.interpolate(row_1EN, 20, mode="linear").transpose(1, 2))


def test_what_is_no_checkpoint_or_fits_nothing_is_named(tmp_path: Path) -> None:
    model = make_vit()
    (tmp_path / "noise.pt").write_bytes(b"this is no archive" * 9)
    (tmp_path / "noise.safetensors").write_bytes(b"this is no archive" * 9)
    for name in ("noise.pt", "noise.safetensors"):
        with pytest.raises(ConfigError, match=f"{name}: not a readable checkpoint"):
            load_pretrained(model, str(tmp_path / name))
    with pytest.raises(ConfigError, match="not a readable checkpoint"):
        load_pretrained(model, save(tmp_path / "object.pt", {"model": nn.Linear(2, 2)}))
    with pytest.raises(ConfigError, match="holds list"):
        load_pretrained(model, save(tmp_path / "list.pt", [torch.zeros(2)]))  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match="none of its 2 weights fits"):
        load_pretrained(model, save(tmp_path / "other.pt", {"layer1.weight": torch.zeros(3, 3), "head.bias": torch.zeros(5)}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("part", "learned", "expected"),
    [
        ("head", True, {"backbone.head"}),
        (
            "attention",
            False,
            {"backbone.head", "backbone.patch_embed.proj", *(f"backbone.blocks.{i}.attn.{n}" for i in range(2) for n in ("qkv", "proj"))},
        ),
        (
            "attention",
            True,
            {"embedding", "backbone.head", "backbone.patch_embed.proj"}
            | {f"backbone.blocks.{i}.attn.{n}" for i in range(2) for n in ("qkv", "proj")},
        ),
    ],
)
def test_one_part_is_trained_and_nothing_else_moves(part: str, learned: bool, expected: set[str]) -> None:
    model = make_classifier(learned).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.SGD(trainable_parameters(model, part), lr=0.5)
    ids_BLQ = make_ids(make_spec(grid(6, 6), (9,), (4,)), 5)
    F.cross_entropy(model(ids_BLQ), torch.arange(5)).backward()
    optimiser.step()
    moved = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == expected
    assert len(trainable_parameters(model, "all")) == len(before) and all(p.requires_grad for p in model.parameters())


def seit_state(source: nn.Module) -> dict[str, torch.Tensor]:
    """The names of SeiT's trained-vit.ckpt, below "model": timm's, with the norm after the mean as `norm`."""
    return {name.replace("fc_norm.", "norm."): tensor for name, tensor in source.state_dict().items()}


def test_seits_norm_after_the_mean_is_ours(tmp_path: Path) -> None:
    source, target = make_vit(seed=1).eval(), make_vit(seed=2).eval()
    nn.init.normal_(source.fc_norm.weight), nn.init.normal_(source.fc_norm.bias)
    report = load_pretrained(target, save(tmp_path / "trained-vit.ckpt", {"model": seit_state(source)}))
    x_BDHW = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(target(x_BDHW), source(x_BDHW), rtol=0, atol=0)
    assert not report.fresh and not report.ignored and report.renamed == ("norm.weight", "norm.bias")


def test_a_part_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="expected all, head or attention"):
        trainable_parameters(make_vit(), "tail")


def test_weights_of_timm_fit_timms_and_ours(tmp_path: Path) -> None:
    allow_torchvision()
    timm = pytest.importorskip("timm", reason="timm (an extra) is not installed")
    from tokenshards.stem_adaptors.models.timm_backbones import build_timm_backbone

    options = {"depth": 2, "embed_dim": 192}
    path = save(tmp_path / "timm.safetensors", timm.create_model("vit_tiny_patch16_224", **options).state_dict())
    theirs = build_timm_backbone("vit_tiny_patch16_224", 5, (8, 8), 3, options=options)
    report = load_pretrained(theirs, path)
    assert set(report.fresh) == {"head.weight", "head.bias", "patch_embed.proj.weight"}
    assert {p.shape for p in trainable_parameters(theirs, "attention")} > {theirs.head.weight.shape, theirs.patch_embed.proj.weight.shape}
    ours = VisionTransformer(ConvStem(5, 192, (8, 8), (1, 1), overlap=True), classes=3, width=192, depth=2, heads=3)
    report = load_pretrained(ours, path)
    assert {name for name in report.fresh if not name.startswith(("head.", "fc_norm."))} == {"patch_embed.proj.weight"}
    assert report.renamed == ("norm.weight", "norm.bias") and "norm.* taken as fc_norm.*" in str(report)
    assert set(report.ignored) == {"head.weight", "head.bias", "patch_embed.proj.weight"}
    with pytest.raises(ConfigError, match="attention"):
        trainable_parameters(build_timm_backbone("resnet18", 3, (8, 8), 2), "attention")
