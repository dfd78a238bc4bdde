"""CutMix with labels by attention (Token-Label Alignment), against loops over blocks, heads and tokens written from the paper's formula."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.stem_adaptors.augment.layouts import grid, keys_of, pyramid, sequence, spec_of, tables_of, video
from tests.stem_adaptors.augment.test_embed_ops import box_by_loop, draw_lambda
from tests.stem_adaptors.augment.test_transform import OFF, batch_of, embedded, transform_of
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment import TokenTransform, allowed_augmentations, soft_targets
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.blocks import Block
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, VisionTransformer, build_classifier
from tokenshards.stem_adaptors.models.stems import ConvStem
from tokenshards.stem_adaptors.objectives.base import Blueprint
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective

MODEL = ModelConfig(name="vit_nano", width=16, depth=3, heads=2, learned_codebook=True)
CUT = dataclasses.replace(OFF, cutmix_prob=1.0, cutmix_labels="attention")
LAYOUTS = [grid(12, 12), grid(6, 10, 2), grid(13, 15), video(3, 6, 4)]


def classifier_for(transform: TokenTransform, spec: TokenizerSpec, **changes: Any) -> TokenClassifier:
    """A classifier with weights so large that its attention is far from uniform."""
    model = build_classifier(spec, tables_of(spec), None, dataclasses.replace(MODEL, **changes), 5, transform.out_grid)
    with torch.no_grad():
        for block in model.backbone.blocks:  # type: ignore[union-attr]
            block.attn.qkv.weight.mul_(30)
    return model


def replaced_by_loop(batch: Batch, sites: tuple[int, ...], groups: int) -> Tensor:
    """Whether each site lies in the box of its sample's group, from the definition of the box."""
    keys = keys_of(len(batch.ids_BLQ))
    replaced = torch.zeros(len(keys), *sites, dtype=torch.bool)
    for group in range(groups):
        lam = float(draw_lambda(keys[group : group + 1], 1.0))
        for row, column in box_by_loop(keys[group : group + 1], sites[-2], sites[-1], lam):
            replaced[group::groups, ..., row, column] = True
    return replaced


def shares_by_loop(backbone: VisionTransformer, x: Tensor, replaced: Tensor) -> list[float]:
    """The partner's share of what the head reads, sample by sample: labels go through each block along attention and residual path."""
    stem = backbone.patch_embed
    assert isinstance(stem, ConvStem)
    found = []
    for sample in range(len(x)):
        tokens, _ = backbone.tokens(x[sample : sample + 1])
        count = tokens.shape[1]
        own: list[list[bool]] = [[] for _ in range(count - 1)]
        for place in torch.cartesian_prod(*map(torch.arange, stem.sites)).tolist():
            at = [where // side for where, side in zip(place, stem.step, strict=True)]
            number = at[0]
            for side, where in zip(stem.grid[1:], at[1:], strict=True):
                number = number * side + where
            own[number].append(bool(replaced[(sample, *place)]))
        labels = [float(replaced[sample].float().mean()), *(sum(sites) / len(sites) for sites in own)]
        for block in backbone.blocks:
            assert isinstance(block, Block)
            q, k, _ = block.attn.qkv(block.norm1(tokens)).view(count, 3, block.attn.heads, -1).unbind(1)
            aligned = []
            for token in range(count):
                share = 0.0
                for head in range(block.attn.heads):
                    scores = [float(q[token, head] @ k[other, head]) / math.sqrt(q.shape[-1]) for other in range(count)]
                    powers = [math.exp(score - max(scores)) for score in scores]
                    share += sum(power * label for power, label in zip(powers, labels, strict=True)) / sum(powers)
                aligned.append((share / block.attn.heads + labels[token]) / 2)
            labels = aligned
            tokens = block(tokens, None)
        found.append(sum(labels[1:]) / (count - 1))
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_labels_follow_attention_as_the_formula_says(layout: Layout) -> None:
    spec = spec_of(layout)
    transform = transform_of(spec, dataclasses.replace(CUT, mix_group=2))
    model, batch = classifier_for(transform, spec), batch_of(spec, 6)
    with torch.no_grad():
        inputs = transform.inputs(model, batch)
        found = transform.transformed(model, inputs)
        assert found.cut is not None
        replaced = replaced_by_loop(batch, layout.grid, 3)
        assert torch.equal(found.cut.replaced, replaced)
        x = model.embed(inputs.ids_BLQ)
        partners = torch.tensor([3, 4, 5, 0, 1, 2])
        assert torch.equal(found.x, torch.where(replaced[:, None], x[partners], x))
        backbone = model.require_label_shares()
        shares = shares_by_loop(backbone, found.x, replaced)
        areas = replaced.flatten(1).float().mean(1).tolist()
        assert max(abs(share - area) for share, area in zip(shares, areas, strict=True)) > 0.01, "attention makes a difference"
        logits_BC, shares_B = model.classify_with_shares(found.x, replaced)
        assert torch.equal(logits_BC, model.classify(found.x))
        assert shares_B.tolist() == pytest.approx(shares, abs=1e-5)
        own_BC = soft_targets(batch.labels_B, 5, 0.1)
        loss_B, answers_BC = transform.answers(model, inputs)
        assert torch.equal(answers_BC, logits_BC)
    for sample, share in enumerate(shares):
        target = (1 - share) * own_BC[sample] + share * own_BC[partners[sample]]
        assert float(loss_B[sample]) == pytest.approx(-float(target @ logits_BC[sample].log_softmax(0)), abs=1e-5)


@pytest.mark.parametrize("layout", [grid(12, 12), grid(6, 10, 2), video(3, 6, 4)], ids=str)
def test_with_uniform_attention_the_labels_are_those_of_the_area(layout: Layout) -> None:
    """A token becomes the mean of all tokens, class token included, and of itself: that leaves the mean over the tokens as it was."""
    spec = spec_of(layout)
    losses = []
    for labels in ("attention", "area"):
        transform = transform_of(spec, dataclasses.replace(CUT, cutmix_labels=labels))
        model = classifier_for(transform, spec)
        with torch.no_grad():
            for block in model.require_label_shares().blocks:
                block.attn.qkv.weight[: MODEL.width].zero_()  # type: ignore[union-attr, index]
                block.attn.qkv.bias[: MODEL.width].zero_()  # type: ignore[union-attr, index]
        losses.append(transform.answers(model, transform.inputs(model, batch_of(spec, 6)))[0])
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-6)


