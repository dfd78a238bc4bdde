"""Lists of one length read without their levels: always what pyarrow reads, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.pipeline.shards.pages import read_fixed_lists

GOLDEN = Path(__file__).parents[2] / "data/golden/v1"
EVEN = sorted(path for path in GOLDEN.glob("*-*.parquet") if "_variable" not in path.name)
TYPES = {"uint8": 200, "uint16": 60_000, "uint32": 3_000_000_000}


def column(values: np.ndarray, size: int) -> pa.Table:
    element = pa.field("element", pa.from_numpy_dtype(values.dtype), nullable=False)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values), type=pa.list_(element, size))
    return pa.table({"tokens": lists}, schema=pa.schema([pa.field("tokens", lists.type, nullable=False)]))


def written(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    settings = {"compression": "zstd", "write_page_checksum": True, "use_dictionary": ["tokens.list.element"], **options}
    pq.write_table(table, sink, **settings)
    return bytes(sink.getvalue())


def both(data: bytes, group: int) -> tuple[pa.Array | None, pa.Array | None]:
    """Return a row group as this module and as pyarrow read it, None where either does not."""
    source = pa.BufferReader(data)
    file = pq.ParquetFile(source, page_checksum_verification=True)
    try:
        theirs = file.read_row_group(group, columns=["tokens"], use_threads=False).column("tokens").combine_chunks()
    except (pa.ArrowException, OSError):
        theirs = None
    return read_fixed_lists(file, source, group, "tokens"), theirs


@st.composite
def ids(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Ids with runs, as even parts of an image give, and the length of a row."""
    dtype = draw(st.sampled_from(sorted(TYPES)))
    size, rows = draw(st.integers(1, 70)), draw(st.integers(1, 120))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    codes = draw(st.sampled_from([1, 2, 3, 9, 200, TYPES[dtype]]))
    longest = draw(st.sampled_from([1, 3, 40]))
    values = np.repeat(rng.integers(0, min(codes, TYPES[dtype]), size * rows), rng.integers(1, longest + 1, size * rows))
    return values[: size * rows].astype(dtype), size


@settings(max_examples=150, deadline=None)
@given(
    ids(),
    st.sampled_from(["dictionary", "small dictionary", "PLAIN", "BYTE_STREAM_SPLIT"]),
    st.sampled_from(["zstd", "none", "snappy"]),
    st.sampled_from([3000, 1 << 20]),  # below, pyarrow writes empty pages, which it cannot read
    st.sampled_from([7, 64, 1024]),
    st.sampled_from([13, 1000]),
)
def test_every_form_is_read_as_pyarrow_reads_it(
    made: tuple[np.ndarray, int], encoding: str, compression: str, page_bytes: int, write_batch: int, group_rows: int
) -> None:
    values, size = made
    options: dict[str, Any] = {"compression": compression, "data_page_size": page_bytes, "write_batch_size": write_batch}
    if encoding == "small dictionary":
        options["dictionary_pagesize_limit"] = 40  # later pages then hold plain values
    elif encoding != "dictionary":
        options |= {"use_dictionary": False, "column_encoding": {"tokens.list.element": encoding}}
    data = written(column(values, size), row_group_size=group_rows, **options)
    for group in range(pq.ParquetFile(pa.BufferReader(data)).num_row_groups):
        ours, theirs = both(data, group)
        assert ours is not None and theirs is not None
        assert ours.type == theirs.type and ours.equals(theirs)
        assert ours.flatten().to_numpy().tolist() == values[group * group_rows * size :][: len(ours) * size].tolist()


@pytest.mark.parametrize(
    "file", sorted(path for path in GOLDEN.glob("*-*.parquet") if "_variable" not in path.name), ids=lambda path: path.stem
)
def test_shards_are_read_this_way(file: Path) -> None:
    ours, theirs = both(file.read_bytes(), 0)
    assert ours is not None and ours.equals(theirs)


def test_damage_never_gives_other_ids() -> None:
    values = np.random.default_rng(0).integers(0, 300, 64 * 40).astype(np.uint16)
    data = written(column(values, 64), data_page_size=600, write_batch_size=100, compression="none")
    chunk = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(0)
    start = chunk.dictionary_page_offset
    _, whole = both(data, 0)
    rng, refused = np.random.default_rng(1), 0
    # All bytes of the first headers, and some of the rest.
    places = {*range(start, start + 60), *rng.integers(start, start + chunk.total_compressed_size, 400).tolist()}
    for place in sorted(places):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        ours, theirs = both(bytes(damaged), 0)
        refused += ours is None
        assert ours is None or ours.equals(whole) or (theirs is not None and ours.equals(theirs)), place
    assert refused > 0.9 * len(places)


def lists(values: list[Any], **options: Any) -> pa.Table:
    kind = pa.list_(pa.field("element", pa.uint16(), nullable=options.get("nulls", False)), options.get("size", -1))
    return pa.table({"tokens": pa.array(values, kind)}, schema=pa.schema([pa.field("tokens", kind, nullable=options.get("nulls", False))]))


@pytest.mark.parametrize(
    "table, options",
    [
        (lists([[1, 2], [3]]), {}),
        (lists([[1, 2], None], nulls=True, size=2), {}),
        (lists([[1, 2], [None, 4]], nulls=True, size=2), {}),
        (lists([[1, 2], [3, 4]], size=2), {"data_page_version": "2.0"}),
        (lists([[1, 2], [3, 4]], size=2), {"write_page_checksum": False}),
        (pa.table({"tokens": pa.array([1, 2], pa.uint16())}), {"use_dictionary": False}),
        (pa.table({"other": pa.array([1, 2], pa.uint16())}), {"use_dictionary": False}),
    ],
    ids=["lengths", "null list", "null element", "pages of version 2", "no CRC", "no list", "no column"],
)
def test_other_columns_are_left_to_pyarrow(table: pa.Table, options: dict[str, Any]) -> None:
    source = pa.BufferReader(written(table, **options))
    assert read_fixed_lists(pq.ParquetFile(source), source, 0, "tokens") is None


def test_levels_are_believed_before_the_footer() -> None:
    uneven, even = lists([[1, 2, 3], [4]]), lists([[1, 2], [3, 4]], size=2)
    said = pq.ParquetFile(pa.BufferReader(written(even))).metadata.metadata[b"ARROW:schema"]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, uneven.schema, store_schema=False, write_page_checksum=True) as writer:
        writer.write_table(uneven)
        writer.add_key_value_metadata({"ARROW:schema": said})
    data = sink.getvalue()
    file = pq.ParquetFile(pa.BufferReader(data))
    assert file.schema_arrow.field("tokens").type == even.schema.field("tokens").type
    assert read_fixed_lists(file, pa.BufferReader(data), 0, "tokens") is None
