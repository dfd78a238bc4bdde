"""Segmenters: heads against plain maths, names of a classifier, what they refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.stem_adaptors.augment.layouts import grid, ids_of, pyramid, sequence, spec_of, tables_of
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.classifier import build_classifier
from tokenshards.stem_adaptors.models.segment_heads import PyramidHead, pyramid_blocks
from tokenshards.stem_adaptors.models.segmenter import TokenSegmenter, build_segmenter
from tokenshards.stem_adaptors.segment_config import SegmentConfig
from tokenshards.stem_adaptors.training.pretrained import load_pretrained, trainable_parameters

MODEL = ModelConfig(name="vit_nano", width=16, depth=3, heads=2, stem="patch", stem_patch=2)


def segmenter(spec: TokenizerSpec, head: str = "linear", seed: int = 0, **changes: object) -> TokenSegmenter:
    config = dataclasses.replace(MODEL, **changes)  # type: ignore[arg-type]
    return build_segmenter(spec, tables_of(spec), None, config, SegmentConfig(head=head, channels=8), 5, seed=seed).eval()


@pytest.mark.parametrize("head", ["linear", "upernet"])
@pytest.mark.parametrize("sites", [(8, 8), (6, 10)], ids=str)
def test_every_pixel_gets_a_score_of_each_class(sites: tuple[int, int], head: str) -> None:
    spec = spec_of(grid(*sites, levels=2))
    model, ids_BLQ = segmenter(spec, head), ids_of(spec, 3)
    logits = model.segment(model.embed(ids_BLQ), (24, 32))
    assert logits.shape == (3, 5, 24, 32) and logits.dtype == torch.float32
    assert torch.equal(model(ids_BLQ), model.segment(model.embed(ids_BLQ), sites))
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_linear_head_classifies_the_normed_tokens_where_they_lie() -> None:
    spec = spec_of(grid(8, 6))
    model, ids_BLQ = segmenter(spec), ids_of(spec, 2)
    backbone = model.backbone
    x = model.embed(ids_BLQ)
    tokens_BNE = backbone.fc_norm(backbone.forward_features(x)[:, 1:])
    scores = torch.zeros(2, 5, 4, 3)
    for row in range(4):
        for column in range(3):
            scores[:, :, row, column] = backbone.head.classify(tokens_BNE[:, row * 3 + column])  # type: ignore[operator]
    torch.testing.assert_close(model.segment(x, (16, 12)), F.interpolate(scores, (16, 12), mode="bilinear", align_corners=False))


def test_the_pyramid_reads_the_ends_of_four_quarters() -> None:
    assert pyramid_blocks(12) == (2, 5, 8, 11) and pyramid_blocks(4) == (0, 1, 2, 3) and pyramid_blocks(1) == (0, 0, 0, 0)
    spec = spec_of(grid(8, 8))
    model = segmenter(spec, "upernet", depth=6)
    assert model.read_blocks == (1, 2, 3, 5)
    head = model.backbone.head
    assert isinstance(head, PyramidHead)
    levels = [torch.randn(2, 16, 5, 7) for _ in range(4)]
    assert head(levels).shape == (2, 5, 20, 28)
    for number in range(4):  # each level has a part in the result
        changed = [level + (place == number) for place, level in enumerate(levels)]
        assert not torch.allclose(head(changed), head(levels), atol=1e-4), number
    with torch.no_grad():
        head.fuse[0].weight[:, :-8] = 0  # what is fused is the finest level alone: the others reach it from above
    for number in range(4):
        changed = [level + 3 * (place == number) for place, level in enumerate(levels)]
        assert not torch.allclose(head(changed), head(levels), atol=1e-4), number


def test_a_sample_does_not_depend_on_its_batch() -> None:
    spec = spec_of(grid(8, 8))
    model, ids_BLQ = segmenter(spec, "upernet").train(), ids_of(spec, 4)
    torch.testing.assert_close(model(ids_BLQ)[:1], model(ids_BLQ[:1]))


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_a_classifier_of_images_fills_all_but_the_head(head: str, tmp_path: Path) -> None:
    spec = spec_of(grid(8, 8))
    classifier = build_classifier(spec, tables_of(spec), None, MODEL, 9, seed=7)
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    model = segmenter(spec, head)
    report = load_pretrained(model, str(tmp_path / "classifier.safetensors"))
    assert all(name.startswith("head.") for name in report.fresh) and set(report.ignored) == {
        "head.weight",
        "head.bias",
        "embedding.level_0",
    }
    for name, tensor in classifier.backbone.state_dict().items():
        assert name.startswith("head.") or torch.equal(model.backbone.state_dict()[name], tensor), name


def test_a_linear_probe_trains_the_head_alone() -> None:
    model = segmenter(spec_of(grid(8, 8)))
    assert {tuple(parameter.shape) for parameter in trainable_parameters(model, "head")} == {(5, 16), (5,)}


def test_first_weights_depend_on_the_seed_alone() -> None:
    spec = spec_of(grid(8, 8))
    first, again, other = (segmenter(spec, "upernet", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(name.startswith("backbone.head.fuse") and not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("layout", "changes", "word"),
    [
        (sequence(16), {}, "sequence"),
        (pyramid((1, 1), (4, 4)), {}, "pyramid"),
        (grid(8, 8, variable=True), {}, "varying size"),
        (grid(8, 8), {"name": "timm:resnet18", "width": None, "depth": None, "heads": None}, "timm:resnet18"),
    ],
)
def test_tokens_and_models_without_a_plane_are_refused(layout: object, changes: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        segmenter(spec_of(layout), **changes)  # type: ignore[arg-type]
