"""A column of lists of one length, read as a flat column, because Arrow takes longer over list levels than over the values.

A Parquet page of lists holds repetition levels, definition levels and values. In our shards the levels say one thing: every row holds the
same number of values. Here each page is checked against its CRC and its levels against that, and then the values alone go to pyarrow, as
the pages of a flat column. So pyarrow decodes all values, whatever their encoding.

Formats: https://github.com/apache/parquet-format (`parquet.thrift`, `Encodings.md`), Thrift's compact protocol.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["read_fixed_lists"]

Fields: TypeAlias = dict[int, Any]
"""A Thrift struct: values by field id."""

# Enumerations of parquet.thrift.
DATA_PAGE, DICTIONARY_PAGE = 0, 2
PLAIN, RLE = 0, 3
BOOLEAN, INT32 = 0, 1
CONVERTED_TYPES = {pa.uint8(): 11, pa.uint16(): 12, pa.uint32(): 13}

# Types of Thrift's compact protocol.
TRUE, FALSE, BYTE, I16, I32, I64, BINARY, LIST, STRUCT = 1, 2, 3, 4, 5, 6, 8, 9, 12

MAGIC = b"PAR1"


def read_fixed_lists(file: pq.ParquetFile, source: Any, row_group: int, name: str) -> pa.Array | None:
    """Return a column of fixed-size lists of one row group, exactly as `file.read_row_group` does; `source` is the same file, opened.

    None where the column has any other type, or pages in a form that our writer does not write, or damage: pyarrow then reads the column,
    or says what is wrong with it.
    """
    index = file.schema_arrow.get_field_index(name)
    if index < 0 or not pa.types.is_fixed_size_list(kind := file.schema_arrow.field(index).type):
        return None
    leaf = next((leaf for leaf in range(len(file.schema)) if file.schema.column(leaf).path == f"{name}.list.element"), None)
    if leaf is None or kind.value_type not in CONVERTED_TYPES or kind.list_size < 1:
        return None
    column, group = file.schema.column(leaf), file.metadata.row_group(row_group)
    # With one level of each kind there is no room for a null: a value is there, or the list is empty.
    if (column.physical_type, column.max_repetition_level, column.max_definition_level) != ("INT32", 1, 1):
        return None
    try:
        pages = _value_pages(group.column(leaf), source, group.num_rows, kind.list_size)
        return pa.FixedSizeListArray.from_arrays(_decoded(pages, kind.value_type), type=kind)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class _Page:
    """A page without levels and compression; the encoding of its values is that of the file."""

    kind: int
    count: int
    encoding: int
    values: Any


def _value_pages(chunk: Any, source: Any, rows: int, list_size: int) -> list[_Page]:
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    source.seek(start)
    data = memoryview(source.read_buffer(chunk.total_compressed_size)).cast("B")
    codec = None if chunk.compression == "UNCOMPRESSED" else pa.Codec(chunk.compression.lower())
    pages, at, seen = [], 0, 0
    while at < len(data):
        header, at = _read_struct(data, at)
        size, whole, crc = header[3], header[2], header[4]
        stored = data[at : at + size]
        at += size
        if len(stored) != size or not 0 <= whole <= chunk.total_uncompressed_size or zlib.crc32(stored) != crc & 0xFFFFFFFF:
            raise ValueError("a damaged page")
        content = memoryview(stored if codec is None else codec.decompress(stored, whole)).cast("B")
        if header[1] == DICTIONARY_PAGE:
            pages.append(_Page(DICTIONARY_PAGE, header[7][1], header[7][2], content))
            continue
        info = header[5]  # absent in a data page of version 2
        if header[1] != DATA_PAGE or info[1] < 1 or (info[3], info[4]) != (RLE, RLE):
            raise ValueError("a page of another kind")
        count = info[1]
        repetition, content = _length_prefixed(content)
        definition, content = _length_prefixed(content)
        # A repetition level of 0 begins a row.
        if not (_levels_repeat(repetition, count, list_size, seen % list_size) and _levels_repeat(definition, count, 0, 0)):
            raise ValueError("lists of another length")
        pages.append(_Page(DATA_PAGE, count, info[2], content))
        seen += count
    if seen != rows * list_size:
        raise ValueError(f"{seen} values; expected {rows} x {list_size}")
    return pages


def _length_prefixed(content: memoryview) -> tuple[bytes, memoryview]:
    """Split the levels off a page: their bytes, with the length that stands before them, and the rest."""
    end = 4 + int.from_bytes(content[:4], "little")
    if end > len(content):
        raise ValueError("levels beyond the end of their page")
    return bytes(content[:end]), content[end:]


@lru_cache(maxsize=256)  # the pages of a dataset have few different levels
def _levels_repeat(levels: bytes, count: int, period: int, phase: int) -> bool:
    """Return whether `count` levels are all 1, apart from a 0 at every place p where (p + phase) mod period is 0; no 0 if period is 0."""
    # Levels of one bit are stored as a page of booleans would be.
    found = _decoded([_Page(DATA_PAGE, count, RLE, levels)], pa.bool_()).to_numpy(zero_copy_only=False)
    expected = np.ones(count, np.bool_)
    if period:
        expected[-phase % period :: period] = False
    return bool(np.array_equal(found, expected))


def _decoded(pages: list[_Page], kind: pa.DataType) -> pa.Array:
    """Let pyarrow read the pages as the only column of a file."""
    physical = BOOLEAN if kind == pa.bool_() else INT32
    parts: list[Any] = [MAGIC]
    for page in pages:
        info = [(1, I32, page.count), (2, I32, page.encoding)]
        if page.kind == DATA_PAGE:
            info += [(3, I32, RLE), (4, I32, RLE)]
        size = len(page.values)
        described = (5 if page.kind == DATA_PAGE else 7, STRUCT, info)
        parts += [_struct([(1, I32, page.kind), (2, I32, size), (3, I32, size), described]), page.values]
    end, first_data = sum(map(len, parts)), len(MAGIC)
    count = sum(page.count for page in pages if page.kind == DATA_PAGE)
    has_dictionary = pages[0].kind == DICTIONARY_PAGE
    if has_dictionary:
        first_data += len(parts[1]) + len(parts[2])
    total = end - len(MAGIC)
    chunk = [
        (1, I32, physical), (2, LIST, (I32, [PLAIN, RLE])), (3, LIST, (BINARY, [b"v"])), (4, I32, 0), (5, I64, count), (6, I64, total),
        (7, I64, total), (9, I64, first_data),
    ]  # fmt: skip
    if has_dictionary:
        chunk.append((11, I64, len(MAGIC)))
    root = [(4, BINARY, b"schema"), (5, I32, 1)]
    leaf = [(1, I32, physical), (3, I32, 0), (4, BINARY, b"v")]
    if physical == INT32:
        leaf.append((6, I32, CONVERTED_TYPES[kind]))
    group = [(1, LIST, (STRUCT, [[(2, I64, 0), (3, STRUCT, chunk)]])), (2, I64, total), (3, I64, count)]
    footer = _struct([(1, I32, 1), (2, LIST, (STRUCT, [root, leaf])), (3, I64, count), (4, LIST, (STRUCT, [group]))])
    data = b"".join([*parts, footer, len(footer).to_bytes(4, "little"), MAGIC])
    column = pq.ParquetFile(pa.BufferReader(data)).read_row_group(0, use_threads=False).column(0)
    if len(column) != count or column.null_count or column.type != kind:
        raise ValueError(f"{len(column)} values of {column.type}; expected {count} of {kind}")
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _read_struct(data: memoryview, at: int) -> tuple[Fields, int]:
    """Return the numbers and structs of a Thrift struct by field id, and where it ends."""
    fields: Fields = {}
    field = 0
    while head := data[at]:
        at += 1
        step, kind = head >> 4, head & 15
        if step:
            field += step
        else:
            field, at = _read_number(data, at)
        if kind in (TRUE, FALSE):
            fields[field] = kind == TRUE
        elif kind in (I16, I32, I64):
            fields[field], at = _read_number(data, at)
        elif kind == STRUCT:
            fields[field], at = _read_struct(data, at)
        elif kind == BINARY:
            size, at = _read_varint(data, at)
            at += size
        else:
            raise ValueError(f"a field of type {kind}")
    return fields, at + 1


def _read_number(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _struct(fields: list[tuple[int, int, Any]]) -> bytes:
    out, last = bytearray(), 0
    for field, kind, value in fields:
        out.append((field - last) << 4 | kind)
        out += _value(kind, value)
        last = field
    return bytes(out) + b"\0"


def _value(kind: int, value: Any) -> bytes:
    if kind == STRUCT:
        return _struct(value)
    if kind == BINARY:
        return _varint(len(value)) + bytes(value)
    if kind == LIST:
        element, values = value
        return bytes([len(values) << 4 | element]) + b"".join(_value(element, item) for item in values)
    return _varint(value << 1)  # no number here is negative


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
