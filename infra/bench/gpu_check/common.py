"""Shared by the parts of the GPU check: the place of the code, one JSON per part that every step rewrites, clocks, subprocesses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BENCH = ROOT / "infra" / "bench"
sys.path[:0] = [str(ROOT), str(BENCH)]

DENSE_BF16_TFLOPS = {"NVIDIA H100 80GB HBM3": 989.0, "NVIDIA H200": 989.0}
"""Dense bfloat16 peak by CUDA's device name (NVIDIA's data sheets of the SXM boards). Other devices have no known peak here."""


class Report:
    """The JSON of one part. Every step is on the disk once it ends, so that a later step that hangs or fails loses only itself."""

    def __init__(self, path: Path) -> None:
        self._path, self.values = path, dict[str, Any]()
        self._write()

    def add(self, **values: Any) -> None:
        """Add values and write the file. Values that JSON cannot hold, such as NaN, fail the step and are left out."""
        json.dumps(values, allow_nan=False, default=str)
        self.values.update(values)
        self._write()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record how long a step takes. A failing step is recorded under `failed`, and the next step runs."""
        note(f"{self._path.stem}: {name}")
        began = time.perf_counter()
        try:
            yield
        except Skipped as reason:
            self.values.setdefault("skipped", {})[name] = str(reason)
        except Exception as error:
            note(traceback.format_exc())
            self.values.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"[-1500:]
        self.values.setdefault("seconds", {})[name] = round(time.perf_counter() - began, 1)
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._path.with_suffix(".part")
        whole.write_text(json.dumps(self.values, indent=1, allow_nan=False, default=str) + "\n")
        os.replace(whole, self._path)


class Skipped(Exception):
    """A step cannot run here; the message says why."""


def note(text: str) -> None:
    """Print a note on stderr; stdout is for the JSON."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def bf16_peak_tflops(name: str) -> float | None:
    """Return the dense bfloat16 peak of a device by its name; None where it is unknown."""
    return DENSE_BF16_TFLOPS.get(name)


def finish() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the seconds that work takes, GPU work included."""
    finish()
    began = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - began


def run(*command: str, hide_gpu: bool = False, threads: int | None = None) -> str:
    """Run a command and return its stdout. RuntimeError with the end of its output where it fails."""
    env = {**os.environ}
    if hide_gpu:
        env["CUDA_VISIBLE_DEVICES"] = ""
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-1200:]}")
    return done.stdout


def cli(*arguments: str, hide_gpu: bool = False) -> dict[str, Any]:
    """Run a tokenshards command with --json and return its report."""
    said = run(sys.executable, str(ROOT / "cli.py"), *arguments, "--json", hide_gpu=hide_gpu)
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found
