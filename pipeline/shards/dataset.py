"""Read access to a finished dataset: length, classes, spec, codebook, batches, one sample by id. Never imports torch.

Shapes: B rows, L sites (those of the longest row of a batch if rows vary), Q ids per site.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import (
    ConfigError,
    CorruptObjectError,
    FingerprintMismatchError,
    IncompleteError,
    MissingObjectError,
    NotFoundError,
    shorten,
)
from tokenshards.pipeline.records import TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards.codebook import load_codebook
from tokenshards.pipeline.shards.manifest import MANIFEST_POINTER, Manifest, ShardEntry, load_manifest
from tokenshards.pipeline.shards.masks import MASK, MaskFormat, Masks, masks_of
from tokenshards.pipeline.shards.random_access import RowGroups
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.rows import Batch, Sample, ShardData, class_indices
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.split_index import refuse_split_root
from tokenshards.pipeline.storage.store import Store

__all__ = ["Batch", "Decoder", "Sample", "TokenDataset", "open_dataset"]

CODEBOOK_PATH = "tokenizer/codebook.safetensors"


def open_dataset(url: str, *, storage_options: dict[str, Any] | None = None, verify: bool = False) -> TokenDataset:
    """Open a complete dataset at any fsspec URL; with `verify`, each shard is checked against its sha256 before it is read.

    Raises MissingObjectError if there is no dataset, IncompleteError if tokenization has not finished, CorruptObjectError or
    FormatVersionError if the manifest cannot be read.
    """
    store = Store(url, storage_options=storage_options)
    if store.info(MANIFEST_POINTER) is None:
        if store.info("plan/current.json") is None:
            refuse_split_root(store)
            raise NotFoundError(store.url, f"no dataset here: neither {MANIFEST_POINTER} nor plan/current.json exists")
        raise IncompleteError(
            f"{store.url}: the dataset is not complete, {MANIFEST_POINTER} does not exist yet. "
            "Run `tokenshards tokenize` again to finish it, or `tokenshards status` to see what is missing"
        )
    return TokenDataset(store, load_manifest(store), verify=verify)


class Decoder(Protocol):
    """What `TokenDataset.decode` needs of a tokenizer."""

    def decode(self, ids: Any) -> npt.NDArray[np.uint8]:
        """Return images [B, H, W, 3]."""


class TokenDataset:
    """Read access to the shards that one manifest names: `tokenshards.open_dataset` makes it.

    >>> dataset = tokenshards.open_dataset("photos.tokens")
    >>> dataset.spec.layout.grid, sorted(dataset.codebook())
    ((16, 16), ['level_0', 'level_1'])
    >>> sum(len(batch) for batch in dataset.batches(32)) == len(dataset)
    True
    """

    def __init__(
        self, store: Store, manifest: Manifest, *, verify: bool = False, open_tokenizer: Callable[[Store], Decoder] | None = None
    ) -> None:
        self.store = store
        self.manifest = manifest
        self.verify = verify
        self.open_tokenizer = open_tokenizer
        """Opens the tokenizer of the dataset, for `decode`. This room knows no tokenizers."""
        self.shards: tuple[ShardEntry, ...] = tuple(entry for entry in manifest.shards if entry.path is not None)
        """Shards that have rows, in order."""
        self._count = sum(entry.rows for entry in self.shards)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"TokenDataset({self.store.url!r}, rows={len(self)}, shards={len(self.shards)}, classes={len(self.classes)})"

    @property
    def views(self) -> int:
        """Rows per image: image p has the rows p * views … p * views + views - 1, in the order of its views."""
        return self.manifest.views

    @property
    def spec(self) -> TokenizerSpec:
        """Spec of the tokenizer, which defines what the ids mean."""
        return self.manifest.spec

    @property
    def classes(self) -> tuple[int | str, ...]:
        """Labels in the order of their class index."""
        return self.manifest.classes

    @property
    def mask(self) -> MaskFormat | None:
        """Format of the masks; None for a dataset without masks."""
        return None if self.manifest.mask is None else self.manifest.mask.format

    @property
    def mask_classes(self) -> int:
        """The largest class number in any mask and one more; 0 without masks."""
        return 0 if self.manifest.mask is None else self.manifest.mask.classes

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which names every object of the dataset."""
        return sha256_hex(self.store.read(self.manifest.name))

    @property
    def is_local(self) -> bool:
        """Whether the shards are on a disk of this machine."""
        return self.store.is_local

    def store_of(self, entry: ShardEntry) -> Store:
        """Return the store that has one of `shards`."""
        return self.store

    def decode(self, ids: Any) -> npt.NDArray[np.uint8]:
        """Return uint8 images [B, H, W, 3] of ids: a Batch or Sample of this dataset, or ids [B, L, Q] or [L, Q] as an array or tensor.

        Loads the tokenizer at the first call. Raises TokenizerError where ids are not those of this dataset's tokenizer, and its subclass
        DecodeNotSupported where the tokenizer has no way back to pixels.
        """
        return self._tokenizer.decode(ids)

    @cached_property
    def _tokenizer(self) -> Decoder:
        if self.open_tokenizer is None:
            raise ConfigError(f"{self.store.url} was opened without its tokenizer; expected `tokenshards.open_dataset`, which can decode")
        return self.open_tokenizer(self.store)

    def codebook(self) -> dict[str, npt.NDArray[Any]]:
        """Return the checked code vectors as `level_0`, `level_1`, …; {} if the tokenizer has none."""
        if self.spec.codebook is None:
            return {}
        return load_codebook(self.store.read(CODEBOOK_PATH), self.spec.codebook.sha256, CODEBOOK_PATH)

    def open_shard(self, entry: ShardEntry) -> ShardReader:
        """Open one of `shards` and check its size, fingerprint and number of rows, and with `verify` its sha256."""
        path = str(entry.path)
        info = self.store.info(path)
        if info is None:
            raise MissingObjectError(path, "the manifest names this shard; run `tokenshards verify`, then `tokenshards repair`")
        if info.size != entry.size:
            raise CorruptObjectError(path, f"{info.size} bytes; the manifest says {entry.size}. Run `tokenshards repair`")
        reader = ShardReader.open(self.store, path, sha256=entry.sha256 if self.verify else None)
        if reader.fingerprint != self.spec.fingerprint:
            raise FingerprintMismatchError(
                f"{path}: the tokenizer {reader.fingerprint[:12]}… made it; this dataset has the tokenizer {self.spec.fingerprint[:12]}…. "
                "Ids of two tokenizers cannot be mixed; tokenize the source of that shard again"
            )
        if (found := (reader.num_rows, reader.mask)) != (stated := (entry.rows, self.mask)):
            raise CorruptObjectError(path, f"{found[0]} rows, masks: {found[1]}; the manifest says {stated[0]} rows, masks: {stated[1]}")
        return reader

    def batches(self, batch_size: int, *, columns: Sequence[str] = (), masks: bool = False) -> Iterator[Batch]:
        """Yield every row once, in shard order, in batches of `batch_size` rows; the last batch may be smaller.

        `columns` names further columns, such as `view` or `meta.width`, for `Batch.table`; `masks` fills `Batch.masks_BHW`. Raises the
        errors of `open_shard`, ConfigError for masks of a dataset without masks.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
        if masks and self.mask is None:
            raise ConfigError(f"{self.store.url} has no masks; tokenize its images with --masks or --mask-column")
        names = tuple(dict.fromkeys(("sample_id", "label", *columns, *((MASK,) if masks else ()))))
        pending: list[ShardData] = []
        held = 0
        for entry in self.shards:
            reader = self.open_shard(entry)
            for group in range(reader.num_row_groups):
                data, start = reader.read_row_group(group, names), 0
                while held + len(data) - start >= batch_size:
                    stop = start + batch_size - held
                    yield self._batch([*pending, data.part(start, stop)], columns, masks)
                    pending, held, start = [], 0, stop
                if start < len(data):
                    pending.append(data.part(start, len(data)))
                    held += len(data) - start
        if pending:
            yield self._batch(pending, columns, masks)

    def sample(self, sample_id: str, view: int = 0) -> Sample:
        """Return one row by its key. The first call reads the key columns of all shards; later calls read a single row group.

        Raises MissingObjectError if there is no such row.
        """
        found = pc.equal(self._keys["sample_id"], sample_id).to_numpy()
        rows = np.flatnonzero(found)
        rows = rows[self._keys["view"].to_numpy()[rows] == view]
        if not rows.size:
            raise NotFoundError(sample_id, f"no row has this sample_id with view {view} among {len(self)} rows of {self.store.url}")
        return self[int(rows[0])]

    @overload
    def __getitem__(self, row: int) -> Sample: ...

    @overload
    def __getitem__(self, row: slice) -> Batch: ...

    def __getitem__(self, row: int | slice) -> Sample | Batch:
        """Return the row at a place in shard order as a Sample, counted from the end if negative; a slice as one Batch of all columns.

        Decoded row groups stay in memory, up to 256 MB, so rows near each other cost microseconds. For training use a TokenLoader, which
        reads whole batches. Raises IndexError for a row that does not exist, ConfigError for a list or an array of rows, and the errors of
        `open_shard`.
        """
        count = len(self)
        if isinstance(row, slice):
            return self._slice(range(count)[row])
        try:
            place = operator.index(row)
        except TypeError:
            several = (
                "[dataset[row] for row in rows], or to train on them select(dataset, rows=rows) of tokenshards.stem_adaptors.data.selection"
            )
            raise ConfigError(
                f"the place is {shorten(row)}, of type {type(row).__name__}; expected one row as a whole number, or a slice. "
                + ("By its id: dataset.sample(id)" if isinstance(row, str) else f"Several rows: {several}")
            ) from None
        if not -count <= place < count:
            raise IndexError(f"row {place} of a dataset of {count} rows")
        group, at = self._groups.find(place % count)
        data = group.part(at, at + 1)
        ids_BLQ = np.array(data.tokens.ids_BLQ)  # a copy, so that one row does not keep its whole group in memory
        tokens = TokenBatch(ids_BLQ, data.tokens.lengths_B, data.tokens.shapes_BD)
        masks_BHW = self._masks(data.table)
        mask_HW = masks_BHW[0].copy() if masks_BHW is not None and data.table.column(MASK)[0].is_valid else None
        return Sample(tokens, data.table.column("label")[0].as_py(), data.table, mask_HW)

    def __iter__(self) -> Iterator[Sample]:
        """Yield every row in shard order."""
        return (self[row] for row in range(len(self)))

    def _slice(self, rows: range) -> Batch:
        pieces: list[tuple[ShardData, int, int]] = []
        for row in rows:
            group, at = self._groups.find(row)
            first = pieces.pop()[1] if pieces and rows.step == 1 and pieces[-1][0] is group else at
            pieces.append((group, first, at + 1))
        if not pieces and not len(self):
            raise IndexError(f"a slice of {self!r}, which has no rows; expected at least one")
        if not pieces:
            pieces = [(self._groups.find(0)[0], 0, 0)]
        schemas = [group.table.schema for group, _, _ in pieces]
        shared = [field.name for field in schemas[0] if all(field.name in one.names and one.field(field.name) == field for one in schemas)]
        batch = self._batch([group.part(start, stop) for group, start, stop in pieces], shared, MASK in shared)
        # Copies: torch wants writable memory, and a few rows should not keep their whole group in memory.
        masks_BHW = None if batch.masks_BHW is None else np.array(batch.masks_BHW)
        return replace(batch, tokens=replace(batch.tokens, ids_BLQ=np.array(batch.ids_BLQ)), masks_BHW=masks_BHW)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files and cached rows, so that a worker process opens its own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_groups", "_keys", "_tokenizer")}

    @cached_property
    def _groups(self) -> RowGroups:
        return RowGroups(self.shards, self.open_shard)

    @cached_property
    def _keys(self) -> pa.Table:
        if not self.shards:
            return pa.table({"sample_id": pa.array([], pa.string()), "view": pa.array([], pa.int16())})
        return pa.concat_tables([self.open_shard(entry).read_columns(("sample_id", "view")) for entry in self.shards])

    def _batch(self, pieces: list[ShardData], columns: Sequence[str], masks: bool) -> Batch:
        names = list(dict.fromkeys(("sample_id", "label", *columns, *((MASK,) if masks else ()))))
        table = pa.concat_tables([piece.table.select(names) for piece in pieces])
        return Batch(
            pieces[0].tokens if len(pieces) == 1 else concatenate_tokens([piece.tokens for piece in pieces]),
            self._class_indices(table.column("label")),
            table.column("sample_id").to_pylist(),
            table.select(list(columns)),
            self._masks(table) if masks else None,
        )

    def _masks(self, table: pa.Table) -> Masks | None:
        return None if self.mask is None or MASK not in table.column_names else masks_of(table.column(MASK), self.mask)

    def _class_indices(self, labels: pa.ChunkedArray) -> npt.NDArray[np.int64]:
        return class_indices(labels, self.classes, self.manifest.name)
