"""Write golden runs of the first version: python -m tests.make_golden_runs

A finished training, the same one killed between two checkpoints, a half-done `tokenize` and the dataset that it would have become: what
people have on their disks. They were made once, by the code before the first release; `tests/integration/test_golden_runs.py` evaluates,
resumes and completes them. Nothing here makes them again where they exist, because later code would make other ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

RUNS = Path(__file__).parent / "data" / "golden" / "runs_v1"
WORK = Path("/tmp/tokenshards-golden")
"""Its name stands in the files: a place that says nothing of who made them."""
IMAGES, CLASSES, SIDE = 40, 3, 16
SHARD_ROWS = 10
MODIFIED_SECONDS = 1_700_000_000
STEP_OF_DEATH = 6
"""Of 3 epochs of 4 steps, with a checkpoint after every second one."""


def write_golden_images(folder: Path) -> None:
    """Write the images, the same bytes everywhere: PNG files without compression, of one age."""
    for index in range(IMAGES):
        blocks = hashlib.shake_256(f"golden image {index}".encode()).digest(4 * 4 * 3)
        cell = SIDE // 4
        rows = b"".join(b"\0" + b"".join(blocks[3 * (4 * (y // cell) + x // cell) :][:3] for x in range(SIDE)) for y in range(SIDE))
        path = folder / f"class_{index % CLASSES}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(rows))
        os.utime(path, ns=(MODIFIED_SECONDS * 10**9,) * 2)


def _png(rows: bytes) -> bytes:
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows + struct.pack(">I", zlib.adler32(rows))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)), (b"IDAT", stored), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tokenize_arguments(images: Path, out: Path) -> list[str]:
    """Return the command that the half-done output was started by."""
    fit = ["--size", str(SIDE), "--patch", "4", "--codes", "16", "--levels", "2"]
    return ["tokenize", str(images), str(out), *fit, "--shard-rows", str(SHARD_ROWS), "--workers", "1", "-q"]


def train_arguments(tokens: Path, run: Path, cache: Path) -> list[str]:
    """Return the command of the training: every random choice that a run of then could make."""
    settings = [
        "model.stem=patch",
        "model.width=8",
        "model.depth=2",
        "model.heads=2",
        "model.drop_path=0.2",
        "train.warmup_epochs=0.5",
        "train.accumulate=2",
    ]
    settings += ["train.checkpoint_steps=2", "augment.flip_prob=0.5", "augment.mixup_alpha=0.4", "augment.coloradapt_prob=0.5"]
    settings += ["augment.noise_prob=0.75", "augment.dropout_prob=0.1", "augment.crop_share=1.0"]
    sets = [word for setting in settings for word in ("--set", setting)]
    options = ["--val", str(tokens), "--out", str(run), "--epochs", "3", "--batch-size", "6", "--model", "vit_nano", "--ema", "0.9"]
    return ["train", str(tokens), *options, "--seed", "5", "--fraction", "0.7", "--device", "cpu", "--cache-dir", str(cache), "-q", *sets]


def run_cli(*arguments: str, fault: str = "", expect: int = 0) -> str:
    cli = Path(__file__).resolve().parents[1] / "cli.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"TOKENSHARDS_FAULT": fault} if fault else {})}
    done = subprocess.run([sys.executable, str(cli), *arguments], env=environment, capture_output=True, text=True)
    if done.returncode != expect:
        raise RuntimeError(f"{arguments}: exit code {done.returncode}, expected {expect}\n{done.stderr}")
    return done.stdout


def keep_both_outputs(folder: Path, work: Path, arguments: Callable[[Path], list[str]], skip: int) -> None:
    """Write `folder`/tokens, a finished output, and `folder`/half_done, whose driver was killed after the commit of `skip` + 1 shards.

    `work`: folder in which they are made; `arguments`: the command that makes an output at a place.
    """
    run_cli(*arguments(work / "tokens"))
    fault = f"point=after-commit-put,victim=driver,skip={skip},log={work / 'commits.log'}"
    run_cli(*arguments(work / "half_done"), fault=fault, expect=-signal.SIGKILL)
    for name in ("tokens", "half_done"):
        shutil.copytree(work / name, folder / name, ignore=shutil.ignore_patterns("runs", "README.md"))
    print(f"{folder}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()):,} bytes")


def main() -> None:
    """Make them all below WORK, and copy what is to be kept."""
    if RUNS.exists():
        print(f"{RUNS} is there and stays as it is")
        return
    shutil.rmtree(WORK, ignore_errors=True)
    images, tokens, half = WORK / "images", WORK / "tokens", WORK / "half_done"
    write_golden_images(images)
    run_cli(*tokenize_arguments(images, tokens))
    fault = f"point=after-commit-put,victim=driver,skip=1,log={WORK / 'commits.log'}"
    run_cli(*tokenize_arguments(images, half), fault=fault, expect=-signal.SIGKILL)
    finished, interrupted = WORK / "finished", WORK / "interrupted"
    run_cli(*train_arguments(tokens, finished, WORK / "cache"))
    fault = f"point=after-training-step,skip={STEP_OF_DEATH},log={WORK / 'steps.log'}"
    run_cli(*train_arguments(tokens, interrupted, WORK / "cache"), fault=fault, expect=-signal.SIGKILL)
    measured = {
        weights: json.loads(run_cli("evaluate", str(finished), str(tokens), "--weights", weights, "--device", "cpu", "--json"))
        for weights in ("best", "last")
    }
    for folder in (tokens, half, finished, interrupted):
        shutil.copytree(folder, RUNS / folder.name, ignore=shutil.ignore_patterns("runs", "tensorboard", "*.png", ".*"))
    (RUNS / "evaluated.json").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    print(f"{RUNS}: {sum(path.stat().st_size for path in RUNS.rglob('*') if path.is_file()):,} bytes")


if __name__ == "__main__":
    main()
