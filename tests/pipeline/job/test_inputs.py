"""How the inputs of a shard are read: each once, ahead of the decoder, within a budget of bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import Reason, TransientStorageError, UnreadableObjectError
from tokenshards.pipeline.job import inputs
from tokenshards.pipeline.records import FailedRecord, ImageRecord, PlanRow
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.storage.store import Store

PLAN: Any = SimpleNamespace(label_type=None, meta_types={})


def rows(count: int, size: int = 3) -> list[PlanRow]:
    return [PlanRow(kind="file", sample_id=f"{index}.jpg", path=f"{index}.jpg", size=size, version="", inputs=1) for index in range(count)]


def read(found: list[PlanRow], killers: frozenset[str] = frozenset()) -> list[ImageRecord | FailedRecord]:
    return list(inputs.read_inputs(Store("memory://inputs"), SourceConfig(), PLAN, found, killers))


@pytest.mark.parametrize(("size", "at_once"), [(100 << 20, 2), (200 << 20, 1), (1 << 10, 12)])
def test_images_are_read_ahead_within_a_budget_of_bytes(monkeypatch: pytest.MonkeyPatch, size: int, at_once: int) -> None:
    counting, now, most = threading.Lock(), 0, 0

    def fetch(*_: object, **__: object) -> bytes:
        nonlocal now, most
        with counting:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.1)
        with counting:
            now -= 1
        return b""

    monkeypatch.setattr(inputs, "fetch_file", fetch)
    assert [record.sample_id for record in read(rows(12, size))] == [f"{index}.jpg" for index in range(12)]
    assert most <= at_once and (at_once < 12 or most > 2)


def test_after_an_unreadable_object_the_others_are_read_to_name_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(store: Store, row: PlanRow, config: SourceConfig, **_: object) -> bytes:
        if row.path in ("1.jpg", "4.jpg"):
            raise UnreadableObjectError("it is archived", objects=(row.path,))
        return b"abc"

    monkeypatch.setattr(inputs, "fetch_file", fetch)
    with pytest.raises(UnreadableObjectError) as caught:
        read(rows(6), frozenset({"1.jpg"}))
    assert caught.value.objects == ("4.jpg",), "an input that kills workers is not read"
    with pytest.raises(UnreadableObjectError) as caught:
        read(rows(6))
    assert caught.value.objects == ("1.jpg", "4.jpg")


def test_all_unreadable_tars_of_a_shard_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_slice(store: Store, row: PlanRow, *_: object) -> Iterator[ImageRecord]:
        if row.path == "b.tar":
            yield ImageRecord(sample_id="b.tar#1", data=b"abc", label=None, meta={}, uri="")
        else:
            raise UnreadableObjectError("it is archived", objects=(row.path,))

    monkeypatch.setattr(inputs, "read_slice", read_slice)
    tars = [PlanRow(kind="tar", sample_id=name, path=name, size=9, version="", inputs=-1) for name in ("a.tar", "b.tar", "c.tar")]
    with pytest.raises(UnreadableObjectError, match="a.tar") as caught:
        read(tars)
    assert caught.value.objects == ("a.tar", "c.tar")


def masked_plan_row(tmp_path: Path) -> tuple[Store, SourceConfig, list[PlanRow]]:
    """An image with a mask in a folder of its own, as planned."""
    for place, data in (("i/a.png", b"image"), ("m/a.png", b"mask"), ("m/b.png", b"other")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(data)
    config = SourceConfig(masks=str(tmp_path / "m"))
    source = open_source(str(tmp_path / "i"), config)
    return source.store, source.config, list(source.list_rows())


def test_an_image_comes_with_its_mask(tmp_path: Path) -> None:
    store, config, planned = masked_plan_row(tmp_path)
    (record,) = inputs.read_inputs(store, config, PLAN, planned, frozenset())
    assert isinstance(record, ImageRecord) and (record.data, record.mask) == (b"image", b"mask")


def test_a_mask_that_is_missing_or_changed_fails_its_image_and_an_outage_does_not(tmp_path: Path) -> None:
    store, config, planned = masked_plan_row(tmp_path)
    (tmp_path / "m" / "a.png").write_bytes(b"longer mask")
    (record,) = inputs.read_inputs(store, config, PLAN, planned, frozenset())
    assert isinstance(record, FailedRecord) and record.error.reason is Reason.CHANGED_SINCE_PLAN and record.data == b"image"
    assert record.error.detail.startswith("its mask: planned with")
    (tmp_path / "m" / "a.png").unlink()
    (record,) = inputs.read_inputs(store, config, PLAN, planned, frozenset())
    assert isinstance(record, FailedRecord) and record.error.reason is Reason.BAD_MASK
    (tmp_path / "m" / "b.png").unlink()
    with pytest.raises(TransientStorageError, match="this folder is empty"):
        list(inputs.read_inputs(store, config, PLAN, planned, frozenset()))
    (tmp_path / "m").rmdir()
    with pytest.raises(TransientStorageError, match="the folder of the source is gone"):
        list(inputs.read_inputs(store, config, PLAN, planned, frozenset()))
