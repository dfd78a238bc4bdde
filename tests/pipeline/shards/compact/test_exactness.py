"""Ten thousands of rows, half random and half what the model expects, in both decoders; and flipped bits in the pages of a shard."""

from __future__ import annotations

import numpy as np
import pytest

from tests.datasets import keep_result
from tests.pipeline.shards.compact.models import random_model
from tests.pipeline.shards.samples import make_rows, make_spec
from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.compact import lockstep
from tokenshards.pipeline.shards.compact.codec import CompactCodec
from tokenshards.pipeline.shards.compact.contexts import contexts_of
from tokenshards.pipeline.shards.compact.model import CompactModel, cumulative, node_starts
from tokenshards.pipeline.shards.compact.model_file import model_sha256
from tokenshards.pipeline.shards.compact.rows import decode_batch, encode_batch, expected_bits
from tokenshards.pipeline.shards.compact.streams import slot_ids
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.pipeline.shards.writer import encode_shard

GRID = Layout(kind="grid", grid=(8, 8), sites=64, ids_per_site=2, combine="sum")
VOCABULARY = 70


def drawn(model: CompactModel, spec: TokenizerSpec, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return ids [B, L, Q] that occur as often as the model expects. A path without an id is drawn again as id 0."""
    contexts = contexts_of(spec.layout, spec.layout.grid, model.slots)
    ids_BT, every_B = np.zeros((rows, len(contexts.levels_T)), np.int64), np.arange(rows)
    for place, number in enumerate(contexts.levels_T):
        level = model.levels[int(number)]
        slots_BN = slot_ids(ids_BT, contexts.earlier_TN[place : place + 1], len(level.slots), level.sizes)[:, 0]
        hidden_BH = level.hidden(slots_BN, level.bases_BH[contexts.bases_T[place]])
        path_B, first = np.zeros(rows, np.int64), node_starts(level.digits)
        for digit in range(level.digits):
            edges_B9 = cumulative(level.scores(hidden_BH, first[digit] + path_B), level.down)
            path_B = path_B << 3 | (edges_B9[:, 1:] <= rng.integers(0, 32768, rows)[:, None]).sum(axis=1)
        codes = np.zeros(8**level.digits, np.int64)
        codes[level.paths_K] = np.arange(level.codes)
        ids_BT[every_B, place] = codes[path_B]
    return ids_BT.reshape(rows, spec.layout.ids_per_site, -1).transpose(0, 2, 1)


def check_rows(count: int, seed: int) -> tuple[float, float]:
    """Return bits of an id that is random, and of one that the model expects."""
    spec, rng = make_spec(GRID, VOCABULARY), np.random.default_rng(seed)
    model = random_model(spec, seed)
    kinds = rng.integers(0, VOCABULARY, (count, 64, 2)), drawn(model, spec, count, rng)
    bits = []
    for ids_BLQ in kinds:
        tokens = TokenBatch(ids_BLQ.astype(spec.id_dtype))
        streams = encode_batch(model, tokens, spec)
        slow = decode_batch(model, streams, spec, fast=False)
        np.testing.assert_array_equal(slow, tokens.ids_BLQ)
        np.testing.assert_array_equal(decode_batch(model, streams, spec), slow)
        bits.append(8 * sum(map(len, streams)) / tokens.ids_BLQ.size)
        assert bits[-1] == pytest.approx(expected_bits(model, tokens, spec) / tokens.ids_BLQ.size, abs=0.13)  # a byte a row
    return bits[0], bits[1]


def test_random_ids_and_expected_ids_come_back_from_both_decoders() -> None:
    random, expected = check_rows(400, 1)
    assert expected < 6 < random, "ids of random integers are no surprise to the model that they are drawn from"


def flip_bits(flips: int, seed: int) -> tuple[int, int]:
    """Flip single bits of a shard's streams. Return how many the checksum of a page found, and how many the streams themselves."""
    spec, rng = make_spec(GRID, VOCABULARY), np.random.default_rng(seed)
    model, rows = random_model(spec, seed), 40
    codec = CompactCodec(model, model_sha256(model))
    tokens = TokenBatch(drawn(model, spec, rows, rng).astype(spec.id_dtype))
    data = encode_shard(make_rows(rows), tokens, spec=spec, codec=codec, label_type=None, meta_types={}).data
    streams = encode_batch(model, tokens, spec)
    first = data.index(streams[0])
    assert data[first : first + sum(map(len, streams))] == b"".join(streams)
    by_page = by_stream = 0
    for _ in range(flips):
        row = int(rng.integers(0, rows))
        at, bit = int(rng.integers(0, len(streams[row]))), 1 << int(rng.integers(0, 8))
        whole = bytearray(data)
        whole[first + sum(map(len, streams[:row])) + at] ^= bit
        with pytest.raises(CorruptObjectError):
            ShardReader.open(bytes(whole)).read_tokens(0)
        by_page += 1
        damaged = bytearray(streams[row])
        damaged[at] ^= bit
        try:
            found = decode_batch(model, [*streams[:row], bytes(damaged), *streams[row + 1 :]], spec)
        except ValueError as error:
            assert f"row {row}:" in str(error)
            by_stream += 1
        else:
            others = np.arange(rows) != row
            np.testing.assert_array_equal(found[others], tokens.ids_BLQ[others])
    return by_page, by_stream


def test_a_flipped_bit_is_found_by_its_page_and_harms_one_row_without_it() -> None:
    by_page, by_stream = flip_bits(60, 2)
    assert by_page == 60 and by_stream > 50


@pytest.mark.soak
def test_rows_and_damage_for_long() -> None:
    bits = [check_rows(2_500, seed) for seed in range(20)]
    by_page, by_stream = flip_bits(10_000, 3)
    assert by_page == 10_000
    keep_result(
        "soak_compact",
        rows=2 * 20 * 2_500,
        machine_code=lockstep.kernels() is not None,
        bits_of_random_ids=round(float(np.mean([random for random, _ in bits])), 3),
        bits_of_expected_ids=round(float(np.mean([expected for _, expected in bits])), 3),
        flipped_bits=10_000,
        found_by_the_page=by_page,
        found_by_the_stream=by_stream,
    )
