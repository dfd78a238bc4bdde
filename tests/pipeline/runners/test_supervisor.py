"""Slow, hanging and waiting workers as real processes: which workers are killed, and which inputs are quarantined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.datasets import SilentReporter, content, convert, quarantine_of, write_images
from tests.pipeline.runners.listening import KeptListener
from tests.pipeline.runners.odd_tokenizers import MAGENTA
from tests.s3_servers import ACCESS_KEY, SECRET_KEY, faulty_proxy, moto_server
from tokenshards.pipeline.activity import DECODE, ENCODE, FETCH, PACK, SHARD, STARTING, WRITE
from tokenshards.pipeline.config import RetryConfig, RunConfig, SourceConfig
from tokenshards.pipeline.conversion.import_checkpoint import open_published
from tokenshards.pipeline.errors import IncompleteError, TokenshardsError
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.runners import deadlines, local, local_devices, supervisor
from tokenshards.pipeline.runners.base import RunListener, broken_event, error_of
from tokenshards.pipeline.runners.deadlines import SILENT
from tokenshards.pipeline.runners.local import LocalRunner
from tokenshards.pipeline.runners.supervisor import Supervisor, Worker
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.directory import save_tokenizer

HERE = "tests.pipeline.runners.odd_tokenizers"
QUICK = RetryConfig(attempts=3, first_delay_seconds=0.01, max_delay_seconds=0.1)
STALL_SECONDS = 0.6
STAGES = (STARTING, FETCH, DECODE, ENCODE, PACK, WRITE, SHARD, SILENT)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the first use of a library takes seconds in any stage. Each test shortens only the stage under test."""
    for stage in STAGES:
        monkeypatch.setitem(deadlines.PATIENCE, stage, 150.0)
    monkeypatch.setenv("TOKENSHARDS_ALLOW_PYTHON", HERE)


def tokenizer(place: Path, name: str, **settings: Any) -> str:
    made = open_published(f"python:{HERE}:{name}", "", ImportConfig(settings=settings))
    save_tokenizer(made, Store(str(place)), "")
    return str(place)


def fault(monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: object) -> None:
    text = ",".join(f"{name}={value}" for name, value in {"log": folder / "fault.log", **settings}.items())
    monkeypatch.setenv("TOKENSHARDS_FAULT", text)


def run(src: Path, out: Path, **changes: Any) -> list[str]:
    """Convert, and return the lines that were reported."""
    reporter = SilentReporter()
    settings: dict[str, Any] = {"stall_timeout_seconds": STALL_SECONDS, "worker_deaths": 1, "retry": QUICK, "batch_rows": 4, **changes}
    try:
        convert(src, out, reporter=reporter, **settings)
    finally:
        print("\n".join(reporter.lines))
    return reporter.lines


def says(lines: Sequence[str], *words: str) -> bool:
    return any(all(word in line for word in words) for line in lines)


@pytest.mark.parametrize("lock", [False, True])
def test_a_tokenizer_slower_than_the_stall_limit_is_never_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: bool) -> None:
    """A slow tokenizer is not killed: not before its first measurement, not after, and not while heartbeats are blocked."""
    monkeypatch.setitem(deadlines.PATIENCE, ENCODE, 12.0)
    monkeypatch.setitem(deadlines.PATIENCE, SILENT, 1.0)
    write_images(tmp_path / "src", 8)
    slow = tokenizer(tmp_path / "slow", "Slow", seconds=2.0, lock=lock)
    monkeypatch.setenv("SLOW_FROM_THE_FIRST", "1")
    lines = run(tmp_path / "src", tmp_path / "out", tokenizer=slow)
    assert len(content(tmp_path / "out")) == 8 and quarantine_of(tmp_path / "out") == {}
    assert not says(lines, "killed") and not says(lines, "tried again")
    assert lock or says(lines, "a worker is slow or hangs", "stage encode")


def test_a_worker_that_hangs_before_it_is_ready_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(deadlines.PATIENCE, STARTING, 12.0)
    write_images(tmp_path / "src", 4)
    fault(monkeypatch, tmp_path, point="starting", times=1, action="hang")
    lines = run(tmp_path / "src", tmp_path / "out")
    assert says(lines, "a worker could not start and is tried again", "in the stage starting", "was killed")
    assert len(content(tmp_path / "out")) == 4


@pytest.mark.parametrize(("point", "key"), [("decode", "class_1/img_0001.png"), ("encode", "class_0/img_0000.jpg"), ("write", "0")])
def test_a_hang_is_found_within_the_deadline_of_its_stage_and_one_that_passes_blames_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, key: str
) -> None:
    write_images(tmp_path / "src", 4)
    monkeypatch.setitem(deadlines.PATIENCE, point, 3.0)
    keys = {"key": key} if point != "encode" else {}
    fault(monkeypatch, tmp_path, point=point, times=1, action="hang", **keys)
    lines = run(tmp_path / "src", tmp_path / "out", worker_deaths=3)
    assert says(lines, "made no progress for", f"in the stage {point}", "was killed")
    assert says(lines, "tried again") == (point == "write"), "a hang in a write costs an attempt, and makes nothing suspect"
    assert len(content(tmp_path / "out")) == 4 and quarantine_of(tmp_path / "out") == {}


