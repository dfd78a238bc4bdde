"""Shards of the codec `compact`: rows come back on every layout, the model is found or named, and damage is an error of ours."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load, save

from tests import make_golden_compact
from tests.pipeline.shards.compact.models import random_model
from tests.pipeline.shards.samples import LAYOUTS, assert_same_tokens, make_rows, make_shard, make_spec, make_tokens
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, FormatError, MissingObjectError
from tokenshards.pipeline.shards.codebook import codebook_sha256
from tokenshards.pipeline.shards.codecs import check_codec, get_codec, same_codec
from tokenshards.pipeline.shards.compact import lockstep, model_file, rows
from tokenshards.pipeline.shards.compact.codec import CompactCodec
from tokenshards.pipeline.shards.compact.model_file import (
    load_model,
    model_bytes,
    model_path,
    model_sha256,
    models_of,
    packed_model,
    unpacked_model,
)
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.writer import EncodedShard, encode_shard
from tokenshards.pipeline.storage.store import Store


@pytest.fixture(autouse=True)
def no_models_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a new process does."""
    monkeypatch.setattr(model_file, "_kept", type(model_file._kept)())


def codec_for(spec: TokenizerSpec, seed: int = 0) -> CompactCodec:
    model = random_model(spec, seed)
    return CompactCodec(model, model_sha256(model))


def shard_of(spec: TokenizerSpec, codec: CompactCodec, count: int = 5, **options: Any) -> EncodedShard:
    tokens = make_tokens(spec, count)
    return encode_shard(make_rows(count), tokens, spec=spec, codec=codec, label_type=None, meta_types={}, **options)


