"""All decoders read the same ids: numpy, torch, and machine code where numba is installed. On any layout, vocabulary and number of rows."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.shards.compact.models import damaged, random_model
from tests.pipeline.shards.samples import LAYOUTS, make_rows, make_spec, make_tokens
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.compact import model_size
from tokenshards.pipeline.shards.compact.codec import CompactCodec
from tokenshards.pipeline.shards.compact.fit import CompactFitConfig, fit_compact
from tokenshards.pipeline.shards.compact.model import CompactModel
from tokenshards.pipeline.shards.compact.model_file import model_sha256
from tokenshards.pipeline.shards.compact.processor import DECODE_DEVICE
from tokenshards.pipeline.shards.compact.rows import decode_batch, encode_batch
from tokenshards.pipeline.shards.compact.torch_streams import TorchDecoder
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.pipeline.shards.writer import encode_shard

MOST_IDS = 6000
"""Of the rows of an example: numpy and torch take a step for each id of a row."""


def outcomes(model: CompactModel, streams: list[bytes], spec: TokenizerSpec, sizes: np.ndarray | None) -> list[object]:
    """Return the ids, or the message of the error, from torch, numpy and machine code."""
    found: list[object] = []
    for fast, device in ((False, "cpu"), (False, None), (True, None)):
        try:
            found.append(decode_batch(model, streams, spec, sizes, fast=fast, device=device).tolist())
        except ValueError as error:
            found.append(str(error))
    return found


@st.composite
def batches(draw: st.DrawFn) -> tuple[TokenizerSpec, int, int]:
    """Draw a spec, a number of rows and a seed. Vocabularies are drawn by their number of digits, and some at the very edge of one."""
    digits = draw(st.integers(1, 6))
    edges = [size for size in (8 ** (digits - 1) + 1, 8**digits) if 2 <= size <= 65_536]
    vocabulary = draw(st.sampled_from(edges or [65_536]) | st.integers(max(2, 8 ** (digits - 1)), min(65_536, 8**digits)))
    kind = draw(st.sampled_from(["small", "ids", "rows"]))
    if kind == "small":
        spec, rows = make_spec(LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))], vocabulary), draw(st.integers(1, 40))
    elif kind == "ids":  # long rows
        sites = draw(st.integers(1, 3000))
        spec = make_spec(Layout(kind="sequence", sites=sites, ordered=draw(st.booleans())), vocabulary)
        rows = draw(st.integers(1, max(1, MOST_IDS // sites)))
    else:  # many rows
        rows = draw(st.integers(1, 3000))
        spec = make_spec(
            Layout(kind="grid", grid=(1, max(1, min(4, MOST_IDS // rows))), sites=max(1, min(4, MOST_IDS // rows))), vocabulary
        )
    return spec, rows, draw(st.integers(0, 1 << 30))


@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_any_batch_comes_back_from_all(batch: tuple[TokenizerSpec, int, int]) -> None:
    spec, rows, seed = batch
    model, tokens = random_model(spec, seed=seed, hidden=4), make_tokens(spec, rows, seed=seed)
    sizes = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD
    streams = encode_batch(model, tokens, spec)
    assert streams == encode_batch(model, tokens, spec, fast=False)
    for found in outcomes(model, streams, spec, sizes):
        assert found == tokens.ids_BLQ.tolist()


@pytest.mark.parametrize("name", ["grid", "grid_residual", "pyramid", "video_variable"])
def test_all_say_the_same_of_damage(name: str) -> None:
    spec, rng = make_spec(name, 70), np.random.default_rng(1)
    model, tokens = random_model(spec), make_tokens(spec, 20)
    sizes = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD
    streams, told = encode_batch(model, tokens, spec), 0
    for trial in range(30):
        found = outcomes(model, damaged(streams, rng, trial), spec, sizes)
        assert found[0] == found[1] == found[2]
        told += isinstance(found[0], str)
    assert told > 25


def test_a_level_of_frequencies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of too many codes has no tables and no hidden numbers."""
    spec = make_spec("grid", 70)
    tokens = make_tokens(spec, 40)
    monkeypatch.setattr(model_size, "SMALL", 5000)
    model = fit_compact(tokens, spec, {}, CompactFitConfig(epochs=1))
    assert model.levels[0].slots == () and model.levels[0].tables_RH.size == 0
    for found in outcomes(model, encode_batch(model, tokens, spec), spec, None):
        assert found == tokens.ids_BLQ.tolist()


def test_a_reader_decodes_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    decode = TorchDecoder.__call__

    def seen(self: TorchDecoder, *arguments: object) -> np.ndarray:
        calls.append(self.device.type)
        return decode(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchDecoder, "__call__", seen)
    for name in ("grid", "video_variable"):
        spec = make_spec(name, 20)
        model, tokens = random_model(spec), make_tokens(spec, 9)
        codec = CompactCodec(model, model_sha256(model))
        data = encode_shard(make_rows(9), tokens, spec=spec, codec=codec, label_type=None, meta_types={}).data
        monkeypatch.delenv(DECODE_DEVICE, raising=False)
        assert ShardReader.open(data).read().tokens.ids_BLQ.tolist() == tokens.ids_BLQ.tolist() and not calls
        monkeypatch.setenv(DECODE_DEVICE, "cpu")
        assert ShardReader.open(data).read().tokens.ids_BLQ.tolist() == tokens.ids_BLQ.tolist()
        assert calls and set(calls) == {"cpu"}
        calls.clear()
    monkeypatch.setenv(DECODE_DEVICE, "tpu")
    with pytest.raises(ConfigError, match=r"\$TOKENSHARDS_DECODE_DEVICE is 'tpu'; expected auto, cpu, cuda or cuda:NUMBER"):
        ShardReader.open(data).read()
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "tokenshards.pipeline.shards.compact.torch_streams")
    monkeypatch.delitem(sys.modules, "tokenshards.pipeline.devices", raising=False)
    with pytest.raises(ConfigError, match="torch"):
        ShardReader.open(data).read()
