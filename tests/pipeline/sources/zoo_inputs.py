"""A zoo of whole inputs: one small, fixed example of each form of labels, splits, tars, tables, URLs and folders, and what becomes of it.

Expectations are written as words: `cat/1.png=cat 2.png` are two rows, of which the first has a label. Images as such are in zoo.py.
"""

from __future__ import annotations

import base64
import gzip
import json
import tarfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.pipeline.sources.tree_archives import PACKINGS, Member, packed, zipped
from tests.pipeline.sources.tree_cells import class_names
from tests.pipeline.sources.tree_grammar import Maker, Stated, Tree, text, whole

__all__ = ["INPUTS"]

Data = dict[str, bytes]
"""Images by their names."""


def stated(word: str) -> Stated:
    """Return a label as it is written in an expectation; `_` stands for a space."""
    return whole(int(word)) if word.lstrip("-").isdigit() and str(int(word)) == word else text(word.replace("_", " "))


def settled(tree: Tree, rest: dict[str, Any]) -> None:
    """Take options and what else is expected of a tree."""
    for name, value in rest.items():
        setattr(tree, name, type(getattr(tree, name))(value) if name in ("left_out", "members_left_out", "bad") else value)
    if tree.stops and not tree.never:
        tree.settles = tuple(tree.options)


def expected(tree: Tree, rows: str, data: Callable[[str], bytes]) -> None:
    """Expect the rows, whose images `data` returns by their ids."""
    for word in rows.split():
        sample_id, mark, label = word.partition("=")
        tree.expect(sample_id, data(sample_id), stated(label) if mark else None)


def folder(rows: str, others: str = "", texts: dict[str, str] | None = None, **rest: Any) -> Maker:
    """A folder of images, `others` of which are no rows, and texts."""

    def make(tree: Tree) -> None:
        data: Data = {word.partition("=")[0]: tree.image() for word in (*rows.split(), *others.split())}
        for name, body in (*data.items(), *((name, body.encode()) for name, body in (texts or {}).items())):
            tree.write(name, body)
        expected(tree, rows, data.__getitem__)
        settled(tree, rest)

    return make


def tars(packs: dict[str, str], rows: str, packing: str = "", how: Callable[[list[bytes]], bytes] | None = None, **rest: Any) -> Maker:
    """Tars by name. Members are images, texts (`1.cls=cat`), hard links (`b.jpg->a.jpg`) or symbolic ones (`b.jpg~>a.jpg`)."""

    def make(tree: Tree) -> None:
        data: Data = {}
        written: dict[str, bytes] = {}
        for name, words in packs.items():
            members: list[Member] = []
            for word in words.split():
                member, mark, value = next((word.partition(sign) for sign in ("->", "~>", "=") if sign in word), (word, "", ""))
                kind = {"->": "hard", "~>": "sym"}.get(mark, "file")
                content: Any = value.replace("_", " ").encode() if mark == "=" else value
                if not mark:
                    content = data[f"{name}#{_key(member)}"] = data[f"{name}#{_key(member)}#{member.partition('.')[2]}"] = tree.image()
                elif kind != "file":
                    target = value.rpartition("/")[2]
                    data[f"{name}#{_key(member)}"] = next(body for _, path, body in members if path.endswith(target))
                members.append((kind, member, content))
            written[name] = zipped(members) if name.endswith(".zip") else packed(members)
        if how is not None:
            tree.write(next(iter(written)), how(list(written.values())))
        else:
            for name, body in written.items():
                tree.write(name, PACKINGS[packing](body))
        first = next(iter(written))
        known = {f"{first}#{name.partition('#')[2]}": body for name, body in data.items()} if how is not None else data
        known |= {f"{first}#{name.replace('#', '/')}": body for name, body in data.items()}
        expected(tree, rows, known.__getitem__)
        settled(tree, rest)

    return make


def _key(member: str) -> str:
    member = member.removeprefix("./")
    place, _, name = member.rpartition("/")
    stem = name.rpartition(".")[0] if name.startswith("dot.") else name.partition(".")[0]
    return f"{place}/{stem}" if place else stem


