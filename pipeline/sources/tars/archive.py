"""An opened tar or zip: its members in an order that keeps samples together, and the files that its links stand for."""

from __future__ import annotations

import io
import posixpath
import stat
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import BadInput, Reason, Stage, TokenshardsError
from tokenshards.pipeline.sources.tars.bytes import FREE_BYTES, MAX_RATIO, ArchiveBytes, StoredBytes, UnpackedBytes, packing_of
from tokenshards.pipeline.sources.tars.damage import CUT
from tokenshards.pipeline.sources.tars.headers import FILE, FOLDER, HARD_LINK, SPECIAL, SYMLINK, BadMember, Damaged, Member, walk
from tokenshards.pipeline.storage.object_file import RangeReader
from tokenshards.pipeline.storage.store import Store

__all__ = ["Archive"]

MAX_HOPS = 8
MAX_REOPENINGS = 64
ZIP_BLOCK_BYTES = 1 << 20


class Archive:
    """A tar, compressed or not, or a zip. `least` and `most` are the sizes of the blocks that are read at once."""

    def __init__(self, store: Store, path: str, size: int, *, least: int, most: int) -> None:
        self._open: Callable[[], StoredBytes] = lambda: StoredBytes(store, path, size, least=least, most=most)
        self._file: Callable[[], io.BufferedReader] = lambda: io.BufferedReader(RangeReader(store, path, size), ZIP_BLOCK_BYTES)
        self._raw = self._open()
        self._bytes: ArchiveBytes = self._raw
        self._links: _Links | None = None
        self.packing = packing_of(self._raw.read(0, 8))

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.__exit__()
        if self._links is not None:
            self._links.close()

    @property
    def taken(self) -> float:
        """Share of the stored bytes that were needed so far."""
        return self._bytes.taken

    def members(self) -> Iterator[Member]:
        """Yield every member; raises Damaged."""
        if self.packing == "zip":
            yield from _zip_members(self._file())
            return
        self._bytes = _unpacked(self._raw, self.packing)
        yield from walk(self._bytes)

    def resolve(self, member: Member) -> Member:
        """Return the file of this archive that a link stands for, or the member itself; raises BadMember if there is none."""
        if member.kind is not HARD_LINK and member.kind is not SYMLINK:
            return member
        if self._links is None:
            self._links = _Links(self._open, self.packing)
        return self._links.find(member)


def _unpacked(raw: StoredBytes, packing: str) -> ArchiveBytes:
    return UnpackedBytes(raw, 0, raw.end, packing) if packing else raw


