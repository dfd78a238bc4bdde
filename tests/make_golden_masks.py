"""Write the golden files of format 1.3, which has masks: python -m tests.make_golden_masks

Shards with masks of 8 and 16 bits, state objects of masks, and a half-done output of a table with a column of masks. Nothing here makes
again what exists.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.make_golden import COMMIT, ROWS, VOCABULARY, manifest, plan
from tests.make_golden_runs import WORK, keep_both_outputs
from tests.pipeline.shards.samples import make_rows, make_shard, make_spec, make_tokens
from tokenshards.pipeline.planning.plan import Plan, plan_pointer
from tokenshards.pipeline.shards.commit import Commit
from tokenshards.pipeline.shards.manifest import Manifest, publish_manifest
from tokenshards.pipeline.shards.masks import MaskFormat, MaskTotals, pack_mask
from tokenshards.pipeline.storage.store import Store

FOLDER = Path(__file__).parent / "data" / "golden" / "v1_3"
WITHOUT = 2
"""The row without a mask."""
IMAGES, SIDE, SHARD_ROWS, UNMASKED = 20, 16, 5, (3, 11)
MODIFIED_SECONDS = 1_790_000_000
FORMAT = MaskFormat(dtype="uint8", height=32, width=32, ignore=255)


def golden_masks(dtype: str) -> np.ndarray:
    """Return the masks [4, 32, 32] of the golden shards; that of `WITHOUT` is not stored."""
    rows, columns = np.mgrid[0:32, 0:32]
    masks = np.stack([(rows // (row + 4) + columns // 8) * (1 if dtype == "uint8" else 700) for row in range(ROWS)]).astype(dtype)
    masks[:, :2] = np.iinfo(np.dtype(dtype)).max
    return masks


def shard(dtype: str, codec: str) -> bytes:
    """Return the bytes of a golden shard."""
    spec = make_spec("grid_residual", VOCABULARY)
    packed = [None if row == WITHOUT else pack_mask(mask) for row, mask in enumerate(golden_masks(dtype))]
    rows, mask = replace(make_rows(ROWS), mask=packed), MaskFormat.of_size(32, dtype)
    return make_shard(spec, make_tokens(spec, ROWS, seed=1), codec=codec, rows=rows, mask=mask).data


def masked_commit() -> Commit:
    """A commit with counts of masks."""
    return replace(COMMIT, masked_rows=3, mask_pixels=[[0, 1000], [7, 2008], [255, 64]])


def masked_plan() -> Plan:
    """A plan whose masks are in a folder."""
    kinds = {"ignored": [254], "mapped": [[128, 1]], "kind": "folder", "source": "masks"}
    return replace(plan(), mask={**FORMAT.to_json(), **kinds}, format_version="1.3")


def masked_manifest() -> Manifest:
    """A manifest with counts of masks."""
    return replace(manifest(), mask=MaskTotals(format=FORMAT, images=3, pixels={0: 1000, 7: 2008, 255: 64}))


def json_bytes() -> dict[str, bytes]:
    """Return the objects whose bytes are ours alone."""
    newer = masked_plan()
    return {"commit.json": masked_commit().to_bytes(), "plan.json": newer.to_bytes(), "current.json": plan_pointer(newer)}


def table_mask(index: int) -> np.ndarray:
    """Return the mask [16, 16] of an image of the table: two of five classes."""
    mask = np.full((SIDE, SIDE), index % 5, np.uint8)
    mask[4:12, 2 : 4 + index % 10] = (index + 1) % 5
    return mask


def write_table(folder: Path) -> None:
    """Write the table: images whose colours are functions of the class, with their masks, and two rows without one."""
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
    images = [_png(colours[table_mask(index)]) for index in range(IMAGES)]
    masks = [None if index in UNMASKED else _png(table_mask(index)) for index in range(IMAGES)]
    pq.write_table(pa.table({"image": images, "mask": pa.array(masks, pa.binary())}), folder / "images.parquet", row_group_size=5)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table_at(folder: Path) -> Path:
    """Copy the golden table to a folder, of the age that its plan recorded."""
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(shutil.copyfile(FOLDER / "images.parquet", folder / "images.parquet"))
    os.utime(path, ns=(MODIFIED_SECONDS * 10**9,) * 2)
    return path


def tokenize_arguments(source: Path, out: Path) -> list[str]:
    """Return the command that the half-done output was started by."""
    fit = ["--size", str(SIDE), "--patch", "4", "--codes", "8", "--levels", "1", "--mask-column", "mask", "--image-column", "image"]
    return ["tokenize", str(source), str(out), *fit, "--shard-rows", str(SHARD_ROWS), "--workers", "1", "-q"]


def main() -> None:
    """Make what is missing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = {f"{dtype}-{codec}.parquet": shard(dtype, codec) for dtype in ("uint8", "uint16") for codec in ("default", "publish")}
    spec = make_spec("grid_residual", VOCABULARY)
    expected = {dtype: golden_masks(dtype).tolist() for dtype in ("uint8", "uint16")}
    made |= json_bytes() | {"expected.json": json.dumps({**expected, "ids": make_tokens(spec, ROWS, seed=1).ids_BLQ.tolist()}).encode()}
    for name, data in made.items():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(data)
    if not (FOLDER / "dataset").exists():
        publish_manifest(Store(str(FOLDER / "dataset")), masked_manifest())
    if (FOLDER / "half_done").exists():
        print(f"{FOLDER} is there and stays as it is")
        return
    shutil.rmtree(WORK, ignore_errors=True)
    write_table(FOLDER)
    source = table_at(WORK / "table").parent
    keep_both_outputs(FOLDER, WORK, lambda out: tokenize_arguments(source, out), skip=1)


if __name__ == "__main__":
    main()
