"""Rows come back from their streams, on every layout; a stream that is damaged is told from one that is not, or gives another row."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.shards.compact.models import random_model
from tests.pipeline.shards.samples import LAYOUTS, make_spec, make_tokens
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.compact.contexts import contexts_of
from tokenshards.pipeline.shards.compact.model import NEVER, CompactModel, LevelModel, cumulative, node_starts, weight_table
from tokenshards.pipeline.shards.compact.rows import decode_batch, encode_batch
from tokenshards.pipeline.shards.compact.streams import ideal_bits
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec


def sizes_of(tokens: TokenBatch) -> np.ndarray | None:
    return tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD


def slow_edges(scores: list[int], down: int) -> list[int]:
    """The chances of eight branches, as the specification words them, in Python's integers."""
    weights = []
    for score in scores:
        power = (max(scores) - score) >> down
        part = power & 255
        weights.append((32768 - (part * (22006 - (5622 * part >> 8)) >> 8)) >> min(16, power >> 8))
    inverse = (32760 << 16) // sum(weights)
    return [0, *((sum(weights[:branch]) * inverse >> 16) + branch for branch in range(1, 8)), 32768]


def slow_stream(model: CompactModel, spec: TokenizerSpec, shape: tuple[int, ...], ids: list[int]) -> bytes:
    """One row, id by id, with Python's integers."""
    contexts, steps = contexts_of(spec.layout, shape, model.slots), []
    for place, number in enumerate(contexts.levels_T.tolist()):
        level = model.levels[number]
        total = level.bases_BH[contexts.bases_T[place]].tolist()
        for slot, start in enumerate(level.starts.tolist()):
            earlier = int(contexts.earlier_TN[place, slot])
            assert earlier < place
            row = start + (ids[earlier] if earlier >= 0 else level.sizes[slot])
            total = [a + b for a, b in zip(total, level.tables_RH[row].tolist(), strict=True)]
        hidden = [min(127, max(0, value >> 7)) for value in total]
        path = int(level.paths_K[ids[place]])
        for digit in range(level.digits):
            before, branch = path >> 3 * (level.digits - digit), path >> 3 * (level.digits - digit - 1) & 7
            node = node_starts(level.digits)[digit] + before
            scores = [
                int(level.biases_V8[node, i]) + sum(w * h for w, h in zip(level.weights_V8H[node, i].tolist(), hidden, strict=True))
                for i in range(8)
            ]
            edges = slow_edges(scores, level.down)
            steps.append((edges[branch], edges[branch + 1] - edges[branch]))
    state, words = 1, []
    for start, share in reversed(steps):
        if state >= share << 17:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // share << 15) + state % share + start
    return state.to_bytes(math.ceil(state.bit_length() / 8), "big") + b"".join(word.to_bytes(2, "little") for word in reversed(words))


@pytest.mark.parametrize("name", LAYOUTS)
def test_streams_are_those_of_the_specification(name: str) -> None:
    spec = make_spec(name, 70)
    model, tokens = random_model(spec), make_tokens(spec, 6)
    streams, sizes = encode_batch(model, tokens, spec), sizes_of(tokens)
    for row, stream in enumerate(streams):
        shape = (spec.layout.grid or (spec.layout.sites,)) if sizes is None else tuple(np.atleast_1d(sizes[row]).tolist())
        used = spec.layout.sites if sizes is None else math.prod(shape)
        assert stream == slow_stream(model, spec, shape, tokens.ids_BLQ[row, :used].T.ravel().tolist())
    np.testing.assert_array_equal(decode_batch(model, streams, spec, sizes), tokens.ids_BLQ)


@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    vocabulary=st.sampled_from([2, 3, 8, 9, 64, 65, 200, 513]),
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_rows_come_back(name: str, vocabulary: int, seed: int, rows: int) -> None:
    spec = make_spec(name, vocabulary)
    model, tokens = random_model(spec, seed), make_tokens(spec, rows, seed)
    found = decode_batch(model, encode_batch(model, tokens, spec), spec, sizes_of(tokens))
    np.testing.assert_array_equal(found, tokens.ids_BLQ)
    assert found.dtype == spec.id_dtype


