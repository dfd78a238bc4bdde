"""Runs the parts of the GPU check, each in its own process with a time limit, and joins their results. See gpu_check.sh."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import ROOT, note

PARTS = {"environment": 45, "tests": 90, "encode": 65, "train": 40, "pretrain": 40}
"""Seconds that a part may take; time left over by earlier parts is added. The first part also waits for a cold disk to give torch."""
CPU_TIMES = 15
"""Factor on the limits with --cpu, for a machine that others use too."""


def run_part(name: str, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run a part; return its results, and how it ended."""
    written = options.out / f"{name}.json"
    written.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).parent / f"part_{name}.py"), "--out", str(written)]
    command += ["--cpu"] if options.cpu else []
    command += ["--images", str(options.images)] if options.images and name == "encode" else []
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if options.cpu:
        # Waiting threads of torch sleep: beside other busy processes, spinning would take most of the time.
        env.update(CUDA_VISIBLE_DEVICES="", TOKENSHARDS_GPU_TESTS="cpu", OMP_WAIT_POLICY="PASSIVE")
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=sys.stderr, start_new_session=True)
    try:
        ended: str | None = None if (code := process.wait(limit)) == 0 else f"the process ended with {code}"
    except subprocess.TimeoutExpired:
        ended = f"it took longer than {limit:.0f} s and was stopped; what it had measured is here"
    except BaseException:
        stop(process)
        raise
    stop(process)  # and all processes that it started
    found = json.loads(written.read_text()) if written.exists() else {}
    problems = ([ended] if ended else []) + [f"{step}: {why}" for step, why in found.get("failed", {}).items()]
    return {"ok": not problems, "problems": problems, "wall_seconds": round(time.monotonic() - began, 1), **found}


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the remaining processes of the part's own process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description="Everything that needs a GPU; prints one JSON.")
    parser.add_argument("--only", choices=[*PARTS], action="append", help="this part alone, after the environment; may be repeated")
    parser.add_argument("--cpu", action="store_true", help="run every step small on the CPU, to see that it runs")
    parser.add_argument("--images", type=Path, help="folder of images to tokenize; else images are drawn")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_check_out")), help="folder for the JSON files")
    parser.add_argument("--seconds", type=float, help="limit of the whole", default=None)
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.images = options.images and options.images.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.images and not options.images.is_dir():
        parser.error(f"--images is {options.images}; expected a folder of images")
    began, whole = time.monotonic(), options.seconds or 280.0 * (CPU_TIMES if options.cpu else 1)
    planned = 0.0
    report: dict[str, Any] = {"name": "gpu_check", "ok": True, "cpu": options.cpu, "parts": {}}
    for name in PARTS:
        if options.only and name not in ("environment", *options.only):
            continue
        elapsed = time.monotonic() - began
        planned += PARTS[name] * (CPU_TIMES if options.cpu else 1)
        limit = min(planned, whole) - elapsed
        if not report["ok"] and name != "environment" and not report["parts"]["environment"]["ok"]:
            report["parts"][name] = {"ok": False, "problems": ["not begun: see the problems of the environment"]}
        elif limit < 5:
            report["parts"][name] = {"ok": False, "problems": [f"not begun: {whole:.0f} s were over"]}
        else:
            report["parts"][name] = run_part(name, options, limit)
        part = report["parts"][name]
        note(f"{name}: {'ok' if part['ok'] else '; '.join(part['problems'])}")
        report["ok"] = all(part["ok"] for part in report["parts"].values())
        report["device"] = report["parts"]["environment"].get("device")
        report["wall_seconds"] = round(time.monotonic() - began, 1)
        (options.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