def test_an_image_on_which_decoding_hangs_is_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "src", 2, classes=0)
    guilty = "img_0001.png"
    monkeypatch.setitem(deadlines.PATIENCE, DECODE, 4.0)
    fault(monkeypatch, tmp_path, point="decode", times=1000, action="hang", key=guilty)
    lines = run(tmp_path / "src", tmp_path / "out")
    assert quarantine_of(tmp_path / "out") == {guilty: "killed_worker"}
    assert set(content(tmp_path / "out")) == {"img_0000.jpg"}
    assert says(lines, f"{guilty} kills its worker")


def test_an_image_on_which_the_tokenizer_hangs_is_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "src", 1, classes=0)
    Image.new("RGB", (16, 16), MAGENTA).save(tmp_path / "src" / "magenta.png")
    monkeypatch.setitem(deadlines.PATIENCE, ENCODE, 4.0)
    run(tmp_path / "src", tmp_path / "out", tokenizer=tokenizer(tmp_path / "tok", "HangsOnMagenta"))
    assert quarantine_of(tmp_path / "out") == {"magenta.png": "killed_worker"}
    assert set(content(tmp_path / "out")) == {"img_0000.jpg"}


def test_a_tokenizer_that_hangs_on_everything_quarantines_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single image in an otherwise blank batch hangs again, and so does the blank batch."""
    write_images(tmp_path / "src", 1, classes=0)
    monkeypatch.setitem(deadlines.PATIENCE, ENCODE, 3.0)
    fault(monkeypatch, tmp_path, point="encode", times=1000, action="hang")
    with pytest.raises(IncompleteError, match="no single input is guilty"):
        run(tmp_path / "src", tmp_path / "out", shard_attempts=1)
    assert not list(tmp_path.glob("out/quarantine/*")) and not list(tmp_path.glob("out/commits/*/*"))


def test_a_run_that_was_stopped_by_ctrl_z_goes_on_with_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver and its workers were stopped for an hour, and a worker still shows the hour as time at its image."""
    now = [1000.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])
    boss: Supervisor[Worker] = Supervisor(range(2), RunConfig(workers=1), KeptListener(), beat_seconds=1.0)
    for stage, patience in ((DECODE, 1.0), (SILENT, 2.0), (ENCODE, 12.0)):
        monkeypatch.setitem(deadlines.PATIENCE, stage, patience)
    beating, silent = Worker(name="a", heard_at=now[0]), Worker(name="b", heard_at=now[0])
    boss.workers += [beating, silent]

    def beat(seconds: float) -> None:
        boss.heard(beating, {"doing": [[DECODE, "x.jpg", seconds, None]], "slowest": {ENCODE: 0.1}, "shards": []})

    for worker in boss.workers:
        boss.became_ready(worker)
    assert len(list(boss.assign())) == 2
    now[0] += 1.5
    beat(0.5)
    assert boss.hanging() == []
    resumed = now[0] = now[0] + 3600.0
    beat(3600.5)
    found = boss.hanging()
    while not found:
        now[0] += 1.0
        beat(3600.5 + now[0] - resumed)
        found = boss.hanging()
    assert [worker for worker, _ in found] == [beating] and 298 < now[0] - resumed < 302
    while len(found) < 2:
        now[0] += 1.0
        found = boss.hanging()
    assert 3599 < now[0] - resumed < 3602, "the silent worker has not encoded yet"


class _After:
    """The local runner, which begins after an event."""

    def __init__(self, config: RunConfig, happens: Callable[[], None]) -> None:
        self._runner, self._happens = LocalRunner(config), happens

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        self._happens()
        return self._runner.run(job, shards, listener)


