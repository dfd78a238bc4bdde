"""Write the golden files of format 1.1: python -m tests.make_golden_inputs

A commit, a plan and a manifest with inputs that are absent and files that are left out, and a half-done `tokenize` of a table that says of
some rows that they have no image, with the table and the dataset that it would have become. Nothing here makes again what exists.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.make_golden import COMMIT, manifest, plan
from tests.make_golden_runs import CLASSES, IMAGES, MODIFIED_SECONDS, SHARD_ROWS, SIDE, keep_both_outputs, write_golden_images
from tokenshards.pipeline.planning.plan import plan_pointer
from tokenshards.pipeline.shards.commit import Commit
from tokenshards.pipeline.shards.manifest import Manifest, publish_manifest
from tokenshards.pipeline.shards.shard_table import ShardTable
from tokenshards.pipeline.storage.store import Store

FOLDER = Path(__file__).parent / "data" / "golden" / "v1_1"
WORK = Path("/tmp/tokenshards-golden-1-1")
ABSENT = (3, 11, 12, 25, 39)
FAILED_STATUS = 25


def newer_commit() -> Commit:
    """Return a commit with all that 1.1 counts."""
    untaken = {"absent": 2, "absent_example": "t.parquet#7", "left_out": {".json": 3, "hidden": 1}}
    return replace(COMMIT, inputs_seen=10, **untaken, left_out_examples={".json": "a.tar#1.json", "hidden": "a.tar#._1.jpg"})


def newer_manifest() -> Manifest:
    """Return a manifest whose totals and shard table have all that 1.1 counts."""
    first, *rest = manifest().shards
    counts = {"images_absent": 2, "absent_example": "t.parquet#7", "left_out": {".json": 3}, "left_out_examples": {".json": "a.tar#1.json"}}
    first = replace(first, inputs_seen=9, absent=2, left_out=3)
    return replace(manifest(), totals={**manifest().totals, **counts}, shards=ShardTable([first, *rest]))


def json_bytes() -> dict[str, bytes]:
    """Return the objects whose bytes are ours alone."""
    newer = replace(plan(), format_version="1.1")
    return {"commit.json": newer_commit().to_bytes(), "plan.json": newer.to_bytes(), "current.json": plan_pointer(newer)}


def write_table(folder: Path, images: Path) -> Path:
    """Write the table: images as bytes with their class; some cells are null, and one row has the status of a failure."""
    files = sorted(images.rglob("*.png"), key=lambda path: path.name)
    cells = [None if index in ABSENT and index != FAILED_STATUS else path.read_bytes() for index, path in enumerate(files)]
    status = ["failed_to_download" if index == FAILED_STATUS else "success" for index in range(IMAGES)]
    table = pa.table({"image": cells, "label": [index % CLASSES for index in range(IMAGES)], "status": status})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "images.parquet", row_group_size=5)
    return folder / "images.parquet"


def table_at(folder: Path) -> Path:
    """Copy the golden table to a folder, of the age that its plan recorded."""
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(shutil.copyfile(FOLDER / "images.parquet", folder / "images.parquet"))
    os.utime(path, ns=(MODIFIED_SECONDS * 10**9,) * 2)
    return path


def tokenize_arguments(source: Path, out: Path) -> list[str]:
    """Return the command that the half-done output was started by."""
    fit = ["--size", str(SIDE), "--patch", "4", "--codes", "16", "--levels", "2"]
    return ["tokenize", str(source), str(out), *fit, "--shard-rows", str(SHARD_ROWS), "--workers", "1", "-q"]


def main() -> None:
    """Make what is missing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in json_bytes().items():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(data)
    if not (FOLDER / "dataset").exists():
        publish_manifest(Store(str(FOLDER / "dataset")), newer_manifest())
    if (FOLDER / "half_done").exists():
        print(f"{FOLDER} is there and stays as it is")
        return
    shutil.rmtree(WORK, ignore_errors=True)
    write_golden_images(WORK / "images")
    write_table(FOLDER, WORK / "images")
    source = table_at(WORK / "table").parent
    keep_both_outputs(FOLDER, WORK, lambda out: tokenize_arguments(source, out), skip=2)


if __name__ == "__main__":
    main()
