"""Walk over the headers of a tar: every member, or the byte from which the tar cannot be read.

We do not use tarfile: it takes a damaged header, and the end mark between two concatenated tars, for the end of the archive, and it keeps
every header in memory.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tokenshards.pipeline.errors import BadInput, Reason
from tokenshards.pipeline.sources.tars.bytes import ArchiveBytes, UnpackedBytes, packing_of
from tokenshards.pipeline.sources.tars.damage import CUT

__all__ = ["DAMAGE", "FILE", "FOLDER", "HARD_LINK", "NESTED", "SPECIAL", "SYMLINK", "BadMember", "Damaged", "Member", "walk"]

FILE, FOLDER, HARD_LINK, SYMLINK, SPECIAL = "file", "folder", "hard link", "symbolic link", "special"
NESTED, DAMAGE = "archive", "damage"
"""Kinds of members: an archive that is not opened, and a tar inside the tar that cannot be read to its end."""

BLOCK = 512
MAX_EXTENDED = 1 << 20
"""Most bytes of a long name or a pax header."""
_ZEROS = bytes(BLOCK)
_KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"1": HARD_LINK, b"2": SYMLINK, b"5": FOLDER}
_NO_DATA = b"123456"
_NESTED = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_UNPACK_ERRORS = (OSError, zlib.error, lzma.LZMAError)


class Damaged(Exception):
    """A tar cannot be read from `offset` on."""

    def __init__(self, offset: int, detail: str, reason: Reason = Reason.BAD_CONTAINER, name: str | None = None) -> None:
        super().__init__(detail)
        self.offset, self.detail, self.reason = offset, detail, reason
        self.name = name
        """Name of the member that is not whole, empty behind an end mark; None if no header says what comes there."""


class BadMember(BadInput):
    """One member cannot be read, although the archive can."""


@dataclass(slots=True)  # not frozen, because a tar has up to 10^7 of them
class Member:
    """One header."""

    name: str
    size: int
    kind: str
    offset: int
    """Offset of the header, and below of the data, in `source`."""
    data: int
    source: ArchiveBytes
    target: str = ""
    """Name that a link points to; for damage, what is wrong."""
    inner: str = ""
    """Name of the tar inside the tar that holds it, with a slash."""

    def read(self, most: int) -> bytes:
        """Return the first `most` bytes of the content; raises Damaged if the archive ends before them."""
        wanted = min(self.size, most)
        data = read_or_damage(self.source, self.data, wanted, self.offset)
        if len(data) < wanted:
            raise cut_inside(self, self.data + len(data))
        return data


def cut_inside(member: Member, end: int) -> Damaged:
    """Return the error of an archive that ends inside a member."""
    detail = f"it ends at byte {end} inside {member.name}, which goes on to byte {_padded(member)}: the tar {CUT}"
    return Damaged(member.offset, detail, name=member.inner + member.name if member.inner not in member.name else member.name)


def read_or_damage(source: ArchiveBytes, position: int, size: int, offset: int) -> bytes:
    """Return bytes of an archive; what its decompressor raises becomes Damaged at `offset`."""
    try:
        return source.read(position, size)
    except BadInput as error:
        if error.reason is Reason.DECOMPRESSION_BOMB and not isinstance(error, BadMember):
            raise Damaged(offset, error.detail, error.reason) from None
        raise
    except EOFError:
        raise Damaged(offset, f"it cannot be unpacked from there to its end: the tar {CUT}") from None
    except (*_UNPACK_ERRORS, _zstandard_error()) as error:
        raise Damaged(offset, f"it cannot be unpacked from there: {type(error).__name__}: {error}") from None


def _zstandard_error() -> type[Exception]:
    try:
        from zstandard import ZstdError
    except ImportError:
        return EOFError
    return ZstdError


def walk(source: ArchiveBytes, start: int = 0, stop: int = -1, inner: str = "") -> Iterator[Member]:
    """Yield the members of the tar in the bytes [start, stop) of `source`, and of the tars directly inside it.

    Tars may follow each other, and the end mark may be missing. Raises Damaged where that is all the sense the bytes make.
    """
    position, marked, names = start, False, _Names()
    last: Member | None = None
    named: Member | None = None  # a header with the long name or the pax values of the member that must follow
    if stop < 0:
        stop = source.end
    while True:
        want = BLOCK if stop < 0 else min(BLOCK, stop - position)
        block = read_or_damage(source, position, want, position)
        if len(block) < BLOCK:
            if position == start or block.strip(b"\0"):
                raise Damaged(position, f"it ends at byte {position + len(block)}, within the header of a member: the tar {CUT}")
            if last is not None and 0 <= source.end < _padded(last):
                raise cut_inside(last, source.end)
            if named is not None:
                raise Damaged(named.offset, f"it ends before the member that byte {named.offset} announces: the tar {CUT}")
            return
        if block == _ZEROS:
            marked, position = True, position + BLOCK
            continue
        member = _parse(block, position, source, marked)
        flag = block[156:157]
        if flag in b"LKxgX":
            member.name = "a long name"
            position = _padded(member)
            payload = _extended(member, stop)
            names.take(flag, payload)
            named = None if flag == b"g" else member  # values for all members need none
            continue
        names.give(member, flag)
        named = None
        if flag == b"S":
            member.data += _sparse_headers(source, block, member)
        member.inner, marked = inner, False
        position = member.data if flag in _NO_DATA and flag else _padded(member)
        if 0 <= stop < position:
            raise cut_inside(member, stop)
        last = member if position > member.data else last
        if member.kind is FILE and member.name.lower().endswith(_NESTED):
            yield from _nested(member)
        else:
            member.name = inner + member.name
            yield member


def _nested(member: Member) -> Iterator[Member]:
    """Yield the members of a tar inside the tar; damage of it ends only itself."""
    if member.inner:
        member.kind, member.name = NESTED, member.inner + member.name
        yield member
        return
    prefix = f"{member.name}/"
    end = member.data + member.size
    try:
        packing = packing_of(member.read(8))
        if packing == "zip":
            member.kind = NESTED
            yield member
        elif packing:
            yield from walk(UnpackedBytes(member.source, member.data, end, packing), inner=prefix)
        else:
            yield from walk(member.source, member.data, end, prefix)
    except Damaged as damage:
        yield Member(member.name, member.size, DAMAGE, member.offset, member.data, member.source, damage.detail, prefix)


class _Names:
    """Long names and pax headers, which come before the header that they are about."""

    def __init__(self) -> None:
        self._long: dict[bytes, str] = {}
        self._pax: dict[str, str] = {}
        self._all: dict[str, str] = {}

    def take(self, flag: bytes, payload: bytes) -> None:
        """Keep the content of an extended header."""
        if flag in b"LK":
            self._long[flag] = _text(payload)
        else:
            (self._all if flag == b"g" else self._pax).update(_pax_records(payload))

    def give(self, member: Member, flag: bytes) -> None:
        """Set name, target and size of the member that follows."""
        if self._long or self._pax or self._all:
            pax = {**self._all, **self._pax}
            member.name = pax.get("path") or self._long.get(b"L") or member.name
            member.target = pax.get("linkpath") or self._long.get(b"K") or member.target
            if "size" in self._pax and self._pax["size"].isdigit():
                member.size = int(self._pax["size"])
            if any(name.startswith("GNU.sparse.") for name in self._pax):
                member.kind, member.name = SPECIAL, pax.get("GNU.sparse.name") or member.name
            self._long, self._pax = {}, {}
        if member.kind is FILE and flag == b"\0" and member.name.endswith("/"):  # a folder in the oldest format
            member.kind = FOLDER


def _parse(block: bytes, offset: int, source: ArchiveBytes, marked: bool) -> Member:
    try:
        planned = int(block[148:156].rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        planned = -1
    # The low half of adler32 is one more than the sum of all bytes: ten times as fast as the sum in Python.
    found = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 8 * 32
    if planned < 0 or ((found - planned) % 65521 and not _checksum_fits(block, planned)):
        what = "the bytes after its end mark are no tar" if marked else "there is no header of a tar (its checksum is wrong)"
        raise Damaged(offset, f"it cannot be read from byte {offset} on: {what}", name="" if marked else None)
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    kind = _KINDS.get(block[156:157], SPECIAL)
    target = _text(block[157:257]) if kind is HARD_LINK or kind is SYMLINK else ""
    return Member(name, _number(block[124:136], offset), kind, offset, offset + BLOCK, source, target)


def _checksum_fits(block: bytes, planned: int) -> bool:
    rest = block[:148] + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in rest)  # as some old programs had it
    return planned in (sum(rest) + 8 * 32, signed + 8 * 32)


def _number(field: bytes, offset: int) -> int:
    if field[0] & 0x80:  # sizes above 8 GiB, in base 256
        number = int.from_bytes(field[1:], "big")
    else:
        try:
            number = int(field.split(b"\0", 1)[0].strip() or b"0", 8)
        except ValueError:
            number = -1
    if not 0 <= number < 1 << 60:
        raise Damaged(offset, f"it cannot be read from byte {offset} on: the size of a member is {field!r}, expected an octal number")
    return number


def _sparse_headers(source: ArchiveBytes, block: bytes, member: Member) -> int:
    """Return the number of bytes of the further headers of a sparse file."""
    more, size = block[482], 0
    while more:
        block = read_or_damage(source, member.data + size, BLOCK, member.offset)
        more, size = block[504] if len(block) == BLOCK else 0, size + BLOCK
    return size


def _padded(member: Member) -> int:
    return member.data + -(-member.size // BLOCK) * BLOCK


def _extended(member: Member, stop: int) -> bytes:
    if member.size > MAX_EXTENDED:
        raise Damaged(member.offset, f"it cannot be read from byte {member.offset} on: a name of {member.size} bytes")
    if 0 <= stop < member.data + member.size:
        raise cut_inside(member, stop)
    return member.read(MAX_EXTENDED)


def _pax_records(payload: bytes) -> dict[str, str]:
    found, position = {}, 0
    while position < len(payload):
        digits, _, _ = payload[position : position + 20].partition(b" ")
        if not digits.isdigit() or not int(digits):
            break
        record = payload[position + len(digits) + 1 : position + int(digits)]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        position += int(digits)
    return found


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