@pytest.mark.parametrize("fast", [True, False], ids=["machine code", "numpy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_every_layout_come_back(layout: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(rows, "kernels", lambda: None)
    elif lockstep.kernels() is None:
        pytest.skip("numba is not installed")
    spec = make_spec(layout, 20)
    data = shard_of(spec, codec_for(spec), 40).data
    reader = ShardReader.open(data)
    assert reader.metadata["format_version"] == "1.2" and reader.schema.field("tokens").type == pa.binary()
    assert_same_tokens(reader.read().tokens, make_tokens(spec, 40))
    assert_same_tokens(reader.read_tokens(0), make_tokens(spec, 40))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_of_version_1_2_decode(layout: str) -> None:
    expected = json.loads((make_golden_compact.FOLDER / "expected.json").read_text())[layout]
    tokens = ShardReader.open(Store(str(make_golden_compact.FOLDER)), f"{layout}.parquet").read().tokens
    assert tokens.ids_BLQ.tolist() == expected["ids"]
    sizes = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD
    assert (None if sizes is None else sizes.tolist()) == expected["sizes"]


def test_every_golden_file_of_1_2_is_read_by_a_test() -> None:
    assert {path.stem for path in make_golden_compact.FOLDER.iterdir()} == {*LAYOUTS, "expected"}


def test_the_model_is_found_beside_the_tokenizer_or_in_a_shard(tmp_path: Path) -> None:
    spec = make_spec("grid_residual", 20)
    codec, store = codec_for(spec), Store(str(tmp_path))
    store.write("shards/b.parquet", shard_of(spec, codec, copies=False).data)
    place = model_path(codec.sha256)
    with pytest.raises(MissingObjectError, match=rf"{place}.*coded with this model; run `tokenshards verify`, then"):
        ShardReader.open(store, "shards/b.parquet")
    store.write("shards/a.parquet", b"no shard")
    store.write("shards/c.parquet", shard_of(spec, codec).data)
    assert_same_tokens(ShardReader.open(store, "shards/b.parquet").read().tokens, make_tokens(spec, 5))
    store.delete("shards/c.parquet")
    assert ShardReader.open(store, "shards/b.parquet").codec.name == codec.name, "this process knows the model now"
    model_file._kept.clear()
    store.write(place, model_bytes(codec.model))
    assert_same_tokens(ShardReader.open(store, "shards/b.parquet").read().tokens, make_tokens(spec, 5))


def test_bytes_without_a_copy_ask_for_their_dataset(tmp_path: Path) -> None:
    spec = make_spec("grid", 20)
    codec, store = codec_for(spec), Store(str(tmp_path))
    data = shard_of(spec, codec, copies=False).data
    with pytest.raises(MissingObjectError, match="read the shard by the dataset that holds both"):
        ShardReader.open(data)
    store.write(model_path(codec.sha256), model_bytes(codec.model))
    assert_same_tokens(ShardReader.open(data, models=models_of(store)).read().tokens, make_tokens(spec, 5))


def test_a_damaged_model_is_replaced_by_the_copy_of_the_shard(tmp_path: Path) -> None:
    spec = make_spec("grid", 20)
    codec, store = codec_for(spec), Store(str(tmp_path))
    store.write("a.parquet", shard_of(spec, codec).data)
    store.write("b.parquet", shard_of(spec, codec, copies=False).data)
    store.write(model_path(codec.sha256), model_bytes(codec_for(spec, 1).model))
    with pytest.raises(CorruptObjectError, match="the sha256 of the model of the codec compact is"):
        ShardReader.open(store, "b.parquet")
    assert_same_tokens(ShardReader.open(store, "a.parquet").read().tokens, make_tokens(spec, 5))


def changed(model: bytes, **tensors: np.ndarray) -> tuple[bytes, str]:
    """Return the file of a model with other tensors, and the digest of these."""
    found = {**load(model), **tensors}
    return save(found), codebook_sha256(found)


WRONG: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "down": ({"level_0.down": np.array([99], np.int32)}, "down is 99; expected 0 to"),
    "slots": ({"level_0.slots": np.array([[3, 0, 0, -1, 0]] * 8, np.int32)}, "a slot of level 0 is of a level that there is not"),
    "shape": ({"level_0.slots": np.zeros((8, 4), np.int32)}, "slots and down of level 0"),
    "paths": ({"level_0.paths": np.zeros(20, np.uint32)}, "are not different numbers"),
    "tables": ({"level_0.tables": np.zeros((3, 8), np.int16)}, "tables are int16"),
    "type": ({"level_0.weights": np.zeros((9, 8, 8), np.float32)}, "weights are float32"),
    "flat": ({"level_0.bases": np.zeros(8, np.int32)}, "IndexError"),
    "more": ({"level_1.bases": np.zeros((1, 8), np.int32)}, "its tensors are"),
    "large": ({"level_0.bases": np.full((1, 8), 1 << 24, np.int32)}, "sums of tables and bases are too large"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_model_with_integers_that_are_not_allowed_is_refused(case: str) -> None:
    tensors, message = WRONG[case]
    data, sha256 = changed(model_bytes(random_model(make_spec("grid", 20))), **tensors)
    with pytest.raises(CorruptObjectError, match=message):
        load_model(data, sha256, "model")


def test_a_model_for_other_ids_is_refused() -> None:
    spec = make_spec("grid", 20)
    others = {r"vocabularies \(21,\); the tokenizer has \(20,\)": make_spec("grid", 21), "slots of level 0": make_spec("pyramid", 20)}
    for message, other in others.items():
        with pytest.raises(ValueError, match=message):
            shard_of(spec, codec_for(other))


def test_a_model_keeps_its_digest_and_its_bytes() -> None:
    model = random_model(make_spec("grid_residual", 20), 3)
    data, sha256 = model_bytes(model), model_sha256(model)
    again = load_model(data, sha256, "model")
    assert (model_bytes(again), model_sha256(again)) == (data, sha256) and again.slots == model.slots
    packed = packed_model(model)
    assert packed is not None and model_sha256(unpacked_model(packed, sha256, "footer")) == sha256
    for text in ("?", base64.b64encode(b"nothing").decode()):
        with pytest.raises(CorruptObjectError, match="packed model of the codec compact"):
            unpacked_model(text, sha256, "footer")


def test_names() -> None:
    name = codec_for(make_spec("grid", 20)).name
    check_codec("compact")
    assert same_codec("compact", name) and same_codec(name, name) and same_codec("default", "default")
    assert not same_codec("compact", "default") and not same_codec("default", name)
    for wrong in ("compact:", "compact:abc", f"{name}0", name.upper(), "compact:3"):
        with pytest.raises(ConfigError, match="expected one of default, publish, compact, zstd:N"):
            check_codec(wrong)
    with pytest.raises(ConfigError, match="does not exist"):
        get_codec("compact")


def test_a_shard_that_names_no_model_is_refused_by_the_name_of_its_codec() -> None:
    with pytest.raises(FormatError, match="codec 'compact'; this version reads default, publish, compact, zstd:N"):
        ShardReader.open(renamed(make_shard(make_spec("grid"), make_tokens(make_spec("grid"), 3)).data, "compact"))


def renamed(data: bytes, codec: str) -> bytes:
    from tests.pipeline.shards.test_shard_files import rewrite

    return rewrite(data, metadata={"codec": codec})


@pytest.mark.parametrize("layout", ["grid", "sequence_variable", "grid_variable"])
def test_streams_of_other_rows_are_corrupt(layout: str) -> None:
    """A row's stream at the place of another is damage where the sizes differ, and never more than an error."""
    spec = make_spec(layout, 20)
    codec, tokens = codec_for(spec), make_tokens(spec, 6)
    columns = codec.encode(tokens, spec)
    streams = columns["tokens"].to_pylist()
    for wrong in ([b"", *streams[1:]], [b"\x00" + streams[0], *streams[1:]], [streams[0] + b"\x01\x02", *streams[1:]]):
        table = pa.table({**columns, "tokens": pa.array(wrong, pa.binary())})
        with pytest.raises(ValueError, match="row 0"):
            codec.decode(table, spec)
    with pytest.raises(ValueError, match="column tokens is string"):
        codec.decode(pa.table({**columns, "tokens": pa.array(["x"] * 6)}), spec)
