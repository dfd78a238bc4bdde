"""The frozen plan: identity, order of writing, damage, and a sample that no listing order changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.pipeline.canonical import canonical_json, seal, sha256_hex
from tokenshards.pipeline.config import PlanConfig
from tokenshards.pipeline.errors import CorruptObjectError, PlanError
from tokenshards.pipeline.planning.part_digest import rows_digest_input
from tokenshards.pipeline.planning.partition import PLAN_SCHEMA
from tokenshards.pipeline.planning.plan import CURRENT_PLAN, Plan, load_plan, read_part, read_shard_rows
from tokenshards.pipeline.planning.planner import Listing, PlanRequest, plan_id_of, write_plan
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.shards.manifest import read_sealed
from tokenshards.pipeline.storage.store import Store

TEXT = st.one_of(st.text(st.characters(codec="utf-8"), max_size=5), st.text('a"\\\n\x00\x1f\x7f é', max_size=4))


def rows(count: int = 50, size: int = 9) -> Iterator[PlanRow]:
    for index in range(count):
        yield PlanRow(kind="file", sample_id=f"{index:04d}.jpg", path=f"{index:04d}.jpg", size=size, version="v", inputs=1)


def request(**changes: object) -> PlanRequest:
    base = PlanRequest(
        fingerprint="f" * 64, config=PlanConfig(shard_rows=2), source={"url": "x"}, tokenizer_objects={}, tokenizer_json="{}"
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def write(store: Store, listed: Iterator[PlanRow] | None = None, asked: PlanRequest | None = None) -> Plan:
    with Listing(listed or rows(), order_seed=0, keep_order=False, sample=0, sample_seed=0) as listing:
        return write_plan(store, listing, asked or request(), 1)


def test_round_trip_and_parts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    plan = write(store)
    assert load_plan(store) == plan
    assert (plan.shards, plan.images_planned, plan.tars_planned, len(plan.parts)) == (25, 50, 0, 2)
    seen = [row for shard in plan.shard_numbers for row in read_shard_rows(store, plan, shard)]
    assert sorted(row.sample_id for row in seen) == sorted(row.sample_id for row in rows())
    for part in plan.parts:
        file = pq.ParquetFile(pa.BufferReader(read_part(store, part)))
        text = b"".join(bytes(rows_digest_input(file.read_row_group(group))) for group in range(file.num_row_groups))
        assert sha256_hex(text) == part.digest


def test_a_plan_keeps_the_version_that_its_inputs_need(tmp_path: Path) -> None:
    old, new = (write(Store(str(tmp_path / version)), asked=request(format_version=version)) for version in ("1.0", "1.1"))
    assert (old.format_version, new.format_version) == ("1.0", "1.1") and old.plan_id != new.plan_id
    assert read_sealed(Store(str(tmp_path / "1.1")), CURRENT_PLAN)["format_version"] == "1.1"
    for version in ("1.1", "1.2", "1.3"):  # 1.2 has the codec compact, 1.3 has masks
        replace(new, format_version=version).refuse_newer()
    with pytest.raises(PlanError, match=r"made in format 1\.4; .*only on plans up to format 1\.3"):
        replace(new, format_version="1.4").refuse_newer()


def test_identity_is_inputs_and_settings_and_nothing_else(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    plan_id = write(store).plan_id
    backwards = iter(list(rows())[::-1])
    assert write(store, backwards).plan_id == plan_id
    assert write(store, asked=request(source={"url": "moved"}, card={"created": "later"})).plan_id == plan_id
    assert write(store, rows(size=10)).plan_id != plan_id
    assert write(store, rows(count=49)).plan_id != plan_id
    for changed in (
        request(fingerprint="e" * 64),
        request(config=PlanConfig(shard_rows=3)),
        request(config=PlanConfig(shard_rows=2, codec="publish")),
        request(config=PlanConfig(shard_rows=2, batch_rows=8)),
        request(config=PlanConfig(shard_rows=2, order_seed=1)),
        request(generation=2),
    ):
        assert write(store, asked=changed).plan_id != plan_id


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXT, st.integers(-1, 2**63 - 1), TEXT), max_size=8), st.integers(1, 3))
def test_the_digest_covers_canonical_json(listed: list[tuple[str, int, str]], chunk: int) -> None:
    schema = pa.schema([PLAN_SCHEMA.field(name) for name in ("sample_id", "size", "version")])
    tables = [
        pa.table(dict(zip(schema.names, zip(*listed[start : start + chunk], strict=True), strict=True)), schema=schema)
        for start in range(0, len(listed), chunk)
    ]
    table = pa.concat_tables([schema.empty_table(), *tables])
    assert bytes(rows_digest_input(table)) == canonical_json([list(values) for values in listed])


def test_the_pointer_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    original = Store.write

    def record(self: Store, path: str, data: bytes) -> None:
        written.append(path.rpartition("/")[2])
        original(self, path, data)

    monkeypatch.setattr(Store, "write", record)
    write(Store(str(tmp_path)))
    assert written == ["part-00000.parquet", "part-00001.parquet", "plan.copy.json", "plan.json", "current.json"]


def test_without_a_pointer_there_is_no_plan(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store)
    store.delete(CURRENT_PLAN)
    assert load_plan(store) is None


def test_damage_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    plan = write(store)
    good = store.read(plan.path)
    store.write(plan.path, good.replace(b'"shard_rows":2', b'"shard_rows":3'))
    with pytest.raises(CorruptObjectError, match=r"plan\.json.*differs from the one in plan.current\.json"):
        load_plan(store)
    store.write(plan.path, seal({"format_version": "1.0", "plan_id": plan.plan_id}))
    with pytest.raises(CorruptObjectError):
        load_plan(store, plan.plan_id)
    store.delete(plan.path)
    with pytest.raises(PlanError, match="repair"):
        load_plan(store)
    part = plan.parts[0]
    store.write(part.path, store.read(part.path)[:-1])
    with pytest.raises(CorruptObjectError, match="part-00000"):
        read_part(store, part)


def test_the_sample_is_the_same_in_any_order() -> None:
    def sample(listed: Iterator[PlanRow], seed: int = 0) -> list[str]:
        with Listing(listed, order_seed=0, keep_order=False, sample=7, sample_seed=seed) as listing:
            return [row.sample_id for row in listing.sample]

    first = sample(rows(400))
    assert len(set(first)) == 7
    assert sample(iter(list(rows(400))[::-1])) == first
    assert sample(rows(400), seed=1) != first


@pytest.mark.parametrize(("inputs", "expected"), [(1, 256), (4096, 256), (16_000, 1000), (160_000, 10_000), (10**8, 10_000)])
def test_small_data_sets_have_a_shard_for_every_core(inputs: int, expected: int) -> None:
    assert PlanConfig().rows_per_shard(inputs) == expected
    assert PlanConfig(shard_rows=123).rows_per_shard(inputs) == 123


def test_the_view_policy_is_part_of_the_identity_and_one_is_what_plans_had_before_there_were_others() -> None:
    def identity(views: str) -> str:
        config = PlanConfig(views=views)
        request = PlanRequest(fingerprint="f" * 64, config=config, source={}, tokenizer_objects={}, tokenizer_json="{}")
        return plan_id_of(request, 100, ["d" * 64])

    assert identity("one") == identity("1") == "dba03487d0da03f6f8b6a0b1e5abd4102f651d831cd73967a2f9e7cf9c5c33e3"
    assert len({identity(views) for views in ("one", "flip", "ten-crop", "ten-crop:1.2", "2", "3")}) == 6
