"""The command line as a contract: names, options, JSON keys, exit codes, and messages instead of tracebacks."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from tests.datasets import ROOT, call_cli, call_json, content, image_size, run_cli, start_cli, write_images
from tokenshards.pipeline.commands import look
from tokenshards.pipeline.ledger.heartbeat import PLANNING, Heartbeat, run_records
from tokenshards.pipeline.ledger.progress import RunProgress
from tokenshards.pipeline.optional_packages import install_hint
from tokenshards.pipeline.reports import terminal
from tokenshards.pipeline.storage.store import Store

COMMANDS = {
    "fit-tokenizer": ["--size", "--patch", "--levels", "--codes", "--beam", "--sample", "--seed"],
    "tokenize": [
        "--tokenizer",
        "--kind",
        "--patch",
        "--site",
        "--shard-rows",
        "--workers",
        "--runner",
        "--label-from",
        "--split",
        "--key",
        "--max-pixels",
        "--url-attempts",
        "--json",
    ],
    "submit": [
        "--address",
        "--tail",
        "--no-wait",
        "--submission-id",
        "--forward-credentials",
        "--install-dependencies",
        "--size",
        "--json",
    ],
    "plan": ["--kind", "--site", "--price-per-hour", "--json"],
    "status": ["--json"],
    "evaluate-tokenizer": ["--sample", "--seed", "--all-files", "--image-column", "--json"],
    "verify": ["--sample", "--re-encode", "--source", "--seed", "--min-agreement", "--json"],
    "repair": ["--apply", "--min-age", "--json"],
    "retry-failed": ["--source", "--json"],
    "inspect": ["--plot", "--json"],
    "preview": ["--to", "--id", "--class", "--source", "--augment", "--seed", "-n"],
    "train": [
        "--val",
        "--out",
        "--epochs",
        "--model",
        "--lr",
        "--augment",
        "--device",
        "--seed",
        "--resume",
        "--classes",
        "--recipe",
        "--set",
        "--list-settings",
        "--json",
    ],
    "evaluate": ["--images", "--confusion", "--json"],
    "predict": ["--top", "--json"],
    "import tokenizer": [
        "--kind",
        "--keep-codes",
        "--min-uses",
        "--preset",
        "--decoder-file",
        "--vocabulary",
        "--colour-range",
        "--config",
        "--dtype",
        "--resize",
        "--filter",
        "--max-tokens",
        "--json",
    ],
    "import classifier": ["--model", "--set", "--json"],
    "import tokenadapt": ["--tokenizer", "--out", "--json"],
    "fit-tokenadapt": [
        "--tokenizer",
        "--out",
        "--width",
        "--heads",
        "--share",
        "--epochs",
        "--views",
        "--colour",
        "--batch",
        "--sample",
        "--seed",
    ],
    "import seit": ["--split", "--grid", "--codebook", "--classes", "--json"],
    "export seit": ["--split", "--json"],
    "demo": [],
    "quarantine": ["--reason", "--json"],
    "publish": ["--json"],
}
CONTRACT = {
    "images_planned",
    "images_committed",
    "images_quarantined",
    "shards_planned",
    "shards_committed",
    "bytes_in",
    "bytes_out",
    "bytes_shards",
    "bits_per_token",
    "order0_bits_per_token",
    "images_per_second",
    "complete",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cli")
    write_images(folder / "src", 40, bad=1)
    run_cli("tokenize", str(folder / "src"), str(folder / "out"), "--size", "16", "--codes", "16", "--max-bad", "0.1", "--workers", "1")
    return folder / "src", folder / "out"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_options_and_an_example(command: str) -> None:
    out, _ = call_cli(*command.split(), "--help")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert f"Example: tokenshards {command}" in " ".join(plain.split())
    for option in COMMANDS[command]:
        assert option in plain, option


def test_help_lists_every_command() -> None:
    out, _ = call_cli("--help")
    assert [command for command in COMMANDS if command.split()[0] not in out] == []


def test_json_of_tokenize_and_status(dataset: tuple[Path, Path]) -> None:
    src, out = dataset
    tokenized = call_json("tokenize", str(src), str(out))
    status = call_json("status", str(out))
    assert tokenized.keys() >= CONTRACT and status.keys() >= CONTRACT
    expected = {"images_planned": 41, "images_committed": 40, "images_quarantined": 1, "shards_planned": 1, "complete": True}
    assert {key: status[key] for key in expected} == expected
    objects = [path for path in out.rglob("*") if path.is_file()]
    assert status["bytes_out"] == sum(path.stat().st_size for path in objects)
    assert status["bytes_shards"] == sum(path.stat().st_size for path in (out / "shards").iterdir())
    committed = [path for path in src.glob("*/*") if not path.name.startswith("bad")]
    assert status["bytes_in"] == sum(path.stat().st_size for path in committed)
    assert 0 < status["order0_bits_per_token"] <= 4 and status["bits_per_token"] > 0 and status["images_per_second"] > 0


def test_a_rerun_says_already_complete(dataset: tuple[Path, Path]) -> None:
    src, out = dataset
    text, _ = run_cli("tokenize", str(src), str(out))
    assert "already complete" in text


def test_verify_json_and_exit_code(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = dataset
    good = call_json("verify", str(out))
    assert good["ok"] is True and good["rows_checked"] == 40 and good["problems"] == []
    shutil.copytree(out, tmp_path / "out")
    shard = next((tmp_path / "out" / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    bad = call_json("verify", str(tmp_path / "out"), expect=1)
    assert [problem["object"] for problem in bad["problems"]] == [f"shards/{shard.name}"]
    assert bad["problems"][0].keys() == {"object", "kind", "detail"}
    text, _ = call_cli("verify", str(tmp_path / "out"), expect=1)
    assert shard.name in text and "tokenshards repair" in text


def test_fit_tokenizer_then_tokenize_with_it(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    src, _ = dataset
    fitted = call_json("fit-tokenizer", str(src), str(tmp_path / "x.tok"), "--size", "32", "--codes", "32", "--levels", "1")
    assert {path.name for path in (tmp_path / "x.tok").iterdir()} == {"tokenizer.json", "codebook.safetensors"}
    out = call_json("tokenize", str(src), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "x.tok"), "--max-bad", "1", "-q")
    assert out["complete"] and out["images_committed"] == 40
    assert call_json("inspect", str(tmp_path / "out"))["fingerprint"] == fitted["fingerprint"]
    assert call_json("inspect", str(tmp_path / "x.tok"))["fingerprint"] == fitted["fingerprint"]


def test_a_fit_says_what_gave_it_no_image_of_its_own(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(dataset[0], tmp_path / "src")
    image = min(path for path in (tmp_path / "src").rglob("*") if path.is_file() and path.stat().st_size > 200)
    for number in range(3):
        shutil.copy(image, image.with_name(f"again{number}{image.suffix}"))
    _, said = call_cli("fit-tokenizer", str(tmp_path / "src"), str(tmp_path / "x.tok"), "--size", "16", "--codes", "16")
    assert "note: 3 of 43 sampled images are byte for byte equal to another one and count only once" in said
    assert "note: 1 of 44 sampled inputs could not be decoded, such as" in said


def test_plan_writes_nothing(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    src, _ = dataset
    small = ("--size", "16", "--codes", "16")
    estimate = call_json("plan", str(src), str(tmp_path / "new"), "--price-per-hour", "3", "--workers", "2", *small)
    assert not (tmp_path / "new").exists()
    assert estimate["images"] == 41 and estimate["images_exact"] and estimate["shards"] == 1
    assert estimate["requests"] >= 41 and estimate["images_per_second"] > 0 and estimate["money"] >= 0 and estimate["bytes_out"] > 0
    assert estimate["bottleneck"] in ("fetch", "decode", "encode", "write")
    assert estimate["bad_share"] == pytest.approx(1 / 41)
    text, _ = call_cli("plan", str(src), str(tmp_path / "new"), *small)
    assert "nothing was written" in text and "bottleneck" in text


def test_inspect_shows_usage_and_plots(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = dataset
    text, _ = call_cli("inspect", str(out), "--plot", str(tmp_path / "usage.png"))
    assert "class_0" in text and "fingerprint" in text and "█" in text
    assert image_size(tmp_path / "usage.png")[0] > 300
    value = call_json("inspect", str(out))
    assert value["classes"] == [["class_0", 14], ["class_1", 13], ["class_2", 13]]
    assert len(value["code_usage"]) == 2
    assert "dead, perplexity" in text and f"evaluate-tokenizer {out} IMAGES" in text


def test_preview_by_number_id_class_and_source(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    src, out = dataset
    image = tmp_path / "look.png"
    for options, count in ((["-n", "5"], 5), (["--id", "class_0/img_0000.jpg"], 1), (["--class", "class_1", "-n", "3"], 3)):
        shown = call_json("preview", str(out), "--to", str(image), *options)
        assert len(shown["sample_ids"]) == count and image_size(image)[0] >= 96
        image.unlink()
    beside = call_json("preview", str(out), "--to", str(image), "-n", "4", "--source", str(src))
    assert len(beside["psnr_db"]) == 4 and min(beside["psnr_db"]) > 12
    _, errors = call_cli("preview", str(out), "--to", str(image), "--class", "nothing", expect=2)
    assert "class_0" in errors
    _, errors = call_cli("preview", str(out), "--to", str(image), "--id", "nothing", expect=2)
    assert "nothing" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["tokenize", "missing_folder", "out"], 2, "missing_folder"),
        (["tokenize", ".", "out", "--codec", "nope"], 2, "default, publish"),
        (["tokenize", ".", "out", "--runner", "spark"], 2, "--runner"),
        (["tokenize", ".", "out", "--size", "30"], 2, "multiple of --patch 4"),
        (["tokenize", ".", "out", "--beam", "0"], 2, "1 to 64"),
        (["tokenize", ".", "out", "--workers", "9999"], 2, "1 to 1024"),
        (["tokenize", ".", "out", "--workers", "0"], 2, "1 to 1024"),
        (["plan", ".", "out", "--workers", "0"], 2, "1 to 1024"),
        (["plan", ".", "out", "--workers", "two"], 2, "--workers is 'two'; expected a whole number"),
        (["train", ".", "--out", "out", "--epochs", "1.5"], 2, "--epochs is '1.5'; expected a whole number"),
        (["plan", ".", "out", "--price-per-hour", "x"], 2, "--price-per-hour is 'x'; expected a number"),
        (["import", "seit", ".", "out", "--max-bad", "x"], 2, "--max-bad is 'x'; expected a number"),
        (["plan", ".", "out", "--price-per-hour", "-1"], 2, "--price-per-hour is -1.0; expected a price above 0"),
        (["tokenize", ".", "out", "--max-bad", "7"], 2, "0 to 1"),
        (["tokenize", ".", "out", "--storage-option", "key"], 2, "key=value"),
        (["tokenize", ".", "nosuch://bucket/out"], 2, "nosuch"),
        (["status", "empty"], 2, "expected the OUT folder"),
        (["verify", "empty"], 2, "expected the OUT folder"),
        (["evaluate-tokenizer", "empty", "empty"], 2, "tokenizer.json"),
        (["retry-failed", "empty"], 2, "expected the OUT folder"),
        (["inspect", "empty"], 2, "tokenizer.json"),
        (["preview", "empty", "--to", "x.png"], 2, "no dataset here"),
        (["preview", "empty", "--to", "x.txt"], 2, ".png"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    out, errors = call_cli(*arguments, expect=code)
    assert errors.startswith("error: ") and says in errors and out == ""
    assert not (tmp_path / "out").exists()


def test_a_closed_pipe_is_no_error_message(dataset: tuple[Path, Path]) -> None:
    _, out = dataset
    process = start_cli("inspect", str(out))
    assert process.stdout is not None
    process.stdout.close()
    process.wait(30)
    assert process.stderr is not None
    with process.stderr as said:
        assert said.read() == ""


def test_one_line_every_thirty_seconds_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = terminal.TerminalReporter()
    said: list[str] = []
    reporter._print = said.append  # type: ignore[method-assign]
    clock = iter([0.0, 10.0, 31.0, 45.0, 62.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    reporter.begin(1000, 0)
    for seen in (10, 31, 45, 62):
        reporter.advance(RunProgress(images_planned=1000, images_seen=seen, bytes_in=seen * 1_000_000, work_seconds=seen))
    monkeypatch.undo()
    assert [line.split()[0] for line in said] == ["31", "62"]
    assert "1.0 MB/s" in said[0] and "ETA" in said[0] and "0 quarantined" in said[0]


def test_the_progress_bar_on_a_terminal(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    src, out = dataset
    arguments = ["tokenize", str(src), str(tmp_path / "out"), "--tokenizer", f"{out}/tokenizer", "--max-bad", "1"]
    screen, terminal = pty.openpty()
    process = subprocess.Popen([sys.executable, str(ROOT / "cli.py"), *arguments], stdout=terminal, stderr=terminal, close_fds=True)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while data := os.read(screen, 65536):
            shown += data
    os.close(screen)
    assert process.wait(60) == 0
    assert b"images" in shown and b"41/41" in shown and b"1 quarantined" in shown
    assert len(content(tmp_path / "out")) == 40


def test_version() -> None:
    out, _ = run_cli("--version")
    assert re.fullmatch(r"tokenshards \d+\.\d+\.\d+\S*\n", out)


def test_sigterm_ends_the_workers_too(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = dataset
    write_images(tmp_path / "many", 900, side=96)
    arguments = ["tokenize", str(tmp_path / "many"), str(tmp_path / "out"), "--tokenizer", f"{out}/tokenizer", "--workers", "2"]
    process = start_cli(*arguments)
    while not list(tmp_path.glob("out/commits/*/*.json")) and process.poll() is None:
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 143, said
    assert [record.state for record in run_records(Store(str(tmp_path / "out")))].count("stopped") == 1, "a rerun elsewhere goes on at once"
    psutil.wait_procs(workers, timeout=5)
    assert workers and not any(worker.is_running() for worker in workers)


def test_the_console_script_is_the_same(dataset: tuple[Path, Path]) -> None:
    _, out = dataset
    script = Path(sys.executable).with_name("tokenshards")
    if not script.exists():
        pytest.skip("the project is not installed in this environment")
    shown = subprocess.run([str(script), "status", str(out), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["complete"] is True


def test_a_terminal_without_unicode(dataset: tuple[Path, Path]) -> None:
    shown, _ = run_cli("inspect", str(dataset[1]), env={"PYTHONIOENCODING": "ascii"})
    assert "\\u2588" in shown


def test_a_folder_of_the_user_does_not_shadow_the_package(
    dataset: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, out = dataset
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    run_cli("tokenize", str(src), "out", "--tokenizer", f"{out}/tokenizer", "--max-bad", "1", "--workers", "1")


def test_plan_counts_a_tar_of_this_disk_though_its_sample_ends_in_the_middle(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1, classes=0)
    image = next((tmp_path / "images").iterdir())
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for index in range(1000):
            archive.add(image, f"{index:05d}.jpg")
    estimate = call_json("plan", str(tmp_path / "a.tar"), str(tmp_path / "out"), "--size", "16")
    assert estimate["images"] == 1000 and estimate["images_exact"]


@pytest.mark.parametrize("command", [["train", "data", "--out", "run"], ["evaluate", "run", "data"], ["predict", "run", "a.png"]])
def test_without_torch_a_command_says_what_to_install(command: list[str]) -> None:
    script = f"import sys; sys.modules['torch'] = None; from tokenshards import cli; sys.argv = ['tokenshards', *{command!r}]; cli.main()"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: this command needs torch, which cannot be imported (")
    assert result.stderr.endswith(f"; run: {install_hint('train')}\n")


@pytest.mark.parametrize(("environment", "lines"), [({}, ["tokenshards", "in order"]), ({"WORLD_SIZE": "2"}, ["tokenshards"])])
def test_a_rank_ends_at_once_when_its_work_is_done(environment: dict[str, str], lines: list[str]) -> None:
    """Ending in order, about one in twenty ranks of torchrun was aborted by a thread of torch."""
    script = "import atexit, sys; from tokenshards import cli; atexit.register(print, 'in order')\n"
    script += "sys.argv = ['tokenshards', '--version']; cli.run()"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] if line.startswith("tokenshards") else line for line in result.stdout.splitlines()] == lines


def test_status_before_there_is_a_plan(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    _, errors = call_cli("status", out, expect=2)
    assert "no dataset is here yet. A job that was just submitted starts within a minute" in errors
    with Heartbeat(Store(out), PLANNING, dict):
        said, _ = call_cli("status", out)
        assert "the inputs are being listed, there is no plan yet (host " in said
        report = json.loads(call_cli("status", out, "--json")[0])
    assert report["planning"] and not report["complete"] and len(report["live_runs"]) == 1


def test_a_broken_pipe_that_is_not_stdout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise BrokenPipeError("the pipe to a worker")

    monkeypatch.setattr(look, "side_options", broken)
    _, errors = call_cli("status", "out", expect=70)
    assert "unexpected BrokenPipeError: the pipe to a worker" in errors
