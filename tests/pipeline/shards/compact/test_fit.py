"""A fitted model knows what stands around an id; equal samples give equal models; a model keeps to its size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.pipeline.shards.samples import LAYOUTS, codebook, make_spec, make_tokens
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.compact.fit import CompactFitConfig, fit_compact
from tokenshards.pipeline.shards.compact.model_file import model_bytes
from tokenshards.pipeline.shards.compact.model_size import WIDEST, paying_width
from tokenshards.pipeline.shards.compact.rows import decode_batch, encode_batch
from tokenshards.pipeline.shards.spec import Layout

QUICK = CompactFitConfig(hidden=16, epochs=2, batch=256)


def stripes(rows: int, codes: int = 20, seed: int = 0) -> TokenBatch:
    """Ids that are mostly those of the site above plus one."""
    rng = np.random.default_rng(seed)
    ids = (rng.integers(0, codes, (rows, 1, 8)) + np.arange(8)[:, None]) % codes
    other = rng.random(ids.shape) < 0.1
    ids = np.where(other, rng.integers(0, codes, ids.shape), ids)
    return TokenBatch(ids.reshape(rows, 64, 1).astype(np.uint8))


def bytes_of(tokens: TokenBatch, model: object, spec: object) -> float:
    return sum(map(len, encode_batch(model, tokens, spec))) / len(tokens)  # type: ignore[arg-type]


def test_what_stands_around_an_id_is_learned() -> None:
    spec, said = make_spec(Layout(kind="grid", grid=(8, 8), sites=64), 20), list[str]()
    model = fit_compact(stripes(300), spec, {}, CompactFitConfig(hidden=32, epochs=6, batch=256, learning_rate=1e-2), said.append)
    test = stripes(100, seed=1)
    uniform = 64 * np.log2(20) / 8
    assert bytes_of(test, model, spec) < 0.6 * uniform, said
    assert len(said) == 6 and "bits an id on held-out rows" in said[0]
    np.testing.assert_array_equal(decode_batch(model, encode_batch(model, test, spec), spec), test.ids_BLQ)


def test_equal_samples_give_equal_models() -> None:
    spec = make_spec(Layout(kind="grid", grid=(8, 8), sites=64), 20)
    first, second = (fit_compact(stripes(40), spec, {}, QUICK).levels[0] for _ in range(2))
    for name in ("tables_RH", "bases_BH", "weights_V8H", "biases_V8", "paths_K"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_a_model(name: str) -> None:
    spec = make_spec(name, 30)
    tokens = make_tokens(spec, 20)
    model = fit_compact(tokens, spec, codebook(spec.vocabulary), QUICK)
    sizes = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD
    np.testing.assert_array_equal(decode_batch(model, encode_batch(model, tokens, spec), spec, sizes), tokens.ids_BLQ)


def test_one_row_is_enough() -> None:
    spec = make_spec("grid", 5)
    assert fit_compact(make_tokens(spec, 1), spec, {}, QUICK).levels[0].codes == 5


@pytest.mark.parametrize(
    ("vocabulary", "most", "slots"),
    [
        ((391,), 256 << 10, (8,)),
        ((1024,), 1 << 20, (8,)),
        ((256, 256), 1 << 20, (8, 9)),
        ((8192,), 4 << 20, (5,)),
        ((65536,), 4 << 20, (0,)),
    ],
)
def test_a_model_keeps_to_its_size(vocabulary: tuple[int, ...], most: int, slots: tuple[int, ...]) -> None:
    layout = Layout(kind="grid", grid=(4, 4), sites=16, ids_per_site=len(vocabulary), combine="sum" if vocabulary[1:] else "single")
    spec, said = make_spec(layout, vocabulary), list[str]()
    tokens = make_tokens(spec, 4)
    model = fit_compact(tokens, spec, {}, CompactFitConfig(epochs=1, batch=64), said.append)
    assert tuple(len(level.slots) for level in model.levels) == slots
    assert model.nbytes() <= most
    assert slots != (0,) or "65,536 codes are too many for tables" in said[0]
    streams = encode_batch(model, tokens, spec)
    assert streams == encode_batch(model, tokens, spec, fast=False)
    for fast in (True, False):
        np.testing.assert_array_equal(decode_batch(model, streams, spec, fast=fast), tokens.ids_BLQ)


def test_frequencies_alone_come_near_to_the_entropy() -> None:
    rng = np.random.default_rng(0)
    spec = make_spec(Layout(kind="grid", grid=(16, 16), sites=256), 65_536)
    ids = (rng.geometric(0.02, (200, 256, 1)) - 1).astype(np.uint16)
    model = fit_compact(TokenBatch(ids), spec, {}, QUICK)
    counts = np.bincount(ids.ravel()).astype(float)
    share = counts[counts > 0] / counts.sum()
    entropy = -(share * np.log2(share)).sum() * 256 / 8
    assert bytes_of(TokenBatch(ids), model, spec) < 1.3 * entropy


def test_a_model_is_as_wide_as_the_number_of_rows_pays_for() -> None:
    spec = make_spec(Layout(kind="grid", grid=(8, 8), sites=64), 20)
    widths = [paying_width(spec, rows) for rows in (1, 100, 3_000, 30_000, 300_000, 10_000_000)]
    assert widths == sorted(widths) and widths[0] == 8 and widths[-1] == WIDEST
    test, totals = stripes(100, seed=1), {}
    for hidden in (8, 32):
        model = fit_compact(stripes(300), spec, {}, CompactFitConfig(hidden=hidden, batch=256, learning_rate=1e-2))
        for rows in (100, 10_000_000):
            totals[hidden, rows] = bytes_of(test, model, spec) * rows + 2 * len(model_bytes(model))
    assert totals[8, 100] < totals[32, 100] and totals[32, 10_000_000] < totals[8, 10_000_000]


def test_a_fit_takes_one_thread_and_gives_the_others_back() -> None:
    spec, seen = make_spec("grid", 5), []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit_compact(make_tokens(spec, 20), spec, {}, QUICK, lambda line: seen.append(torch.get_num_threads()))
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("vocabulary", "sites", "changes"),
    [
        ((391,), 32, (3_554, 18_957)),
        ((256, 256), 16, (11_200, 58_900)),
        ((8192,), 32, (28_930, 64_330)),  # both models are too large for footers, so that one copy counts
    ],
)
def test_where_a_wider_model_begins_to_pay(vocabulary: tuple[int, ...], sites: int, changes: tuple[int, int]) -> None:
    """A doubling pays where what it saves of the streams, 4 % and then 1.5 %, is as much as what it adds to the model and its copy."""
    layout = Layout(
        kind="grid", grid=(sites, sites), sites=sites**2, ids_per_site=len(vocabulary), combine="sum" if vocabulary[1:] else "single"
    )
    spec = make_spec(layout, vocabulary)
    found = [next(rows for rows in range(0, 200_000, 100) if paying_width(spec, rows) >= width) for width in (16, 32)]
    assert found == pytest.approx(changes, rel=0.03)
