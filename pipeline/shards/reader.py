"""Read one shard: row group by row group in whole batches, never row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import (
    BadInput,
    ConfigError,
    CorruptObjectError,
    FormatError,
    MissingObjectError,
    TokenizerError,
    TokenshardsError,
    shorten,
)
from tokenshards.pipeline.records import TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards.codebook import unpack_codebook
from tokenshards.pipeline.shards.codecs import codec_names, get_codec
from tokenshards.pipeline.shards.compact.model import CompactModel
from tokenshards.pipeline.shards.compact.model_file import Models, model_path, models_of, remember_model, unpacked_model
from tokenshards.pipeline.shards.masks import MASK, stated_format
from tokenshards.pipeline.shards.pages import read_fixed_lists
from tokenshards.pipeline.shards.rows import ShardData
from tokenshards.pipeline.shards.schema import KEY_PREFIX, META_PREFIX, VIEW_NAMES, row_schema
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.token_columns import Codec
from tokenshards.pipeline.shards.version import check_version
from tokenshards.pipeline.storage.object_file import RangeReader
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.thread_map import map_in_order

__all__ = ["ShardData", "ShardReader"]

_ROW_NAMES = tuple(row_schema(None, {}).names)


class ShardReader:
    """One open shard. Not thread-safe; `iter_tokens` uses threads of its own.

    Every method raises CorruptObjectError if the bytes cannot come from our writer, whatever the damage.
    """

    def __init__(self, open_file: Callable[[], Any], path: str, models: Models | None = None) -> None:
        self._open_file = open_file
        self._opened = self._open_again()
        self._file = file = self._opened.parquet
        self.path = path
        footer = file.metadata.metadata or {}
        self.metadata = {
            key.decode()[len(KEY_PREFIX) :]: value.decode() for key, value in footer.items() if key.startswith(KEY_PREFIX.encode())
        }
        """Our footer keys without their prefix, such as `shard` and `plan_id`."""
        missing = {"format_version", "spec", "fingerprint", "codec"} - self.metadata.keys()
        if missing:
            names = ", ".join(KEY_PREFIX + name for name in sorted(missing))
            raise CorruptObjectError(path, f"a Parquet file without the footer keys {names}; expected a shard written by tokenshards")
        check_version(self.metadata["format_version"], path)
        self.spec = _parse_spec(self.metadata["spec"], self.metadata["fingerprint"], path)
        self.codec = _find_codec(self.metadata["codec"], path, _with_own(self.metadata.get("codec.model"), models, path))
        self._token_columns = self.codec.columns(self.spec)
        self.mask = stated_format(self.metadata.get("mask"), file.schema_arrow, path)
        """Format of the masks; None for a shard without the column `mask`."""
        names, known = file.schema_arrow.names, (*_ROW_NAMES, *VIEW_NAMES, *((MASK,) if self.mask else ()))
        self.row_columns = tuple(name for name in names if name in known or name.startswith(META_PREFIX))
        """Names of all columns except the token columns and the columns of a newer minor version."""
        absent = sorted({*_ROW_NAMES, *self._token_columns} - set(names))
        if absent:
            raise CorruptObjectError(path, f"the columns {absent} are missing; found {shorten(names)}")

    @classmethod
    def open(cls, source: bytes | Store, path: str = "shard", *, sha256: str | None = None, models: Models | None = None) -> ShardReader:
        """Open a shard from its bytes, or from the object `path` of a store; then only the needed ranges are read.

        With `sha256`, the whole object is read and compared first. `models` finds the model of the codec `compact`; without it the store
        is asked, and of bytes only the shard's own copy, which one shard in 16 has. Raises CorruptObjectError, FormatVersionError (a newer
        major version), FormatError (a codec that this version lacks, or whose model is not there), MissingObjectError.
        """
        if models is None and isinstance(source, Store):
            models = models_of(source)
        if sha256 is not None:
            data = source.read(path) if isinstance(source, Store) else source
            found = sha256_hex(data)
            if found != sha256:
                raise CorruptObjectError(path, f"the sha256 of its {len(data)} bytes is {found[:12]}…; expected {sha256[:12]}…")
            source = data
        with _decoding(path):
            return cls(_opener(source, path), path, models)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer that made the ids."""
        return self.spec.fingerprint

    @property
    def schema(self) -> pa.Schema:
        """All columns of the file, including those of a newer minor version."""
        return self._file.schema_arrow

    @property
    def num_rows(self) -> int:
        """Number of rows of the whole shard."""
        return int(self._file.metadata.num_rows)

    @property
    def num_row_groups(self) -> int:
        """Number of row groups; a row group is the unit of reading."""
        return int(self._file.metadata.num_row_groups)

    def row_group_rows(self, row_group: int) -> int:
        """Return the number of rows of one row group."""
        return int(self._file.metadata.row_group(row_group).num_rows)

    def codebook(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return the checked tables of the footer's codebook, or None if this shard has no copy."""
        packed = self.metadata.get("codebook")
        if packed is None or self.spec.codebook is None:
            return None
        return unpack_codebook(packed, self.spec.codebook.sha256, self.path)

    def read_tokens(self, row_group: int) -> TokenBatch:
        """Return the ids of one row group.

        For layouts of fixed length `ids_BLQ` is a read-only view of Parquet's buffer; if Q > 1, its memory is level-major.
        """
        return self._decode(self._read_group(self._opened, row_group, self._token_columns))

    def iter_tokens(self, *, threads: int = 2) -> Iterator[TokenBatch]:
        """Yield the ids of every row group in order. This is the fast path: `threads` row groups are decoded at the same time."""
        idle: SimpleQueue[_Opened] = SimpleQueue()
        for _ in range(threads):
            idle.put(self._open_again())

        def decode(row_group: int) -> TokenBatch:
            opened = idle.get()
            try:
                return self._decode(self._read_group(opened, row_group, self._token_columns))
            finally:
                idle.put(opened)

        return map_in_order(decode, range(self.num_row_groups), threads=threads, ahead=threads)

    def read_row_group(self, row_group: int, columns: Sequence[str] | None = None) -> ShardData:
        """Return one row group: its ids and the named columns (None: all of `row_columns`)."""
        names = self._known(columns)
        table = self._read_group(self._opened, row_group, (*names, *self._token_columns))
        return ShardData(self._decode(table), table.select(list(names)))

    def read(self, columns: Sequence[str] | None = None) -> ShardData:
        """Return the whole shard: its ids and the named columns (None: all of `row_columns`)."""
        table = self.read_columns(columns)
        return ShardData(self._all_tokens(), table)

    def read_columns(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the named columns of the whole shard (None: all of `row_columns`) without reading the ids."""
        names = self._known(columns)
        with _decoding(self.path):
            return _complete(self._file.read(columns=list(names), use_threads=False), self.num_rows, names)

    def read_masks(self, row_group: int) -> pa.ChunkedArray:
        """Return the column `mask` of one row group alone, for `masks_of`; ConfigError for a shard without masks."""
        return self._read_group(self._opened, row_group, self._known((MASK,))).column(MASK)

    def _all_tokens(self) -> TokenBatch:
        layout = self.spec.layout
        if layout.variable:
            return concatenate_tokens(list(self.iter_tokens()))
        # Fill one array while decoding, so that the memory of one row group can be reused for the next.
        ids_BQL = np.empty((self.num_rows, layout.ids_per_site, layout.sites), self.spec.id_dtype)
        start = 0
        for tokens in self.iter_tokens():
            ids_BQL[start : start + len(tokens)] = tokens.ids_BLQ.transpose(0, 2, 1)
            start += len(tokens)
        if start != self.num_rows:
            raise CorruptObjectError(self.path, f"its row groups hold {start} rows; the footer says {self.num_rows}")
        return TokenBatch(ids_BQL.transpose(0, 2, 1))

    def _open_again(self) -> _Opened:
        source = self._open_file()
        return _Opened(source, pq.ParquetFile(source, page_checksum_verification=True))

    def _known(self, columns: Sequence[str] | None) -> tuple[str, ...]:
        unknown = sorted(set(columns or ()) - set(self.row_columns))
        if unknown:
            raise ConfigError(f"{self.path}: no columns {unknown}; it has {', '.join(self.row_columns)}")
        return self.row_columns if columns is None else tuple(columns)

    def _read_group(self, opened: _Opened, row_group: int, names: Sequence[str]) -> pa.Table:
        if not 0 <= row_group < self.num_row_groups:
            raise IndexError(f"{self.path}: row group {row_group}; it has {self.num_row_groups}")
        with _decoding(self.path):
            columns = {}
            for name in set(names).intersection(self._token_columns):
                column = read_fixed_lists(opened.parquet, opened.source, row_group, name)
                if column is not None:
                    columns[name] = column
            others = [name for name in names if name not in columns]
            if others:
                table = opened.parquet.read_row_group(row_group, columns=others, use_threads=False)
                columns |= dict(zip(table.column_names, table.columns, strict=True))
            table = pa.table(columns, schema=pa.schema([self.schema.field(name) for name in columns]))
            return _complete(table, self.row_group_rows(row_group), names)

    def _decode(self, table: pa.Table) -> TokenBatch:
        with _decoding(self.path):
            return self.codec.decode(table, self.spec)


@dataclass(frozen=True, slots=True)
class _Opened:
    """The file of a shard, and what pyarrow knows of it."""

    source: Any
    parquet: pq.ParquetFile


def _complete(table: pa.Table, rows: int, names: Sequence[str]) -> pa.Table:
    if table.num_rows != rows or set(table.column_names) != set(names):
        raise ValueError(f"{table.num_rows} rows of {table.column_names}; expected {rows} of {list(names)}")
    return table


def _opener(source: bytes | Store, path: str) -> Callable[[], Any]:
    """Return a function that opens the shard as one more Arrow file; raises MissingObjectError if it does not exist."""
    if not isinstance(source, Store):
        buffer = pa.py_buffer(source)
        return lambda: pa.BufferReader(buffer)
    info = source.info(path)
    if info is None:
        raise MissingObjectError(path, place=source.place(path))
    if source.is_local:
        return lambda: pa.OSFile(source.join(path))
    return lambda: pa.PythonFile(RangeReader(source, path, info.size), mode="r")


@contextmanager
def _decoding(path: str) -> Iterator[None]:
    try:
        yield
    except TokenshardsError:
        raise
    except BadInput as error:
        raise CorruptObjectError(path, error.detail) from None
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise CorruptObjectError(path, f"cannot be decoded ({type(error).__name__}: {shorten(str(error))})") from None


def _parse_spec(text: str, fingerprint: str, path: str) -> TokenizerSpec:
    try:
        spec = TokenizerSpec.from_json(json.loads(text), path)
    except (ValueError, TypeError, TokenizerError) as error:
        raise CorruptObjectError(path, f"its tokenizer spec cannot be read ({shorten(str(error))})") from None
    if spec.fingerprint != fingerprint:
        raise CorruptObjectError(path, f"its spec has the fingerprint {spec.fingerprint[:12]}…; the footer says {shorten(fingerprint, 16)}")
    return spec


def _with_own(copy: str | None, models: Models | None, path: str) -> Models:
    """Return what finds the model of a shard: where its dataset has lost the model, in the shard's own footer."""

    def find(sha256: str) -> CompactModel:
        try:
            if models is not None:
                return models(sha256)
        except (MissingObjectError, CorruptObjectError):
            if copy is None:
                raise
        if copy is None:
            where = model_path(sha256)
            raise MissingObjectError(where, f"{path} is coded with this model; read the shard by the dataset that holds both")
        return remember_model(sha256, unpacked_model(copy, sha256, path))

    return find


def _find_codec(name: str, path: str, models: Models) -> Codec:
    try:
        return get_codec(name, models)
    except ConfigError:
        known = ", ".join(codec_names())
        raise FormatError(
            f"{path}: stored with the codec {shorten(name)}; this version reads {known}. Upgrade tokenshards to read it"
        ) from None
