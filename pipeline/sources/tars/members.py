"""Members of a tar become samples: which are left out, which are images, and which belong together."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.errors import BadInput
from tokenshards.pipeline.images.decode import image_extensions
from tokenshards.pipeline.sources.junk import junk_kind
from tokenshards.pipeline.sources.splits import split_at, split_of_file
from tokenshards.pipeline.sources.tars.headers import DAMAGE, FOLDER, NESTED, SPECIAL, Damaged, Member

__all__ = [
    "ARCHIVES",
    "SNIFFED_BYTES",
    "TWO_DEEP",
    "UNREAD_ARCHIVE",
    "Part",
    "SeenKeys",
    "Stray",
    "TarSample",
    "group",
    "is_image",
    "looks_like_image",
    "may_be_image",
    "split_of_sample",
]

SNIFFED_BYTES = 16
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".tzst", ".tar.zst")
TWO_DEEP = "an archive inside an archive inside the tar"
UNREAD_ARCHIVE = "an archive inside that is not read (a zip, or one in a zip)"
MOST_PARTS = 4096
"""A longer run of members with one key is cut into several samples, which are judged as one key that comes again."""
TEXT_SUFFIXES = frozenset("cls csv html json jsonl label md npy npz pickle pkl pt pth pyd target tsv txt xml yaml yml".split())
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\0\0\0\x0cJXL ", b"\xff\x0a")
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"hevc")


@dataclass(slots=True)
class Part:
    """One member of a sample; `data` is None as long as nobody needed its content."""

    member: Member
    suffix: str
    data: bytes | None = None
    error: BadInput | None = None


@dataclass(slots=True)
class TarSample:
    """Neighbouring members of a tar that share a key."""

    key: str
    offset: int
    """Offset of the first header in its tar."""
    inner: str = ""
    """Name of the tar inside the tar, with a slash."""
    parts: dict[str, Part] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    """Suffixes of the images, in the order of the tar."""
    sniffed: bool = False
    """Whether only their content shows that they are images; then an image with a suffix wins."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A member that belongs to no sample by a stated rule."""

    kind: str
    name: str


def group(members: Iterator[Member], key_rule: str, load: Callable[[TarSample, Part], None]) -> Iterator[TarSample | Stray | Member]:
    """Yield samples as webdataset groups them, the members that belong to none, and damage of tars inside the tar.

    `load` gets every member of a sample as it comes: it reads what it needs, and adds the part. Raises Damaged, from the beginning of the
    first sample that is not whole.
    """
    sample: TarSample | None = None
    try:
        for member in members:
            member.name = name = _plain(member.name)
            kind = _stray_kind(name, member.kind)
            if kind:
                if kind is not FOLDER:
                    yield Stray(kind, name)
                continue
            if member.kind is DAMAGE:
                if sample is not None and sample.inner != member.inner:  # its own last sample may not be whole
                    yield sample
                sample = None
                yield member
                continue
            key, suffix = _split(name, key_rule)
            if sample is None or sample.key != key or suffix in sample.parts or len(sample.parts) == MOST_PARTS:
                if sample is not None:
                    yield sample
                sample = TarSample(key, member.offset, member.inner)
            load(sample, Part(member, suffix))
    except Damaged as damage:
        if sample is None or sample.inner:
            raise
        if damage.name is not None and _split(_plain(damage.name), key_rule)[0] != sample.key:
            yield sample  # it is whole, because the next one begins, or the tar has ended
            raise
        raise Damaged(sample.offset, damage.detail, damage.reason) from None
    if sample is not None:
        yield sample


def _split(name: str, key_rule: str) -> tuple[str, str]:
    """Return key and lower-case suffix of a member."""
    cut = name.rfind("/") + 1
    dot = name.find(".", cut) if key_rule != "last-dot" else name.rfind(".", cut)
    return (name[:dot], name[dot + 1 :].lower()) if dot > cut else (name, "")


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name.strip("/")


def _stray_kind(name: str, kind: str) -> str:
    if kind is FOLDER or name in (".", ""):
        return FOLDER
    junk = junk_kind(name)
    if junk is not None:
        return junk
    if kind is SPECIAL or kind is NESTED:
        return TWO_DEEP if kind is NESTED else "a device, a pipe or a sparse file"
    if name.startswith("__") and name.partition("/")[0].endswith("__"):
        return "webdataset's own (__NAME__)"
    return ""


def split_of_sample(sample: TarSample, asked: str | None = None) -> str | None:
    """Return the split that the name of the tar inside the tar tells, else the folders of the sample; None if neither does."""
    found = split_of_file(sample.inner[:-1], asked) if sample.inner else None
    return found or split_at(sample.key.removeprefix(sample.inner).rpartition("/")[0], asked)[0]


@lru_cache(4096)  # tars have few suffixes and many members
def is_image(suffix: str, told: tuple[str, ...] = ()) -> bool:
    """Return whether a suffix names an image: by its last extension, or because the user `told` so."""
    return posixpath.splitext(f"x.{suffix}")[1] in image_extensions() or suffix in told


def may_be_image(suffix: str) -> bool:
    """Return whether only the content shows if a member is an image, as with `1.image` or a name without extension."""
    return suffix.rpartition(".")[2] not in TEXT_SUFFIXES


def looks_like_image(head: bytes) -> bool:
    """Return whether the first bytes of a member are those of an image."""
    if head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS):
        return True
    return head[:2] == b"BM" and len(head) > 9 and head[6:10] == bytes(4)


class SeenKeys:
    """Keys that came before, as hashes: 8 bytes a key besides the latest ones."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, key: str) -> bool:
        """Return whether a key was there; add it."""
        if key in self:
            return True
        self._recent.add(hash(key))
        if len(self._recent) >= max(1 << 16, len(self._sorted) >> 3):
            recent = np.fromiter(self._recent, np.int64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent = set()
        return False

    def __contains__(self, key: str) -> bool:
        number = hash(key)
        if number in self._recent:
            return True
        at = int(np.searchsorted(self._sorted, number)) if len(self._sorted) else 0
        return at < len(self._sorted) and int(self._sorted[at]) == number
