"""Random tars by the place of their labels: members, keys of .json, folders, names of tars, tars and tables beside them."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.pipeline.sources.tree_archives import Member, Pack, Sample, members_of, packed, write_samples
from tests.pipeline.sources.tree_grammar import Maker, Stated, Tree, text, whole

__all__ = ["LABELLED"]

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
    place = tree.one(["cls", "json", "json", "both", "both", "named", "none", "no_labels"])
    values = tree.one(list((LABELS if place in ("cls", "both") else JSON_LABELS).values()))
    key_of_json, folder, caption = (
        tree.one(["label", "cls", "class", "class_id"]) if place != "named" else "kind",
        tree.folder(2),
        tree.chance(0.4),
    )
    tree.options |= {"as_text": True} if tree.chance(0.1) else {}
    found: list[Sample] = []
    for _ in range(tree.random.randint(3, 10)):
        key = f"{folder}{tree.one(['{n}', 'img {n}', 'é{n}', 'N-{n}']).format(n=f'{tree.number():04}')}"
        sample, parts = Sample(key, [], tree.image(broken=0.12)), {}
        raw, stated = tree.one(values)
        if not found or tree.chance(0.85):
            where = tree.one(["cls", "json"]) if place == "both" else place
            if where == "cls":
                parts["cls"], sample.label = f"{raw}{tree.one(['', chr(10)])}".encode(), stated
                if place == "both" and tree.chance(0.6):  # the member wins
                    parts["json"] = json.dumps({key_of_json: "another"}).encode()
            elif where in ("json", "named"):
                parts["json"], sample.label = json.dumps({"other": 1, key_of_json: raw}).encode(), stated
            elif where == "no_labels":
                parts["cls"] = str(raw).encode()
        if caption:
            parts["txt"] = f"a caption of {key}".encode()
        if tree.chance(0.1):
            parts["npy"] = b"\x93NUMPY"
        if place == "cls" and found and tree.chance(0.05):
            parts["json"], sample.fails = b"{not json", "bad_label"
        parts[tree.extension()] = sample.data
        sample.members = members_of(key, parts)
        found.append(sample)
    if place == "named":
        if all(sample.label is None for sample in found):
            return classes_of_texts(tree)
        tree.options["label"] = "kind"
    elif place == "no_labels":
        tree.options["no_labels"] = True
    elif place == "none" and tree.chance(0.5):
        tree.options["label_from"] = tree.one(["none", "regex:([0-9]+)$"])
    if tree.chance(0.2):
        found.append(Sample(f"{folder}zz", [("file", f"{folder}zz.txt", b"alone")]))
        tree.members_left_out[".txt without an image"] += 1
    if tree.chance(0.2):
        found.append(Sample(f"{folder}zzz", [("file", f"{folder}zzz.json", b'{"kind": 3}')], fails="no_image"))
    write_samples(tree, found)


def classes_of_texts(tree: Tree) -> None:
    """Labels in members like .target, or in .txt: classes by their recurrence; texts that are all different are none."""
    suffix, recurs = tree.one(["target", "label", "class", "label.txt", "txt"]), tree.chance(0.7)
    words = tree.random.sample(["cat", "dog", "big owl"], 2)
    found = []
    for n in range(tree.random.randint(10, 16)):
        word = words[n % 2] if recurs else f"thing {n}"
        key, data = f"{n:03}", tree.image()
        parts = {suffix: word.encode(), "jpg": data}
        found.append(Sample(key, members_of(key, parts), data, text(word) if recurs else None))
    write_samples(tree, found)


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
        found.append(Sample(key, members_of(key, {tree.extension(): data}), data, None if label is None else text(label)))
    tree.options = {"label_from": rule} if rule else {}
    write_samples(tree, sorted(found, key=lambda sample: sample.key))


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
        found.append(Sample(key, members_of(key, {"jpg": data, "txt": b"words"}), data, label))
    tree.write("t.csv", "\n".join(rows).encode())
    tree.options = {"label_from": "file:t.csv"}
    tree.left_out[".csv"] += 1
    write_samples(tree, found)


def img2dataset(tree: Tree) -> None:
    """Tars, and beside each a Parquet file about its samples, as img2dataset leaves them; rows that failed have no image."""
    for shard in range(2):
        members: list[Member] = []
        rows = []
        for n in range(6):
            key, label, lost = f"{shard:05}{n:04}", tree.random.randrange(3), n > 1 and tree.chance(0.2)
            rows.append(
                {"key": key, "url": f"https://h.example/{key}", "class": label, "status": "failed_to_download" if lost else "success"}
            )
            if lost:
                tree.pool.append(whole(label))
                continue
            data = tree.image(broken=0.1)
            members += members_of(
                key, {"jpg": data, "txt": f"text {key}".encode(), "json": json.dumps(rows[-1] | {"class": None}).encode()}
            )
            tree.expect(f"{shard:05}.tar#{key}", data, whole(label))
        tree.write(f"{shard:05}.tar", packed(members))
        pq.write_table(pa.Table.from_pylist(rows), tree.root / f"{shard:05}.parquet")
        tree.write(f"{shard:05}_stats.json", b"{}")
        tree.left_out += {".parquet": 1, ".json": 1}  # type: ignore[arg-type]
    tree.options = {"label_from": "file:*.parquet"}


def list_of_labels(tree: Tree) -> None:
    """A label that is a list is refused, unless the first is asked for."""
    members: list[Member] = []
    for n in range(3):
        data = tree.image()
        members += [("file", f"{n}.jpg", data), ("file", f"{n}.json", json.dumps({"label": [n, 9]}).encode())]
        tree.expect(f"a.tar#{n}", data, whole(n))
    tree.write("a.tar", packed(members))
    tree.stops, tree.options, tree.settles = "--label-first", {"label_first": True}, ("label_first",)


LABELLED: list[Maker] = [
    samples,
    samples,
    samples,
    classes_of_texts,
    class_folders,
    tar_per_class,
    partners,
    table_beside,
    img2dataset,
    list_of_labels,
]
