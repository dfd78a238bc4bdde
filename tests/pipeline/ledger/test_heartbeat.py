"""Signs of life: who counts as live, and what is never live again."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tokenshards.pipeline.errors import LiveRunError
from tokenshards.pipeline.ledger import heartbeat as heartbeats
from tokenshards.pipeline.ledger.heartbeat import PLANNING, Heartbeat, live_runs, refuse_beside_live_run, run_records, wins_planning
from tokenshards.pipeline.storage.store import Store


def test_a_run_is_live_while_it_works_and_never_after(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with Heartbeat(store, "p", lambda: {"images_seen": 10}) as heartbeat:
        heartbeat.log("something happened", shard=3)
        assert [record.uuid for record in live_runs(store)] == [heartbeat.record.uuid]
        with pytest.raises(LiveRunError, match=rf"host {socket.gethostname()}, pid \d+.*images/s.*dead in"):
            refuse_beside_live_run(store, "repair")
    assert live_runs(store) == []
    refuse_beside_live_run(store, "repair")
    assert run_records(store)[0].state == "finished" and run_records(store)[0].counters == {"images_seen": 10}
    assert "something happened" in store.read(f"runs/{heartbeat.record.uuid}/driver.jsonl").decode()


def test_a_run_that_stops_with_an_error_says_so(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(ValueError, match="boom"), Heartbeat(store, "p", dict):
        raise ValueError("boom")
    assert run_records(store)[0].state == "stopped"


def test_liveness(tmp_path: Path) -> None:
    with Heartbeat(Store(str(tmp_path)), "p", dict) as heartbeat:
        here = heartbeat.record
        now = here.updated_seconds
        assert here.is_live(now + 89) and not here.is_live(now + 91)
        assert not replace(here, process_started="1").is_live(now), "the pid was used again by another process"
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        assert not replace(here, pid=gone.pid).is_live(now), "killed on this host: a rerun goes on at once"
        elsewhere = replace(here, host="another", pid=gone.pid)
        assert elsewhere.is_live(now + 89) and not elsewhere.is_live(now + 91)
        assert not replace(here, state="stopped").is_live(now)


def test_a_damaged_record_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x.json").write_bytes(b"{half")
    assert live_runs(Store(str(tmp_path))) == []


def test_only_one_driver_makes_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    monkeypatch.setattr(heartbeats, "_GIVE_WAY_SECONDS", 0.0)
    with Heartbeat(store, PLANNING, dict) as first:
        assert wins_planning(store, first.record)
        with Heartbeat(store, PLANNING, dict) as second:
            assert not wins_planning(store, second.record), "whatever its uuid: the first looked before it was there and is at work"
            ordered = sorted((first.record, second.record), key=lambda record: record.uuid)
            assert not wins_planning(store, ordered[1])
            monkeypatch.setattr(heartbeats.time, "sleep", lambda seconds: store.delete(f"runs/{ordered[1].uuid}.json"))
            assert wins_planning(store, ordered[0]), "of two that start at once the smaller uuid stays, once the other has withdrawn"
    with Heartbeat(store, "p", dict), Heartbeat(store, PLANNING, dict) as late:
        assert not wins_planning(store, late.record), "the plan is there and worked on"


class StuckStore(Store):
    """A store that is away: once `away` is set, a write ends only when `back` is set."""

    away = threading.Event()
    back = threading.Event()

    def write(self, path: str, data: bytes) -> None:
        if self.away.is_set():
            self.back.wait(60)
        super().write(path, data)


def test_ctrl_c_in_an_outage_does_not_wait_for_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "LEAVE_SECONDS", 0.2)
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.05)
    store = StuckStore(str(tmp_path))
    with pytest.raises(KeyboardInterrupt), Heartbeat(store, "p", dict):
        store.away.set()
        time.sleep(0.2)  # a beat is under way
        raise KeyboardInterrupt
    left = [thread for thread in threading.enumerate() if thread.name.startswith("heartbeat")]
    assert len(left) == 2, "the exit came before the beat in flight and the last sign could be written"
    store.back.set()
    for thread in left:
        thread.join()
    assert run_records(store)[0].state == "stopped", "the last sign comes after a beat that was late"
