"""Open a split in SeiT's release layout: find and check every file, read the token stream forwards in bounded memory.

    <any>-<split>-token.data.bin.gz     gzip of the byte strings of all images, one after the other (bytes.py)
    <any>-<split>-token.index.npy.gz    gzip of a .npy of N + 1 offsets into that stream
    <any>-<split>-label.txt             one class index per line, in the order of the images

Codebook and synonyms are beside them (tables.py).

Shapes: N images.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import BadInput, ConfigError, SourceError, shorten
from tokenshards.pipeline.interop.seit.tables import read_named
from tokenshards.pipeline.storage.object_file import open_stream
from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = ["Block", "ImageStream", "SeitSplit", "check_split_name", "open_split"]

BLOCK_BYTES = 256 << 10
"""Decompressed bytes processed at once; arrays of this size stay in the CPU cache."""
MAX_IMAGE_BYTES = 1 << 20
"""Far more than the ids of any grid take; a larger image means a damaged index."""
MAX_CLASSES = 1 << 20
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_STREAM_ERRORS = (EOFError, OSError, zlib.error)


@dataclass(frozen=True, slots=True)
class Block:
    """Images [first, first + N) of a split: their bytes, and the bounds [N + 1] of the images in these bytes."""

    first: int
    data: bytes
    bounds_N1: npt.NDArray[np.int64]

    def image(self, position: int) -> bytes:
        """Return the byte string of one image of this block."""
        return self.data[self.bounds_N1[position] : self.bounds_N1[position + 1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeitSplit:
    """One split with consistent index and labels, both already read; `images` reads the token stream."""

    store: Store
    name: str
    data: ObjectInfo
    offsets_N1: npt.NDArray[np.int64]
    labels_N: npt.NDArray[np.int64]
    version: str
    """Identity of the three files: version of the data, digest of index and labels."""

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def uri(self) -> str:
        """Full name of the token file for messages."""
        return self.store.place(self.data.path)

    def images(self) -> ImageStream:
        """Open the token stream at its first image."""
        return ImageStream(self)


class ImageStream:
    """The decompressed token stream, read once and only forwards, as a context manager. Memory is bounded by one block."""

    def __init__(self, split: SeitSplit) -> None:
        self._split = split
        self._stream = open_stream(split.store, split.data.path, split.data.size)
        self._position = 0

    def __enter__(self) -> ImageStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """Yield images [start, stop) block by block; skips the images between the last one read and `start`.

        Raises SourceError if the stream is damaged or too short, TransientStorageError if the store fails.
        """
        offsets_N1 = self._split.offsets_N1
        while self._position < (begin := int(offsets_N1[start])):
            self._read(min(BLOCK_BYTES, begin - self._position), start)
        while start < stop:
            fitting = int(np.searchsorted(offsets_N1, offsets_N1[start] + BLOCK_BYTES, side="right")) - 1
            end = min(stop, max(start + 1, fitting))
            bounds_N1 = offsets_N1[start : end + 1] - offsets_N1[start]
            yield Block(start, self._read(int(bounds_N1[-1]), start), bounds_N1)
            start = end
        now = self._split.store.info(self._split.data.path)
        if now is None or now.version != self._split.data.version:
            raise SourceError(f"{self._split.uri}: the file changed during the read; do not change it, and run this command again")

    def finish(self) -> None:
        """Raise SourceError unless the stream ends where the index ends and its gzip checksum is right."""
        try:
            rest = self._stream.read(1)
        except (*_STREAM_ERRORS, BadInput) as error:
            raise self._damaged(error, len(self._split) - 1) from None
        if rest:
            raise SourceError(
                f"{self._split.uri}: the stream goes on after byte {self._position:,}, where the offsets of its index end "
                f"({len(self._split):,} images); expected both to end together. Use the index that was made with this stream"
            )

    def _read(self, count: int, image: int) -> bytes:
        try:
            data = self._stream.read(count)
        except (*_STREAM_ERRORS, BadInput) as error:
            raise self._damaged(error, image) from None
        self._position += len(data)
        if len(data) < count:
            index = int(np.searchsorted(self._split.offsets_N1, self._position, side="right")) - 1
            raise SourceError(
                f"{self._split.uri}: the stream ends after {self._position:,} bytes, in image {index:,}; the offsets of its index go on "
                f"to {int(self._split.offsets_N1[-1]):,}. Use the index that was made with this stream"
            )
        return data

    def _damaged(self, error: Exception, image: int) -> SourceError:
        return SourceError(
            f"{self._split.uri}: cannot be decompressed near image {image:,}, after byte {self._position:,} of the stream "
            f"({type(error).__name__}: {error}); expected one whole gzip stream. Fetch the file again"
        )


def check_split_name(split: str) -> None:
    """Raise ConfigError unless the name of a split can be part of a file name."""
    if not _SPLIT_NAME.fullmatch(split):
        raise ConfigError(f"--split is {split!r}; expected letters, digits, '.', '_' and '-', such as train")


def open_split(store: Store, split: str, labels_path: str | None = None) -> SeitSplit:
    """Find a split below the root of `store` and read its index and labels; `labels_path` names another file of labels.

    Raises SourceError, which names the file, the image, the value seen and the value expected.
    """
    check_split_name(split)
    found = {info.path: info for info in store.list()}
    pattern = re.compile(rf"(?:.*[/_-])?{re.escape(split)}(?:[_-]tokens?)?\.data\.bin\.gz")
    matches = sorted(path for path in found if pattern.fullmatch(path))
    if len(matches) != 1:
        streams = sorted(path for path in found if path.endswith(".data.bin.gz"))
        seen = f"found {', '.join(matches or streams[:5])}" if matches or streams else f"found no *.data.bin.gz among {len(found)} files"
        packed = next((f"; unpack {path} first" for path in sorted(found) if path.endswith((".tar", ".tar.gz"))), "")
        raise SourceError(f"{store.url}: {seen}; expected one file such as imagenet1k-{split}-token.data.bin.gz{packed}. Check --split")
    data = found[matches[0]]
    index_path = data.path.replace(".data.bin.gz", ".index.npy.gz")
    if index_path not in found:
        raise SourceError(f"{store.url}: {data.path} exists, but its index {index_path} does not; expected both")
    labels_where = labels_path or _labels_beside(store, found, data.path)
    index = store.read(index_path)
    labels = read_named(labels_path, store.storage_options) if labels_path else store.read(labels_where)
    offsets_N1 = parse_offsets(index, store.place(index_path))
    labels_N = parse_labels(labels, labels_where)
    if len(labels_N) != len(offsets_N1) - 1:
        raise SourceError(f"{labels_where}: {len(labels_N):,} labels; expected {len(offsets_N1) - 1:,}, one for each image of {index_path}")
    return SeitSplit(
        store=store,
        name=split,
        data=data,
        offsets_N1=offsets_N1,
        labels_N=labels_N,
        version=f"{data.version}+{sha256_hex(sha256_hex(index).encode() + sha256_hex(labels).encode())[:12]}",
    )


def _labels_beside(store: Store, found: dict[str, ObjectInfo], data_path: str) -> str:
    stem = re.sub(r"([_-]tokens?)?\.data\.bin\.gz$", "", data_path)
    names = [f"{stem}{mark}label{plural}.txt" for mark in "-_." for plural in ("", "s")]
    there = [name for name in names if name in found]
    if len(there) != 1:
        seen = f"found {' and '.join(there)}" if there else f"found none such as {names[0]}"
        raise SourceError(f"{store.url}: the labels of {data_path}: {seen}; expected one file. Give it with --labels")
    return there[0]


def parse_offsets(data: bytes, where: str) -> npt.NDArray[np.int64]:
    """Return the offsets [N + 1] of an index file; raises SourceError if they cannot be the offsets of an image stream."""
    try:
        array = np.load(io.BytesIO(gzip.decompress(data)), allow_pickle=False)
    except (*_STREAM_ERRORS, ValueError) as error:
        raise SourceError(f"{where}: not a gzip of a .npy file ({type(error).__name__}: {error}); expected N + 1 offsets") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        seen = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise SourceError(f"{where}: an array of {seen}; expected integers [N + 1], offsets of N images")
    if len(array) < 2:
        raise SourceError(f"{where}: {len(array)} offsets; expected at least 2, the beginning and the end of one image")
    if int(array.max()) > np.iinfo(np.int64).max:
        raise SourceError(f"{where}: an offset is {int(array.max())}; expected at most {np.iinfo(np.int64).max}")
    offsets_N1: npt.NDArray[np.int64] = array.astype(np.int64)
    if offsets_N1[0] != 0:
        raise SourceError(f"{where}: the first offset is {offsets_N1[0]}; expected 0")
    sizes_N = np.diff(offsets_N1)
    bad_N = (sizes_N < 0) | (sizes_N > MAX_IMAGE_BYTES)
    if bad_N.any():
        image = int(bad_N.argmax())
        seen = f"image {image:,} goes from offset {offsets_N1[image]:,} to {offsets_N1[image + 1]:,}"
        raise SourceError(f"{where}: {seen}; expected ascending offsets and at most {MAX_IMAGE_BYTES:,} bytes per image")
    return offsets_N1


def parse_labels(data: bytes, where: str) -> npt.NDArray[np.int64]:
    """Return the class indices [N] of a text with one index per line; raises SourceError, which names the line."""
    lines = data.decode("utf-8", "replace").removesuffix("\n").split("\n")
    lines = [line.strip() for line in lines]
    for number, line in enumerate(lines):
        if not (line.isascii() and line.isdigit() and len(line) <= 18 and int(line) < MAX_CLASSES):
            raise SourceError(
                f"{where}: line {number + 1} (image {number:,}) is {shorten(line)}; expected a class index from 0 to {MAX_CLASSES - 1:,}"
            )
    return np.array(lines, dtype="U18").astype(np.int64)
