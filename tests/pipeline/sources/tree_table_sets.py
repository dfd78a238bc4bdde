"""Random sets of tables: partitions, splits, types that differ from file to file, many rows, formats beside each other, what is refused."""

from __future__ import annotations

import base64
import json
import os
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from tests.pipeline.sources.tree_cells import write_columns, write_text
from tests.pipeline.sources.tree_grammar import Maker, Stated, Tree, text, whole

__all__ = ["SETS"]


def partitions(tree: Tree) -> None:
    """Folders such as `label=cat` are a column."""
    words = tree.one([["cat", "big dog"], ["3", "4"]])
    stated = [whole(int(word)) if word.isdigit() else text(word) for word in words]
    for word, label in zip(words, stated, strict=True):
        for part in range(tree.random.randint(1, 2)):
            place, images = f"label={quote(word)}/part-{part}.parquet", [tree.image(broken=0.1) for _ in range(3)]
            write_columns(tree, place, {"image": (images, pa.binary())})
            for number, data in enumerate(images):
                tree.expect(f"{place}#{number}", data, label)


def splits(tree: Tree) -> None:
    """Tables of several splits are not mixed without a word."""
    asked = tree.one(["train", "test", "all", "pattern"])
    for split in ("train", "test"):
        images = [tree.image() for _ in range(3)]
        name = f"{split}-00000-of-00001.parquet" if tree.chance(0.5) else f"{split}/0.parquet"
        write_columns(tree, name, {"image": (images, pa.binary()), "label": ([1, 2, 3], pa.int64())})
        if asked == "pattern" and split == "train":
            tree.named = name
        if asked in (split, "all") or (asked == "pattern" and split == "train"):
            shown = os.path.basename(name) if asked == "pattern" else name
            for number, data in enumerate(images):
                tree.expect(f"{shown}#{number}", data, whole(number + 1))
        elif asked != "pattern":
            tree.left_out["another split"] += 1
    if asked != "pattern":
        tree.options, tree.settles, tree.stops = {"split": asked}, ("split",), "--split"


def split_column(tree: Tree) -> None:
    """A column tells the split of each row: one is taken, or all."""
    kind, asked = tree.one(["parquet", "arrow", "feather", "csv", "jsonl"]), tree.one(["train", "val", "val", "all"])
    columns: dict[str, list[Any]] = {"image": [], "split": [], "label": []}
    name = f"t.{kind}"
    for number in range(tree.random.randint(4, 8)):
        broken = 0.0 if kind in ("csv", "jsonl") else 0.1  # base64 of what is no image is taken for a path
        data, label = tree.image(broken=broken), tree.one(["cat", "7", "dog"]) if number > 1 else "cat"
        split = tree.one(["train", "Training", "val", "validation", " dev"]) if number > 1 else ["train", "val"][number]
        columns["image"].append(base64.b64encode(data).decode() if kind in ("csv", "jsonl") else data)
        columns["split"].append(split)
        columns["label"].append(label)
        if asked in ("all", "train" if split.lower().startswith("train") else "val"):
            tree.expect(f"{name}#{number}", data, text(label))
        else:
            tree.left_out["another split"] += 1
    if kind in ("csv", "jsonl"):
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        lines = [",".join(columns), *(",".join(row.values()) for row in rows)] if kind == "csv" else [json.dumps(row) for row in rows]
        tree.write(name, "\n".join(lines).encode())
    else:
        types = {"image": pa.binary(), "split": pa.string(), "label": pa.string()}
        write_columns(tree, name, {column: (values, types[column]) for column, values in columns.items()})
    tree.options, tree.settles, tree.stops = {"split": asked}, ("split",), "--split"


def refused(tree: Tree) -> None:
    """What a table may not hold is refused with the option that helps, if there is one."""
    kind = tree.one(["list of labels", "list of images", "repeated ids", "captions"])
    images = [tree.image() for _ in range(3)]
    columns: dict[str, tuple[Any, Any]] = {"image": (images, pa.binary())}
    expected: list[Stated] = [None] * 3
    if kind == "list of labels":
        columns["label"] = ([[1, 2], [3], []], pa.list_(pa.int64()))
        tree.options, tree.stops = tree.one([({"label_first": True}, "--label-first"), ({"no_labels": True}, "--no-labels")])
        expected = [whole(1), whole(3), None] if "label_first" in tree.options else expected
    elif kind == "list of images":
        columns["image"] = ([[data] for data in images], pa.list_(pa.binary()))
        tree.stops, tree.never = "Lists of images", True
    elif kind == "repeated ids":
        columns["key"] = (["a", "b", "a"], pa.string())
        tree.options, tree.stops, tree.never = {"id_column": "key"}, "--id-column", True
        write_columns(tree, "t.parquet", columns)
        return
    else:
        images = [tree.image("BMP") for _ in range(104)]
        columns = {"image": (images, pa.binary()), "label": ([f"a caption {n}" for n in range(104)], pa.string())}
        tree.options, tree.stops, expected = {"no_labels": True}, "--no-labels", [None] * 104
    tree.settles = tuple(tree.options)
    write_columns(tree, "t.parquet", columns)
    for number, (data, label) in enumerate(zip(images, expected, strict=True)):
        tree.expect(f"t.parquet#{number}", data, label)


