"""Random folders of images: names, labels from paths and from tables beside them, splits, junk, links, tars beside."""

from __future__ import annotations

import csv
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq

from tests.pipeline.sources.tree_archives import packed
from tests.pipeline.sources.tree_grammar import Maker, Stated, Tree, text, whole

__all__ = ["FOLDERS"]

SPLITS = ["train", "val", "test", "training", "validation", "train_images", "val2017", "Train", "test-set"]
OF_SPLIT = {"training": "train", "validation": "val", "train_images": "train", "val2017": "val", "Train": "train", "test-set": "test"}


def stated(path: str, rule: str, below: str | None = None) -> Stated:
    """Return the label that --label-from gives a path; `below` is the folder of a split, below which folders are counted."""
    folders = path.split("/")[:-1]
    if below is not None:
        at = folders.index(below)
        folders = folders[at + 1 :] or folders[:at]
    kind, _, value = rule.partition(":")
    if kind == "regex":
        found = re.search(value, path)
        return text(found[1]) if found else None
    at = {"first": 0, "parent": len(folders) - 1, "depth": int(value or 0) - 1, "none": 99}[kind]
    return text(folders[at]) if 0 <= at < len(folders) else None


def images(tree: Tree, least: int = 3, most: int = 14) -> list[str]:
    """Return names of images below random folders, each once."""
    names = []
    for _ in range(tree.random.randint(least, most)):
        stem = tree.one(["{n}", "img {n}", "IMG_{n}.v2", "é{n}", "a{n}_b", "#{n}", "{n}.tar"]).format(n=tree.number())
        names.append(f"{tree.folder()}{stem}.{tree.extension()}")
    return names


def others(tree: Tree) -> None:
    """Write files that are no images by their extension."""
    for name, kind in (("README.md", ".md"), ("LICENSE", "without extension"), ("old/1.png.bak", ".bak"), ("a/b.mp4", ".mp4")):
        if tree.chance(0.3):
            tree.write(name, tree.image())
            tree.left_out[kind] += 1


def plain(tree: Tree) -> None:
    """Paths at any depth, and each rule of --label-from that needs the path alone."""
    rule = tree.one(["first", "first", "parent", "depth:1", "depth:2", "none", "regex:^(?:.*/)?(a[0-9]+)_", ""])
    tree.options = {"no_labels": True} if not rule else {} if rule == "first" and tree.chance(0.7) else {"label_from": rule}
    names = images(tree)
    for name in names:
        data = tree.image(broken=0.15)
        tree.write(name, data)
        tree.expect(name, data, stated(name, rule or "none"))
    if tree.chance(0.3):  # a link is an input of its own
        name = f"{tree.one(names).rpartition('/')[0] or 'links'}/link.png"
        data = tree.image()
        tree.write(target := f"z/{tree.number()}.png", data)
        (tree.root / name).parent.mkdir(parents=True, exist_ok=True)
        (tree.root / name).symlink_to(tree.root / target)
        tree.expect(target, data, stated(target, rule or "none"))
        tree.expect(name, data, stated(name, rule or "none"))
    if tree.chance(0.2):
        (tree.root / "broken.png").symlink_to("nowhere.png")
        tree.bad["broken.png", "missing"] += 1
    if tree.chance(0.2):
        tree.write("empty.jpg", b"")
        tree.bad["empty.jpg", "empty"] += 1
    if tree.chance(0.2):
        data = tree.image()
        tree.write("latin-\udcfc.png", data)
        tree.expect("latin-\\xfc.png", data)
    tree.write_junk()
    others(tree)


def every_file(tree: Tree) -> None:
    """--all-files takes what has another extension."""
    tree.options = {"all_files": True}
    for name in (*images(tree, 1, 4), "plain", "a/data.bin", "b/x.PNG.old"):
        data = tree.image(broken=0.1)
        tree.write(name, data)
        tree.expect(name, data, stated(name, "first"))
    tree.write_junk()


def splits(tree: Tree) -> None:
    """Folders that are splits: in the root, or below classes."""
    chosen = tree.random.sample(SPLITS, tree.random.randint(1, 3))
    inside = tree.chance(0.25)  # class/train/1.png
    found: dict[str, list[str]] = {}
    for folder in chosen:
        split = OF_SPLIT.get(folder, folder)
        for _ in range(tree.random.randint(2, 5)):
            name = f"{tree.number()}.{tree.extension()}"
            word = tree.one(["cat", "dog", "owl"])
            path = f"{word}/{folder}/{name}" if inside else f"{folder}/{tree.one(['', f'{word}/', f'{word}/deep/'])}{name}"
            found.setdefault(split, []).append(path)
    mixed = len(found) > 1
    if mixed and not inside and tree.chance(0.3):
        found[""] = ["extra/cat/1.png"]
    asked = tree.one([*(split for split in found if split), "all"])
    if mixed or asked != "all":
        tree.options, tree.settles = {"split": asked}, ("split",)
        tree.stops = "--split" if mixed else ""
    elif inside:
        tree.options = {"split": "all"}
    for split, paths in found.items():
        for path in paths:
            data = tree.image()
            tree.write(path, data)
            if asked not in (split, "all"):
                tree.left_out[f"of the split {split}" if split else "of no split"] += 1
                continue
            below = next((name for name in chosen if name in path.split("/")), None)
            tree.expect(path, data, stated(path, "first", below))
    tree.write_junk()