def test_gradients_are_those_of_the_shares_as_constants() -> None:
    spec = spec_of(grid(6, 6))
    transform = transform_of(spec, CUT)
    model, batch = classifier_for(transform, spec), batch_of(spec, 4)
    transform.loss(model, batch).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in expected.values())
    model.zero_grad(set_to_none=True)
    found = transform.transformed(model, transform.inputs(model, batch))
    assert found.cut is not None
    _, shares_B = model.classify_with_shares(found.x, found.cut.replaced)
    assert not shares_B.requires_grad
    targets_BC = torch.lerp(found.targets_BC, found.cut.targets_BC, shares_B[:, None])
    torch.nn.functional.cross_entropy(model.classify(found.x), targets_BC).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_the_shares_are_float32_under_autocast() -> None:
    spec = spec_of(grid(12, 12))
    transform = transform_of(spec, CUT)
    model, batch = classifier_for(transform, spec), batch_of(spec, 6)
    inputs = transform.inputs(model, batch)
    found = transform.transformed(model, inputs)
    assert found.cut is not None
    with torch.no_grad():
        _, exact_B = model.classify_with_shares(found.x, found.cut.replaced)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits_BC, shares_B = model.classify_with_shares(found.x, found.cut.replaced)
            loss_B, _ = transform.answers(model, inputs)
    assert shares_B.dtype == logits_BC.dtype == loss_B.dtype == torch.float32
    torch.testing.assert_close(shares_B, exact_B, rtol=0, atol=0.02)  # queries and keys are bf16
    everything = torch.ones_like(found.cut.replaced)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.classify_with_shares(found.x, everything)[1], torch.ones(6), rtol=0, atol=1e-6)


MIXED = "rrc(share=1), one_of(0.4*cutmix(labels='attention'), 0.4*mixup())"
HALVES = "half_batch([noise(), cutmix(labels='attention')], [color_adapt()]), quantise()"
SOME_HALVES = "one_of(0.5*half_batch([cutmix(labels='attention')], [noise()]), 0.4*half_batch([noise()], [mixup()]))"


