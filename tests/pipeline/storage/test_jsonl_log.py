"""The log of a run in its bucket: every line once, in order, whatever the store does in between."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tokenshards.pipeline.errors import TransientStorageError
from tokenshards.pipeline.storage import jsonl_log as run_log
from tokenshards.pipeline.storage.jsonl_log import RunLog
from tokenshards.pipeline.storage.store import Store

SECONDS = 30.0


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("runs/u/worker*.jsonl"), key=lambda path: (len(path.name), path.name))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in parts(folder) for line in part.read_text().splitlines()]


class FailingStore(Store):
    """A store whose writes fail while `away`, and which can be held up in the middle of one."""

    away = False
    held: threading.Event | None = None
    writing = threading.Event()

    def write(self, path: str, data: bytes, **options: Any) -> Any:
        self.writing.set()
        if self.held is not None:
            assert self.held.wait(SECONDS)
        if self.away:
            raise TransientStorageError("the store is away")
        return super().write(path, data, **options)


def test_lines_are_there_after_a_flush_and_once(tmp_path: Path) -> None:
    log = RunLog(Store(str(tmp_path)), "u", "worker")
    log.add("one", shard=1)
    assert parts(tmp_path) == []
    log.flush()
    log.flush()
    log.add("two \udcff", path="käse")
    log.flush()
    found = lines(tmp_path)
    assert [line["message"] for line in found] == ["one", "two \udcff"]
    assert found[0]["shard"] == 1 and found[1]["path"] == "käse" and found[0]["time_seconds"] > 1e9


def test_nothing_to_say_writes_nothing(tmp_path: Path) -> None:
    RunLog(Store(str(tmp_path)), "u", "worker").flush()
    assert parts(tmp_path) == []


def test_a_full_part_is_left_alone_and_the_next_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "PART_BYTES", 400)
    log = RunLog(Store(str(tmp_path)), "u", "worker")
    for index in range(40):
        log.add("line", index=index)
        log.flush()
    assert [line["index"] for line in lines(tmp_path)] == list(range(40))
    assert [path.name for path in parts(tmp_path)[:3]] == ["worker.jsonl", "worker-0001.jsonl", "worker-0002.jsonl"]
    sizes = [path.stat().st_size for path in parts(tmp_path)]
    assert len(sizes) > 4 and all(400 <= size < 500 for size in sizes[:-1]) and sizes[-1] < 500


def test_a_flush_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "PART_BYTES", 200)
    store = FailingStore(str(tmp_path))
    log = RunLog(store, "u", "worker")
    for index in range(30):
        log.add("line", index=index)
        store.away = index % 3 != 2
        if store.away:
            with pytest.raises(TransientStorageError):
                log.flush()
        else:
            log.flush()
    assert [line["index"] for line in lines(tmp_path)] == list(range(30))
    assert len(parts(tmp_path)) > 3


def test_nobody_who_adds_a_line_waits_for_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "PART_BYTES", 1)
    store = FailingStore(str(tmp_path))
    log = RunLog(store, "u", "worker")
    log.add("before")
    store.held = threading.Event()
    flusher = threading.Thread(target=log.flush)
    flusher.start()
    assert store.writing.wait(SECONDS)
    adder = threading.Thread(target=log.add, args=("meanwhile",))
    adder.start()
    adder.join(5)
    waited = adder.is_alive()
    store.held.set()
    flusher.join(SECONDS)
    assert not waited
    log.flush()
    assert [line["message"] for line in lines(tmp_path)] == ["before", "meanwhile"]


def test_threads_that_add_and_flush_lose_and_repeat_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "PART_BYTES", 600)
    log = RunLog(Store(str(tmp_path)), "u", "worker")

    def work(thread: int) -> None:
        for index in range(60):
            log.add("line", thread=thread, index=index)
            if index % 7 == thread:
                log.flush()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    log.flush()
    found = [(line["thread"], line["index"]) for line in lines(tmp_path)]
    assert sorted(found) == [(thread, index) for thread in range(4) for index in range(60)]
    for number in range(4):
        assert [index for thread, index in found if thread == number] == list(range(60)), "in the order in which they were added"
