"""Writer and reader together: columns, footer, refusals, and what other Parquet readers see."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline.shards.samples import LAYOUTS, assert_same_tokens, codebook, make_rows, make_shard, make_spec, make_tokens
from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, FormatError, FormatVersionError, MissingObjectError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.codebook import carries_copies, codebook_sha256, pack_codebook
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.version import FORMAT_VERSION, check_version
from tokenshards.pipeline.shards.writer import encode_quarantine, read_quarantine
from tokenshards.pipeline.storage.store import Store

ROW_NAMES = ["sample_id", "view", "label", "orig_width", "orig_height", "orig_bytes"]


def rewrite(
    data: bytes, *, metadata: dict[str, str] | None = None, extra: dict[str, pa.Array] | None = None, drop: tuple[str, ...] = ()
) -> bytes:
    """The same shard as another writer might have made it: with other footer keys, more columns, or fewer."""
    table = pq.read_table(pa.BufferReader(data)).drop_columns(list(drop))
    for name, array in (extra or {}).items():
        table = table.append_column(name, array)
    footer = {key: value for key, value in (pq.read_metadata(pa.BufferReader(data)).metadata or {}).items() if key != b"ARROW:schema"}
    footer |= {b"tokenshards." + key.encode(): value.encode() for key, value in (metadata or {}).items()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(footer), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("name", LAYOUTS)
def test_columns_are_exactly_those_of_the_spec(name: str) -> None:
    spec = make_spec(name)
    data = make_shard(spec, make_tokens(spec, 3)).data
    extra = {"sequence_variable": ["length"], "grid_variable": ["shape"], "video_variable": ["shape"]}.get(name, [])
    schema = pq.read_schema(pa.BufferReader(data))
    assert schema.names == [*ROW_NAMES[:3], "tokens", *extra, *ROW_NAMES[3:]]
    types = {name: str(schema.field(name).type) for name in ROW_NAMES}
    label = "dictionary<values=string, indices=int32, ordered=0>"
    assert types == dict(zip(ROW_NAMES, ["string", "int16", label, "int32", "int32", "int64"], strict=True))
    assert [field.name for field in schema if field.nullable] == ["label"]


def test_rows_labels_and_meta_come_back() -> None:
    spec = make_spec("grid")
    meta = {"score": [0.5, None, 2.0], "caption": ["a", "ä\n", None], "count": [1, 2, None], "ok": [True, None, False]}
    types = {"score": "float64", "caption": "string", "count": "int64", "ok": "bool"}
    rows = make_rows(3, labels=["cat", None, "dog"], meta=meta)
    data = make_shard(spec, make_tokens(spec, 3), rows=rows, label_type="string", meta_types=types).data
    table = ShardReader.open(data).read().table
    assert table.column_names == [*ROW_NAMES[:3], "meta.caption", "meta.count", "meta.ok", "meta.score", *ROW_NAMES[3:]]
    columns = table.to_pydict()
    assert columns["label"] == ["cat", None, "dog"] and columns["sample_id"] == rows.sample_id
    assert {f"meta.{name}": values for name, values in meta.items()} == {
        name: columns[name] for name in columns if name.startswith("meta.")
    }
    assert columns["orig_width"] == [100, 101, 102] and columns["orig_bytes"] == [1000, 1010, 1020]


def test_integer_labels_stay_integers() -> None:
    spec = make_spec("grid")
    rows = make_rows(3, labels=[1 << 40, None, -1])
    data = make_shard(spec, make_tokens(spec, 3), rows=rows, label_type="int64").data
    assert ShardReader.open(data).read(["label"]).table.to_pydict() == {"label": [1 << 40, None, -1]}


def test_other_readers_see_the_integers(tmp_path: Path) -> None:
    spec = make_spec("grid_residual", 300)
    tokens = make_tokens(spec, 5)
    expected = tokens.ids_BLQ.transpose(0, 2, 1).reshape(5, -1)
    for codec in ("default", "publish"):
        path = tmp_path / f"{codec}.parquet"
        path.write_bytes(make_shard(spec, tokens, codec=codec, rows=make_rows(5, labels=list("abcab")), label_type="string").data)
        seen = duckdb.sql(f"select tokens, label, tokens[1] as first from '{path}' order by orig_width").fetchall()
        np.testing.assert_array_equal(np.array([row[0] for row in seen]), expected)
        assert [row[1] for row in seen] == list("abcab")
        assert [row[2] for row in seen] == expected[:, 0].tolist()
        frame = pd.read_parquet(path)
        np.testing.assert_array_equal(np.stack(frame["tokens"].to_list()), expected)
        assert frame["label"].tolist() == list("abcab")
        np.testing.assert_array_equal(pq.read_table(path)["tokens"].combine_chunks().flatten().to_numpy().reshape(5, -1), expected)


def test_other_readers_see_variable_rows(tmp_path: Path) -> None:
    spec = make_spec("sequence_variable")
    tokens = make_tokens(spec, 6)
    path = tmp_path / "shard.parquet"
    path.write_bytes(make_shard(spec, tokens).data)
    for ids, length, expected in zip(
        *duckdb.sql(f"select list(tokens), list(length) from '{path}'").fetchall()[0], tokens.ids_BLQ[:, :, 0], strict=True
    ):
        assert ids == expected[:length].tolist()


def test_equal_inputs_give_equal_bytes() -> None:
    spec = make_spec("grid_residual", tables=codebook((200, 200, 200)))
    tokens = make_tokens(spec, 40)
    shards = [
        make_shard(spec, tokens, codebook=codebook((200, 200, 200)), extra_metadata=dict(order)).data
        for order in ([("b", "2"), ("a", "1")], [("a", "1"), ("b", "2")])
    ]
    assert shards[0] == shards[1]


def test_footer_says_what_the_ids_mean() -> None:
    tables = codebook((200,))
    spec = make_spec("grid", tables=tables)
    shard = make_shard(spec, make_tokens(spec, 2), codebook=tables, extra_metadata={"shard": "7", "plan_id": "abc"})
    footer = pq.read_metadata(pa.BufferReader(shard.data)).metadata
    assert {key.decode() for key in footer if key.startswith(b"tokenshards.")} == {
        f"tokenshards.{key}" for key in ("format_version", "spec", "fingerprint", "codec", "codebook", "shard", "plan_id")
    }
    assert all(value.decode() for value in footer.values()), "other readers want UTF-8"
    assert b"tokenshards" not in base64.b64decode(footer[b"ARROW:schema"]), "the footer is stored twice"
    assert json.loads(footer[b"tokenshards.spec"]) == spec.to_json()
    reader = ShardReader.open(shard.data)
    assert (reader.metadata["shard"], reader.metadata["plan_id"]) == ("7", "abc")
    found = reader.codebook()
    assert found is not None and found.keys() == tables.keys()
    np.testing.assert_array_equal(found["level_0"], tables["level_0"])


def test_large_or_unwanted_codebooks_stay_out_of_the_footer() -> None:
    large = {"level_0": np.zeros((1 << 15, 8), np.float32)}
    assert pack_codebook(large) is None
    spec = make_spec("grid", tables=large)
    assert ShardReader.open(make_shard(spec, make_tokens(spec, 2), codebook=large).data).codebook() is None
    assert [shard for shard in range(40) if carries_copies(shard)] == [0, 16, 32]


def test_codebook_digest_sees_names_shapes_dtypes_and_values() -> None:
    base = np.arange(6, dtype=np.float32).reshape(3, 2)
    variants = [
        {"level_0": base},
        {"level_1": base},
        {"level_0": base.reshape(2, 3)},
        {"level_0": base.view(np.int32)},
        {"level_0": base + 1},
    ]
    assert len({codebook_sha256(tables) for tables in variants}) == len(variants)
    assert codebook_sha256({"a": base, "b": base}) == codebook_sha256({"b": np.asfortranarray(base), "a": base.astype(">f4")})


def test_row_groups_cover_the_shard_in_order() -> None:
    spec = make_spec("grid")
    tokens = make_tokens(spec, 5000)
    reader = ShardReader.open(make_shard(spec, tokens).data)
    assert reader.num_rows == 5000 and reader.num_row_groups == 3
    parts = [reader.read_tokens(group).ids_BLQ for group in range(reader.num_row_groups)]
    assert [len(part) for part in parts] == [reader.row_group_rows(group) for group in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), tokens.ids_BLQ)
    second = reader.read_row_group(1, ["sample_id", "view"])
    assert second.table.column_names == ["sample_id", "view"]
    assert second.table["sample_id"][0].as_py() == make_rows(5000).sample_id[reader.row_group_rows(0)]
    assert_same_tokens(second.tokens, reader.read_tokens(1))
    assert reader.read_columns(["orig_width"]).num_rows == 5000
    with pytest.raises(IndexError):
        reader.read_tokens(3)
    with pytest.raises(ConfigError, match="no columns .'tokens', 'x'.; it has sample_id"):
        reader.read_columns(["x", "tokens"])


def test_tokens_of_one_row_group_are_not_copied() -> None:
    spec = make_spec("grid")
    ids_BLQ = ShardReader.open(make_shard(spec, make_tokens(spec, 100)).data).read_tokens(0).ids_BLQ
    assert not ids_BLQ.flags.owndata and not ids_BLQ.flags.writeable


def test_a_remote_store_is_read_in_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://shard-reader")
    spec = make_spec("grid", 200)
    tokens = make_tokens(spec, 9000)
    data = make_shard(spec, tokens).data
    store.write("shards/a.parquet", data)
    read: list[int] = []
    whole = store.read

    def counted(path: str, start: int | None = None, end: int | None = None) -> bytes:
        part = whole(path, start, end)
        read.append(len(part))
        return part

    monkeypatch.setattr(store, "read", counted)
    reader = ShardReader.open(store, "shards/a.parquet")
    np.testing.assert_array_equal(reader.read_tokens(1).ids_BLQ, tokens.ids_BLQ[reader.row_group_rows(0) :][: reader.row_group_rows(1)])
    assert sum(read) < len(data) / 1.5
    assert_same_tokens(reader.read().tokens, tokens)
    read.clear()
    ShardReader.open(store, "shards/a.parquet", sha256=sha256_hex(data))
    assert read == [len(data)]
    store.write("shards/a.parquet", data[: len(data) // 2])
    with pytest.raises(CorruptObjectError, match="the object became shorter during the read"):
        reader.read()
    store.delete("shards/a.parquet")
    with pytest.raises(MissingObjectError):
        reader.read_tokens(2)


@pytest.mark.parametrize("root", ["memory://shard-reader-missing", "local"])
def test_a_shard_in_a_store(root: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path) if root == "local" else root)
    spec = make_spec("grid")
    tokens = make_tokens(spec, 3)
    store.write("a.parquet", make_shard(spec, tokens).data)
    assert_same_tokens(ShardReader.open(store, "a.parquet").read().tokens, tokens)
    with pytest.raises(MissingObjectError, match="b.parquet"):
        ShardReader.open(store, "b.parquet")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_keep_the_order(threads: int) -> None:
    spec = make_spec("grid_residual")
    tokens = make_tokens(spec, 9000)
    reader = ShardReader.open(make_shard(spec, tokens).data)
    assert reader.num_row_groups > 4
    parts = list(reader.iter_tokens(threads=threads))
    np.testing.assert_array_equal(np.concatenate([part.ids_BLQ for part in parts]), tokens.ids_BLQ)
    first = reader.iter_tokens(threads=threads)
    next(first)
    first.close()


def test_unknown_columns_and_footer_keys_of_the_same_major_are_ignored() -> None:
    spec = make_spec("sequence_variable")
    tokens = make_tokens(spec, 3)
    data = rewrite(make_shard(spec, tokens).data, metadata={"format_version": "1.9", "novel": "x"}, extra={"novel": pa.array([1, 2, 3])})
    found = ShardReader.open(data).read()
    assert found.table.column_names == ROW_NAMES
    assert_same_tokens(found.tokens, tokens)


def test_newer_major_is_refused_with_both_numbers() -> None:
    spec = make_spec("grid")
    data = rewrite(make_shard(spec, make_tokens(spec, 3)).data, metadata={"format_version": "2.0"})
    with pytest.raises(FormatVersionError, match=r"format 2.0; this version reads up to 1\.x"):
        ShardReader.open(data)
    with pytest.raises(FormatVersionError, match="quarantine"):
        read_quarantine(rewrite(encode_quarantine(QUARANTINED), metadata={"format_version": "3.1"}), "quarantine/x.parquet")


@pytest.mark.parametrize("text", ["", "1", "1.0.0", "a.b", "-1.0", "1.", "².0"])
def test_a_version_that_is_none_is_corrupt(text: str) -> None:
    with pytest.raises(CorruptObjectError):
        check_version(text, "x")
    check_version(FORMAT_VERSION, "x")


def test_unknown_codec_is_refused_by_name() -> None:
    spec = make_spec("grid")
    with pytest.raises(FormatError, match="codec 'tree8'; this version reads default, publish"):
        ShardReader.open(rewrite(make_shard(spec, make_tokens(spec, 3)).data, metadata={"codec": "tree8"}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"drop": ("orig_bytes",)}, "orig_bytes"),
        ({"drop": ("tokens",)}, "tokens"),
        ({"metadata": {"fingerprint": "0" * 64}}, "fingerprint"),
        ({"metadata": {"spec": "{}"}}, "spec cannot be read"),
        ({"metadata": {"spec": "["}}, "spec cannot be read"),
        ({"metadata": {"spec": "7"}}, "spec cannot be read"),
    ],
)
def test_a_shard_that_contradicts_itself_is_corrupt(change: dict, message: str) -> None:
    spec = make_spec("grid")
    with pytest.raises(CorruptObjectError, match=message):
        ShardReader.open(rewrite(make_shard(spec, make_tokens(spec, 3)).data, **change))


def test_tokens_of_another_type_are_corrupt() -> None:
    spec = make_spec("grid")
    wrong = pa.array(np.zeros((3, 12), np.int64).tolist(), pa.list_(pa.int64(), 12))
    data = rewrite(make_shard(spec, make_tokens(spec, 3)).data, drop=("tokens",), extra={"tokens": wrong})
    with pytest.raises(CorruptObjectError, match="expected fixed_size_list<element: uint8 not null>"):
        ShardReader.open(data).read()


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 100, b"PAR1" + b"\0" * 50 + b"\xff\xff\xff\x7fPAR1"])
def test_what_is_no_parquet_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptObjectError):
        ShardReader.open(data)
    with pytest.raises(CorruptObjectError):
        read_quarantine(data)


def test_a_foreign_parquet_file_is_named_as_such() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    with pytest.raises(CorruptObjectError, match="without the footer keys tokenshards.codec"):
        ShardReader.open(bytes(sink.getvalue()))


def flips(data: bytes, count: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    damaged = []
    for position in np.linspace(0, len(data) - 1, count).astype(int):
        copy = bytearray(data)
        copy[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(copy))
    return damaged


def test_every_flipped_bit_is_found_by_the_checksum_and_no_foreign_error_escapes() -> None:
    tables = codebook((200,))
    spec = make_spec("sequence_variable", tables=tables)
    tokens = make_tokens(spec, 60)
    data = make_shard(spec, tokens, codebook=tables).data
    digest = sha256_hex(data)
    caught = 0
    for damaged in flips(data, 500):
        with pytest.raises(CorruptObjectError, match="sha256"):
            ShardReader.open(damaged, sha256=digest)
        try:
            reader = ShardReader.open(damaged)
            reader.read()
            reader.codebook()
            for group in range(reader.num_row_groups):
                reader.read_tokens(group)
        except FormatError:
            caught += 1
    assert caught > 200, "page checksums and schema checks find most damage even without the sha256"


def test_every_flip_in_the_token_pages_is_found_without_the_sha256() -> None:
    spec = make_spec("grid", 200)
    data = make_shard(spec, make_tokens(spec, 400)).data
    column = pq.read_metadata(pa.BufferReader(data)).row_group(0).column(3)
    start, size = column.data_page_offset, column.total_compressed_size - (column.data_page_offset - column.dictionary_page_offset)
    rng = np.random.default_rng(1)
    for position in rng.integers(start + size // 4, start + size, 60):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(CorruptObjectError, match="cannot be decoded"):
            ShardReader.open(bytes(damaged)).read()


def test_truncated_shards_are_corrupt() -> None:
    spec = make_spec("grid")
    data = make_shard(spec, make_tokens(spec, 50)).data
    for size in range(0, len(data), 97):
        with pytest.raises(CorruptObjectError):
            ShardReader.open(data[:size]).read()


def test_a_damaged_codebook_is_corrupt() -> None:
    tables = codebook((200,))
    spec = make_spec("grid", tables=tables)
    data = make_shard(spec, make_tokens(spec, 2), codebook=tables).data
    other = pack_codebook({"level_0": tables["level_0"] + 1})
    for packed, message in ((other, "expects"), ("!!!", "cannot be decoded"), ("AAAA", "cannot be decoded"), ("", "cannot be decoded")):
        with pytest.raises(CorruptObjectError, match=message):
            ShardReader.open(rewrite(data, metadata={"codebook": packed})).codebook()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rows": make_rows(2)}, "3 rows of ids"),
        ({"rows": make_rows(3, labels=["a", None, None])}, "label_type is None"),
        ({"rows": make_rows(3, meta={"x": [1, 2, 3]})}, r"meta columns are \['x'\]; expected \[\]"),
        ({"rows": make_rows(3, meta={"x": [1, 2]}), "meta_types": {"x": "int64"}}, "meta.x"),
        ({"rows": make_rows(3, labels=["a", "b", "c"]), "label_type": "int64"}, "int64|convert|integer"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    spec = make_spec("grid")
    with pytest.raises((ValueError, TypeError), match=message):
        make_shard(spec, make_tokens(spec, 3), **change)


def test_no_rows_and_duplicate_keys_are_refused() -> None:
    spec = make_spec("grid")
    with pytest.raises(ValueError, match="0 rows"):
        make_shard(spec, TokenBatch(np.zeros((0, 12, 1), np.uint8)))
    rows = make_rows(2)
    rows.sample_id[1] = rows.sample_id[0]
    with pytest.raises(ValueError, match="same sample_id and view"):
        make_shard(spec, make_tokens(spec, 2), rows=rows)
    rows.view[1] = 1
    assert make_shard(spec, make_tokens(spec, 2), rows=rows).rows == 2


def test_ids_outside_the_vocabulary_are_never_written() -> None:
    spec = make_spec("grid_residual", (200, 100, 200))
    tokens = make_tokens(make_spec("grid_residual", 200), 5)
    with pytest.raises(ValueError, match="level 1 go from .* its vocabulary has 100 codes"):
        make_shard(spec, tokens)


def test_token_bytes_are_those_of_the_token_columns() -> None:
    spec = make_spec("sequence_variable")
    tokens = make_tokens(spec, 3000)
    shard = make_shard(spec, tokens)
    metadata = pq.read_metadata(pa.BufferReader(shard.data))
    paths = [metadata.row_group(0).column(index).path_in_schema for index in range(metadata.num_columns)]
    picked = [paths.index("tokens.list.element"), paths.index("length")]
    assert shard.token_bytes == sum(
        metadata.row_group(group).column(index).total_compressed_size for group in range(metadata.num_row_groups) for index in picked
    )
    assert 0 < shard.token_bytes < len(shard.data)


QUARANTINED = [
    {
        "sample_id": "a/ä.jpg",
        "uri": "s3://b/a/ä.jpg",
        "stage": "decode",
        "reason": "truncated",
        "detail": "x",
        "label": "a",
        "data": b"\0\xff",
    },
    {"sample_id": "b.jpg", "uri": "", "stage": "fetch", "reason": "missing", "detail": "", "label": None, "data": None},
]


def test_quarantine_rows_come_back() -> None:
    assert read_quarantine(encode_quarantine(QUARANTINED)) == QUARANTINED
    short = {name: value for name, value in QUARANTINED[1].items() if name not in ("label", "data")}
    assert read_quarantine(encode_quarantine([short])) == [QUARANTINED[1]]
    for wrong in ([], [{**short, "colour": "red"}], [{**short, "uri": None}]):
        with pytest.raises(ValueError):
            encode_quarantine(wrong)


def test_quarantine_damage_is_corrupt_never_a_foreign_error() -> None:
    data = encode_quarantine(QUARANTINED)
    for damaged in flips(data, 300, seed=2):
        try:
            read_quarantine(damaged)
        except FormatError:
            continue
