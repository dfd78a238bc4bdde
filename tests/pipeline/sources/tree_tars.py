"""Random tars and zips: keys, labels in every place, captions, links, several images a sample, nesting, damage, junk, splits."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import posixpath
import tarfile
import zipfile
from collections.abc import Sequence
from typing import Any

import zstandard

from tests.pipeline.sources.tree_grammar import Maker, Stated, Tree, text, whole

__all__ = ["TARS", "packed"]

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


class Pack:
    """Chooses how the tars of a tree are written."""

    def __init__(self, tree: Tree, *, links: bool = False) -> None:
        self.tree = tree
        self.packing = "" if links else tree.one(["", "", "", "gz", "bz2", "xz", "zst"])
        self.zip = not links and tree.chance(0.15)
        self.ending = ".zip" if self.zip else ".tar" + (f".{self.packing}" if self.packing and tree.chance(0.8) else "")
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


def finish_samples(tree: Tree, pack: Pack, samples: list[tuple[str, list[Member], bytes, Stated]], ids: str = "{tar}#{key}") -> None:
    """Spread samples over a few tars, write them and expect a row of each."""
    count = min(tree.random.randint(1, 3), len(samples))
    for place, name in enumerate(names(tree, count)):
        chosen = samples[place::count]
        members = with_junk(tree, [member for _, parts, *_ in chosen for member in parts])
        written = pack.write(name, members)
        for key, _, data, label in chosen:
            tree.expect(ids.format(tar=written, key=key), data, label)
    others(tree)


def others(tree: Tree) -> None:
    """Write junk and other files beside the tars."""
    tree.write_junk()
    if tree.chance(0.3):
        tree.write("README.md", b"about")
        tree.left_out[".md"] += 1


LABELS: dict[str, list[tuple[Any, Stated]]] = {
    "whole": [(n, whole(n)) for n in (0, 1, 2, 7)],
    "negative": [(-1, whole(-1)), (3, whole(3))],
    "words": [("cat", text("cat")), ("big dog", text("big dog")), ("é", text("é")), ("NA", text("NA"))],
    "zeros": [("007", text("007")), ("010", text("010"))],
    "mixed": [(1, whole(1)), (2, whole(2)), ("many", text("many"))],
}
JSON_LABELS: dict[str, list[tuple[Any, Stated]]] = LABELS | {
    "floats": [(1.0, whole(1)), (2.0, whole(2)), (None, None)],
    "fractions": [(1.0, whole(1)), (2.5, text("2.5"))],
    "bools": [(True, text("true")), (False, text("false"))],
    "dicts": [({"b": 1, "a": 2}, text('{"a": 2, "b": 1}')), ("", None)],
}


def samples(tree: Tree) -> None:
    """Samples with their label in .cls or .json, or without one; with captions, texts that nobody uses, and members without an image."""
    pack, place = Pack(tree), tree.one(["cls", "json", "json", "named", "none", "no_labels"])
    values = tree.one(list((LABELS if place == "cls" else JSON_LABELS).values()))
    key_of_json = tree.one(["label", "cls", "class", "class_id"]) if place == "json" else "kind"
    folder = tree.folder(2)
    found: list[tuple[str, list[Member], bytes, Stated]] = []
    caption = tree.chance(0.4)
    for _ in range(tree.random.randint(3, 10)):
        key = f"{folder}{tree.one(['{n}', 'img {n}', 'é{n}', 'N-{n}']).format(n=f'{tree.number():04}')}"
        data, parts, label = tree.image(broken=0.12), {}, None
        raw, stated = tree.one(values)
        if not found or tree.chance(0.85):
            if place == "cls":
                parts["cls"], label = f"{raw}{tree.one(['', chr(10)])}".encode(), stated
            elif place in ("json", "named"):
                parts["json"], label = json.dumps({"other": 1, key_of_json: raw}).encode(), stated
            elif place == "no_labels":
                parts["cls"] = str(raw).encode()
        if caption:
            parts["txt"] = f"a caption of {key}".encode()
        if tree.chance(0.1):
            parts["npy"] = b"\x93NUMPY"
        if place == "cls" and tree.chance(0.05):
            parts["json"], label = b"{not json", None
            tree.bad[f"#{key}", "bad_label"] += 1
            parts["png"] = data
            found.append((key, _members(key, parts), b"", None))
            continue
        parts[tree.extension()] = data
        found.append((key, _members(key, parts), data, label))
    if place == "named":
        tree.options = {"label": "kind"}
    elif place == "no_labels":
        tree.options = {"no_labels": True}
    elif place == "none" and tree.chance(0.5):
        tree.options = {"label_from": tree.one(["none", "regex:([0-9]+)$"])}
    if place == "named" and all(label is None for *_, label in found):
        return samples(tree)
    if tree.chance(0.2):
        found.append((f"{folder}zz", [("file", f"{folder}zz.txt", b"alone")], b"", None))
        tree.members_left_out[".txt without an image"] += 1
    if tree.chance(0.2):
        found.append((f"{folder}zzz", [("file", f"{folder}zzz.json", b'{"kind": 3}')], b"", None))
        tree.bad[f"#{folder}zzz", "no_image"] += 1
    _finish_with_failures(tree, pack, found)


def _members(key: str, parts: dict[str, bytes]) -> list[Member]:
    return [("file", f"{key}.{suffix}", data) for suffix, data in sorted(parts.items())]


def _finish_with_failures(tree: Tree, pack: Pack, found: list[tuple[str, list[Member], bytes, Stated]]) -> None:
    """Write samples, of which those without data were counted as failures or left out already."""
    count = min(tree.random.randint(1, 3), len(found))
    failures = dict(tree.bad)
    for place, name in enumerate(names(tree, count)):
        chosen = found[place::count]
        if not any(data for _, _, data, _ in chosen):
            chosen, found = found, []
        written = pack.write(name, with_junk(tree, [member for _, parts, *_ in chosen for member in parts]))
        for key, _, data, label in chosen:
            if data:
                tree.expect(f"{written}#{key}", data, label)
            for sample_id, reason in list(failures):
                if sample_id == f"#{key}":
                    del tree.bad[sample_id, reason], failures[sample_id, reason]
                    tree.bad[f"{written}#{key}", reason] += 1
        if not found:
            break
    others(tree)


def classes_of_texts(tree: Tree) -> None:
    """Labels in members like .target, or in .txt: classes by their recurrence; texts that are all different are none."""
    suffix, recurs = tree.one(["target", "label", "class", "label.txt", "txt"]), tree.chance(0.7)
    words = tree.random.sample(["cat", "dog", "big owl"], 2)
    found = []
    for n in range(tree.random.randint(10, 16)):
        word = words[n % 2] if recurs else f"thing {n}"
        key, data = f"{n:03}", tree.image()
        parts = {suffix: word.encode(), "jpg": data}
        found.append((key, _members(key, parts), data, text(word) if recurs else None))
    finish_samples(tree, Pack(tree), found)


def class_folders(tree: Tree) -> None:
    """Class folders inside the tar; --label-from takes other parts of the path."""
    words = tree.random.sample(["cat", "dog", "red fox", "日本", "v1.0"], 3)
    rule = tree.one(["", "", "parent", "first", "depth:2", "none", "regex:/([0-9])"])
    base, found = tree.one(["", "set/"]), []
    for n in range(tree.random.randint(6, 12)):
        word, stem = words[n % 3], f"{n}_{tree.number()}"
        key, data = f"{base}{word}/{stem}", tree.image(broken=0.1)
        folders = key.split("/")[:-1]
        label = {"": word, "parent": word, "first": folders[0], "depth:2": folders[1] if base else None, "none": None}.get(rule, str(n)[0])
        found.append((key, _members(key, {tree.extension(): data}), data, None if label is None else text(label)))
    tree.options = {"label_from": rule} if rule else {}
    finish_samples(tree, Pack(tree), sorted(found))


def tar_per_class(tree: Tree) -> None:
    """A tar for each class, loose or in one tar of tars, as ImageNet has them."""
    classes, nested, plain = tree.random.sample(["n014", "n015", "n016", "cat", "Dog"], 3), tree.chance(0.5), []
    forced = tree.chance(0.3)
    pack = Pack(tree)
    ending = tree.one([".tar", ".tar.gz"])
    expected = []
    for word in classes:
        members: list[Member] = []
        for n in range(tree.random.randint(2, 5)):
            data, stem = tree.image(), f"{n}" if forced else f"{word}_{n}"
            members.append(("file", f"{stem}.{tree.extension()}", data))
            expected.append((f"{word}{ending}/{stem}" if nested else f"{word}{pack.ending}#{stem}", data, text(word)))
        if nested:
            plain.append(("file", f"{word}{ending}", (gzip.compress if ending.endswith("gz") else bytes)(packed(members))))
        else:
            pack.write(word, members)
    tree.options = {"label_from": "tar"} if forced else {}
    outer = tree.write("images.tar", packed(plain)) if nested else ""
    for name, data, label in expected:
        tree.expect(f"{outer}#{name}" if nested else name, data, label)


def nested_twice(tree: Tree) -> None:
    """Tars inside a tar are read one level deep."""
    inner = packed([("file", f"{n}.png", tree.image()) for n in range(2)])
    data = tree.image()
    middle = packed([("file", "1.png", data), ("file", "deep.tar", inner)])
    other = tree.image()
    outer = tree.write("a.tar", packed([("file", "0.png", other), ("file", "m.tar", middle)]))
    tree.expect(f"{outer}#0", other)
    tree.expect(f"{outer}#m.tar/1", data)
    tree.members_left_out["nested"] += 1


def several(tree: Tree) -> None:
    """Several images a sample: a grave doubt, which --image-member settles."""
    sides = tree.one([("left.png", "right.png"), ("left.jpg", "mask.png", "right.jpg"), ("jpg", "png")])
    taken = tree.one(["all", *sides])
    pack = Pack(tree)
    tree.options, tree.stops, tree.settles = {"image_member": taken}, "--image-member", ("image_member",)
    found: list[Member] = []
    expected = []
    for n in range(tree.random.randint(5, 8)):
        for side in sides:
            data = tree.image(broken=0.05)
            found.append(("file", f"{n:03}.{side}", data))
            if taken == "all":
                expected.append((f"{n:03}#{side}", data, whole(n)))
            elif taken == side:
                expected.append((f"{n:03}", data, whole(n)))
            else:
                tree.members_left_out["further images"] += 1
        found.append(("file", f"{n:03}.zcls"[:4] + "cls", str(n).encode()))
    if taken == "jpg" and tree.chance(0.5):
        tree.options = {"yes": True}  # plain suffixes: the first of them
        tree.settles = ("yes",)
    written = pack.write("a", found)
    for key, data, label in expected:
        tree.expect(f"{written}#{key}", data, label)


def dotted(tree: Tree) -> None:
    """Dots in names are part of the key, unless the suffixes recur."""
    with_labels, explicit = tree.chance(0.5), tree.chance(0.3)
    found = []
    for n in range(tree.random.randint(4, 8)):
        key, data = f"{tree.one(['cat', 'dog'])}.{n}", tree.image()
        parts = {"jpg": data} | ({"cls": str(n % 2).encode()} if with_labels else {})
        found.append((key, _members(key, parts), data, whole(n % 2) if with_labels else None))
    tree.options = {"tar_key": "last-dot"} if explicit else {}
    finish_samples(tree, Pack(tree), sorted(found))


def linked(tree: Tree) -> None:
    """Hard and symbolic links stand for files of the same tar; other links are missing files, or left out."""
    pack, members, expected = Pack(tree, links=tree.chance(0.7)), [], []
    pack.zip, pack.ending = False, pack.ending.replace(".zip", ".tar")
    for n in range(tree.random.randint(2, 5)):
        data = tree.image(broken=0.1)
        members.append(("file", f"a/{n}.png", data))
        expected.append((f"a/{n}", data))
        kind = tree.one(["hard", "sym", "chain", "out", "none"])
        prefix = pack.prefix if tree.chance(0.5) else ""
        if kind == "hard":
            members.append(("hard", f"b/{n}.jpg", f"{prefix}a/{n}.png"))
        elif kind == "sym":
            members.append(("sym", f"b/{n}.jpg", f"../a/{n}.png"))
        elif kind == "chain":
            members.append(("sym", f"b/{n}x.jpg", f"{n}.jpg"))
            members.append(("hard", f"b/{n}.jpg", f"a/{n}.png"))
            expected.append((f"b/{n}x", data))
        if kind in ("hard", "sym", "chain"):
            expected.append((f"b/{n}", data))
        elif kind == "out":
            members.append(("sym", f"b/{n}.jpg", tree.one(["/etc/passwd", "../../out.png", "nowhere.png"])))
    members += [("dir", "d/", ""), *([("fifo", "pipe.png", "")] if tree.chance(0.3) else [])]
    tree.members_left_out["device"] += members[-1][0] == "fifo"
    if tree.chance(0.3):
        members.append(("sym", "folder", "a"))
        tree.members_left_out["links"] += 1
    tree.options = {"label_from": "none"}
    written = pack.write("linked", members)
    for key, data in expected:
        tree.expect(f"{written}#{key}", data)
    for kind, name, target in members:
        if kind == "sym" and posixpath.basename(target) in ("passwd", "out.png", "nowhere.png"):
            tree.bad[f"{written}#{name.removesuffix('.jpg')}", "missing"] += 1


def partners(tree: Tree) -> None:
    """Tars of labels in another folder, with the names of the tars of images."""
    values = tree.one([LABELS["whole"], LABELS["words"], LABELS["mixed"]])
    for n in range(2):
        images: list[Member] = []
        texts: list[Member] = []
        for _ in range(3):
            key, data, (raw, label) = f"{tree.number():03}", tree.image(), tree.one(values)
            images.append(("file", f"{key}.jpg", data))
            texts.append(("file", f"{key}.cls", str(raw).encode()))
            tree.expect(f"images/{n:02}.tar#{key}", data, label)
        tree.write(f"images/{n:02}.tar", packed(images))
        tree.write(f"labels/{n:02}.tar", packed(texts))
    tree.left_out["tars without images"] += 2


def table_beside(tree: Tree) -> None:
    """A table that gives the labels of the samples, by key or by file name."""
    by_key, rows, found = tree.chance(0.5), ["key,label" if tree.chance(0.5) else "file_name,class"], []
    for n in range(8):
        key, data = f"{n:05}{tree.random.randrange(10)}", tree.image(broken=0.1)
        label = whole(tree.random.randrange(3)) if n == 0 or tree.chance(0.8) else None
        if label is not None:
            rows.append(f"{key}{'' if by_key else '.jpg'},{label[1]}")
        found.append((key, _members(key, {"jpg": data, "txt": b"words"}), data, label))
    tree.write("t.csv", "\n".join(rows).encode())
    tree.options = {"label_from": "file:t.csv"}
    tree.left_out[".csv"] += 1
    finish_samples(tree, Pack(tree), found)


def by_content(tree: Tree) -> None:
    """Members whose bytes alone show that they are images."""
    found = []
    for n in range(4):
        data = tree.image(tree.one(["PNG", "JPEG"]))
        suffix = tree.one([".image", ".img", ""])
        found.append((f"{n}x", [("file", f"{n}x{suffix}", data)], data, None))
    found.append(("readme", [("file", "readme", b"words")], b"", None))
    tree.members_left_out["without extension"] += 1
    _finish_with_failures(tree, Pack(tree), found)


def damaged(tree: Tree) -> None:
    """A tar that was cut: what is whole is read, and one failure stands for the rest. A key that comes again is a duplicate."""
    count = tree.random.randint(3, 7)
    found = [(f"{n:03}", tree.image()) for n in range(count)]
    members: list[Member] = [("file", f"{key}.png", data) for key, data in found]
    if tree.chance(0.5):
        cut = tree.random.randint(1, count - 1)
        where = len(packed(members[:cut], mark=False)) + 512 + tree.random.randrange(40)
        written = tree.write("a.tar", packed(members)[:where])
        tree.bad[f"{written}#@", "bad_container"] += 1
        found = found[:cut]
    else:
        again = f"{found[0][0]}.png"
        written = tree.write("a.tar", packed([*members, ("file", again, tree.image())]))
        tree.bad[f"{written}#{found[0][0]}@", "duplicate_id"] += 1
    for key, data in found:
        tree.expect(f"{written}#{key}", data)


def apart(tree: Tree) -> None:
    """Members of samples that lie apart are refused, with the way to sort them."""
    members: list[Member] = [("file", f"{n}.jpg", tree.image()) for n in range(3)]
    members += [("file", f"{n}.cls", b"1") for n in range(3)]
    tree.write("a.tar", packed(members))
    tree.stops, tree.never = "tar --sort=name", True


def list_of_labels(tree: Tree) -> None:
    """A label that is a list is refused, unless the first is asked for."""
    members: list[Member] = []
    for n in range(3):
        data = tree.image()
        members += [("file", f"{n}.jpg", data), ("file", f"{n}.json", json.dumps({"label": [n, 9]}).encode())]
        tree.expect(f"a.tar#{n}", data, whole(n))
    tree.write("a.tar", packed(members))
    tree.stops, tree.options, tree.settles = "--label-first", {"label_first": True}, ("label_first",)


def splits(tree: Tree) -> None:
    """Tars of several splits are not mixed without a word; a pattern takes some."""
    folder, asked = tree.chance(0.5), tree.one(["train", "val", "all", "pattern"])
    for split in ("train", "val"):
        data, n = tree.image(), tree.number()
        written = tree.write(
            f"{split}/{n}.tar" if folder else f"x-{split}-0000{n}.tar", packed([("file", "1.jpg", data), ("file", "1.cls", b"3")])
        )
        if asked in (split, "all") or (asked == "pattern" and split == "val"):
            tree.expect(f"{written.rpartition('/')[2]}#1" if asked == "pattern" and folder else f"{written}#1", data, whole(3))
        elif asked != "pattern":
            tree.left_out["another split"] += 1
    if asked == "pattern":
        tree.named = "val/*.tar" if folder else "x-val-*.tar"
    else:
        tree.options, tree.settles, tree.stops = {"split": asked}, ("split",), "--split"


def shard_writer(tree: Tree) -> None:
    """Shards as webdataset itself writes them."""
    import webdataset as wds  # here, because it loads torch

    count, labels = tree.random.randint(3, 9), tree.one(["cls", "json", ""])
    with wds.ShardWriter(str(tree.root / "s-%04d.tar"), maxcount=4, verbose=0) as writer:
        for n in range(count):
            data, key = tree.image("PNG"), f"{tree.one(['', 'a/', 'v1.0/'])}sample{n:05}"
            sample: dict[str, Any] = {"__key__": key, "png": data, "txt": f"number {n}"}
            sample |= {"cls": n % 3} if labels == "cls" else {"json": {"label": n % 3, "w": 8}} if labels == "json" else {}
            writer.write(sample)
            tree.expect(f"s-{n // 4:04}.tar#{key}", data, whole(n % 3) if labels else None)
    if not labels:
        tree.options = {"label_from": "none"}


TARS: list[Maker] = [
    samples,
    samples,
    samples,
    classes_of_texts,
    class_folders,
    tar_per_class,
    nested_twice,
    several,
    dotted,
    linked,
    partners,
    table_beside,
    by_content,
    damaged,
    apart,
    list_of_labels,
    splits,
    shard_writer,
]