def table_beside(tree: Tree) -> None:
    """A table of labels beside the images, joined by name, with rows and images that have no partner."""
    names = [f"{tree.folder(2)}{tree.one(['{n}', 'img {n}', 'é{n}']).format(n=tree.number())}.{tree.extension()}" for _ in range(8)]
    key = tree.one(
        [lambda name: name, lambda name: name.rpartition("/")[2], lambda name: name.rpartition(".")[0], lambda name: f"other/{name}"]
    )
    numbers = tree.chance(0.5)
    rows: list[tuple[str, Stated]] = []
    for place, name in enumerate(names):
        data = tree.image(broken=0.1)
        tree.write(name, data)
        label: Stated = None
        if place == 0 or tree.chance(0.8):
            label = whole(tree.random.randrange(4)) if numbers else text(tree.one(["cat", "dog", "big owl"]))
            rows.append((key(name), label))
        tree.expect(name, data, label)
    rows.append((f"nobody{tree.number()}.png", label := whole(9) if numbers else text("none such")))
    tree.pool.append(label)
    tree.random.shuffle(rows)
    column, target = tree.one(["file_name", "id", "image_id", "path", "strange"]), tree.one(["label", "class", "kind"])
    kind = tree.one(["csv", "tsv", "jsonl", "json", "parquet"])
    objects = [{column: name, target: label[0] if numbers else label[1]} for name, label in rows if label is not None]
    tree.options = {"label_from": f"file:labels.{kind}"}
    if column == "strange":
        tree.options["key_column"] = column
    if target == "kind":
        tree.options["label"] = target
    if kind in ("csv", "tsv"):
        out = io.StringIO()
        writer = csv.DictWriter(out, [column, target], delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerows(objects)
        tree.write(f"labels.{kind}", out.getvalue().encode(tree.one(["utf-8", "utf-8-sig", "utf-16"])))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(objects), tree.root / "labels.parquet")
    else:
        lines = [json.dumps(row, ensure_ascii=tree.chance(0.5)) for row in objects]
        tree.write(f"labels.{kind}", ("\n\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]").encode())
    tree.left_out[f".{kind}"] += 1
    tree.write_junk()


def unasked_table(tree: Tree) -> None:
    """A table beside the images that nobody asked for is proposed, and the folder is the label."""
    for name in images(tree):
        data = tree.image()
        tree.write(name, data)
        tree.expect(name, data, stated(name, "first"))
    tree.write("train.csv", b"id,label\n1,cat\n")
    tree.left_out[".csv"] += 1
    tree.says += ["--label-from file:train.csv"]


def list_in_order(tree: Tree) -> None:
    """A list of labels without names is given to the sorted paths."""
    names = sorted(f"{tree.one(['a/', 'b/', ''])}{tree.number():03}.png" for _ in range(6))
    labels = [tree.random.randrange(5) for _ in names]
    for name, label in zip(names, labels, strict=True):
        data = tree.image()
        tree.write(name, data)
        tree.expect(name, data, whole(label))
    tree.write("truth.txt", "".join(f"{label}\n" for label in labels).encode())
    tree.options = {"label_from": "file:truth.txt"}
    tree.left_out[".txt"] += 1


def tars_beside(tree: Tree) -> None:
    """Images beside a tar: the form that holds more bytes is read, and the other is named."""
    inside = [(f"{n}.png", tree.image("PNG")) for n in range(3)]
    tree.write("more.tar", packed([("file", *member) for member in inside]))
    if tree.chance(0.5):
        tree.left_out[".tar"] += 1
        tree.says += ["beside the images are ignored"]
        names = [f"a/{tree.number()}.png" for _ in range(4)]
        for name in names:
            data = tree.image("PNG") + bytes(8000)
            tree.write(name, data)
            tree.expect(name, data, text("a"))
    else:
        tree.write("one.png", tree.image("PNG"))
        tree.left_out[".png"] += 1
        tree.says += ["put the images into their own folder"]
        for name, data in inside:
            tree.expect(f"more.tar#{name[:-4]}", data)


FOLDERS: list[Maker] = [
    plain,
    plain,
    plain,
    every_file,
    splits,
    splits,
    table_beside,
    table_beside,
    unasked_table,
    list_in_order,
    tars_beside,
]