@pytest.mark.parametrize("sites", [1, 2, 3000])
def test_the_shortest_and_long_rows(sites: int) -> None:
    spec = make_spec(Layout(kind="sequence", sites=sites), 65_536 if sites < 3000 else 300)
    model, tokens = random_model(spec, hidden=4), make_tokens(spec, 3)
    np.testing.assert_array_equal(decode_batch(model, encode_batch(model, tokens, spec), spec), tokens.ids_BLQ)


def test_a_row_costs_a_byte_more_than_its_information() -> None:
    """The state begins at 1 and is written in as few bytes as hold it, where four bytes are usual."""
    spec = make_spec(Layout(kind="grid", grid=(8, 8), sites=64), 391)
    model, tokens = random_model(spec), make_tokens(spec, 300)
    bits = ideal_bits(model, contexts_of(spec.layout, (8, 8), model.slots), tokens.ids_BLQ[:, :, 0].astype(np.int64)).sum() / 8
    streams = encode_batch(model, tokens, spec)
    assert 0 < sum(map(len, streams)) - bits < 1.1 * len(streams)


@given(scores=st.lists(st.one_of(st.integers(-(1 << 22), 1 << 22), st.just(NEVER)), min_size=8, max_size=8), down=st.integers(0, 10))
def test_chances_are_those_of_the_formula(scores: list[int], down: int) -> None:
    edges = cumulative(np.array([scores], np.int32), down)[0].tolist()
    assert edges == slow_edges(scores, down)
    assert all(later > earlier for earlier, later in zip(edges, edges[1:], strict=False)), "no branch is without a chance"


def test_the_table_of_weights_is_a_power_of_two() -> None:
    powers = 32768 * 2 ** (-np.arange(4097) / 256)
    assert (np.abs(weight_table() - powers) <= 1 + 0.0033 * powers).all()


@pytest.mark.parametrize("name", ["grid_residual", "sequence_variable", "pyramid"])
def test_damage_is_told_or_gives_another_row_of_ids(name: str) -> None:
    spec = make_spec(name, 70)
    model, tokens = random_model(spec), make_tokens(spec, 4)
    streams, sizes, rng = encode_batch(model, tokens, spec), sizes_of(tokens), np.random.default_rng(0)
    told = 0
    for trial in range(150):
        damaged, row = [bytearray(stream) for stream in streams], trial % 4
        if trial % 3 == 0:
            damaged[row] = bytearray(rng.bytes(int(rng.integers(0, 40))))
        elif trial % 3 == 1:
            del damaged[row][int(rng.integers(0, len(damaged[row]))) :]
        else:
            damaged[row][int(rng.integers(0, len(damaged[row])))] ^= 1 << int(rng.integers(0, 8))
        try:
            found = decode_batch(model, [bytes(stream) for stream in damaged], spec, sizes)
        except ValueError as error:
            told += 1
            assert f"row {row}" in str(error)
        else:
            others = np.arange(4) != row
            np.testing.assert_array_equal(found[others], tokens.ids_BLQ[others])
            assert all(int(found[..., level].max()) < size for level, size in enumerate(spec.vocabulary))
    assert told > 140


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"down": 11}, "down is 11"),
        ({"weights_V8H": np.zeros((3, 8, 8), np.int8)}, "weights are int8"),
        ({"bases_BH": np.full((1, 8), 1 << 24, np.int32)}, "expected less than 2\\^24"),
        ({"biases_V8": np.full((9, 8), NEVER, np.int32)}, "a branch that has no chance"),
        ({"biases_V8": np.full((9, 8), 1 << 22, np.int32)}, "biases go up to"),
        ({"paths_K": np.zeros(60, np.uint32)}, "not different numbers"),
    ],
)
def test_a_model_whose_sums_would_not_be_exact_is_refused(part: dict[str, object], said: str) -> None:
    good = random_model(make_spec("grid", 60)).levels[0]
    values = {name: getattr(good, name) for name in LevelModel.__slots__}
    with pytest.raises(ValueError, match=said):
        LevelModel(**{**values, **part}).check()
