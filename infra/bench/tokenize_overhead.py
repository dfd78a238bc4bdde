"""What does `tokenize` cost beside the work itself? Compares its images per second with a bare loop on the same cores.

    python infra/bench/tokenize_overhead.py --data DIR

DIR holds images at any depth (default: the sample images beside the repository, or else generated JPEGs). They are hard-linked under
distinct names into two folders of N and 2 N files. Our side is `cli.py tokenize` as a user runs it, with planning, progress, commits and
manifest; its marginal rate is N / (seconds for 2 N - seconds for N), so that start-up cancels. The other side is a loop in as many
processes, one BLAS thread each. The loop reads the same N files, and decodes and encodes them with the same functions in the same batches;
its processes are started and warmed up before the clock runs. The sides take turns, and medians of the times count. The last line is one
JSON object. `ratio` is our rate over the loop's rate with all workers and should be 0.9 or more; `workers_2_over_1` compares our own rates
and should be 1.8 or more. `loop_2_over_1` is the same figure of the loop in the same minutes. `cpu_ratio` compares CPU seconds per image,
which other work on the machine disturbs least. The `_of_fastest` figures use the fastest run of each kind instead of the median.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT.parent / "shared" / "data" / "imagenet_samples"
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
SUFFIXES = {".jpeg", ".jpg", ".png", ".webp"}
BARE = "--bare-loop"


def generate_images(folder: Path, count: int = 200) -> None:
    """JPEGs of about 500 x 375 pixels: smooth random ground with noise on it, so that they compress like photographs."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(count):
        ground = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        pixels = np.asarray(ground, np.int16) + rng.normal(0, 12, (375, 500, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:05d}.jpg", quality=90)


def find_images(data: Path | None, root: Path) -> list[Path]:
    """Return the images below `data`, else the sample images beside the repository, else generated ones below `root`."""
    folder = data or (SAMPLES if SAMPLES.is_dir() else None)
    if folder is None:
        folder = root / "generated"
        folder.mkdir()
        generate_images(folder)
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def replicate(files: list[Path], folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        original = files[index % len(files)]
        copy = folder / f"{index:06d}{original.suffix.lower()}"
        try:
            os.link(original, copy)
        except OSError:  # another file system
            shutil.copyfile(original, copy)


def cli(*arguments: str) -> tuple[float, float]:
    """Run a command; return wall seconds, and CPU seconds with those of its workers."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "cli.py"), *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def bare_loop(tokenizer_folder: str) -> None:
    """The bare loop in its own process: reads a JSON list of files per line, writes one JSON line of wall and CPU seconds."""
    import numpy as np

    from tokenshards.pipeline.config import PlanConfig
    from tokenshards.pipeline.images.decode import decode_image
    from tokenshards.pipeline.malloc import keep_freed_memory
    from tokenshards.pipeline.storage.store import Store
    from tokenshards.pipeline.tokenizers.directory import load_tokenizer

    keep_freed_memory()  # as in the workers of `tokenize`
    tokenizer = load_tokenizer(Store(tokenizer_folder), "")
    preprocess = tokenizer.spec.preprocess
    rows = PlanConfig().batch_rows
    images_BHWC = np.zeros((rows, preprocess.size, preprocess.size, 3), np.uint8)

    def work(files: list[str]) -> None:
        for first in range(0, len(files), rows):
            batch = files[first : first + rows]
            for slot, file in enumerate(batch):
                with open(file, "rb") as handle:
                    data = handle.read()
                images_BHWC[slot] = decode_image(data, preprocess).pixels_HWC
            tokenizer.encode(images_BHWC[: len(batch)])

    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        work(json.loads(line))
        print(json.dumps([time.perf_counter() - start, time.process_time() - cpu]), flush=True)


class BareLoop:
    """Processes that share a list of files."""

    def __init__(self, tokenizer: Path, workers: int, warm_up: list[str]) -> None:
        command = [sys.executable, __file__, BARE, str(tokenizer)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
        self._processes = [subprocess.Popen(command, **pipes) for _ in range(workers)]  # type: ignore[call-overload]
        self.run(warm_up)

    def run(self, files: list[str]) -> tuple[float, float]:
        """Return wall seconds until the last process is done, and the CPU seconds of all."""
        start = time.perf_counter()
        for index, process in enumerate(self._processes):
            process.stdin.write(json.dumps(files[index :: len(self._processes)]) + "\n")
            process.stdin.flush()
        spent = [json.loads(process.stdout.readline()) for process in self._processes]
        return time.perf_counter() - start, sum(cpu for _, cpu in spent)

    def stop(self) -> None:
        for process in self._processes:
            process.stdin.close()
            process.wait()


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    found = find_images(options.data, root)
    count, all_workers = options.images, options.workers
    few, many = root / "few", root / "many"
    replicate(found, few, count)
    replicate(found, many, 2 * count)
    files = [str(path) for path in sorted(few.iterdir())]
    size = sum(path.stat().st_size for path in found) / len(found)
    print(f"{count} and {2 * count} files made of {len(found)} images, {size:,.0f} bytes on average")
    tokenizer = root / "tok"
    cli("fit-tokenizer", str(few), str(tokenizer), "--sample", "500")

    def tokenize(folder: Path, workers: int) -> tuple[float, float]:
        out = root / "out"
        shutil.rmtree(out, ignore_errors=True)
        options_ = ("--workers", str(workers), "--shard-rows", str(options.shard_rows), "--quiet")
        return cli("tokenize", str(folder), str(out), "--tokenizer", str(tokenizer), *options_)

    tokenize(few, all_workers)  # warms byte code and page cache
    loops = {workers: BareLoop(tokenizer, workers, files[:128]) for workers in sorted({1, all_workers})}
    runs: dict[int, dict[str, list[tuple[float, float]]]] = {workers: {"small": [], "large": [], "loop": []} for workers in loops}
    try:
        for repeat in range(options.repeats):
            for workers, loop in loops.items():
                spent = runs[workers]
                for name, folder in (("small", few), ("large", many)):
                    spent["loop"].append(loop.run(files))
                    spent[name].append(tokenize(folder, workers))
                print(f"repeat {repeat}, {workers} workers: {text(rates(spent, count, last=1))}", flush=True)
    finally:
        for loop in loops.values():
            loop.stop()
    found = {workers: rates(spent, count) for workers, spent in runs.items()}
    fastest = {workers: rates(spent, count, pick=min) for workers, spent in runs.items()}
    one, most = found[1], found[all_workers]
    return {
        "name": "tokenize_overhead",
        "ratio": most["ratio"],
        "limit": 0.9,
        f"workers_{all_workers}_over_1": round(most["tokenize_images_per_second"] / one["tokenize_images_per_second"], 3),
        f"loop_{all_workers}_over_1": round(most["loop_images_per_second"] / one["loop_images_per_second"], 3),
        "ratio_of_fastest": fastest[all_workers]["ratio"],
        f"workers_{all_workers}_over_1_of_fastest": round(
            fastest[all_workers]["tokenize_images_per_second"] / fastest[1]["tokenize_images_per_second"], 3
        ),
        "images": count,
        "bytes_per_image": round(size),
        "shard_rows": options.shard_rows,
        "repeats": options.repeats,
        "cpu_count": os.cpu_count(),
        "workers": {str(workers): {**found[workers], "wall_and_cpu_seconds": runs[workers]} for workers in runs},
    }


def rates(
    spent: dict[str, list[tuple[float, float]]], count: int, last: int = 0, pick: Callable[[Iterable[float]], float] = statistics.median
) -> dict[str, float]:
    """Images per second of both sides from the medians (or another `pick`) of all runs, or of the `last` repeats."""

    def picked(name: str, which: int) -> float:
        values = spent[name][-last * (2 if name == "loop" else 1) :]
        return pick(value[which] for value in values)

    wall, cpu = ({name: picked(name, which) for name in spent} for which in (0, 1))
    more_wall, more_cpu = max(1e-9, wall["large"] - wall["small"]), max(1e-9, cpu["large"] - cpu["small"])
    return {
        "ratio": round(wall["loop"] / more_wall, 3),
        "tokenize_images_per_second": round(count / more_wall, 1),
        "loop_images_per_second": round(count / wall["loop"], 1),
        "cpu_ratio": round(cpu["loop"] / more_cpu, 3),
        "tokenize_cpu_ms_per_image": round(1e3 * more_cpu / count, 3),
        "loop_cpu_ms_per_image": round(1e3 * cpu["loop"] / count, 3),
        "tokenize_whole_run_images_per_second": round(2 * count / wall["large"], 1),
        "fixed_seconds": round(2 * wall["small"] - wall["large"], 2),
    }


def text(found: dict[str, float]) -> str:
    return (
        f"tokenize {found['tokenize_images_per_second']:.0f} images/s (and {found['fixed_seconds']:.1f} s once), "
        f"bare loop {found['loop_images_per_second']:.0f}; CPU per image {found['tokenize_cpu_ms_per_image']:.2f} "
        f"and {found['loop_cpu_ms_per_image']:.2f} ms"
    )


def main() -> None:
    if sys.argv[1:2] == [BARE]:
        bare_loop(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with images; default: sample images beside the repository, else generated")
    parser.add_argument("--images", type=int, default=2000, help="N; the runs have N and 2 N images")
    parser.add_argument("--shard-rows", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="tokenize-overhead-"))
    try:
        result = measure(options, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
