"""Random tars by their form: keys, several images a sample, links, tars in tars, damage, splits; also as webdataset writes them."""

from __future__ import annotations

import posixpath
from typing import Any

from tests.pipeline.sources.tree_archives import Member, Pack, Sample, members_of, packed, write_samples
from tests.pipeline.sources.tree_grammar import Maker, Tree, text, whole
from tests.pipeline.sources.tree_tar_labels import LABELLED

__all__ = ["TARS"]


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
    taken = tree.one(["all", *sides, sides[-1]])
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
        found.append(Sample(key, members_of(key, parts), data, whole(n % 2) if with_labels else None))
    tree.options = {"tar_key": "last-dot"} if explicit else {}
    write_samples(tree, sorted(found, key=lambda sample: sample.key))


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


def by_content(tree: Tree) -> None:
    """Members whose bytes alone show that they are images."""
    found = []
    for n in range(4):
        data = tree.image(tree.one(["PNG", "JPEG"]))
        found.append(Sample(f"{n}x", members_of(f"{n}x", {tree.one(["image", "img", ""]): data}), data))
    found.append(Sample("readme", [("file", "readme", b"words")]))
    tree.members_left_out["without extension"] += 1
    write_samples(tree, found)


def cut(tree: Tree) -> None:
    """A tar that was cut: what is whole is read, and one failure stands for the rest."""
    count = tree.random.randint(3, 7)
    members: list[Member] = [("file", f"{n:03}.png", tree.image()) for n in range(count)]
    whole_ones = members[: tree.random.randint(1, count - 1)]
    where = len(packed(whole_ones, mark=False)) + 512 + tree.random.randrange(40)
    written = tree.write("a.tar", packed(members)[:where])
    tree.bad[f"{written}#@", "bad_container"] += 1
    for _, name, data in whole_ones:
        tree.expect(f"{written}#{name[:-4]}", data)


def repeated(tree: Tree) -> None:
    """A key that comes again is a duplicate, and its first image is the row."""
    members: list[Member] = [("file", f"{n:03}.png", tree.image()) for n in range(tree.random.randint(3, 7))]
    again = tree.one(members)[1]
    written = tree.write(
        "a.tar", packed([*members, ("file", f"zzz.{tree.extension()}", last := tree.image()), ("file", again, tree.image())])
    )
    tree.bad[f"{written}#{again[:-4]}@", "duplicate_id"] += 1
    tree.expect(f"{written}#zzz", last)
    for _, name, data in members:
        tree.expect(f"{written}#{name[:-4]}", data)


def apart(tree: Tree) -> None:
    """Members of samples that lie apart are refused, with the way to sort them."""
    members: list[Member] = [("file", f"{n}.jpg", tree.image()) for n in range(3)]
    members += [("file", f"{n}.cls", b"1") for n in range(3)]
    tree.write("a.tar", packed(members))
    tree.stops, tree.never = "tar --sort=name", True


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


def splits_inside(tree: Tree) -> None:
    """Folders inside the tars, or tars inside a tar, that are splits: they are not mixed without a word, and classes are below them."""
    nested, asked, rule = tree.chance(0.4), tree.one(["train", "val", "val", "all"]), tree.one(["", "first", "none"])
    members: dict[str, list[Member]] = {}
    for split in ("train", "validation"):
        for n in range(tree.random.randint(4, 6)):
            word, data = ("cat", "owl")[n % 2], tree.image(broken=0.1)
            path = f"{word}/{tree.number():03}"
            members.setdefault(split, []).append(("file", f"{path}.jpg" if nested else f"{split}/{path}.jpg", data))
            if asked in ("all", "train" if split == "train" else "val"):
                tree.expect(f"a.tar#{split}{'.tar' if nested else ''}/{path}", data, None if rule == "none" else text(word))
            else:
                tree.members_left_out["another split"] += 1
    if nested:
        tree.write("a.tar", packed([("file", f"{split}.tar", packed(sorted(of_split))) for split, of_split in members.items()]))
    else:
        tree.write("a.tar", packed(sorted(member for of_split in members.values() for member in of_split)))
    tree.options, tree.settles, tree.stops = {"split": asked}, ("split",), "--split"
    if rule and not (nested and rule == "first"):  # of a tar in a tar the first folder is its name
        tree.options["label_from"] = rule
        tree.stops = tree.stops if rule != "first" else ""  # that is an answer too: the splits are classes


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
    *LABELLED,
    nested_twice,
    several,
    dotted,
    linked,
    by_content,
    cut,
    repeated,
    apart,
    splits,
    splits_inside,
    shard_writer,
]
