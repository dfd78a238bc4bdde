"""Embeddings: the gather against a plain loop, padding, standardisation, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import convert, write_images
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import CodebookInfo, Layout, Preprocess, TokenDataset, TokenizerSpec, open_dataset
from tokenshards.stem_adaptors.models import embedding
from tokenshards.stem_adaptors.models.embedding import DEFAULT_WIDTH, TokenEmbedding, embedding_statistics


def make_spec(layout: Layout, vocabulary: tuple[int, ...], dims: tuple[int, ...] | None) -> TokenizerSpec:
    codebook = None if dims is None else CodebookInfo(sha256="0" * 64, dims=dims)
    return TokenizerSpec(family="test", layout=layout, vocabulary=vocabulary, preprocess=Preprocess(size=32), codebook=codebook)


def grid(height: int, width: int, levels: int = 1, **changes: Any) -> Layout:
    combine = "single" if levels == 1 else "sum"
    return Layout(
        **{"kind": "grid", "grid": (height, width), "sites": height * width, "ids_per_site": levels, "combine": combine, **changes}
    )


def make_tables(spec: TokenizerSpec, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    dims = spec.codebook.dims if spec.codebook else ()
    return {f"level_{q}": rng.normal(q, 2.0, (size, dims[q])).astype(np.float32) for q, size in enumerate(spec.vocabulary[: len(dims)])}


def make_ids(spec: TokenizerSpec, batch: int, sites: int | None = None, seed: int = 0) -> torch.Tensor:
    """Ids as the loader gives them: the stored dtype, level-major in memory."""
    rng = np.random.default_rng(seed)
    levels = [rng.integers(0, size, (batch, sites or spec.layout.sites)) for size in spec.vocabulary]
    return torch.from_numpy(np.stack(levels, axis=1).astype(spec.id_dtype)).transpose(1, 2)


def by_loop(ids_BLQ: torch.Tensor, tables: dict[str, np.ndarray], concat: bool, mean: Any = 0.0, std: Any = 1.0) -> np.ndarray:
    """The definition, id by id: [B, L, D]."""
    rows = []
    for sample in ids_BLQ.to(torch.int64).tolist():
        for site in sample:
            vectors = [tables[f"level_{q}"][index].astype(np.float64) for q, index in enumerate(site)]
            rows.append(((np.concatenate(vectors) if concat else np.sum(vectors, axis=0)) - mean) / std)
    return np.stack(rows).reshape(ids_BLQ.shape[0], ids_BLQ.shape[1], -1)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    vocabulary=st.lists(st.sampled_from([1, 7, 256, 257, 70_000]), min_size=1, max_size=3),
    channels=st.integers(1, 5),
    batch=st.integers(1, 4),
    concat=st.booleans(),
    learned=st.booleans(),
    standardised=st.booleans(),
    reused=st.booleans(),
    block=st.sampled_from([4, 64, 1 << 19]),
)
def test_the_gather_is_what_a_loop_over_ids_gives(
    height: int,
    width: int,
    vocabulary: list[int],
    channels: int,
    batch: int,
    concat: bool,
    learned: bool,
    standardised: bool,
    reused: bool,
    block: int,
) -> None:
    levels = len(vocabulary)
    spec = make_spec(grid(height, width, levels), tuple(vocabulary), (channels,) * levels)
    tables, ids_BLQ = make_tables(spec), make_ids(spec, batch)
    total = channels * (levels if concat else 1)
    rng = np.random.default_rng(1)
    statistics = (rng.normal(size=total).astype(np.float32), rng.uniform(0.5, 2, total).astype(np.float32))
    module = TokenEmbedding(
        spec, tables, levels="concat" if concat else "auto", learned=learned, standardise=statistics if standardised else None
    )
    out = module.buffer(batch + 1) if reused and not learned else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "_BLOCK_BYTES", block)
        x_BDHW = module(ids_BLQ, out=out)

    mean, std = statistics if standardised else (0.0, 1.0)
    expected = by_loop(ids_BLQ, tables, concat, mean, std).reshape(batch, height, width, total).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(x_BDHW.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert module.channels == total
    assert x_BDHW.movedim(1, -1).is_contiguous(), "memory is channel-last"
    assert out is None or x_BDHW.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(kind="video", grid=(2, 3, 4), sites=24), (5, 3, 2, 3, 4)),
        (Layout(kind="sequence", sites=6), (5, 6, 3)),
        (Layout(kind="pyramid", scales=((1, 1), (2, 2)), sites=5), (5, 5, 3)),
    ],
)
def test_every_layout_keeps_its_order_of_sites(layout: Layout, shape: tuple[int, ...]) -> None:
    spec = make_spec(layout, (9,), (3,))
    tables, ids_BLQ = make_tables(spec), make_ids(spec, 5)
    x = TokenEmbedding(spec, tables)(ids_BLQ)
    assert tuple(x.shape) == shape
    rows = x.movedim(1, -1).reshape(5, -1, 3) if layout.kind == "video" else x
    np.testing.assert_allclose(rows.numpy(), by_loop(ids_BLQ, tables, False), atol=1e-6)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("vocabulary", [(9,), (9, 4)])
def test_pad_ids_of_ragged_sequences_become_zeros(vocabulary: tuple[int, ...], learned: bool) -> None:
    levels = len(vocabulary)
    layout = Layout(kind="sequence", sites=8, ids_per_site=levels, combine="sum" if levels > 1 else "single", variable=True)
    spec = make_spec(layout, vocabulary, (3,) * levels)
    tables, ids_BLQ = make_tables(spec), make_ids(spec, 2, sites=7).clone()
    ids_BLQ[1, 5:] = 9
    statistics = (np.full(3, 0.5, np.float32), np.full(3, 2.0, np.float32))
    x_BLD = TokenEmbedding(spec, tables, learned=learned, standardise=statistics)(ids_BLQ).detach().numpy()
    assert not x_BLD[1, 5:].any()
    np.testing.assert_allclose(x_BLD[1, :5], by_loop(ids_BLQ[1:, :5], tables, False, 0.5, 2.0)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "largest", "shapes"), [("grid", (3, 4), [(3, 4), (2, 2), (1, 3)]), ("video", (2, 2, 3), [(1, 2, 2), (2, 1, 3)])]
)
def test_grids_of_varying_size_lie_in_the_first_corner_of_the_largest(
    kind: Any, largest: tuple[int, ...], shapes: list[tuple[int, ...]]
) -> None:
    spec = make_spec(Layout(kind=kind, grid=largest, sites=int(np.prod(largest)), variable=True), (9,), (3,))
    tables = make_tables(spec)
    sites = max(int(np.prod(shape)) for shape in shapes)
    ids_BLQ = make_ids(spec, len(shapes), sites=sites).clone()
    for row, shape in enumerate(shapes):
        ids_BLQ[row, int(np.prod(shape)) :] = 9
    module = TokenEmbedding(spec, tables)
    x = module(ids_BLQ, shapes_BD=torch.tensor(shapes))
    mask = module.site_mask(None, torch.tensor(shapes))
    assert mask is not None and tuple(mask.shape) == (len(shapes), *largest)
    for row, shape in enumerate(shapes):
        corner = tuple(slice(size) for size in shape)
        count = int(np.prod(shape))
        expected = by_loop(ids_BLQ[row : row + 1, :count], tables, False).reshape(*shape, 3)
        np.testing.assert_allclose(x[row].movedim(0, -1)[corner].numpy(), expected, atol=1e-6)
        assert int((x[row] != 0).any(dim=0).sum()) == count == int(mask[row].sum())
        assert bool(mask[row][corner].all())


def test_learned_tables_get_the_gradient_of_every_use() -> None:
    spec = make_spec(grid(2, 2, 2), (5, 4), (3, 3))
    module = TokenEmbedding(spec, make_tables(spec), learned=True)
    ids_BLQ = make_ids(spec, 6)
    module(ids_BLQ).sum().backward()
    for q, size in enumerate(spec.vocabulary):
        uses_K = torch.bincount(ids_BLQ[..., q].flatten().long(), minlength=size)
        torch.testing.assert_close(dict(module.named_parameters())[f"level_{q}"].grad, uses_K[:, None].expand(-1, 3).float())
    assert not list(TokenEmbedding(spec, make_tables(spec)).parameters())
    with pytest.raises(ConfigError, match="out"):
        module(ids_BLQ, out=torch.empty(1000))


def test_without_a_codebook_vectors_are_learned_from_the_given_generator() -> None:
    spec = make_spec(grid(2, 3), (50,), None)
    first, second = (TokenEmbedding(spec, {}, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert tuple(first(make_ids(spec, 2)).shape) == (2, DEFAULT_WIDTH, 2, 3)
    assert torch.equal(first.level_0, second.level_0) and first.level_0.requires_grad


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize(("level", "bad"), [(0, 9), (1, 4), (1, 8), (0, -1)])
def test_ids_outside_the_vocabulary_are_named(level: int, bad: int, variable: bool) -> None:
    layout = Layout(kind="sequence", sites=4, ids_per_site=2, combine="sum", variable=variable)
    spec = make_spec(layout, (9, 4), (3, 3))
    ids_BLQ = make_ids(spec, 3).to(torch.int16)
    ids_BLQ[1, 2, level] = bad + (variable and bad == 9)
    with pytest.raises(ConfigError, match=f"level {level} has ids .* the vocabulary has 0 to {spec.vocabulary[level] - 1}"):
        TokenEmbedding(spec, make_tables(spec))(ids_BLQ)


def test_arguments_that_do_not_fit_each_other_are_named() -> None:
    spec = make_spec(grid(2, 2, 2), (5, 4), (3, 2))
    tables = make_tables(spec)
    with pytest.raises(ConfigError, match="summed"):
        TokenEmbedding(spec, tables)
    fitting = TokenEmbedding(spec, tables, levels="concat")
    with pytest.raises(ConfigError, match="levels"):
        TokenEmbedding(spec, tables, levels="mean")
    with pytest.raises(ConfigError, match="level_1"):
        TokenEmbedding(spec, {"level_0": tables["level_0"]}, levels="concat")
    with pytest.raises(ConfigError, match="statistics"):
        TokenEmbedding(spec, tables, levels="concat", standardise=(np.zeros(3), np.ones(3)))
    with pytest.raises(ConfigError, match="sites"):
        fitting(make_ids(spec, 2, sites=3))
    with pytest.raises(ConfigError, match="expected"):
        fitting(make_ids(spec, 2)[..., :1])
    with pytest.raises(ConfigError, match="out"):
        fitting(make_ids(spec, 2), out=fitting.buffer(1))


def test_a_channel_without_variance_is_left_alone() -> None:
    spec = make_spec(grid(1, 2), (2,), (2,))
    tables = {"level_0": np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)}
    x = TokenEmbedding(spec, tables, standardise=(np.array([2.0, 5.0]), np.array([1.0, 1e-9])))(make_ids(spec, 1))
    assert set(x[0, 0].flatten().tolist()) <= {-1.0, 1.0} and not x[0, 1].any()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("embedding")
    write_images(folder / "src", 24)
    convert(folder / "src", folder / "out")
    return open_dataset(str(folder / "out"))


def every_site(dataset: TokenDataset, levels: str, standardise: Any = None) -> np.ndarray:
    module = TokenEmbedding(dataset.spec, dataset.codebook(), levels=levels, standardise=standardise)
    parts = [module(torch.from_numpy(batch.ids_BLQ.copy())).movedim(1, -1).reshape(-1, module.channels) for batch in dataset.batches(8)]
    return torch.cat(parts).double().numpy()


def test_statistics_of_a_dataset_standardise_it(dataset: TokenDataset) -> None:
    measured = embedding_statistics(dataset)
    x_ND = every_site(dataset, "auto", measured)
    np.testing.assert_allclose(x_ND.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(x_ND.std(axis=0), 1.0, atol=0.05)


def test_statistics_from_id_counts_are_exact_for_levels_side_by_side(dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    found = embedding_statistics(dataset, levels="concat")
    x_ND = every_site(dataset, "concat")
    assert found is not None
    np.testing.assert_allclose(found[0], x_ND.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found[1], x_ND.std(axis=0), atol=1e-5)

    monkeypatch.setattr(embedding, "_measured", lambda _: None)
    counted = embedding_statistics(dataset)
    assert counted is not None
    np.testing.assert_allclose(counted[0], every_site(dataset, "sum").mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(counted[1], every_site(dataset, "sum").std(axis=0), rtol=0.2)