class _Links:
    """Where the files of a tar lie, by their names: built at the first link, 32 bytes a file."""

    def __init__(self, open_bytes: Callable[[], StoredBytes], packing: str) -> None:
        self._open, self._packing = open_bytes, packing
        self._raw = open_bytes()
        self._links: dict[str, Member] = {}
        hashes, places = array("q"), array("q")
        self._forward = bool(packing)
        try:
            for number, member in enumerate(walk(_unpacked(self._raw, packing))):
                name = _normal(member.name)
                if member.kind in (HARD_LINK, SYMLINK):
                    self._links[name] = member
                elif member.kind is FILE:
                    self._forward |= member.source.forward_only
                    hashes.append(hash(name))
                    places.extend((number, member.data, member.size))
        except Damaged:  # the reader itself reports it
            pass
        hashes_N: npt.NDArray[np.int64] = np.frombuffer(hashes, np.int64) if hashes else np.empty(0, np.int64)
        order = np.argsort(hashes_N, kind="stable")
        self._hashes = hashes_N[order]
        self._places = (np.frombuffer(places, np.int64) if places else np.empty(0, np.int64)).reshape(-1, 3)[order]
        self._again: Iterator[tuple[int, Member]] | None = None
        self._at, self._openings = -1, 0

    def close(self) -> None:
        """Close the second reader."""
        self._raw.__exit__()

    def find(self, link: Member) -> Member:
        """Return the file that a link stands for; raises BadMember."""
        name, seen = _normal(link.name), link
        for _ in range(MAX_HOPS):
            inner = seen.inner
            base = posixpath.dirname(name.removeprefix(inner)) if seen.kind is SYMLINK else ""
            path = _normal(posixpath.join(base, seen.target))
            if path.startswith("../") or seen.target.startswith("/") or not path:
                break
            name = inner + path
            if name in self._links:
                seen = self._links[name]
                continue
            at = int(np.searchsorted(self._hashes, hash(name)))
            if at < len(self._hashes) and int(self._hashes[at]) == hash(name):
                number, data, size = (int(value) for value in self._places[at])
                found = self._walked(number) if self._forward else Member(name, size, FILE, data, data, self._raw)
                return Member(link.name, found.size, FILE, link.offset, found.data, found.source, inner=link.inner)
            break
        raise BadMember(
            Reason.MISSING, f"the {link.kind} {link.name} points to {link.target}, which is no file of this archive", Stage.FETCH
        )

    def _walked(self, number: int) -> Member:
        """Return a member of a compressed tar by its number; links in the order of their files cost one more reading of the tar."""
        if self._again is None or number <= self._at:
            self._openings += 1
            if self._openings > MAX_REOPENINGS:
                detail = "the links of this compressed tar go back and forth; unpack it, and pack it without links (tar --hard-dereference)"
                raise BadMember(Reason.BAD_CONTAINER, detail, Stage.FETCH)
            self._raw.__exit__()
            self._raw = self._open()
            self._again = iter(enumerate(walk(_unpacked(self._raw, self._packing))))
        for at, member in self._again:
            self._at = at
            if at == number:
                return member
        raise BadMember(Reason.MISSING, "the file of a link is gone", Stage.FETCH)


def _normal(name: str) -> str:
    path = posixpath.normpath(name)
    return "" if path == "." else path


class _ZipBytes:
    """The content of one member of a zip."""

    forward_only = False
    taken = 1.0

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        self._archive, self._info, self.end = archive, info, info.file_size

    def read(self, position: int, size: int) -> bytes:
        info = self._info
        if info.flag_bits & 1:
            raise BadMember(Reason.BAD_CONTAINER, f"{info.filename} is encrypted; unpack the zip with its password", Stage.FETCH)
        if info.file_size > max(FREE_BYTES, MAX_RATIO * info.compress_size):
            detail = f"{info.filename}: {info.compress_size} bytes unpack to {info.file_size}; expected at most {MAX_RATIO} times as many"
            raise BadMember(Reason.DECOMPRESSION_BOMB, detail, Stage.FETCH)
        try:
            with self._archive.open(info) as file:
                return file.read(size)
        except TokenshardsError:
            raise
        except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
            raise BadMember(Reason.BAD_CONTAINER, f"{info.filename} cannot be unpacked: {error}", Stage.FETCH) from None


def _zip_members(file: io.BufferedReader) -> Iterator[Member]:
    """Yield the members of a zip sorted by name, because its order says nothing and its index is in memory anyway."""
    try:
        archive = zipfile.ZipFile(file)
    except (TokenshardsError, BadInput):
        raise
    except Exception as error:  # zipfile raises many types for a damaged index
        raise Damaged(0, f"the index at the end of the zip cannot be read ({error}): the zip {CUT}, or is none") from None
    infos = archive.infolist()
    if not any("/" in info.filename for info in infos):  # some programs of Windows write its own separator
        for info in infos:
            info.filename = info.filename.replace("\\", "/")
    infos.sort(key=lambda info: (_first_key(info.filename), posixpath.splitext(info.filename)))
    for info in infos:
        mode = info.external_attr >> 16
        kind = FOLDER if info.is_dir() else SPECIAL if stat.S_ISLNK(mode) else FILE
        yield Member(info.filename, info.file_size, kind, info.header_offset, 0, _ZipBytes(archive, info))


def _first_key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"
