"""Random tables: every format, images in cells and paths to them, labels of every type, absent images, splits, partitions, ids."""

from __future__ import annotations

import base64
import os
from typing import Any

import pyarrow as pa

from tests.pipeline.sources.tree_cells import (
    COLUMNS,
    IN_COLUMNS,
    IN_JSON,
    IN_TEXT,
    PATHS,
    TEXTS,
    labels,
    name_of_label,
    write_columns,
    write_text,
)
from tests.pipeline.sources.tree_grammar import Maker, Stated, Tree, text, whole
from tests.pipeline.sources.tree_table_sets import SETS

__all__ = ["TABLES"]


def bytes_in_columns(tree: Tree) -> None:
    """Images in binary cells or in structs with their path, with nulls, over several files."""
    kind, column = tree.one(COLUMNS), labels(tree, IN_COLUMNS)
    label_name = "label" if column.plain_name else name_of_label(tree)
    shape = tree.one(["binary", "large_binary", "struct", "struct with paths"])
    image_name = tree.one(["image", "img", "jpg", "image_bytes", "strange"])
    has_status, split_by = tree.chance(0.4), tree.chance(0.15)
    no_labels, paths = tree.chance(0.1), tree.one(["once", "twice", "partly"])
    asked = tree.one(["train", "val", "all"]) if split_by else ""
    if split_by:
        tree.options |= {"split": asked}
        tree.settles, tree.stops = ("split",), "--split"
    if no_labels:
        tree.options |= {"no_labels": True}
        tree.options.pop("label", None)
    tree.options |= {"as_text": True} if tree.chance(0.1) else {}
    files, outside, all_named = tree.random.randint(1, 3), 0, shape.startswith("struct")
    named: list[tuple[str, str, bytes, Stated]] = []
    for number in range(files):
        place = f"{tree.one(['', 'data/', 'é/'])}t{number}.{kind}"
        images: list[Any] = []
        cells, statuses, splits = [], [], []
        for row in range(tree.random.randint(4, 9)):
            cell, stated = tree.one(column.cells)
            data: bytes | None = tree.image(broken=0.1)
            absent = row > 1 and tree.chance(0.1)
            split = "train" if row == 0 else "validation" if row == 1 else tree.one(["train", "validation"])
            path = f"{'same' if paths == 'twice' else tree.number()}.jpg"
            lies_outside = shape == "struct with paths" and not outside and tree.chance(0.2)
            if lies_outside and not absent:
                path, outside = f"out{tree.number()}.png", 1  # one alone, or the images beside the table hold more bytes than it
                tree.write(f"{place.rpartition('/')[0]}/{path}".lstrip("/"), data or b"")
            status = "success"
            if absent and has_status and tree.chance(0.5):
                status, absent_cell = "failed_to_download", data
            else:
                absent_cell = None
            shown = absent_cell if absent else None if lies_outside else data
            if paths == "partly" and row == 0:
                path = ""
                shown = data
                lies_outside = False
            if shape in ("binary", "large_binary"):
                images.append(absent_cell if absent else data)
            else:
                images.append(
                    None
                    if absent and absent_cell is None and tree.chance(0.5)
                    else {"bytes": shown, "path": None if absent else path or None}
                )
            all_named = all_named and bool(path) and not absent
            cells.append(cell)
            statuses.append(status)
            splits.append(split)
            if split_by and asked not in ("all", "val" if split == "validation" else split):
                tree.left_out["another split"] += 1
            elif absent:
                tree.absent += 1
            else:
                named.append((path, f"{place}#{row}", data or b"", None if no_labels else stated))
                continue
            tree.pool.append(None if no_labels else stated)
        binary = pa.large_binary() if shape == "large_binary" else pa.binary()
        image_type = binary if shape in ("binary", "large_binary") else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns: dict[str, tuple[Any, Any]] = {
            image_name: (images, image_type),
            label_name: (cells, column.type),
            "other": ([1] * len(cells), pa.int32()),
        }
        if has_status:
            columns["status"] = (statuses, pa.string())
        if split_by:
            columns["split"] = (splits, pa.string())
        write_columns(tree, place, columns, column.metadata or None)
    once = all_named and paths == "once"
    for path, row_id, data, stated in named:
        tree.expect(path if once else row_id, data, stated)
    if outside:
        tree.left_out[".png"] += outside
    tree.write_junk()


def encoded_in_text(tree: Tree) -> None:
    """Images in base64 or as data: URIs."""
    form, style = tree.one(TEXTS), tree.one(["base64", "uri"])
    column = labels(tree, IN_JSON if form in ("jsonl", "ndjson", "json") else IN_TEXT)
    tree.options |= {"as_text": True} if tree.chance(0.1) else {}
    label_name, rows = "label" if column.plain_name else name_of_label(tree), []
    expected: list[tuple[bytes, Stated]] = []
    for _ in range(tree.random.randint(3, 8)):
        data, (cell, stated) = tree.image(broken=0.0), tree.one(column.cells)
        body = base64.b64encode(data).decode()
        rows.append({"image": body if style == "base64" else f"data:image/png;base64,{body}", label_name: cell})
        expected.append((data, stated))
    if tree.chance(0.3):
        rows.append({"image": None, label_name: column.cells[0][0]})
        tree.pool.append(column.cells[0][1])
        tree.absent += 1
    name = write_text(tree, "t", form, rows)
    for number, (data, stated) in enumerate(expected):
        tree.expect(f"{name}#{number}", data, stated)