def widened(tree: Tree) -> None:
    """Labels that are whole numbers in one table and text in another are text in all."""
    kinds: list[tuple[Any, list[Any], list[Stated]]] = [
        (pa.int64(), [1, 2, None], [whole(1), whole(2), None]),
        (pa.string(), ["many", "7", ""], [text("many"), text("7"), None]),
        (pa.float64(), [1.0, 2.5, 3.0], [whole(1), text("2.5"), whole(3)]),
        (pa.bool_(), [True, False, None], [text("true"), text("false"), None]),
    ]
    kind = tree.one(["parquet", "arrow", "jsonl"])
    for place, (column, cells, stated) in enumerate(tree.random.sample(kinds, 2)):
        images = [tree.image() for _ in cells]
        if kind == "jsonl":
            bodies = [base64.b64encode(data).decode() for data in images]
            name = write_text(tree, f"t{place}", kind, [{"image": body, "label": cell} for body, cell in zip(bodies, cells, strict=True)])
        else:
            name = write_columns(tree, f"t{place}.{kind}", {"image": (images, pa.binary()), "label": (cells, column)})
        for number, (data, label) in enumerate(zip(images, stated, strict=True)):
            tree.expect(f"{name}#{number}", data, label)


def many_rows(tree: Tree) -> None:
    """More rows than a slice of the plan holds, in one row group or in text that is read from the middle; the last are all there."""
    kind, count = tree.one(["parquet", "parquet", "arrow", "csv", "jsonl", "paths"]), tree.one([1000, 1001, 2003])
    images = [tree.image("PNG") for _ in range(5)]
    labels: list[int | str] = [n % 7 for n in range(count)]
    if tree.chance(0.5):
        labels[tree.random.choice([0, 999, count - 1])] = "rare"
    if kind in ("parquet", "arrow"):
        cells = [str(label) for label in labels]
        kind_of_cells = pa.string()
        name = write_columns(
            tree, f"t.{kind}", {"image": ([images[n % 5] for n in range(count)], pa.binary()), "label": (cells, kind_of_cells)}
        )
        stated: list[Stated] = [text(cell) for cell in cells]
    else:
        for place, data in enumerate(images):
            tree.write(f"{place}.png", data) if kind == "paths" else None
        bodies = [f"{n}.png" for n in range(5)] if kind == "paths" else [base64.b64encode(data).decode() for data in images]
        rows = [{"path" if kind == "paths" else "image": bodies[n % 5], "label": label} for n, label in enumerate(labels)]
        name = tree.named = write_text(tree, "t", "csv" if kind == "paths" else kind, rows)
        stated = [whole(label) if isinstance(label, int) else text(label) for label in labels]
    for number, label in enumerate(stated):
        tree.expect(f"{name}#{number}", images[number % 5], label)


def several_formats(tree: Tree) -> None:
    """Of tables of several formats in a folder one is read: Parquet, Arrow, JSONL, CSV, JSON, the first that is there."""
    order = ["parquet", "arrow", "jsonl", "csv", "json"]
    chosen = sorted(tree.random.sample(order, 2), key=order.index)
    for place, kind in enumerate(chosen):
        images = [tree.image() for _ in range(3)]
        if kind in ("parquet", "arrow"):
            name = write_columns(tree, f"{place}.{kind}", {"image": (images, pa.binary())})
        else:
            lines = [base64.b64encode(data).decode() for data in images]
            texts = {"csv": "image\n" + "\n".join(lines), "jsonl": "".join(f'{{"image": "{line}"}}\n' for line in lines)}
            texts["json"] = "[" + ",".join(f'{{"image": "{line}"}}' for line in lines) + "]"
            name = tree.write(f"{place}.{kind}", texts[kind].encode())
        if place:
            tree.left_out[f".{kind}"] += 1
            continue
        for number, data in enumerate(images):
            tree.expect(f"{name}#{number}", data)


SETS: list[Maker] = [partitions, splits, split_column, refused, widened, many_rows, many_rows, several_formats]