def table(
    name: str, body: str, labels: str, *, encode: Callable[[str], bytes] = str.encode, pictures: str = "a/1.png a/2.png", **rest: Any
) -> Maker:
    """A table of text; `{0}` and `{1}` are its images in base64, and rows are in the order of its images. `-` is no label."""

    def make(tree: Tree) -> None:
        images = [tree.image("PNG") for _ in pictures.split()]
        for place, data in zip(pictures.split(), images, strict=True):
            tree.write(place, data)
        whole_text = body.replace("ROOT", str(tree.root))
        for place, data in enumerate(images):
            whole_text = whole_text.replace(f"{{{place}}}", base64.b64encode(data).decode())
        tree.named = tree.write(name, encode(whole_text))
        for number, (data, label) in enumerate(zip(images, labels.split(), strict=bool(labels))):
            tree.expect(f"{name}#{number}", data, None if label == "-" else stated(label))
        settled(tree, rest)

    return make


def parquet(labels: str, column: Any = None, image: Callable[[list[bytes]], Any] = lambda images: images, **rest: Any) -> Maker:
    """A Parquet file of two images and a column of labels."""

    def make(tree: Tree) -> None:
        images = [tree.image() for _ in range(2)]
        columns = {"image": image(images)} | ({} if column is None else {"label": column})
        made = pa.table(columns)
        metadata = rest.get("metadata")
        pq.write_table(made.replace_schema_metadata(metadata) if metadata else made, tree.root / "t.parquet")
        for number, (data, label) in enumerate(zip(images, labels.split(), strict=False)):
            tree.expect(f"{rest.get('ids', {}).get(number, f't.parquet#{number}')}", data, None if label == "-" else stated(label))
        settled(tree, {name: value for name, value in rest.items() if name not in ("metadata", "ids")})

    return make


HEADER = "path,label\n"
BODY = HEADER + "a/1.png,cat\na/2.png,dog\n"

