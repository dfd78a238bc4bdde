"""Tables in unusual forms, through whole runs: rows, labels, metadata and the class table of the finished dataset."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import content, convert, quarantine_of, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.shards.dataset import open_dataset
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.storage.store import Store

COUNT = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, COUNT)
    return [path.read_bytes() for path in sorted(folder.rglob("*.*"))]


def rows_of(source: Path, out: Path, **options: Any) -> dict[str, dict[str, Any]]:
    convert(source, out, source=SourceConfig(**options), shard_rows=8, runner=InlineRunner())
    assert verify_dataset(Store(str(out))).ok
    files = sorted((out / "shards").glob("*.parquet"))
    return {row["sample_id"]: row for file in files for row in pq.read_table(file).to_pylist()}


def test_class_names_of_a_schema_are_the_class_table_in_their_order(data: list[bytes], tmp_path: Path) -> None:
    names = ["zebra", "cat", "never seen"]
    images = [{"bytes": image, "path": f"{n}.png"} for n, image in enumerate(data)]
    table = pa.table({"image": images, "label": [n % 2 for n in range(COUNT)]})
    about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    (tmp_path / "src").mkdir()
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(about).encode()}), tmp_path / "src/t.parquet")
    rows = rows_of(tmp_path / "src", tmp_path / "out")
    assert {name: row["label"] for name, row in rows.items()} == {f"{n}.png": names[n % 2] for n in range(COUNT)}
    assert list(load_manifest(Store(str(tmp_path / "out"))).classes) == names
    assert list(open_dataset(str(tmp_path / "out")).classes) == names


def test_base64_in_lines_is_read_from_where_each_slice_begins(data: list[bytes], tmp_path: Path) -> None:
    cells = [base64.b64encode(image).decode() for image in data]
    cells[5] = base64.b64encode(b"\xff\xd8\xff\xe0 this is no image").decode() * 3
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"image": cell, "label": n}) + "\n" for n, cell in enumerate(cells)))
    rows = rows_of(tmp_path / "t.jsonl", tmp_path / "out")
    assert {name: row["label"] for name, row in rows.items()} == {f"t.jsonl#{n}": n for n in range(COUNT) if n != 5}
    assert set(quarantine_of(tmp_path / "out")) == {"t.jsonl#5"}


def test_types_that_widen_after_the_first_rows(data: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for n, image in enumerate(data):
        (tmp_path / f"src/{n}.img").write_bytes(image)
    for number, (label, weight) in enumerate(((1, 1), ("cat", 0.5))):
        lines = [json.dumps({"path": f"{n}.img", "label": label, "w": weight, "x": weight or "y"}) for n in range(number, COUNT, 2)]
        (tmp_path / f"src/{number}.jsonl").write_text("\n".join(lines))
    rows = rows_of(tmp_path / "src/*.jsonl", tmp_path / "out", meta=("w",))
    assert len(rows) == COUNT and {row["label"] for row in rows.values()} == {"1", "cat"}
    assert {(row["label"], row["meta.w"]) for row in rows.values()} == {("1", 1.0), ("cat", 0.5)}


def test_a_split_column_takes_its_rows_and_accounts_for_the_others(data: list[bytes], tmp_path: Path) -> None:
    splits = ["train" if n % 3 else "val" for n in range(COUNT)]
    pq.write_table(pa.table({"image": data, "split": splits}), tmp_path / "t.parquet", row_group_size=6)
    rows = rows_of(tmp_path / "t.parquet", tmp_path / "out", split="val")
    assert sorted(rows) == sorted(f"t.parquet#{n}" for n in range(0, COUNT, 3))
    totals = load_manifest(Store(str(tmp_path / "out"))).totals
    assert (totals["images_planned"], totals["images_committed"], totals["left_out"]) == (8, 8, {"of another split": 16})


def test_labels_of_a_table_beside_images(data: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "src/train").mkdir(parents=True)
    for n, image in enumerate(data):
        (tmp_path / f"src/train/{n:03}.png").write_bytes(image)
    (tmp_path / "src/train.csv").write_text("id,label\n" + "".join(f"{n:03},{'cat' if n % 2 else 'dog'}\n" for n in range(COUNT)))
    rows = rows_of(tmp_path / "src", tmp_path / "out", label_from="file:train.csv")
    assert {name: row["label"] for name, row in rows.items()} == {f"train/{n:03}.png": "cat" if n % 2 else "dog" for n in range(COUNT)}
    assert len(content(tmp_path / "out")) == COUNT
