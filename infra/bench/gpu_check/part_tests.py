"""The tests marked `gpu`, on the device."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from common import ROOT, Report

TICK_SECONDS = 1.0


def read_results(file: Path) -> dict[str, Any]:
    """Return counts, failed and skipped tests, and the slowest tests, from the lines written so far."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    counts = {outcome: sum(line["outcome"] == outcome for line in lines) for outcome in ("passed", "failed", "skipped")}
    skipped: dict[str, int] = {}
    for line in lines:
        if line["outcome"] == "skipped":
            reason = line["why"].removeprefix("Skipped: ")
            skipped[reason] = skipped.get(reason, 0) + 1
    slowest = sorted(lines, key=lambda line: -line["seconds"])[:8]
    return {
        "counts": counts,
        "failures": {line["test"]: line["why"] for line in lines if line["outcome"] == "failed"},
        "skip_reasons": skipped,
        "slowest": {line["test"].partition("::")[2]: line["seconds"] for line in slowest},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    report = Report(options.out)
    results = Path(tempfile.mkdtemp()) / "results.jsonl"
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(TICK_SECONDS):
            report.add(**read_results(results))

    command = [sys.executable, "-m", "pytest", "-m", "gpu", str(ROOT / "tests" / "gpu"), "-p", "no:cacheprovider", "-p", "results_plugin"]
    # Warnings stay warnings: warnings of packages newer than ours say nothing about the device.
    command += ["-o", "addopts=", "-q", "-W", "default", "--tb=short"]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with report.step("pytest"):
        log = options.out.with_suffix(".log")
        with log.open("w") as file:
            code = subprocess.run(
                command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, "GPU_CHECK_RESULTS": str(results)}, stdout=file, stderr=file
            ).returncode
        ended.set()
        watcher.join()
        found = read_results(results)
        report.add(**found)
        counts = found["counts"]
        if code or not counts["passed"]:
            raise RuntimeError(f"pytest ended with {code}: {counts['failed']} failed, {counts['passed']} passed; {log.name} has more")


if __name__ == "__main__":
    main()