@pytest.mark.parametrize("text", ["cutmix(labels='attention')", MIXED, HALVES])
def test_ranks_and_micro_batches_get_what_the_whole_batch_gets(text: str) -> None:
    spec = spec_of(grid(8, 6))
    transform = transform_of(spec, AugmentConfig(ops=text, mix_group=4))
    model, batch = classifier_for(transform, spec), batch_of(spec, 16)
    loss_B, logits_BC = transform.answers(model, transform.inputs(model, batch))
    for ranks in (2, 4):
        for rank in range(ranks):
            part = batch[rank::ranks]  # type: ignore[index]
            own_B, own_BC = transform.answers(model, transform.inputs(model, part))
            torch.testing.assert_close(own_BC, logits_BC[rank::ranks], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(own_B, loss_B[rank::ranks], rtol=1e-5, atol=1e-5)


def test_samples_that_are_not_cut_keep_their_targets() -> None:
    spec = spec_of(grid(8, 8))
    batch = batch_of(spec, 16)
    for text in (MIXED, HALVES, SOME_HALVES):
        transform = transform_of(spec, AugmentConfig(ops=text, mix_group=4))
        plain = transform_of(spec, AugmentConfig(ops=text.replace("labels='attention'", ""), mix_group=4))
        model = classifier_for(transform, spec)
        found, area = (one.transformed(model, one.inputs(model, batch)) for one in (transform, plain))
        assert found.cut is not None and area.cut is None and torch.equal(found.x, area.x)
        cut_B = found.cut.replaced.flatten(1).any(1)
        assert 0 < int(cut_B.sum()) < 16
        assert torch.equal(found.targets_BC[~cut_B], area.targets_BC[~cut_B])
        loss_B, other_B = (one.answers(model, one.inputs(model, batch))[0] for one in (transform, plain))
        torch.testing.assert_close(loss_B[~cut_B], other_B[~cut_B])
        assert (loss_B[cut_B] - other_B[cut_B]).abs().max() > 1e-4


def test_fields_and_text_say_the_same_and_the_default_is_the_area() -> None:
    spec = spec_of(grid(8, 8))
    batch = batch_of(spec, 8)
    fields, text = (
        transform_of(spec, config)
        for config in (dataclasses.replace(CUT, mix_group=4), AugmentConfig(ops="cutmix(alpha=1, labels='attention')", mix_group=4))
    )
    model = classifier_for(fields, spec)
    loss_B, other_B = (one.answers(model, one.inputs(model, batch))[0] for one in (fields, text))
    assert torch.equal(loss_B, other_B)
    assert "cutmix(alpha=1, labels='attention')" in repr(fields) and fields.needs_label_shares
    assert not transform_of(spec, AugmentConfig()).needs_label_shares
    assert allowed_augmentations(spec_of(pyramid((1, 1), (4, 4))), CUT).cutmix_alpha == 0


@pytest.mark.parametrize(
    "text",
    [
        "cutmix(labels='attention'), noise()",
        "one_of(0.5*cutmix(labels='attention')), quantise(), mixup()",
        "half_batch([cutmix(labels='attention'), rrc(share=1)], [noise()])",
        "half_batch([cutmix(labels='attention')], [noise()]), drop_sites()",
    ],
)
def test_what_follows_the_cut_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"follows cutmix\(labels='attention'\); expected it to come last"):
        transform_of(spec_of(grid(8, 8)), AugmentConfig(ops=text))


def test_refusals_are_sentences() -> None:
    with pytest.raises(ConfigError, match="cutmix_labels is 'heads'; expected area or attention"):
        AugmentConfig(cutmix_labels="heads")
    with pytest.raises(ConfigError, match="cutmix: labels is 'heads'; expected area or attention"):
        transform_of(spec_of(grid(8, 8)), AugmentConfig(ops="cutmix(labels='heads')"))
    with pytest.raises(ConfigError, match="cutmix means nothing in a layout of kind sequence"):
        transform_of(spec_of(sequence(9)), AugmentConfig(ops="cutmix(labels='attention')"))
    spec = spec_of(grid(8, 8))
    transform = transform_of(spec, CUT)
    with pytest.raises(ConfigError, match=r"depend on what the model computes; expected a call of transform.loss\(model, batch\)"):
        transform(embedded(spec), batch_of(spec, 4))


OWN = "python:tests.stem_adaptors.models.own_modules"


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (ModelConfig(name=f"{OWN}:WithHead"), "model, a WithHead,"),
        (dataclasses.replace(MODEL, stem=f"{OWN}:make_stem"), "stem"),
        (ModelConfig(name="timm:vit_tiny_patch16_224"), "model, a .*"),
    ],
    ids=["own model", "own stem", "timm"],
)
def test_models_whose_attention_cannot_be_followed_are_refused_before_a_step(model: ModelConfig, what: str) -> None:
    if model.name.startswith("timm:"):
        allow_torchvision()
        pytest.importorskip("timm", reason="timm (an extra) is not installed")
    spec = spec_of(grid(8, 8))
    parts: dict[str, Any] = {"spec": spec, "tables": tables_of(spec), "statistics": None, "classes": (0, 1, 2), "draws": DRAWS}
    message = f"the attention of this {what} cannot be followed; expected one of vit_nano, .* or labels='area'"
    with pytest.raises(ConfigError, match=message):
        ClassifyObjective.build(Blueprint(**parts, model=model, augment=CUT))
    ClassifyObjective.build(Blueprint(**parts, model=model, augment=dataclasses.replace(CUT, cutmix_labels="area")))


@pytest.mark.parametrize("text", [MIXED, HALVES])
def test_one_graph_holds_operations_and_shares(text: str) -> None:
    spec = spec_of(grid(8, 6))
    plain, compiled = (transform_of(spec, AugmentConfig(ops=text, mix_group=4)) for _ in range(2))
    model, batch = classifier_for(plain, spec, depth=1), batch_of(spec, 8)
    torch._dynamo.reset()
    compiled.compile(backend="aot_eager")
    found, expected = (one.loss(model, batch) for one in (compiled, plain))
    torch._dynamo.reset()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
