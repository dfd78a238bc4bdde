"""The answers of a worker: each command on a real plan, replies of at most a kilobyte, and each error with its kind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import tokenshards.pipeline.job.context
from tests.datasets import convert, write_images
from tokenshards.pipeline.errors import (
    FingerprintMismatchError,
    IncompleteError,
    MissingObjectError,
    PlanError,
    StoreAccessError,
    TransientStorageError,
)
from tokenshards.pipeline.job import decoded_rows
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.job.shard_job import ShardProgress
from tokenshards.pipeline.runners import shard_server
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.runners.shard_server import ShardServer
from tokenshards.pipeline.shards.commit import read_commit

GOOD, BAD = 21, 2
MANY = 10_000


class Planner:
    """A runner that only keeps the job. The plan then exists, and no shard is done."""

    job: JobSpec

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        self.job = job
        return dict.fromkeys(shards, "only planned")


def plan(src: Path, out: Path, **changes: Any) -> JobSpec:
    planner = Planner()
    with pytest.raises(IncompleteError):
        convert(src, out, runner=planner, batch_rows=8, **changes)
    return planner.job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    folder = tmp_path_factory.mktemp("server")
    write_images(folder / "src", GOOD, bad=BAD)
    return plan(folder / "src", folder / "out")


@pytest.fixture
def server(job: JobSpec) -> ShardServer:
    return ShardServer(job)


def command(op: str, **more: Any) -> dict[str, Any]:
    return {"op": op, "shard": 0, "attempt": 1, "killers": [], **more}


def nothing(done: ShardProgress) -> None:
    pass


def size(event: dict[str, Any]) -> int:
    return len(json.dumps(event).encode())


@pytest.mark.parametrize("threads", [0, 2])
def test_a_shard_is_committed_and_its_batches_are_reported(job: JobSpec, threads: int) -> None:
    server = ShardServer(job, decode_threads=threads)
    seen: list[ShardProgress] = []
    event = server.serve(command("run", attempt=3), seen.append)
    assert event["event"] == "done" and size(event) <= 1024
    summary = event["summary"]
    assert (summary["rows"], summary["quarantined"], summary["inputs_seen"]) == (GOOD, BAD, GOOD + BAD)
    assert [done.inputs for done in seen if done.inputs] == [8, 8, 7]
    assert sum(done.quarantined for done in seen) == BAD and sum(done.bytes_in for done in seen) >= summary["bytes_in"] > 0
    commit, _ = read_commit(server.context.out, job.plan_id, 0)
    assert commit.attempt == 3 and commit.rows == GOOD


def test_shards_side_by_side_on_one_cpu_decode_and_encode_in_turn(job: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ShardServer(job)
    at_work, most = [0], [0]

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            at_work[0] += 1  # the tested lock protects this count: without the lock, counts are wrong or above one
            most[0] = max(most[0], at_work[0])
            time.sleep(0.002)
            try:
                return work(*arguments)
            finally:
                at_work[0] -= 1

        return run

    monkeypatch.setattr(decoded_rows, "decode_image", counted(decoded_rows.decode_image))
    monkeypatch.setattr(type(server.context.tokenizer), "encode", counted(type(server.context.tokenizer).encode))
    threads = [threading.Thread(target=server.serve, args=(command("run"), nothing)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and at_work == [0]


def test_another_decoder_than_planned_is_refused(job: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = ShardServer(job).context.plan.spec.preprocess.decoder
    monkeypatch.setattr(tokenshards.pipeline.job.context, "DECODER", "pillow-3")
    with pytest.raises(FingerprintMismatchError, match=f"decoded by {planned}; .* has pillow-3.*Install {planned.replace('-', ' ')} on"):
        ShardServer(job)


def test_a_search_counts_names_and_probes(server: ShardServer) -> None:
    assert server.serve(command("count"), nothing) == {"event": "counted", "inputs": GOOD + BAD}
    names = [server.serve(command("name", index=index), nothing)["sample_id"] for index in range(GOOD + BAD)]
    assert len(set(names)) == GOOD + BAD and sum("bad" in name for name in names) == BAD
    assert server.serve(command("name", index=GOOD + BAD), nothing) == {"event": "named", "sample_id": None}
    assert server.serve(command("find", sample_id=names[5]), nothing) == {"event": "found", "index": 5}
    assert server.serve(command("find", sample_id="nobody.jpg"), nothing) == {"event": "found", "index": None}
    assert server.serve(command("probe", start=3, stop=17), nothing) == {"event": "survived"}
    assert server.serve(command("control"), nothing) == {"event": "survived"}
    assert server.serve(command("name", index=4, killers=[names[0], names[4]]), nothing)["sample_id"] == names[4]


def test_killers_are_quarantined_unread(server: ShardServer) -> None:
    killer = server.serve(command("name", index=0), nothing)["sample_id"]
    event = server.serve(command("run", killers=[killer]), nothing)
    assert event["summary"]["rows"] + event["summary"]["quarantined"] == GOOD + BAD
    commit, _ = read_commit(server.context.out, server.context.plan.plan_id, 0)
    assert commit.reasons["killed_worker"] == 1


def test_replies_of_a_shard_of_ten_thousand_failures_fit_in_a_kilobyte(job: JobSpec, tmp_path: Path) -> None:
    folder = tmp_path / "src" / f"a-folder-with-a-long-name-{'x' * 150}"
    folder.mkdir(parents=True)
    for index in range(MANY):
        (folder / f"{'y' * 60}-{index:05d}.jpg").write_bytes(b"no image")
    server = ShardServer(plan(tmp_path / "src", tmp_path / "out", tokenizer=f"{job.out_url}/tokenizer", shard_rows=MANY))
    counted = server.serve(command("count"), nothing)
    assert counted == {"event": "counted", "inputs": MANY}
    event = server.serve(command("run"), nothing)
    assert event["event"] == "done" and event["summary"]["quarantined"] == MANY
    named = server.serve(command("name", index=MANY - 1), nothing)
    assert max(size(reply) for reply in (counted, event, named)) <= 1024


@pytest.mark.parametrize("letter", ["x", "é", "日", "😀", '"', "\n", "\udcff"])
@pytest.mark.parametrize("length", [100, 899, 5000])
def test_a_message_of_any_letters_is_cut_to_fit(server: ShardServer, monkeypatch: pytest.MonkeyPatch, letter: str, length: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TransientStorageError(letter * length)

    monkeypatch.setattr(shard_server, "tokenize_shard", fail)
    event = server.serve(command("run"), nothing)
    whole = f"TransientStorageError: {letter * length}"
    assert event["event"] == "failed" and size(event) <= 1024
    assert event["message"] == whole or (event["message"].endswith("…") and whole.startswith(event["message"][:-1]) and size(event) > 900)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (TransientStorageError("the store is away"), "transient", "TransientStorageError: the store is away"),
        (StoreAccessError("no such bucket"), "transient", "StoreAccessError: no such bucket"),
        (MemoryError("no room"), "transient", "MemoryError: no room"),
        (ValueError("a mistake of ours"), "transient", "ValueError: a mistake of ours"),
        (PlanError("the plan is gone"), "fatal", "the plan is gone"),
        (FingerprintMismatchError("two tokenizers"), "fatal", "two tokenizers"),
        (MissingObjectError("plan/part-0"), "fatal", "plan/part-0: the object does not exist"),
    ],
)
def test_what_is_worth_another_try(server: ShardServer, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, says: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("tokenize_shard", "probe_shard", "list_sample_ids"):
        monkeypatch.setattr(shard_server, name, fail)
    for wanted in (command("run"), command("count"), command("name", index=0), command("probe", start=0, stop=1)):
        assert server.serve(wanted, nothing) == {"event": "failed", "kind": kind, "message": says}


def test_an_unknown_command_is_a_failure_and_no_death(server: ShardServer) -> None:
    assert "unknown command 'dance'" in server.serve(command("dance"), nothing)["message"]
