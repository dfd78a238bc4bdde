"""The model of masked token modelling against slow references, written from the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.stem_adaptors.augment.layouts import grid, ids_of, keys_of, pyramid, sequence, spec_of, tables_of, video
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import Layout
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models import mask_decoder
from tokenshards.stem_adaptors.models.mask_decoder import CodeHead
from tokenshards.stem_adaptors.models.masked import MaskedTokenModel, build_masked_model
from tokenshards.stem_adaptors.models.masks import MaskDraws, Masks

MODEL = ModelConfig(name="vit_nano", width=16, depth=2, heads=2, stem="patch", stem_patch=2, learned_codebook=True, embed_norm=True)
LAYOUTS = {
    "grid, two levels": grid(6, 6, 2),
    "not square, odd": grid(5, 8),
    "side by side": grid(4, 6, 2, combine="concat"),
    "video": video(2, 4, 6),
    "pyramid": pyramid((1, 1), (2, 3), (4, 6)),
    "sequence": sequence(11),
}
SOME = MaskConfig(decoder_depth=1, decoder_width=12, decoder_heads=3, predict_share=0.5)


def made(layout: Layout, config: MaskConfig | None = None) -> tuple[MaskedTokenModel, torch.Tensor, Masks]:
    """A model with weights that matter everywhere, ids of five samples, and their masks."""
    spec, config = spec_of(layout), config or MaskConfig(decoder_depth=1, decoder_width=12, decoder_heads=3)
    model = build_masked_model(spec, tables_of(spec), None, MODEL, config, None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model, ids_of(spec, 5).long(), MaskDraws(config, layout, model.backbone.patch_embed)(keys_of(5))


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_the_encoder_equals_a_full_one_in_which_nobody_attends_to_dropped_patches(name: str) -> None:
    model, ids_BLQ, masks = made(LAYOUTS[name])
    x = model.embedding(ids_BLQ)
    found = model.encode(x, masks)
    backbone, patches = model.backbone, masks.masked_BN.shape[1]
    for sample in range(5):
        tokens = backbone.patch_embed(x[sample : sample + 1])[0].clone()
        for patch in range(patches):
            if masks.masked_BN[sample, patch]:
                tokens[patch] = model.mask_token[0, 0]
        y = torch.cat([backbone.cls_token[0], tokens]) + backbone.pos_embed[0]
        kept = [0, *(1 + place for place in masks.kept_BK[sample].tolist())]
        allowed = torch.zeros(1 + patches, dtype=torch.bool)
        allowed[kept] = True
        y = y[None]
        for block in backbone.blocks:
            y = block(y, allowed[None, None, None])
        torch.testing.assert_close(found[sample], y[0, kept], rtol=1e-4, atol=1e-5)
        assert len(kept) < 1 + patches  # something was dropped


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_the_decoder_sees_the_class_output_at_hidden_patches(name: str) -> None:
    model, ids_BLQ, masks = made(LAYOUTS[name])
    encoded = model.encode(model.embedding(ids_BLQ), masks)
    found, decoder = model.decoder(encoded, masks), model.decoder
    for sample in range(5):
        seen = decoder.embed(decoder.norm_in(encoded[sample]))
        rows = [seen[0]]
        for patch in range(masks.masked_BN.shape[1]):
            places = masks.kept_BK[sample].tolist()
            visible = patch in places and not masks.masked_BN[sample, patch]
            rows.append(seen[1 + places.index(patch)] if visible else seen[0])
        y = (torch.stack(rows) + decoder.pos_embed[0])[None]
        for block in decoder.blocks:
            y = block(y, None)
        torch.testing.assert_close(found[sample], decoder.norm(y)[0, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("smoothing", "config"), [(0.0, None), (0.1, None), (0.1, SOME)])
@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_the_loss_is_the_mean_over_the_ids_of_hidden_patches(name: str, smoothing: float, config: MaskConfig | None) -> None:
    layout = LAYOUTS[name]
    model, ids_BLQ, masks = made(layout, config)
    x = model.embedding(ids_BLQ)
    found = model(x, ids_BLQ, masks, smoothing=smoothing)
    decoded = model.decoder(model.encode(x, masks), masks)
    tables = [table.detach() for table in model.embedding.tables()]
    widths = [table.shape[1] for table in tables]
    sites, best = model.sites_NP.tolist(), model.best_ids(x, masks)
    for sample in range(5):
        patches, hits, count, total = [], 0, 0, 0.0
        for patch, own_sites in enumerate(sites):
            if not masks.predicted_BN[sample, patch]:
                continue
            assert isinstance(model.head, CodeHead)
            vector = model.head.linear(decoded[sample, patch]).view(len(own_sites), -1)
            losses = []
            for place, site in enumerate(own_sites):
                if site < 0:
                    continue
                start = 0
                for level, (table, bias) in enumerate(zip(tables, model.head.biases, strict=True)):
                    part = F.gelu(vector[place, start : start + widths[level]])
                    normed = model.head.norms[level](part)
                    logs = torch.stack([normed @ row for row in table]).add(bias).log_softmax(0)
                    wanted = int(ids_BLQ[sample, site, level])
                    losses.append((1 - smoothing) * -logs[wanted] - smoothing * logs.mean())
                    hits, count, total = hits + int(logs.argmax() == wanted), count + 1, total - float(logs[wanted])
                    assert best[sample, site, level] == logs.argmax()
                    start += widths[level]
            patches.append(torch.stack(losses).mean())
        assert float(found.loss_B[sample]) == pytest.approx(float(torch.stack(patches).mean()), rel=1e-4)
        assert found.sums_B3[sample].tolist() == [hits, count, pytest.approx(total, rel=1e-4)]


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_a_patch_is_made_of_its_own_sites_alone(name: str) -> None:
    """A hidden patch must not shine through its neighbours."""
    layout = LAYOUTS[name]
    model, ids_BLQ, _ = made(layout)
    stem, x = model.backbone.patch_embed, model.embedding(ids_BLQ)
    before = stem(x)
    owner = {site: patch for patch, sites in enumerate(model.sites_NP.tolist()) for site in sites if site >= 0}
    assert sorted(owner) == list(range(layout.sites))  # every site belongs to one patch
    for site in range(layout.sites):
        changed = ids_BLQ.clone()
        changed[:, site] = (changed[:, site] + 1) % 23
        moved_N = (stem(model.embedding(changed)) - before).abs().amax((0, 2)) > 0
        assert moved_N.nonzero().flatten().tolist() == [owner[site]]


def test_codes_learn_from_the_input_alone() -> None:
    model, ids_BLQ, masks = made(grid(6, 6, 2))
    x = model.embedding(ids_BLQ)
    model(x.detach(), ids_BLQ, masks).loss_B.sum().backward()
    assert all(table.grad is None for table in model.embedding.parameters())
    assert all(bias.grad is not None and bias.grad.abs().sum() > 0 for bias in model.head.biases)
    model(x, ids_BLQ, masks).loss_B.sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum() > 0]
    assert missing == []


def test_what_is_hidden_decides_nothing() -> None:
    """Other ids in hidden patches leave the predictions as they are."""
    model, ids_BLQ, masks = made(grid(6, 6, 2))
    hidden = masks.masked_BN[..., None].expand(-1, -1, 4)
    other = ids_BLQ.clone()
    for sample in range(5):
        places = model.sites_NP[hidden[sample]]
        other[sample, places] = (other[sample, places] + 5) % 23
    assert not torch.equal(other, ids_BLQ)
    with torch.no_grad():
        found, expected = (model.decode(model.embedding(ids), masks) for ids in (other, ids_BLQ))
    assert torch.equal(found, expected)


def test_many_scores_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids_BLQ, masks = made(grid(6, 6, 2))

    def losses() -> tuple[Any, list[torch.Tensor]]:
        model.zero_grad()
        found = model(model.embedding(ids_BLQ), ids_BLQ, masks, smoothing=0.1)
        found.loss_B.sum().backward()
        return found, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    whole, gradients = losses()
    monkeypatch.setattr(mask_decoder, "PIECE_SCORES", 23 * 17)
    pieces, other = losses()
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(other, gradients)


def test_ragged_rows_count_what_they_have() -> None:
    layout = sequence(9, variable=True)
    spec = spec_of(layout)
    config = MaskConfig(decoder_depth=1)
    model = build_masked_model(spec, tables_of(spec), None, MODEL, config, None)
    torch.nn.init.ones_(model.backbone.patch_embed.embed_norm.bias)  # what a training may make of it
    lengths = torch.tensor([9, 4, 2])
    there_BL = torch.arange(9) < lengths[:, None]
    ids_BLQ = ids_of(spec, 3).long().masked_fill(~there_BL[..., None], 23)
    real_BN = model.backbone.patch_embed.token_mask(there_BL)
    masks = MaskDraws(config, layout, model.backbone.patch_embed)(keys_of(3), real_BN)
    with torch.no_grad():
        found = model(model.embedding(ids_BLQ), ids_BLQ, masks, there_BL)
        hidden_BL = masks.masked_BN.repeat_interleave(2, 1)[:, :9] & there_BL  # two sites a patch
        assert found.sums_B3[:, 1].tolist() == hidden_BL.sum(1).tolist()
        for sample, length in enumerate(lengths.tolist()):
            # The same row alone, without padding: the same predictions of its patches.
            row, own = ids_BLQ[sample : sample + 1, :length], slice(sample, sample + 1)
            assert masks.real_BN is not None
            alone = Masks(masks.kept_BK[own], masks.masked_BN[own], masks.predicted_BN[own], masks.real_BN[own])
            patches = -(-length // 2)
            own = model.decode(model.embedding(row), alone)[0, :patches]
            together = model.decode(model.embedding(ids_BLQ), masks)[sample, :patches]
            torch.testing.assert_close(own, together, rtol=1e-4, atol=1e-5)


def test_models_that_cannot_be_masked_are_refused() -> None:
    spec = spec_of(grid(6, 6))
    tables: dict[str, np.ndarray] = tables_of(spec)

    def build(**changes: Any) -> None:
        build_masked_model(spec, tables, None, ModelConfig(**{"name": "vit_nano", "learned_codebook": True, **changes}), MaskConfig(), None)

    with pytest.raises(ConfigError, match=r"patches overlap.*--set model.stem=patch"):
        build()
    with pytest.raises(ConfigError, match=r"model 'timm:resnet18'; expected one of our ViTs"):
        build(name="timm:resnet18")
    with pytest.raises(ConfigError, match=r"--set model.learned_codebook=true"):
        build(stem="patch", learned_codebook=False)
    with pytest.raises(ConfigError, match="mask.decoder_width 10 and 3 heads"):
        build_masked_model(spec, tables, None, MODEL, MaskConfig(decoder_width=10, decoder_heads=3), None)
