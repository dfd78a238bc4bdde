"""Files of format 1.3, which has masks, decode to the same values for ever; the bytes of our own JSON never change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.make_golden import COMMIT
from tests.make_golden_masks import FOLDER, FORMAT, ROWS, WITHOUT, json_bytes, masked_commit, masked_manifest, masked_plan
from tokenshards.pipeline.canonical import unseal
from tokenshards.pipeline.planning.plan import parse_plan, plan_pointer
from tokenshards.pipeline.shards.commit import Commit
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.shards.masks import MASK, masks_of
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.storage.store import Store

EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_bytes())
FILES = [f"{dtype}-{codec}.parquet" for dtype in ("uint8", "uint16") for codec in ("default", "publish")]


@pytest.mark.parametrize("name", FILES)
def test_shards_of_version_1_3_decode(name: str) -> None:
    reader = ShardReader.open(Store(str(FOLDER)), name)
    dtype = name.partition("-")[0]
    assert reader.metadata["format_version"] == "1.3" and reader.mask is not None and reader.mask.dtype == dtype
    data = reader.read()
    assert data.tokens.ids_BLQ.tolist() == EXPECTED["ids"]
    column = data.table.column(MASK)
    assert column.is_valid().to_pylist() == [row != WITHOUT for row in range(ROWS)]
    expected = np.array(EXPECTED[dtype], dtype)
    expected[WITHOUT] = reader.mask.ignore
    found = masks_of(column, reader.mask)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_state_objects_of_version_1_3_parse_and_keep_their_bytes() -> None:
    for name, data in json_bytes().items():
        if name != "commit.json":  # its packed counts may be compressed to other bytes by another zstd
            assert data == (FOLDER / name).read_bytes(), name
    data = (FOLDER / "commit.json").read_bytes()
    commit = Commit.from_bytes(data, "commit.json")
    assert replace(commit, histogram=COMMIT.histogram) == masked_commit() and commit.to_bytes() == data
    assert commit.mask_pixels == [[0, 1000], [7, 2008], [255, 64]] and unseal(data, "commit.json")["format_version"] == "1.3"
    plan = parse_plan((FOLDER / "plan.json").read_bytes(), "plan.json")
    assert plan == masked_plan() and plan.mask_format == FORMAT and plan.has_mask_files
    assert plan_pointer(plan) == (FOLDER / "current.json").read_bytes()


def test_a_manifest_of_version_1_3_loads() -> None:
    loaded = load_manifest(Store(str(FOLDER / "dataset")))
    assert replace(loaded, name="", table=None) == masked_manifest()
    assert loaded.mask is not None and loaded.mask.classes == 8 and loaded.mask.pixels == {0: 1000, 7: 2008, 255: 64}


def test_every_golden_file_of_1_3_is_read_by_a_test() -> None:
    runs = {"images.parquet", "half_done", "tokens"}  # by test_golden_runs
    assert {path.name for path in FOLDER.iterdir()} == {*FILES, *json_bytes(), "expected.json", "dataset", *runs}
