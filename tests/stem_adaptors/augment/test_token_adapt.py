"""TokenAdapt in a transform: whole samples in, ids of a smaller grid out, the same for a sample wherever it is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stem_adaptors.augment.layouts import batch_at, grid, ids_of, keys_of, sequence, spec_of, tables_of
from tokenshards.pipeline.canonical import seal, unseal
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, FormatVersionError, NotFoundError, OtherTokenizerError
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment.adapt_file import AdaptFile, copy_adapter, load_adapter, read_about, save_adapter
from tokenshards.stem_adaptors.augment.adapt_halves import with_token_adapt
from tokenshards.stem_adaptors.augment.adapt_maps import MapRanges, random_colours, random_maps
from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter
from tokenshards.stem_adaptors.augment.adapt_sizes import AdaptSizes
from tokenshards.stem_adaptors.augment.token_adapt import TokenAdapt
from tokenshards.stem_adaptors.augment.token_model import Lookup
from tokenshards.stem_adaptors.augment.transform import TokenTransform
from tokenshards.stem_adaptors.config import AugmentConfig
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding

LAYOUTS = {"grid": grid(6, 10), "residual": grid(6, 10, 2), "concat": grid(6, 10, 2, combine="concat")}
OUT = (6, 8)
"""0.875 of (6, 10), as even numbers of sites."""


def fitted(folder: Path, layout: Any, *, seed: int = 0) -> tuple[TokenAdapter, AdaptFile]:
    spec = spec_of(layout)
    torch.manual_seed(seed)
    sizes = AdaptSizes(out_grid=OUT, width=16, heads=1, hidden=24, skip=True, tables=True)
    adapter = TokenAdapter(spec, tables_of(spec), sizes)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return adapter, save_adapter(adapter, spec, Store(str(folder)), "", settings={"epochs": 3}, fidelity={})


def transform_of(ops: str, layout: Any) -> tuple[TokenTransform, Lookup]:
    spec = spec_of(layout)
    return TokenTransform(spec, tables_of(spec), AugmentConfig(ops=ops), 8), Lookup(TokenEmbedding(spec, tables_of(spec)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_samples_become_the_ids_of_the_networks(name: str, tmp_path: Path) -> None:
    adapter, _ = fitted(tmp_path, LAYOUTS[name])
    transform, model = transform_of(f'token_adapt(file="{tmp_path}")', LAYOUTS[name])
    ids_BLQ, keys = ids_of(spec_of(LAYOUTS[name]), 11), keys_of(11)
    state = transform.state(model, batch_at(ids_BLQ, keys))
    assert transform.out_grid == OUT
    expected = adapter.ids(ids_BLQ.int(), random_maps(keys, MapRanges(), (6, 10)))
    assert torch.equal(state.ids_BLQ, expected) and expected.dtype == torch.int32
    vectors = model.embedding.vectors(expected).view(11, *OUT, -1).movedim(-1, 1)
    torch.testing.assert_close(state.embeddings, vectors)
    assert len({tuple(row.flatten().tolist()) for row in state.ids_BLQ}) == 11, "the samples differ"


def test_colours_reach_the_networks(tmp_path: Path) -> None:
    spec = spec_of(LAYOUTS["grid"])
    adapter = TokenAdapter(spec, tables_of(spec), AdaptSizes(out_grid=OUT, width=16, heads=1, hidden=24, skip=True, colour=0.4))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    save_adapter(adapter, spec, Store(str(tmp_path)), "", settings={}, fidelity={})
    ids_BLQ, keys, ranges = ids_of(spec, 3), keys_of(3), MapRanges(colour=0.3)
    maps_B23, colours_B3 = random_maps(keys, ranges, (6, 10)), random_colours(keys, ranges)
    transform, model = transform_of(f'token_adapt(file="{tmp_path}", colour=0.3)', LAYOUTS["grid"])
    found = transform.state(model, batch_at(ids_BLQ, keys)).ids_BLQ
    assert torch.equal(found, adapter.ids(ids_BLQ.int(), maps_B23, colours_B3))
    assert not torch.equal(found, adapter.ids(ids_BLQ.int(), maps_B23))


def test_a_sample_does_not_depend_on_those_beside_it(tmp_path: Path) -> None:
    """Nor do the number of ranks and a resume change it: its numbers are keyed by seed, epoch and place."""
    fitted(tmp_path, LAYOUTS["residual"])
    transform, model = transform_of(f'token_adapt(file="{tmp_path}")', LAYOUTS["residual"])
    ids_BLQ, keys = ids_of(spec_of(LAYOUTS["residual"]), 12), keys_of(12)
    whole = transform.state(model, batch_at(ids_BLQ, keys)).ids_BLQ
    for rows in (slice(0, None, 2), slice(5, 6), slice(3, 12)):
        part = transform.state(model, batch_at(ids_BLQ[rows], keys[rows])).ids_BLQ
        assert torch.equal(part, whole[rows])


def test_half_batches_have_a_cropped_and_an_adapted_half(tmp_path: Path) -> None:
    """Of four mix groups, each has both halves; ids that go with the embeddings are there where both halves leave some."""
    layout = LAYOUTS["residual"]
    adapter, _ = fitted(tmp_path, layout)
    ids_BLQ, keys = ids_of(spec_of(layout), 16), keys_of(16)
    for first, gives in (("rrc()", False), ("rrc(), quantise()", True)):
        ops = f'half_batch([{first}], [token_adapt(file="{tmp_path}")]), 0.5*noise(), cutmix()'
        transform, model = transform_of(ops.replace(", 0.5*noise(), cutmix()", ""), layout)
        transform.config = AugmentConfig(ops=ops, mix_group=4)
        state = transform.state(model, batch_at(ids_BLQ, keys))
        assert state.groups == 4 and state.embeddings.shape == (16, 4, *OUT)
        expected = adapter.ids(ids_BLQ[8:].int(), random_maps(keys[8:], MapRanges(), (6, 10)))
        torch.testing.assert_close(state.embeddings[8:], model.embedding.vectors(expected).view(8, *OUT, -1).movedim(-1, 1))
        assert transform.operations[0].gives_ids == gives
        assert torch.equal(state.ids_BLQ[8:], expected) if gives else torch.equal(state.ids_BLQ, ids_BLQ.int())
        plain, _ = transform_of(first, layout)
        torch.testing.assert_close(state.embeddings[:8], plain.state(model, batch_at(ids_BLQ, keys)).embeddings[:8])


def test_no_state_dict_holds_the_networks_and_they_move_along(tmp_path: Path) -> None:
    fitted(tmp_path, LAYOUTS["grid"])
    transform, _ = transform_of(f'half_batch([rrc()], [token_adapt(file="{tmp_path}")])', LAYOUTS["grid"])
    transform.load()
    assert transform.state_dict() == {} and list(transform.parameters()) == []
    [operation] = [part for part in transform.modules() if isinstance(part, TokenAdapt)]
    transform.to("meta")
    assert operation.adapter is not None and {tensor.device.type for tensor in operation.adapter.state_dict().values()} == {"meta"}


def test_whole_under_compile(tmp_path: Path) -> None:
    """As one graph, with the ids of the plain transform."""
    fitted(tmp_path, LAYOUTS["residual"])
    ids_BLQ, keys = ids_of(spec_of(LAYOUTS["residual"]), 8), keys_of(8)
    found = []
    for compiled in (False, True):
        transform, model = transform_of(f'half_batch([rrc()], [token_adapt(file="{tmp_path}")]), cutmix()', LAYOUTS["residual"])
        if compiled:
            transform.compile(backend="aot_eager")
        found.append(transform(model, batch_at(ids_BLQ, keys))[0])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("ops", "said"),
    [
        ('rrc(), token_adapt(file="x")', "stands after another operation on embeddings"),
        ('half_batch([rrc()], [noise(), token_adapt(file="x")])', "stands after another operation on embeddings"),
        ('rrc(share=1), one_of(0.5*token_adapt(file="x", share=1))', "stands after another operation on embeddings"),
        ('one_of(0.5*token_adapt(file="x"))', r"makes \(6, 8\) sites of \(6, 10\) in some samples only"),
        ("token_adapt()", "missing a required argument: 'file'"),
        ('token_adapt(file="x", degrees=200)', "degrees is 200; expected 0 to 180"),
        ('token_adapt(file="x", share=0)', "share is 0"),
    ],
)
def test_lists_without_a_meaning_are_refused(ops: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        transform_of(ops, LAYOUTS["grid"])


def test_no_grid_is_refused_and_measuring_needs_no_file() -> None:
    with pytest.raises(ConfigError, match="token_adapt means nothing in a layout of kind sequence"):
        transform_of('token_adapt(file="x")', sequence(20))
    transform, model = transform_of('token_adapt(file="not/there")', LAYOUTS["grid"])
    assert transform.out_grid == OUT, "known without the file"
    with pytest.raises(NotFoundError, match=r"no fitted TokenAdapt is in .*not/there; give the directory that `fit-tokenadapt --out` made"):
        transform(model, batch_at(ids_of(spec_of(LAYOUTS["grid"]), 2), keys_of(2)))


def test_another_tokenizer_share_or_file_is_refused(tmp_path: Path) -> None:
    _, about = fitted(tmp_path, LAYOUTS["grid"])
    batch = batch_at(ids_of(spec_of(LAYOUTS["residual"]), 2), keys_of(2))
    transform, model = transform_of(f'token_adapt(file="{tmp_path}")', LAYOUTS["residual"])
    with pytest.raises(OtherTokenizerError, match=r"it was fitted for the tokenizer .*; these tokens are of .*fit-tokenadapt"):
        transform(model, batch)
    for option, said in (
        ("share=0.5", r"was fitted for \(6, 8\) of \(6, 10\) sites; share=0.5 makes \(4, 4\)"),
        ('sha256="ab"', "holds .*; expected"),
        ("colour=0.2", r"colour is 0.2; .* was fitted for 0 at most. Give less, or fit with --colour 0.2"),
    ):
        transform, model = transform_of(f'token_adapt(file="{tmp_path}", {option})', LAYOUTS["grid"])
        with pytest.raises(ConfigError, match=said):
            transform(model, batch_at(ids_of(spec_of(LAYOUTS["grid"]), 2), keys_of(2)))
    transform, model = transform_of(f'token_adapt(file="{tmp_path}", sha256="{about.sha256}")', LAYOUTS["grid"])
    transform(model, batch_at(ids_of(spec_of(LAYOUTS["grid"]), 2), keys_of(2)))


def test_the_file_comes_back_and_damage_is_found(tmp_path: Path) -> None:
    adapter, about = fitted(tmp_path / "one", LAYOUTS["residual"])
    spec = spec_of(LAYOUTS["residual"])
    copy_adapter(Store(str(tmp_path / "one")), "", Store(str(tmp_path)), "copy/")
    loaded, again = load_adapter(Store(str(tmp_path)), "copy/", spec, tables_of(spec))
    assert again == about and again.sha256 == about.sha256 and about.settings == {"epochs": 3}
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in adapter.state_dict().items())
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    _, other = fitted(tmp_path / "two", LAYOUTS["residual"], seed=1)
    assert other.sha256 != about.sha256
    (tmp_path / "copy" / "weights.safetensors").write_bytes((tmp_path / "two" / "weights.safetensors").read_bytes())
    with pytest.raises(CorruptObjectError, match=r"these are not the weights that tokenadapt.json names"):
        load_adapter(Store(str(tmp_path)), "copy/", spec, tables_of(spec))
    text = (tmp_path / "one" / "tokenadapt.json").read_bytes()
    for change, kind, said in (
        (text.replace(b'"width":16', b'"width":20'), CorruptObjectError, "does not match its self_sha256"),
        (b"no json", CorruptObjectError, "not JSON"),
    ):
        (tmp_path / "one" / "tokenadapt.json").write_bytes(change)
        with pytest.raises(kind, match=said):
            read_about(Store(str(tmp_path / "one")))
    (tmp_path / "one" / "tokenadapt.json").write_bytes(seal({**unseal(text, ""), "version": 9}))
    with pytest.raises(FormatVersionError, match="version 9; this version reads 1 to 2"):
        read_about(Store(str(tmp_path / "one")))
    first = unseal(text, "")
    first["sizes"] = {name: value for name, value in first["sizes"].items() if name != "tables"}  # as version 1 wrote it
    (tmp_path / "one" / "tokenadapt.json").write_bytes(seal({**first, "version": 1}))
    assert not read_about(Store(str(tmp_path / "one"))).sizes.tables


def test_half_of_rrc_is_replaced() -> None:
    spec = spec_of(LAYOUTS["grid"])
    config = AugmentConfig(noise_prob=0.375, coloradapt_prob=0.125, crop_scale_min=0.3, mix_group=8)
    found = with_token_adapt(config, spec, "photos.adapt")
    assert found.mix_group == 8
    assert found.ops == (
        "one_of(0.25*synonyms(replace=0.25, count=5, metric='auto'), 0.25*swap(max_share=0.25)), "
        "half_batch([rrc(share=0.875, scale_min=0.3, ratio_max=1.3333333333333333)], [token_adapt(file='photos.adapt', scale_min=0.3)]), "
        "one_of(0.375*noise(std=1, channel_std=1), 0.125*color_adapt()), one_of(1*cutmix(alpha=1))"
    )
    again = with_token_adapt(AugmentConfig(ops="rrc(share=0.75), cutmix()"), spec, "a").ops
    assert "token_adapt(file='a', share=0.75)" in again
    assert with_token_adapt(AugmentConfig(ops="rrc()"), spec, "a", to_ids=True).ops == (
        "half_batch([rrc(), quantise()], [token_adapt(file='a')])"
    )
    assert "quantise" not in with_token_adapt(AugmentConfig(ops="rrc(), noise()"), spec, "a", to_ids=True).ops, "the objective appends it"
    plain = AugmentConfig(synonym_prob=0, swap_prob=0, crop="random", crop_scale_min=0.2, noise_prob=0, cutmix_prob=0)
    assert with_token_adapt(plain, spec, "a", to_ids=True).ops == (
        "half_batch([random_crop(share=0.875), quantise()], [token_adapt(file='a', scale_min=0.2)])"
    )
    with pytest.raises(ConfigError, match="takes the place of the crop in half of each batch, and there is none in: centre_crop"):
        with_token_adapt(AugmentConfig.off(), spec, "a")
    with pytest.raises(ConfigError, match="cannot change python:a:b"):
        with_token_adapt(AugmentConfig(ops="python:a:b"), spec, "a")
