"""Lists of operations: one of several, halves of groups, the text that declares them, and operations of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch

import tokenshards
from tests.stem_adaptors.augment.layouts import Given, batch_at, grid, ids_of, keys_of, sequence, spec_of, tables_of
from tests.stem_adaptors.augment.own_operations import Fade
from tests.stem_adaptors.augment.test_transform import EVERYTHING, batch_of, embedded, transform_of
from tokenshards.pipeline import named_code
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.augment import PRESETS, TokenTransform, augmentation_named, embed_ops, index_ops, mixes
from tokenshards.stem_adaptors.augment.language import named_code as code_named_in
from tokenshards.stem_adaptors.augment.language import parse_operations, text_of
from tokenshards.stem_adaptors.augment.numbers import Numbers
from tokenshards.stem_adaptors.augment.registry import _REGISTERED, AUGMENTATIONS, register_augmentation
from tokenshards.stem_adaptors.augment.state import TokenState
from tokenshards.stem_adaptors.config import AugmentConfig

HERE = "tests.stem_adaptors.augment.own_operations"


def with_ops(spec: TokenizerSpec, text: str, mix_group: int | None = None) -> TokenTransform:
    return transform_of(spec, AugmentConfig(ops=text, mix_group=mix_group))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# One of several


@pytest.mark.parametrize("levels", [1, 2])
def test_one_of_gives_each_sample_one_operation(levels: int) -> None:
    spec, keys = spec_of(grid(8, 8, levels)), keys_of(50)
    ids_BLQ = ids_of(spec, 50).int()
    transform = with_ops(spec, "one_of(0.3*synonyms(replace=1), 0.4*swap(max_share=0.5))")
    found = transform.state(embedded(spec), batch_at(ids_BLQ, keys)).ids_BLQ
    synonyms = index_ops.Synonyms.packed(index_ops.synonym_table(tables_of(spec), 5, "l2"))
    replaced = index_ops.replace_synonyms(ids_BLQ, keys, synonyms, 1.0)
    moved = index_ops.swap_blocks(ids_BLQ, *index_ops.swap_corners(keys, (8, 8), 0.5), (8, 8))
    kinds = set()
    for sample, draw in enumerate(keys.uniform("eda")[:, 0].tolist()):
        kind = 0 if draw < 0.3 else 1 if draw < 0.7 else 2
        assert torch.equal(found[sample], (replaced, moved, ids_BLQ)[kind][sample])
        kinds.add(kind)
    assert kinds == {0, 1, 2}


def test_an_operation_that_changes_targets_changes_those_of_its_samples() -> None:
    class Softened(tokenshards.Operation):
        def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
            return state._replace(targets_BC=state.targets_BC * 0.5)

    states = {}
    for hit in (True, False):
        state = TokenState(torch.zeros(4, 6, 1, dtype=torch.int32), torch.ones(4, 3), x=torch.zeros(4, 2, 6))
        states[hit] = Softened().chosen(state, keys_of(4), torch.tensor([hit, False, hit, False]))
    assert states[True].targets_BC.tolist() == [[0.5] * 3, [1.0] * 3] * 2
    assert states[False].targets_BC.tolist() == [[1.0] * 3] * 4


@pytest.mark.parametrize("samples", [1, 2])
def test_batches_without_an_affected_sample(samples: int) -> None:
    spec = spec_of(grid(4, 6, 2))
    transform = with_ops(spec, "one_of(0.1*synonyms(), 0.1*swap()), 0.1*flip(), one_of(0.1*noise(), 0.1*color_adapt()), 0.1*mixup()")
    for start in range(20):
        x, _, _ = transform(embedded(spec), batch_at(ids_of(spec, samples), keys_of(samples, start)))
        assert x.shape == (samples, 4, 4, 6)


def test_computing_all_samples_as_a_gpu_does_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(grid(6, 8, 2))
    text = f'one_of(0.3*synonyms(), 0.3*python("{HERE}:Reverse")), one_of(0.3*noise(), 0.3*color_adapt(), 0.3*python("{HERE}:Fade"))'
    batch = batch_of(spec, 24)
    expected = with_ops(spec, text, 4).state(embedded(spec), batch)
    for module in ("keys", "numbers", "operation", "crops", "embed_ops", "mixing"):
        monkeypatch.setattr(f"tokenshards.stem_adaptors.augment.{module}.all_rows", lambda device: True)
    found = with_ops(spec, text, 4).state(embedded(spec), batch)
    assert torch.equal(found.ids_BLQ, expected.ids_BLQ)
    torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=1e-6, atol=1e-6)


def test_an_operation_that_stands_twice_draws_its_own_numbers_each_time() -> None:
    spec, x = spec_of(grid(4, 4)), normal(64, 4, 4, 4)
    batch = batch_at(ids_of(spec, 64), keys_of(64))
    once, twice, half = (
        with_ops(spec, text)(Given(x), batch)[0] - x
        for text in ("noise(channel_std=0)", "noise(channel_std=0), noise(channel_std=0)", "0.5*noise(), 0.5*noise()")
    )
    second = twice - once
    assert torch.corrcoef(torch.stack([once.flatten(), second.flatten()]))[0, 1].abs() < 0.05
    assert second.std().item() == pytest.approx(1, abs=0.05)
    hits = (half != 0).flatten(1).any(1).float().mean().item()
    assert hits == pytest.approx(0.75, abs=0.2) and hits > 0.55, "two draws, each for half of the samples"


# Halves


def test_halves_of_each_mix_group_get_their_operations_and_mix_within_themselves() -> None:
    spec, x, keys = spec_of(grid(4, 4)), normal(16, 4, 4, 4), keys_of(16)
    batch = batch_at(ids_of(spec, 16), keys)
    found, targets_BC, _ = with_ops(spec, "half_batch([noise(channel_std=0)], [color_adapt(), cutmix()])", 4)(Given(x), batch)
    noisy = embed_ops.add_noise_(x[:8].clone(), keys[:8], None, channel_std=0.0, std=1.0, mask=None, pool=embed_ops.noise_pool())
    assert torch.equal(found[:8], noisy)  # groups are 0 4 8 12, 1 5 9 13, ...: the first two of each
    coloured = embed_ops.adapt_colour_(x[8:].clone(), None, 4)
    inside = found[8:] != coloured
    partners = coloured.view(2, 4, *x.shape[1:]).flip(0).flatten(0, 1)
    assert inside.any() and torch.equal(found[8:][inside], partners[inside])
    assert (targets_BC[:5].argmax(1) == torch.arange(5)).all()
    for ranks in (2, 4):
        for rank in range(ranks):
            part = replace(batch[rank::ranks])
            own, own_targets_BC, _ = with_ops(spec, "half_batch([noise(channel_std=0)], [color_adapt(), cutmix()])", 4)(
                Given(x[rank::ranks]), part
            )
            assert torch.equal(own, found[rank::ranks]) and torch.equal(own_targets_BC, targets_BC[rank::ranks])


def test_halves_may_be_cropped_in_their_own_way_to_one_size() -> None:
    spec = spec_of(grid(8, 8))
    transform = with_ops(spec, "half_batch([rrc(share=0.5)], [centre_crop(share=0.5)])")
    x = normal(5, 4, 8, 8)
    found, _, _ = transform(Given(x), batch_at(ids_of(spec, 5), keys_of(5)))
    assert transform.out_grid == (4, 4) == tuple(found.shape[2:]) and torch.equal(found[2:], x[2:, :, 2:6, 2:6])
    with pytest.raises(ConfigError, match=r"half_batch makes grids of \(4, 4\) and \(8, 8\)"):
        with_ops(spec, "half_batch([rrc(share=0.5)], [noise()])")
    with pytest.raises(ConfigError, match="a half draws noise.channel, noise.site twice"):
        with_ops(spec, "half_batch([noise(), noise()], [color_adapt()])")(Given(x), batch_at(ids_of(spec, 5), keys_of(5)))


# Text


@pytest.mark.parametrize(
    ("text", "config"),
    [
        (
            "one_of(0.25*synonyms(replace=0.25), 0.25*swap()), rrc(scale_min=0.08), one_of(0.5*noise(std=1)), cutmix(alpha=1)",
            PRESETS["seit"],
        ),
        ("one_of(.25*synonyms(), .25*swap()), rrc(), one_of(.375*noise(), .125*color_adapt()), cutmix()", PRESETS["seitpp"]),
        (
            "one_of(0.25*synonyms(),0.25*swap()), rrc(scale_min=0.35), 0.25*noise(std=0.5, channel_std=0.5), 0.5*cutmix()",
            PRESETS["mild"],
        ),
        (
            "one_of(0.25*synonyms(),0.25*swap()), rrc(scale_min=0.35), "
            "one_of(0.25*noise(std=0.5, channel_std=0.5), 0.125*color_adapt()), 0.5*cutmix()",
            PRESETS["seitpp_small"],
        ),
        ("centre_crop()", PRESETS["none"]),
        (
            "one_of(0.25*synonyms(), 0.25*swap(max_share=0.5)), 0.5*flip(), rrc(ratio_max=4/3), one_of(0.5*noise(), 0.5*color_adapt()), "
            "drop_sites(share=0.1), one_of(0.5*cutmix(), 0.5*mixup(alpha=1.0))",
            EVERYTHING,
        ),
    ],
    ids=["seit", "seitpp", "mild", "seitpp_small", "none", "everything"],
)
def test_a_text_gives_bit_for_bit_what_the_fields_give(text: str, config: AugmentConfig) -> None:
    spec = spec_of(grid(8, 10, 2))
    batch = batch_of(spec, 16)
    expected = transform_of(spec, replace(config, mix_group=8))
    found = with_ops(spec, text, 8)
    assert found.out_grid == expected.out_grid
    for one, other in zip(found(embedded(spec), batch), expected(embedded(spec), batch), strict=True):
        assert one is other is None or torch.equal(one, other)
    canonical = text_of(parse_operations(text))
    assert text_of(parse_operations(canonical)) == canonical
    assert mixes(AugmentConfig(ops=text)) == mixes(config)


def test_the_text_has_one_form() -> None:
    text = 'one_of(.5*synonyms( metric = "l2"),0.25*swap()),rrc(ratio_max=3/2),half_batch([noise()],[color_adapt()])'
    assert (
        text_of(parse_operations(text))
        == "one_of(0.5*synonyms(metric='l2'), 0.25*swap()), rrc(ratio_max=1.5), half_batch([noise()], [color_adapt()])"
    )
    own = f'python("{HERE}:Fade", amount=0.25), 0.5*python("{HERE}:Fade")'
    assert text_of(parse_operations(own)) == f'python("{HERE}:Fade", amount=0.25), one_of(0.5*python("{HERE}:Fade"))'
    assert code_named_in(own) == [f"{HERE}:Fade"] * 2 and code_named_in(f"python:{HERE}:both") == [f"{HERE}:both"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise", "'noise' cannot be read; expected calls such as"),
        ("noise(", r"which cannot be read: the \( at character 6 is not closed; expected calls such as"),
        ("flip(), noise)", r"the \) at character 14 closes no \("),
        ("half_batch([flip()), [noise()])", r"the \) at character 19 closes no \("),
        ('python("a:b)', 'the " at character 8 is not closed'),
        ("flip(),, noise()", "something is wrong at character 8, before or in ', noise"),
        ("0.5*", "it ends too early"),
        ("noise(1)", r"expected NAME\(OPTION=VALUE"),
        ("noise(std=sum)", "'sum' cannot be read"),
        ("noise(stdd=1)", "unexpected keyword argument 'stdd'; it takes std, channel_std"),
        ("noise(std=-1)", "noise: std is -1; expected 0 or more"),
        ("noise(**{'std': 1})", "cannot be read"),
        ("fade()", "there is no such operation; expected one of synonyms, .*python"),
        ("__import__('os').system('true')", "cannot be read"),
        ("(lambda: 1)()", "cannot be read"),
        ("], [", r"the \] at character 1 closes no \["),
        ("one_of(noise())", "has no probability; expected PROBABILITY"),
        ("one_of(0.7*noise(), 0.7*color_adapt())", "a sum of at most 1"),
        ("one_of(0.5*noise(), 0.5*cutmix())", "chooses by group"),
        ("one_of(0.5*noise(), 0.5*flip())", "works on"),
        ("one_of(0.5*rrc(share=0.5))", r"rrc, which makes \(2, 2\) sites of \(4, 4\) in some samples only"),
        ("half_batch([noise()])", r"half_batch\(\[OPERATION"),
        ("half_batch([flip()], [noise()])", "half_batch holds operations on"),
        ("rrc(), flip()", r"flip\(\) works on ids and stands after an operation on embeddings"),
        ("python(noise)", "cannot be read"),
        ("python('nothing')", "expected python:package.module:callable"),
        ("python('no.such.module:Fade')", "ModuleNotFoundError"),
        (f"python('{HERE}:nobody')", "has no callable nobody"),
        (f"python('{HERE}:broken')", "raised ValueError: 'no such luck', at own_operations.py:"),
        (f"python('{HERE}:number')", "makes 3, a int; expected a tokenshards.Operation"),
        (f"python:{HERE}:number", "returns .*3.*; expected a tokenshards.Operation or a list"),
    ],
)
def test_a_text_that_cannot_be_read_is_said(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_ops(spec_of(grid(4, 4)), text)


def test_what_means_nothing_in_a_layout_is_refused() -> None:
    for text, message in (("swap()", "swap means nothing in a layout of kind sequence"), ("0.5*cutmix()", "cutmix means nothing")):
        with pytest.raises(ConfigError, match=message):
            with_ops(spec_of(sequence(9)), text)
    with pytest.raises(ConfigError, match="sites of varying number cannot be reversed"):
        with_ops(spec_of(sequence(9, variable=True)), f'0.5*python("{HERE}:Reverse")')


# Operations of one's own


@pytest.fixture
def fade_by_name() -> Iterator[None]:
    register_augmentation("fade")(Fade)
    yield
    del _REGISTERED["fade"]


@pytest.mark.usefixtures("fade_by_name")
def test_an_operation_works_by_its_registered_name_and_by_its_place() -> None:
    spec, x, keys = spec_of(grid(4, 4)), normal(12, 4, 4, 4), keys_of(12)
    batch = batch_at(ids_of(spec, 12), keys)
    share_B111 = keys.uniform("fade")[..., None, None]
    for text in ("fade(amount=0.25)", f'python("{HERE}:Fade", amount=0.25)'):
        assert torch.equal(with_ops(spec, text)(Given(x), batch)[0], x * (1 - 0.25 * share_B111))
    some = with_ops(spec, "0.5*fade(amount=0.25)")(Given(x), batch)[0]
    hit_B = keys.uniform("one_of.fade")[:, 0] < 0.5
    assert 0 < hit_B.sum() < 12
    assert torch.equal(some, torch.where(hit_B[:, None, None, None], x * (1 - 0.25 * share_B111), x))
    ids = with_ops(spec, f"python:{HERE}:both").state(Given(x), batch)
    assert torch.equal(ids.ids_BLQ, batch.ids_BLQ.int().flip(1)) and torch.equal(ids.embeddings, x * (1 - share_B111))


def test_an_installed_package_offers_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("offered_fade", f"{HERE}:Fade", AUGMENTATIONS)
    monkeypatch.setattr(named_code.importlib.metadata, "entry_points", lambda group: [point] if group == AUGMENTATIONS else [])
    named_code.offered.cache_clear()
    try:
        [operation] = parse_operations("offered_fade(amount=0.125)")
        assert isinstance(operation, Fade) and operation.amount == 0.125 and operation.text() == "offered_fade(amount=0.125)"
    finally:
        named_code.offered.cache_clear()


@pytest.mark.parametrize("name", ["noise", "one_of", "not a name", ""])
def test_names_of_ours_and_names_that_nobody_could_write_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="register_augmentation: the name is"):
        tokenshards.register_augmentation(name)


def test_presets_fit_their_dataset() -> None:
    spec: Any = spec_of(sequence(9))
    assert augmentation_named("seit", spec).cutmix_alpha == 0.0
    assert augmentation_named("rrc(), 0.5*noise()", spec).ops == "rrc(), 0.5*noise()"
    assert augmentation_named(f"python:{HERE}:both", spec).ops == f"python:{HERE}:both"
    with pytest.raises(ConfigError, match="--augment is 'hard'; expected one of seit, seitpp, seitpp_small, mild, mtm, none"):
        augmentation_named("hard", spec)
    with pytest.raises(ConfigError, match=r"--augment is 'seitp' \(did you mean 'seitpp' or 'seit'"):
        augmentation_named("seitp", spec)