def test_a_silent_store_is_waited_for_and_ends_as_an_outage_without_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request stays silent for longer than the client waits. All attempts at one object take several stall timeouts."""
    fitted = tmp_path / "fitted"
    write_images(tmp_path / "src", 6)
    convert(tmp_path / "src", fitted)
    with moto_server() as server, faulty_proxy(server) as proxy:
        server.upload(tmp_path / "src", "s3://silent/src")
        options = {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": proxy.endpoint, "config_kwargs": {"read_timeout": 0.8}}
        config = RunConfig(workers=1, stall_timeout_seconds=0.6, worker_deaths=1, shard_attempts=2, retry=QUICK)
        reporter = SilentReporter()
        with pytest.raises(IncompleteError, match=r"in 3 attempts.*\n.*nothing was quarantined because of this"):
            convert(
                "s3://silent/src",
                tmp_path / "out",
                tokenizer=f"{fitted}/tokenizer",
                source=SourceConfig(storage_options=options),
                runner=_After(config, lambda: proxy.set(stall=1.0)),
                reporter=reporter,
                retry=QUICK,
            )
        assert proxy.report()["injected"]["stall"] >= 6
    assert says(reporter.lines, "waiting for the store: s3://silent/src", "attempts left"), reporter.lines
    assert not says(reporter.lines, "killed") and not says(reporter.lines, "a worker died"), reporter.lines
    assert not list(tmp_path.glob("out/quarantine/*")) and not list(tmp_path.glob("out/commits/*/*"))


def test_a_run_that_joins_counts_its_own_work_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 12)

    def another() -> None:
        convert(tmp_path / "src", tmp_path / "out", shard_rows=4, join=True)

    outcome = convert(tmp_path / "src", tmp_path / "out", shard_rows=4, join=True, runner=_After(RunConfig(workers=1, join=True), another))
    assert outcome.images == 0 and outcome.usage is not None and set(outcome.usage.seconds.values()) == {0.0}
    records = [record.counters for record in local_records(tmp_path / "out")]
    assert sorted((counters["images_seen"], counters["images_before"], counters["shards_committed"]) for counters in records) == [
        (0, 12, 0),
        (12, 0, 3),
    ]


def local_records(out: Path) -> list[Any]:
    from tokenshards.pipeline.ledger.heartbeat import run_records

    return [record for record in run_records(Store(str(out))) if record.counters]


def test_one_worker_per_gpu_each_pinned_to_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "src", 2)
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    told = tokenizer(tmp_path / "tok", "TellsItsDevice", folder=str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setenv("WORKERS_AWAITED", "2")
    monkeypatch.setattr(local_devices.subprocess, "run", lambda *_, **__: pytest.fail("the variable says which there are"))
    lines = run(tmp_path / "src", tmp_path / "out", tokenizer=told, workers=None, shard_rows=1, stall_timeout_seconds=60)
    assert says(lines, "2 workers on 2 GPUs, with 4 decoding threads each")
    assert sorted((tmp_path / "devices").read_text().split()) == ["GPU-a", "GPU-b"]


def test_places_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = local_devices.choose_places
    assert [place.gpu for place in choose(None, 100, ["0", "1"], 96)] == ["0", "1"]
    assert [place.gpu for place in choose(4, 100, ["0", "1"], 96)] == ["0", "1", "0", "1"]
    assert [place.gpu for place in choose(None, 1, ["0", "1"], 96)] == ["0"]
    assert {place.decode_threads for place in choose(None, 100, ["0", "1"], 8)} == {4}
    assert [place.decode_threads for place in choose(None, 100, ["0"], 1)] == [0]
    on_cpus = choose(None, 100, [], 6)
    assert len(on_cpus) == 6 and {(place.gpu, place.torch_threads, place.decode_threads) for place in on_cpus} == {(None, 1, 0)}
    for value, expected in (("", []), ("-1", []), ("0,2", ["0", "2"]), ("0,-1,2", ["0"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert local_devices.visible_gpus() == expected


def test_gpus_are_found_with_and_without_the_tool_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(local_devices, "DEVICES", tmp_path)
    assert local_devices.visible_gpus() == []
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert local_devices.visible_gpus() == ["0", "1"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU-1b2c\necho GPU-3d4e\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert local_devices.visible_gpus() == ["GPU-1b2c", "GPU-3d4e"]


def test_an_error_of_a_worker_keeps_its_class_its_exit_code_and_its_words() -> None:
    from tokenshards.pipeline import errors

    for error in (
        errors.StoreAccessError("no such bucket"),
        errors.FingerprintMismatchError("two tokenizers"),
        errors.CorruptObjectError("plan.json", "half of it"),
        errors.ConfigError("an option"),
    ):
        found = error_of(broken_event(error))
        assert (type(found), str(found), found.exit_code) == (type(error), str(error), error.exit_code)
    unknown = error_of({"error": "Odd", "exit_code": 7, "message": "of a plug-in"})
    assert type(unknown) is TokenshardsError and unknown.exit_code == 7


def test_a_worker_that_cannot_open_its_job_ends_the_run_with_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "src", 4)
    slow = tokenizer(tmp_path / "slow", "Slow")
    forbid = _After(RunConfig(workers=1), lambda: monkeypatch.setenv("TOKENSHARDS_ALLOW_PYTHON", "nothing"))
    with pytest.raises(TokenshardsError, match="TOKENSHARDS_ALLOW_PYTHON is 'nothing'") as caught:
        convert(tmp_path / "src", tmp_path / "out", tokenizer=slow, runner=forbid)
    assert type(caught.value).__name__ == "TokenizerError"


def test_workers_that_die_at_their_start_end_the_run_with_their_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "src", 4)
    fault(monkeypatch, tmp_path, point="starting", times=1000)
    with pytest.raises(TokenshardsError, match=r"workers cannot start: the last one died \(exit code -9\)"):
        run(tmp_path / "src", tmp_path / "out")