LABELS: dict[str, Maker] = {
    "first folder": folder("cat/1.png=cat cat/deep/2.png=cat 3.png"),
    "parent folder": folder("a/cat/1.png=cat b/dog/2.png=dog", options={"label_from": "parent"}),
    "second folder": folder("a/cat/1.png=cat b/2.png", options={"label_from": "depth:2"}),
    "pattern": folder("n01_7.png=n01 n02_8.png=n02 x.png", options={"label_from": "regex:^(n[0-9]+)_"}),
    "table with extensions": folder(
        "a/1.png=cat 2.png", texts={"t.csv": "file_name,label\n1.png,cat\n"}, options={"label_from": "file:t.csv"}, left_out={".csv": 1}
    ),
    "table of ids": folder(
        "1.png=3 2.png=4", texts={"t.csv": "id,label\n1,3\n2,4\n"}, options={"label_from": "file:t.csv"}, left_out={".csv": 1}
    ),
    "list in order": folder("1.png=5 2.png=6", texts={"t.txt": "5\n6\n"}, options={"label_from": "file:t.txt"}, left_out={".txt": 1}),
    "table that is proposed": folder(
        "1.png 2.png", texts={"train.csv": "id,label\n1,3\n"}, left_out={".csv": 1}, says=["--label-from file:train.csv"]
    ),
    "class names of a schema": parquet("owl cat", pa.array([0, 1]), metadata=class_names("owl", "cat")),
    "whole floats": parquet("1 2", [1.0, 2.0]),
    "bools": parquet("true false", [True, False]),
    "dictionary": parquet("cat dog", pa.array(["cat", "dog"]).dictionary_encode()),
    "minus one and NA": table("t.csv", HEADER + "a/1.png,NA\na/2.png,-1\n", "NA -1"),
    "list as label": parquet("1 2", [[1, 9], [2]], options={"label_first": True}, stops="--label-first"),
    "type widens": table("t.csv", HEADER + "a/1.png,7\na/2.png,many\n", "7 many"),
}
SPLITS: dict[str, Maker] = {
    "folders": folder(
        "train/cat/1.png=cat", "val/cat/2.png", options={"split": "train"}, stops="--split", left_out={"of the split val": 1}
    ),
    "folders with suffixes": folder("train2017/cat/1.png=cat val2017/dog/2.png=dog", options={"split": "all"}, stops="--split"),
    "tars": tars(
        {"x-train-0.tar": "1.jpg", "x-val-0.tar": "1.jpg"},
        "x-val-0.tar#1",
        options={"split": "val"},
        stops="--split",
        left_out={"another split": 1},
    ),
    "folders inside a tar": tars(
        {"a.tar": "train/1.jpg val/2.jpg"}, "a.tar#val/2", options={"split": "val"}, stops="--split", members_left_out={"another split": 1}
    ),
    "a column": table("t.csv", "path,split\na/1.png,train\na/2.png,test\n", "- -", options={"split": "all"}, stops="--split"),
}
TARS: dict[str, Maker] = {
    "dots in names": tars({"a.tar": "dot.0.jpg dot.1.jpg dot.2.jpg"}, "a.tar#dot.0 a.tar#dot.1 a.tar#dot.2"),
    "several images": tars({"a.tar": "1.jpg 1.png"}, "a.tar#1#jpg a.tar#1#png", options={"image_member": "all"}, stops="--image-member"),
    "captions": tars({"a.tar": "1.jpg 1.txt=a_cat 2.jpg 2.txt=a_dog"}, "a.tar#1 a.tar#2"),
    "classes in .txt": tars({"a.tar": " ".join(f"{n}.jpg {n}.txt=cat" for n in range(8))}, " ".join(f"a.tar#{n}=cat" for n in range(8))),
    "target": tars({"a.tar": "1.jpg 1.target=3 2.jpg 2.target=4"}, "a.tar#1=3 a.tar#2=4"),
    "json": tars({"a.tar": '1.jpg 1.json={"label":3} 2.jpg'}, "a.tar#1=3 a.tar#2"),
    "hard link": tars({"a.tar": "a/1.jpg b/2.jpg->a/1.jpg"}, "a.tar#a/1 a.tar#b/2", options={"label_from": "none"}),
    "symbolic link": tars({"a.tar": "a/1.jpg b/2.jpg~>../a/1.jpg"}, "a.tar#a/1 a.tar#b/2", options={"label_from": "none"}),
    "members apart": tars({"a.tar": "1.jpg 2.jpg 1.cls=1 2.cls=2"}, "", stops="tar --sort=name", never=True),
    "class folders inside": tars({"a.tar": "f/cat/1.jpg f/dog/2.jpg"}, "a.tar#f/cat/1=cat a.tar#f/dog/2=dog"),
    "a tar for each class": tars({"n1.tar": "n1_1.jpg", "n2.tar": "n2_1.jpg"}, "n1.tar#n1_1=n1 n2.tar#n2_1=n2"),
    "parallel tars": tars({"rgb/0.tar": "1.jpg", "lab/0.tar": "1.cls=7"}, "rgb/0.tar#1=7", left_out={"tars without images": 1}),
    "concatenated": tars({"a.tar": "1.jpg", "b.tar": "2.jpg"}, "a.tar#1 a.tar#2", how=b"".join),
    "without an end mark": tars(
        {"a.tar": "1.jpg 2.jpg"}, "a.tar#1 a.tar#2", how=lambda found: found[0].rstrip(b"\0") + bytes(-len(found[0].rstrip(b"\0")) % 512)
    ),
    "cut": tars({"a.tar": "1.jpg 2.jpg"}, "a.tar#1", how=lambda found: found[0][:1600], bad={("a.tar#@", "bad_container"): 1}),
    "tar of tars": tars({"o.tar": "1.jpg"}, "o.tar#o.tar/1", how=lambda found: packed([("file", "o.tar", found[0])], tarfile.GNU_FORMAT)),
    "made of the present folder": tars({"a.tar": "./1.JPG ./1.cls=5"}, "a.tar#1=5"),
    "without extension": tars({"a.tar": "1.image 1.cls=5"}, "a.tar#1=5"),
    "members without an image": tars({"a.tar": "2.jpg x.npy=1"}, "a.tar#2", members_left_out={".npy without an image": 1}),
    **{f"packed as {kind}": tars({f"a.tar.{kind}": "1.jpg 1.cls=cat"}, f"a.tar.{kind}#1=cat", kind) for kind in ("gz", "bz2", "xz", "zst")},
    "zip": tars({"a.zip": "1.jpg 1.cls=cat"}, "a.zip#1=cat"),
    "hidden members": tars(
        {"a.tar": "1.jpg ._1.jpg __MACOSX/1.jpg .git/2.jpg"},
        "a.tar#1",
        members_left_out={"AppleDouble": 1, "of the system": 1, "hidden": 1},
    ),
}
TABLES: dict[str, Maker] = {
    "tsv": table("t.tsv", BODY.replace(",", "\t"), "cat dog"),
    "semicolons": table("t.csv", BODY.replace(",", ";"), "cat dog"),
    "without a header": table("t.csv", BODY.removeprefix(HEADER), "cat dog"),
    "list of paths": table("t.txt", "a/1.png\na/2.png\n", "- -"),
    "blank lines, CRLF, BOM": table("t.csv", "\ufeff" + BODY.replace("\n", "\r\n\r\n"), "cat dog"),
    "UTF-16": table("t.csv", BODY, "cat dog", encode=lambda body: body.encode("utf-16")),
    "stray quote": table("t.csv", BODY.replace("cat", '"big" cat'), "", stops="line 2", never=True),
    "gzip": table("t.csv.gz", BODY, "cat dog", encode=lambda body: gzip.compress(body.encode())),
    "json array": table("t.json", json.dumps([{"path": "a/1.png", "label": "cat"}, {"path": "a/2.png", "label": 2}]), "cat 2"),
    "json lines": table("t.jsonl", '{"path": "a/1.png", "label": 1}\n\n{"path": "a/2.png"}\n', "1 -"),
    "base64": table("t.csv", "image,label\n{0},cat\n{1},dog\n", "cat dog"),
    "data: URIs": table("t.jsonl", '{"image": "data:image/png;base64,{0}"}\n{"image": "data:image/png;base64,{1}"}\n', "- -"),
    "backslashes": table("t.csv", BODY.replace("/", "\\"), "cat dog"),
    "another form of Unicode": table("t.csv", HEADER + "\u00e9.png,cat\n", "cat", pictures="e\u0301.png"),
    "file URLs, absolute paths": table("t.csv", HEADER + "file://ROOT/a/1.png,cat\nROOT/a/2.png,dog\n", "cat dog"),
    "image root": table("t.csv", BODY.replace("a/", ""), "cat dog", options={"image_root": "a"}),
    "path template": table(
        "t.csv", "id,label\n1,cat\n2,dog\n", "cat dog", options={"path_template": "a/{id}.png"}, stops="--path-template"
    ),
    "failed rows": table("t.csv", "path,status\na/1.png,success\nx.png,failed_to_download\n", "-", pictures="a/1.png", absent=1),
    "missing files": table("t.csv", HEADER + "a/1.png,cat\nx.png,dog\n", "cat", pictures="a/1.png", bad={("t.csv#1", "missing"): 1}),
    "bytes in structs": parquet(
        "- -", image=lambda images: [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)], ids={0: "0.png", 1: "1.png"}
    ),
    "large binary": parquet("1 2", [1, 2], lambda images: pa.array(images, pa.large_binary())),
    "lists of images": parquet("", image=lambda images: [[images[0]], [images[1]]], stops="Lists of images", never=True),
    "pixels": parquet("", image=lambda images: [[[1, 2], [3, 4]]] * 2, stops="arrays of pixels", never=True),
}
FOLDERS: dict[str, Maker] = {
    "hidden and system": folder(
        "a/1.png=a",
        ".git/1.png a/._1.png a/Thumbs.db __MACOSX/1.png @eaDir/1.png",
        left_out={"hidden": 1, "AppleDouble": 1, "of the system": 3},
    ),
    "other extensions": folder("a/1.png=a", "a/1.mp4 LICENSE", left_out={".mp4": 1, "without extension": 1}),
    "every file": folder("a/1=a a/2.bin=a", options={"all_files": True}),
    "odd names": folder("a#1?%+[x].png É.JPG a'b.png"),
}
INPUTS: dict[str, Maker] = {
    f"{kind}: {name}": maker
    for kind, makers in (("labels", LABELS), ("splits", SPLITS), ("tar", TARS), ("table", TABLES), ("folder", FOLDERS))
    for name, maker in makers.items()
}
