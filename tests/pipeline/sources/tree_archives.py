"""How random tars and zips are written: samples, junk among them, packings, forms of headers, end marks."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zstandard

from tests.pipeline.sources.tree_grammar import Stated, Tree

__all__ = ["PACKINGS", "Member", "Pack", "Sample", "members_of", "others", "packed", "write_samples", "zipped"]

Member = tuple[str, str, Any]
"""Kind (`file`, `hard`, `sym`, `dir`, `fifo`), name, and content or target."""
PACKINGS = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
_TYPES = {"hard": tarfile.LNKTYPE, "sym": tarfile.SYMTYPE, "dir": tarfile.DIRTYPE, "fifo": tarfile.FIFOTYPE}


def packed(members: Sequence[Member], form: int = tarfile.PAX_FORMAT, *, mark: bool = True) -> bytes:
    """Return a tar as Python writes it; without its end mark if asked."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for kind, name, content in members:
            info = tarfile.TarInfo(name)
            if kind == "file":
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = _TYPES[kind], content
                archive.addfile(info)
        end = archive.offset  # type: ignore[attr-defined]
    return out.getvalue() if mark else out.getvalue()[:end]


def zipped(members: Sequence[Member]) -> bytes:
    """Return a zip of the files among the members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for _, name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


@dataclass
class Sample:
    """Members of one key and what becomes of them: a row with its label, a failure, or neither."""

    key: str
    members: list[Member]
    data: bytes = b""
    label: Stated = None
    fails: str = ""
    """The reason for which it is quarantined, whatever its image."""


def members_of(key: str, parts: dict[str, bytes]) -> list[Member]:
    """Return the members of a sample, sorted by name."""
    return [("file", f"{key}.{suffix}" if suffix else key, data) for suffix, data in sorted(parts.items())]


class Pack:
    """Chooses how the tars of a tree are written."""

    def __init__(self, tree: Tree, *, links: bool = False) -> None:
        self.tree = tree
        self.packing = "" if links else tree.one(["", "", "", "gz", "bz2", "xz", "zst"])
        self.zip = not links and tree.chance(0.15)
        self.ending = ".zip" if self.zip else ".tar" + (f".{self.packing}" if self.packing and tree.chance(0.8) else "")
        if tree.chance(0.1):
            self.ending = self.ending.upper()
        self.prefix = tree.one(["", "", "", "./"])

    def write(self, name: str, members: Sequence[Member]) -> str:
        """Write members in their order under a name without extension, perhaps as several tars that follow each other."""
        tree = self.tree
        place = f"{name}{self.ending}"
        if self.zip:
            return tree.write(place, zipped(members))
        members = [(kind, f"{self.prefix}{path}", content) for kind, path, content in members]
        form = tree.one([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        if any(not path.isascii() for _, path, _ in members):
            form = tarfile.PAX_FORMAT
        cut = tree.random.randrange(len(members)) if tree.chance(0.15) and all(kind == "file" for kind, *_ in members) else 0
        while cut and _key(members[cut][1]) == _key(members[cut - 1][1]):
            cut -= 1
        data = packed(members[cut:], form, mark=tree.chance(0.8))
        if cut:
            data = packed(members[:cut], form, mark=tree.chance(0.5)) + data
        return tree.write(place, PACKINGS[self.packing](data))


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def names(tree: Tree, count: int) -> list[str]:
    """Return names of tars, which are shards and no classes, in order."""
    folder = tree.one(["", "", "shards/", "très/v1.0/"])
    return [f"{folder}{tree.one(['part', 'shard'])}-{n:05}" for n in range(count)]


def with_junk(tree: Tree, members: list[Member]) -> list[Member]:
    """Return the members with junk, folders and a device at any place."""
    for name, rule in tree.junk():
        members.insert(tree.random.randrange(len(members) + 1), ("file", name, tree.image()))
        tree.members_left_out[rule] += 1
    return members


def write_samples(tree: Tree, samples: list[Sample]) -> None:
    """Spread samples over a few tars, each of which holds an image; write them and expect what becomes of each."""
    pack, count = Pack(tree), min(tree.random.randint(1, 3), len(samples))
    while not all(any(sample.data for sample in samples[place::count]) for place in range(count)):
        count -= 1
    for place, name in enumerate(names(tree, count)):
        chosen = samples[place::count]
        written = pack.write(name, with_junk(tree, [member for sample in chosen for member in sample.members]))
        for sample in chosen:
            if sample.fails:
                tree.bad[f"{written}#{sample.key}", sample.fails] += 1
            elif sample.data:
                tree.expect(f"{written}#{sample.key}", sample.data, sample.label)
    others(tree)


def others(tree: Tree) -> None:
    """Write junk and other files beside the tars."""
    tree.write_junk()
    if tree.chance(0.3):
        tree.write("README.md", b"about")
        tree.left_out[".md"] += 1
    if tree.chance(0.15):
        tree.write("about.tar", packed([("file", "a.txt", b"words"), ("file", "b.npy", b"numbers")]))
        for rule in ("tars without images", ".txt without an image", ".npy without an image"):  # the plan names the members too
            tree.left_out[rule] += 1
        tree.local = True  # where headers are read only in part, nobody knows before the work
