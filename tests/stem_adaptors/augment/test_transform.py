"""All augmentations together: what each layout allows, that numbers belong to samples, and that every layout trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.pipeline.shards.samples import LAYOUTS, make_tokens
from tests.stem_adaptors.augment.layouts import (
    Given,
    batch_at,
    grid,
    ids_of,
    keys_of,
    pyramid,
    sequence,
    spec_of,
    tables_of,
    video,
)
from tests.stem_adaptors.augment.test_embed_ops import draw_lambda, sides_of
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment import (
    TokenTransform,
    allowed_augmentations,
    crops,
    default_augmentations,
    embed_ops,
    index_ops,
    mix_group_size,
    soft_targets,
)
from tokenshards.stem_adaptors.augment.token_model import Lookup
from tokenshards.stem_adaptors.config import AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.classifier import build_classifier
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding

OFF = dataclasses.replace(AugmentConfig.off(), crop_share=1.0)
EVERYTHING = AugmentConfig(
    flip_prob=0.5, dropout_prob=0.1, coloradapt_prob=0.5, noise_prob=0.5, cutmix_prob=1.0, mixup_alpha=1.0, swap_max_share=0.5
)
ONE_BY_ONE = AugmentConfig(flip_prob=0.5, dropout_prob=0.1, noise_prob=0.5, cutmix_prob=0.0, swap_max_share=0.5)
"""Everything that looks at one sample alone."""


def batch_of(spec: TokenizerSpec, samples: int, seed: int = 0) -> Batch:
    """A batch as the loader gives it, padded with the pad id where the layout varies."""
    tokens = make_tokens(spec, samples, seed)
    ids_BLQ, lengths_B, shapes_BD = torch.from_numpy(tokens.ids_BLQ.astype(np.int32)), None, None
    if tokens.shapes_BD is not None:
        shapes_BD = torch.from_numpy(tokens.shapes_BD.astype(np.int64))
        lengths_B = shapes_BD.prod(1)
    elif tokens.lengths_B is not None:
        lengths_B = torch.from_numpy(tokens.lengths_B.astype(np.int64))
    positions_B = torch.arange(samples)
    batch = Batch(ids_BLQ, positions_B % 5, torch.ones(samples), positions_B, positions_B, 1, 3, lengths_B, shapes_BD)
    if batch.mask_BL is None:
        return batch
    return dataclasses.replace(batch, ids_BLQ=ids_BLQ.masked_fill(~batch.mask_BL[..., None], max(spec.vocabulary)))


def picked(batch: Batch, rows: list[int]) -> Batch:
    """Some samples in some order, as another rank would see them: without padding that only longer rows need."""
    taken = batch[torch.tensor(rows)]  # type: ignore[index]
    if taken.lengths_B is None:
        return taken
    return dataclasses.replace(taken, ids_BLQ=taken.ids_BLQ[:, : int(taken.lengths_B.max())])


def transform_of(spec: TokenizerSpec, config: AugmentConfig, **options: Any) -> TokenTransform:
    return TokenTransform(spec, tables_of(spec) if spec.codebook is not None else {}, config, 5, 0.1, **options)


def embedded(spec: TokenizerSpec) -> Lookup:
    return Lookup(TokenEmbedding(spec, tables_of(spec)))


def every_layout(test: Callable[..., None]) -> Any:
    return pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())(test)


# Training


@every_layout
@pytest.mark.parametrize("codebook", ["stored", "learned", "none"])
def test_every_layout_trains_with_its_default_augmentations(layout: Layout, codebook: str) -> None:
    spec = spec_of(layout)
    if codebook == "none":
        spec = dataclasses.replace(spec, codebook=None)
    tables = {} if codebook == "none" else tables_of(spec)
    transform = transform_of(spec, default_augmentations(spec))
    config = ModelConfig(depth=1, width=16, heads=2, learned_codebook=codebook == "learned")
    model = build_classifier(spec, tables, None, config, 5, transform.out_grid)
    batch = batch_of(spec, 7)
    x, targets_BC, mask = transform(model, batch)
    loss = -(targets_BC * model.classify(x, mask).log_softmax(1)).sum(1).mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    model.eval()
    with torch.inference_mode():
        logits_BC = model(batch.ids_BLQ, mask_BL=batch.mask_BL, shapes_BD=batch.shapes_BD)
        assert logits_BC.shape == (7, 5) and logits_BC.isfinite().all()
        if not layout.variable:
            x = transform.evaluation(model.embed(batch.ids_BLQ))
            torch.testing.assert_close(model.classify(x), logits_BC)


@every_layout
def test_everything_that_a_layout_allows_trains(layout: Layout) -> None:
    spec = spec_of(layout)
    transform = transform_of(spec, allowed_augmentations(spec, EVERYTHING))
    config = ModelConfig(depth=1, width=16, heads=2, learned_codebook=True)
    model = build_classifier(spec, tables_of(spec), None, config, 5, transform.out_grid)
    for samples in (1, 2, 5):
        x, targets_BC, mask = transform(model, batch_of(spec, samples))
        assert targets_BC.sum(1).tolist() == pytest.approx([1.0] * samples)
        model.zero_grad()
        model.classify(x, mask).square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@every_layout
def test_no_augmentation_is_the_evaluation_of_every_layout(layout: Layout) -> None:
    spec = spec_of(layout)
    transform = transform_of(spec, allowed_augmentations(spec, AugmentConfig.off()))
    model, batch = embedded(spec), batch_of(spec, 4)
    x, targets_BC, _ = transform(model, batch)
    assert torch.equal(x, transform.evaluation(model.embed(batch.ids_BLQ, shapes_BD=batch.shapes_BD)))
    assert torch.equal(targets_BC, soft_targets(batch.labels_B, 5, 0.1))


# Numbers belong to samples


@every_layout
def test_a_sample_is_augmented_alike_in_any_batch_rank_and_order(layout: Layout) -> None:
    spec = spec_of(layout)
    transform = transform_of(spec, allowed_augmentations(spec, ONE_BY_ONE))
    model, batch = embedded(spec), batch_of(spec, 12)
    whole, _, mask = transform(model, batch)
    for rows in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11], [11, 3, 7], [6], list(range(1, 12, 2))):
        part, _, _ = transform(model, picked(batch, rows))
        expected = whole[rows]
        if mask is not None and layout.kind == "sequence":
            expected = expected[:, : part.shape[1]]
        assert torch.equal(part, expected)


def test_seed_epoch_and_position_change_the_result() -> None:
    spec = spec_of(grid(8, 8, 2))
    transform = transform_of(spec, ONE_BY_ONE)
    model, batch = embedded(spec), batch_of(spec, 16)
    base, _, _ = transform(model, batch)
    for change in ({"seed": 4}, {"epoch": 2}, {"positions_B": batch.positions_B + 16}):
        other, _, _ = transform(model, dataclasses.replace(batch, **change))
        assert (other != base).flatten(1).any(1).all(), change


@every_layout
def test_torchs_generator_has_no_part_in_it(layout: Layout) -> None:
    spec = spec_of(layout)
    transform = transform_of(spec, allowed_augmentations(spec, EVERYTHING))
    model, batch = embedded(spec), batch_of(spec, 6)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(transform(model, batch)[0])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


@every_layout
def test_inputs_stay_as_they_are_and_autocast_changes_nothing(layout: Layout) -> None:
    spec = spec_of(layout)
    transform = transform_of(spec, allowed_augmentations(spec, EVERYTHING))
    model, batch = embedded(spec), batch_of(spec, 6)
    before = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    before = {name: value.clone() for name, value in before.items() if isinstance(value, Tensor)}
    table = model.embedding.level_0.clone()
    result, targets_BC, _ = transform(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        under, targets_under, _ = transform(model, batch)
    assert under.dtype == torch.float32 and torch.equal(under, result) and torch.equal(targets_under, targets_BC)
    with torch.no_grad():
        assert torch.equal(transform(model, batch)[0], result)
    assert all(torch.equal(getattr(batch, name), value) for name, value in before.items())
    assert torch.equal(model.embedding.level_0, table)


# Composition


@pytest.mark.parametrize("layout", [grid(8, 8), grid(6, 10, 2), video(2, 7, 5)], ids=str)
def test_operations_follow_each_other_in_seits_order(layout: Layout) -> None:
    spec, keys = spec_of(layout), keys_of(9)
    transform = transform_of(spec, dataclasses.replace(EVERYTHING, mixup_alpha=0.0))
    model, ids_BLQ = embedded(spec), ids_of(spec, 9)
    expected = ids_BLQ.int()
    synonyms = index_ops.Synonyms.packed(index_ops.synonym_table(tables_of(spec), 5, "l2"))
    draw_B = keys.uniform("eda")[:, 0, None, None]
    replaced = index_ops.replace_synonyms(expected, keys, synonyms, 0.25)
    plane = (layout.grid[-2], layout.grid[-1])
    moved = index_ops.swap_blocks(expected, *index_ops.swap_corners(keys, plane, 0.5), plane)
    expected = torch.where(draw_B < 0.25, replaced, torch.where(draw_B < 0.5, moved, expected))
    flipped = expected[:, index_ops.mirrored_sites(layout)]
    expected = torch.where(keys.chosen("flip", 0.5)[:, None, None], flipped, expected)
    batch = batch_at(ids_BLQ, keys)
    assert torch.equal(transform.state(model, batch).ids_BLQ, expected)
    assert transform.out_grid is not None
    height, width = transform.out_grid[-2:]
    x = crops.resample(model.embed(expected), crops.crop_boxes(keys, plane, scale_min=0.08, ratio_max=4 / 3), (height, width))
    noisy_B = keys.chosen("noise", 0.5)
    x = embed_ops.adapt_colour_(x, ~noisy_B)
    x = embed_ops.add_noise_(x, keys, noisy_B, channel_std=1.0, std=1.0, mask=None, pool=embed_ops.noise_pool())
    x = embed_ops.drop_sites_(x, keys, 0.1)
    sides_G2 = sides_of(draw_lambda(keys, 1.0), (height, width))
    x, mixed_BC = embed_ops.cutmix_(x, soft_targets(batch.labels_B, 5, 0.1), embed_ops.cutmix_box(keys, (height, width), sides_G2))
    found, found_BC, _ = transform(model, batch)
    assert torch.equal(found, x) and torch.equal(found_BC, mixed_BC)


@pytest.mark.parametrize(
    ("layout", "share", "expected"),
    [
        (grid(32, 32), 0.875, (28, 28)),
        (grid(16, 24), 0.875, (14, 20)),
        (grid(5, 7), 0.875, (4, 6)),
        (grid(5, 7), 1.0, (5, 7)),
        (grid(1, 2), 0.5, (1, 2)),
        (video(3, 32, 16), 0.875, (3, 28, 14)),
        (sequence(9), 1.0, None),
        (pyramid((1, 1), (2, 2)), 1.0, None),
        (grid(5, 4, variable=True), 1.0, None),
    ],
    ids=str,
)
def test_what_is_left_after_cropping(layout: Layout, share: float, expected: tuple[int, ...] | None) -> None:
    spec = spec_of(layout)
    for crop in ("rrc", "random", "centre") if share < 1 or index_ops.has_plane(layout) else ("centre",):
        transform = transform_of(spec, dataclasses.replace(OFF, crop=crop, crop_share=share))
        assert transform.out_grid == expected
        model = embedded(spec)
        x = model.embed(ids_of(spec, 3), shapes_BD=torch.tensor([[5, 4]] * 3) if layout.variable else None)
        mask = torch.ones(3, 5, 4, dtype=torch.bool) if layout.variable else None
        found, _, _ = transform(Given(x, mask) if layout.grid else model, batch_at(ids_of(spec, 3), keys_of(3)))
        assert found.shape == (x.shape if expected is None else (3, 4, *expected))


OPTIONS: dict[str, Any] = {
    "synonym_prob": 0.5,
    "swap_prob": 0.5,
    "flip_prob": 0.5,
    "dropout_prob": 0.5,
    "crop": "rrc",
    "crop_share": 0.5,
    "noise_prob": 0.5,
    "coloradapt_prob": 0.5,
    "cutmix_alpha": 1.0,
    "mixup_alpha": 1.0,
}
REFUSED = {
    "grid": set(),
    "video": set(),
    "pyramid": {"swap_prob", "crop", "crop_share", "cutmix_alpha"},
    "sequence": {"swap_prob", "crop", "crop_share", "cutmix_alpha", "flip_prob"},
    "variable": {"swap_prob", "crop", "crop_share", "cutmix_alpha", "flip_prob", "mixup_alpha", "coloradapt_prob"},
}


@every_layout
@pytest.mark.parametrize("option", OPTIONS)
def test_what_means_nothing_in_a_layout_is_refused(layout: Layout, option: str) -> None:
    spec = spec_of(layout)
    mixing = {"cutmix_prob": 1.0, "cutmix_alpha": 0.0} if option.endswith("_alpha") else {}
    config = dataclasses.replace(OFF, **{**mixing, option: OPTIONS[option]})
    if option in REFUSED["variable" if layout.variable else layout.kind]:
        kind = f"{layout.kind} of varying size" if layout.variable else layout.kind
        with pytest.raises(ConfigError, match=f"{option} is .* layout of kind {kind}; set it to"):
            transform_of(spec, config)
        assert getattr(allowed_augmentations(spec, config), option) in (0.0, 1.0, "centre")
    else:
        transform_of(spec, config)
        assert allowed_augmentations(spec, config) == config


def test_what_a_missing_codebook_or_mask_rules_out_is_said() -> None:
    bare = dataclasses.replace(spec_of(grid(4, 4)), codebook=None)
    with pytest.raises(ConfigError, match="synonym_prob"):
        transform_of(bare, AugmentConfig())
    assert default_augmentations(bare) == dataclasses.replace(AugmentConfig(), synonym_prob=0.0)
    ragged = spec_of(sequence(6, variable=True))
    transform = transform_of(ragged, default_augmentations(ragged))
    with pytest.raises(ConfigError, match="neither lengths_B nor shapes_BD"):
        transform(embedded(ragged), batch_at(ids_of(ragged, 2), keys_of(2)))


def test_the_defaults_are_seits() -> None:
    config = default_augmentations(spec_of(grid(32, 32)))
    assert config == AugmentConfig()
    assert (config.synonym_prob, config.synonym_replace_prob, config.synonym_count) == (0.25, 0.25, 5)
    assert (config.swap_prob, config.swap_max_share, config.crop, config.crop_share) == (0.25, 0.25, "rrc", 28 / 32)
    assert (config.crop_scale_min, config.crop_ratio_max) == (0.08, 4 / 3)
    assert (config.noise_prob, config.noise_channel_std, config.noise_std) == (0.5, 1.0, 1.0)
    assert (config.cutmix_prob, config.cutmix_alpha, config.mixup_alpha, config.coloradapt_prob) == (1.0, 1.0, 0.0, 0.0)


# Probabilities


def within(share: float, count: int) -> Any:
    return pytest.approx(share, abs=4.5 * (share * (1 - share) / count) ** 0.5)


def test_shares_of_samples_are_the_probabilities_together_as_alone() -> None:
    count = 5000
    spec, keys = spec_of(grid(4, 4)), keys_of(count)
    config = dataclasses.replace(OFF, synonym_prob=0.25, synonym_replace_prob=1.0, noise_prob=0.5, coloradapt_prob=0.3, flip_prob=0.4)
    transform = transform_of(spec, config)
    ids_BLQ = torch.arange(16, dtype=torch.int32).expand(count, 16)[..., None]
    rows = transform.state(embedded(spec), batch_at(ids_BLQ, keys)).ids_BLQ[:, :, 0].view(count, 4, 4)
    plain = ids_BLQ.view(count, 4, 4)
    unchanged, mirrored = (rows == plain).flatten(1).all(1), (rows == plain.flip(2)).flatten(1).all(1)
    assert (~unchanged & ~mirrored).float().mean().item() == within(0.25, count)
    assert mirrored.float().mean().item() == within(0.75 * 0.4, count), "mirrored and no synonyms: both are drawn on their own"
    x = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    quiet = dataclasses.replace(OFF, noise_prob=0.5)
    alone, colours = dataclasses.replace(OFF, coloradapt_prob=0.3), dataclasses.replace(quiet, coloradapt_prob=0.3)
    noisy, coloured, together, before = (
        transform_of(spec, part, draws=draws)(Given(x), batch_at(ids_BLQ, keys))[0]
        for part, draws in ((quiet, 2), (alone, 2), (colours, 2), (colours, 1))
    )
    noisy_B, coloured_B, together_B, before_B = ((y != x).flatten(1).any(1) for y in (noisy, coloured, together, before))
    assert noisy_B.float().mean().item() == within(0.5, count)
    assert coloured_B.float().mean().item() == within(0.3, count)
    assert together_B.float().mean().item() == within(0.8, count), "one or the other or neither"
    assert torch.equal(together[noisy_B], noisy[noisy_B]), "no colour over noise"
    assert before_B.float().mean().item() == within(0.65, count), "runs of the first version draw them apart to their end"
    with pytest.raises(ConfigError, match=r"noise_prob \+ coloradapt_prob is 1.1; expected at most 1"):
        transform_of(spec, dataclasses.replace(quiet, coloradapt_prob=0.6))


@pytest.mark.parametrize(
    ("batch_size", "shares", "expected"),
    [(1024, 1, 128), (1024, 8, 128), (1024, 16, 64), (96, 1, 32), (96, 2, 16), (16, 16, 1), (15, 1, 15), (14, 2, 7), (16, 3, 0), (6, 1, 2)],
)
def test_mix_groups_are_whole_in_every_share(batch_size: int, shares: int, expected: int) -> None:
    assert mix_group_size(batch_size, shares) == expected


def test_what_a_sample_is_mixed_with_does_not_depend_on_the_ranks() -> None:
    spec, config = spec_of(grid(6, 6)), dataclasses.replace(EVERYTHING, mix_group=4)
    transform, batch = transform_of(spec, config), batch_of(spec, 16)
    model = embedded(spec)
    whole, whole_BC, _ = transform(model, batch)
    for ranks in (2, 4):
        for rank in range(ranks):
            part, part_BC, _ = transform(model, batch[rank::ranks])
            assert torch.equal(part, whole[rank::ranks]) and torch.equal(part_BC, whole_BC[rank::ranks])


@pytest.mark.parametrize(
    ("alphas", "expected"),
    [((1.0, 1.0), (0.3, 0.3)), ((1.0, 0.0), (0.6, 0.0)), ((0.0, 1.0), (0.0, 0.6)), ((0.0, 0.0), (0.0, 0.0))],
    ids=str,
)
def test_share_of_mixed_batches(alphas: tuple[float, float], expected: tuple[float, float]) -> None:
    config = dataclasses.replace(OFF, cutmix_prob=0.6, cutmix_alpha=alphas[0], mixup_alpha=alphas[1])
    spec, count = spec_of(grid(32, 32)), 500
    transform = TokenTransform(spec, {}, config, 2)
    x, ids_BLQ = torch.stack([torch.zeros(1, 32, 32), torch.ones(1, 32, 32)]), ids_of(spec, 2)
    cut = blended = 0
    for start in range(count):
        mixed, targets_BC, _ = transform(Given(x), batch_at(ids_BLQ, keys_of(2, 2 * start)))
        values = set(mixed[0].unique().tolist())
        assert mixed[0].mean().item() == pytest.approx(targets_BC[0, 1].item(), abs=1e-5), "targets mix by the sites that were mixed"
        cut += values not in ({0.0}, {1.0}) and values <= {0.0, 1.0}
        blended += not values <= {0.0, 1.0}
    # A box of less than a site or of the whole grid is rare: one draw in 500.
    assert (cut / count, blended / count) == (within(expected[0], count), within(expected[1], count))


@pytest.mark.parametrize(
    ("metric", "asked", "expected"), [("l2", "auto", "l2"), ("cosine", "auto", "cosine"), ("dot", "auto", "l2"), ("l2", "cosine", "cosine")]
)
def test_synonyms_go_by_the_metric_of_the_tokenizer_unless_asked_otherwise(metric: str, asked: str, expected: str) -> None:
    spec = spec_of(grid(6, 6), metric=metric)
    config = AugmentConfig(synonym_prob=1.0, synonym_replace_prob=1.0, synonym_count=1, synonym_metric=asked, swap_prob=0.0)
    ids_BLQ = ids_of(spec, 16)
    found = transform_of(spec, config).state(embedded(spec), batch_at(ids_BLQ, keys_of(16))).ids_BLQ
    [table_K1] = index_ops.synonym_table(tables_of(spec), 1, expected)
    assert torch.equal(found.long(), table_K1[ids_BLQ.long()][..., 0])
    [other_K1] = index_ops.synonym_table(tables_of(spec), 1, "l2" if expected == "cosine" else "cosine")
    assert not torch.equal(table_K1, other_K1)


@pytest.mark.parametrize("layout", [grid(8, 8), grid(6, 10, 2), video(2, 7, 5)], ids=str)
def test_a_lookup_piece_by_piece_is_one_lookup_and_a_crop(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, sizes = spec_of(layout), []
    transform, embedding = transform_of(spec, EVERYTHING), TokenEmbedding(spec, tables_of(spec))
    embed, batch = Lookup(embedding).embed, batch_of(spec, 20)

    class Counting(Lookup):
        def embed(self, ids_BLQ: Tensor, *, shapes_BD: Tensor | None = None) -> Tensor:
            sizes.append(len(ids_BLQ))
            return embed(ids_BLQ, shapes_BD=shapes_BD)

    monkeypatch.setattr(crops, "PIECE_BYTES", 3 * 4 * layout.sites * embedding.channels)
    by_pieces, _, _ = transform(Counting(embedding), batch)
    assert sizes == [3] * 6 + [2]
    embedding.learned = True  # gradients need the lookup as a whole
    whole, _, _ = transform(Counting(embedding), batch)
    assert sizes[7:] == [20] and torch.equal(by_pieces, whole)
