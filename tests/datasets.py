"""Small real image folders and datasets for tests, and what a dataset holds as plain Python."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from tokenshards import cli
from tokenshards.pipeline.config import PlanConfig, RetryConfig, RunConfig, SourceConfig
from tokenshards.pipeline.conversion.request import Outcome, TokenizeRequest
from tokenshards.pipeline.conversion.tokenize import Conversion
from tokenshards.pipeline.ledger.progress import RunProgress
from tokenshards.pipeline.planning.retry_plan import failed_entries
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.shards.writer import read_quarantine
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig

ROOT = Path(__file__).resolve().parents[1]


def write_images(folder: Path, count: int, *, classes: int = 3, bad: int = 0, seed: int = 0, side: int = 32) -> None:
    """Write `count` images (JPEG and PNG in turn) into class sub-folders (`classes=0`: flat), and `bad` broken ones."""
    rng = np.random.default_rng(seed)
    for index in range(count + bad):
        place = folder / f"class_{index % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        if index >= count:
            (place / f"bad_{index:04d}.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no image" * 3)
            continue
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        if index % 2:
            image.save(place / f"img_{index:04d}.png")
        else:
            image.save(place / f"img_{index:04d}.jpg", quality=90)


class SilentReporter:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def begin(self, planned: int | None, done: int) -> None:
        pass

    def advance(self, progress: RunProgress) -> None:
        pass

    def end(self) -> None:
        pass


def convert(src: Path | str, out: Path | str, **changes: Any) -> Outcome:
    """Tokenize in this process (workers are processes all the same), with small defaults."""
    reporter = changes.pop("reporter", None) or SilentReporter()
    runner = changes.pop("runner", None)
    workers, max_bad = changes.pop("workers", 1), changes.pop("max_bad", 1.0)
    shard_rows, codec = changes.pop("shard_rows", None), changes.pop("codec", "default")
    retry = changes.pop("retry", RetryConfig(attempts=2, first_delay_seconds=0.01))
    fit = changes.pop("fit", FitConfig() if "tokenizer" in changes else FitConfig(size=16, codes=16, iterations=4))
    request = TokenizeRequest(
        source_url=str(src),
        out_url=str(out),
        tokenizer_url=changes.pop("tokenizer", None),
        fit=fit,
        source=changes.pop("source", SourceConfig()),
        plan=PlanConfig(shard_rows=shard_rows, codec=codec, batch_rows=changes.pop("batch_rows", 16), views=changes.pop("views", "one")),
        run=RunConfig(workers=workers, max_bad=max_bad, retry=retry, **changes),
    )
    return Conversion(request, reporter, runner).run()


def image_size(path: Path | str) -> tuple[int, int]:
    """Return width and height of an image file, which is closed again."""
    with Image.open(path) as image:
        return image.size


def content(out: Path | str) -> dict[str, tuple[Any, bytes]]:
    """Return sample id -> (label, ids) of a complete dataset; a repeated id fails."""
    dataset = open_dataset(str(out), verify=True)
    found: dict[str, tuple[Any, bytes]] = {}
    for batch in dataset.batches(64):
        for row, sample_id in enumerate(batch.sample_ids):
            assert sample_id not in found, f"{sample_id} occurs twice"
            index = int(batch.labels_B[row])
            label = dataset.classes[index] if index >= 0 else None
            found[sample_id] = (label, np.ascontiguousarray(batch.ids_BLQ[row]).tobytes())
    return found


def quarantine_of(out: Path | str) -> dict[str, str]:
    """Return sample id -> reason of what stands in quarantine in a complete dataset: what no later generation tried again."""
    store = Store(str(out))
    found = {}
    for entry in failed_entries(load_manifest(store)):
        found.update({row["sample_id"]: row["reason"] for row in read_quarantine(store.read(str(entry.quarantine_path)))})
    return found


def start_cli(*arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start the command line as a user would, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        start_new_session=True,
        cwd=cwd,
    )


def run_cli(
    *arguments: str, env: dict[str, str] | None = None, expect: int = 0, cwd: Path | None = None, timeout: float = 100.0
) -> tuple[str, str]:
    """Run the command line; return stdout and stderr, after checking the exit code."""
    process = start_cli(*arguments, env=env, cwd=cwd)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()  # else its pipes are a leak that the next test is blamed for
        raise
    assert process.returncode == expect, f"exit code {process.returncode}, expected {expect}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out, err


def kill_three_times(arguments: Sequence[str], logs: Path) -> None:
    """Kill `tokenize` after the plan is begun, after a shard is written, and before its dataset is complete."""
    for point in ("after-plan-part", "after-data-put", "between-manifest-and-pointer"):
        victim = "driver" if point == "after-data-put" else "self"
        run_cli(*arguments, env={"TOKENSHARDS_FAULT": f"point={point},times=1,victim={victim},log={logs / point}"}, expect=-signal.SIGKILL)


def call_cli(*arguments: str, expect: int = 0) -> tuple[str, str]:
    """Run the command line in this process, which spares its start; return stdout and stderr, after checking the exit code."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with patch.object(sys, "argv", ["tokenshards", *arguments]), redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert code == expect, f"exit code {code}, expected {expect}\n{out.getvalue()}\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return out.getvalue(), err.getvalue()


def call_json(*arguments: str, expect: int = 0) -> dict[str, Any]:
    """Run a command with --json in this process and return what it printed."""
    value: dict[str, Any] = json.loads(call_cli(*arguments, "--json", expect=expect)[0])
    return value


def run_json(*arguments: str, env: dict[str, str] | None = None, expect: int = 0) -> dict[str, Any]:
    """Run a command with --json and return what it printed."""
    out, _ = run_cli(*arguments, "--json", env=env, expect=expect)
    value: dict[str, Any] = json.loads(out)
    return value


def keep_result(name: str, **fields: Any) -> None:
    """Print what a long run did as one JSON line, and keep it in $SOAK_RESULTS where that is set."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    line = json.dumps({"name": name, "commit": commit, **fields}, sort_keys=True)
    print(f"\n{line}")
    if folder := os.environ.get("SOAK_RESULTS"):
        (Path(folder) / f"{name}.json").write_text(line + "\n")
