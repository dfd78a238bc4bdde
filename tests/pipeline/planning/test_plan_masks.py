"""What masks add to a plan: columns of its parts, their digest, and the plan's identity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tokenshards.pipeline.config import PlanConfig
from tokenshards.pipeline.planning.part_digest import rows_digest_input
from tokenshards.pipeline.planning.partition import RowSpool, table_to_rows
from tokenshards.pipeline.planning.planner import PlanRequest, plan_id_of
from tokenshards.pipeline.records import PlanRow

ROWS = [
    PlanRow(
        kind="file", sample_id="a.jpg", path="a.jpg", size=3, version="v", inputs=1, mask_path="a\udcff.png", mask_size=7, mask_version="w"
    ),
    PlanRow(kind="file", sample_id="b.jpg", path="b.jpg", size=4, version="x", inputs=1),
]
MASK: dict[str, Any] = {
    "dtype": "uint8", "height": 8, "width": 8, "ignore": 255, "kind": "folder", "source": "masks", "ignored": [], "mapped": [],
}  # fmt: skip


def spooled(rows: list[PlanRow], folder: Path, *, mask_files: bool = True) -> Any:
    folder.mkdir()
    spool = RowSpool(folder, order_seed=0, keep_order=True, mask_files=mask_files)
    spool.extend(rows)
    (table,) = spool.shards(10, tars_per_shard=10)
    return table


def test_rows_with_and_without_a_mask_come_back(tmp_path: Path) -> None:
    table = spooled(ROWS, tmp_path / "a")
    assert table.column_names[-3:] == ["mask_path", "mask_size", "mask_version"]
    assert [table[name].null_count for name in table.column_names[-3:]] == [1, 1, 1]
    assert table_to_rows(table, None) == ROWS
    plain = spooled([ROWS[1]], tmp_path / "b", mask_files=False)
    assert not [name for name in plain.column_names if "mask" in name] and table_to_rows(plain, None) == [ROWS[1]]


def test_the_digest_covers_the_mask_of_a_row(tmp_path: Path) -> None:
    text = bytes(rows_digest_input(spooled(ROWS, tmp_path / "a"))).decode()
    assert text == '[["a.jpg",3,"v","a\\\\xff.png",7,"w"],["b.jpg",4,"x"]]\n'
    changes: list[dict[str, Any]] = [{"mask_version": "y"}, {"mask_size": 8}, {"mask_path": "c.png"}, {"mask_path": None}]
    for number, change in enumerate(changes):
        other = spooled([replace(ROWS[0], **change), ROWS[1]], tmp_path / f"c{number}")
        assert bytes(rows_digest_input(other)).decode() != text, change


@pytest.mark.parametrize(
    "change", [{"dtype": "uint16"}, {"ignored": [7]}, {"mapped": [[255, 1]]}, {"height": 9}, {"kind": "column", "source": "m"}]
)
def test_the_plan_id_covers_the_settings_of_masks_but_not_the_place_of_a_folder(change: dict[str, Any]) -> None:
    request = PlanRequest(fingerprint="f", config=PlanConfig(), source={}, tokenizer_objects={}, tokenizer_json="", mask=MASK)

    def plan_id(mask: dict[str, Any] | None) -> str:
        return plan_id_of(replace(request, mask=mask), 10, ["d"])

    assert plan_id(MASK) == plan_id({**MASK, "source": "s3://bucket/masks"})
    assert len({plan_id(MASK), plan_id(None), plan_id({**MASK, **change})}) == 3
    column = {**MASK, "kind": "column", "source": "m"}
    assert plan_id(column) != plan_id({**column, "source": "n"}), "another column holds other masks"