def paths(tree: Tree) -> None:
    """Paths to images in every format and style of writing; some are missing, and images that no row names are no inputs."""
    form, style, tree.local = tree.one([*TEXTS, *COLUMNS]), tree.one(list(PATHS)), True
    of_columns = form in COLUMNS
    column = labels(tree, IN_COLUMNS if of_columns else IN_JSON if form in ("jsonl", "ndjson", "json") else IN_TEXT)
    label_name = "label" if column.plain_name else name_of_label(tree)
    image_name = tree.one(["path", "image", "url", "file_name", "Filename", "strange"])
    if image_name == "strange":
        tree.options["image_column"] = image_name
    tree.options |= {"as_text": True} if tree.chance(0.1) else {}
    ids, splits = tree.chance(0.3), tree.chance(0.15)
    asked = tree.one(["train", "val", "all"]) if splits else ""
    rooted, folder = tree.chance(0.2) and style in ("relative", "backslashes", "other form"), tree.one(["", "tables/"])
    rows: list[dict[str, Any]] = []
    expected: list[tuple[int, str, bytes | None, Stated]] = []
    for number in range(tree.random.randint(3, 9)):
        base = f"{tree.folder(2)}{tree.one(['{n}', 'img {n}', 'é{n}', '#{n}']).format(n=tree.number())}.{tree.extension()}"
        cell, stated = tree.one(column.cells)
        data: bytes | None = tree.image(broken=0.1)
        missing, absent = number > 1 and tree.chance(0.1), number > 1 and tree.chance(0.1)
        place = f"pics/{base}" if rooted else base if style in ("absolute", "file URL") else f"{folder}{base}"
        if not missing:
            tree.write(place, data or b"")
        shown = None if absent else PATHS[style](tree, base if style not in ("absolute", "file URL") else place)
        row: dict[str, Any] = {image_name: shown, label_name: cell}
        if ids:
            row["key"] = f"id{number}"
        split = "train" if number == 0 else "val" if number == 1 else tree.one(["train", "val"])
        if splits:
            row["split"] = split
        if tree.chance(0.5):
            row = dict(sorted(row.items()))
        rows.append({name: row[name] for name in rows[0]} if rows else row)
        if splits and asked not in (split, "all"):
            tree.left_out["another split"] += 1
            tree.pool.append(stated)
            continue
        expected.append((number, f"id{number}", None if absent else data if not missing else b"", stated))
    if ids:
        tree.options["id_column"] = "key"
    if splits:
        tree.options |= {"split": asked}
        tree.settles, tree.stops = ("split",), "--split"
    if rooted:
        tree.options["image_root"] = tree.one(["../pics" if folder else "pics", str(tree.root / "pics")])
    if of_columns:
        types = {image_name: pa.string(), label_name: column.type}
        columns = {name: ([row[name] for row in rows], types.get(name, pa.string())) for name in rows[0]}
        tree.named = write_columns(tree, f"{folder}t.{form}", columns, column.metadata or None)
    else:
        tree.named = write_text(tree, f"{folder}t", form, rows)
    name = os.path.basename(tree.named)
    for number, key, found, stated in expected:
        sample_id = key if ids else f"{name}#{number}"
        if found is None:
            tree.absent += 1
            tree.pool.append(stated)
        elif found == b"":
            tree.bad[sample_id, "missing"] += 1
            tree.pool.append(stated)
        else:
            tree.expect(sample_id, found, stated)


def templates(tree: Tree) -> None:
    """The path is made from columns."""
    rows, folder = [], tree.one(["train", "a b"])
    for number in range(5):
        data, word = tree.image(), tree.one(["cat", "dog"])
        tree.write(f"{folder}/{word}/{number}.jpg", data)
        rows.append({"id": number, "label": word})
        tree.rows.append((str(number), data, text(word)))
    tree.named = write_text(tree, "t", tree.one(["csv", "jsonl", "tsv"]), rows)
    tree.rows = [(f"{tree.named}#{number}", data, label) for number, data, label in tree.rows]
    tree.options, tree.settles = {"path_template": f"{folder}/{{label}}/{{id}}.jpg"}, ("path_template",)
    tree.stops = "--path-template"


def lists(tree: Tree) -> None:
    """Lists of paths, and tables without a header."""
    form = tree.one(["list", "labelled list", "csv", "csv turned"])
    lines: list[str] = []
    for number in range(tree.random.randint(3, 7)):
        data, label = tree.image(broken=0.1), tree.random.randrange(4)
        name = tree.write(f"{tree.one(['', 'a/', 'v1.0/'])}{tree.number()}.png", data)
        lines.append({"list": name, "labelled list": f"{name} {label}", "csv": f"{name},{label}", "csv turned": f"{label},{name}"}[form])
        ending = "csv" if form.startswith("csv") else "txt"
        tree.expect(f"t.{ending}#{number}", data, None if form == "list" else whole(label))
        if tree.chance(0.2):
            lines.append("")
    tree.named = tree.write(f"t.{ending}", tree.one(["\n", "\r\n"]).join(lines).encode())


TABLES: list[Maker] = [bytes_in_columns, bytes_in_columns, encoded_in_text, paths, paths, paths, templates, lists, *SETS]
