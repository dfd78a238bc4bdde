"""Did a change cost CPU time? Compares two checkouts: CPU seconds of the same work in interleaved pairs.

    python infra/bench/before_after.py --before OLD_CHECKOUT --after . --data IMAGES --pairs 9

Three parts, named after the benches that measure them in detail:

- `tokenize_overhead`: `cli.py tokenize` with two workers on some hundred images, all processes counted;
- `driver_scale`: the driver of a Ray run over shards that only sleep, measured by `driver_scale.py` of that checkout;
- `loader_throughput`: 500 epochs of a `TokenLoader` over the tokens of these images from a warm cache, one process.

A pair is one run of each checkout; the checkouts take turns to go first. `ratio` is after over before, the median of the pairs; `interval`
is its 95 % bootstrap interval. The bar: no interval lies wholly above 1.03.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

BAR = 1.03
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
LOADER = """
import resource, sys, time
try:
    from tokenshards.stem_adaptors.config import LoaderConfig
    from tokenshards.stem_adaptors.data.loader import TokenLoader
    from tokenshards.pipeline.shards import open_dataset
except ImportError:
    from stem_adaptors.config import LoaderConfig
    from stem_adaptors.dataset import TokenLoader
    from pipeline.shards import open_dataset
loader = TokenLoader(open_dataset(sys.argv[1]), LoaderConfig(batch_size=64, cache_dir=sys.argv[2]))
list(loader)
start = time.process_time()
for _ in range(500):
    for _ in loader:
        pass
print(time.process_time() - start)
"""


def run(checkout: Path, *words: str, stdout: int | None = subprocess.DEVNULL) -> tuple[float, str]:
    """Run Python with arguments in a checkout; return its CPU seconds, children included, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(checkout)}
    done = subprocess.run([sys.executable, *words], cwd=checkout, env=env, check=True, stdout=stdout, stderr=subprocess.DEVNULL, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout or ""


class Work:
    """The same work for each checkout; every method returns CPU seconds."""

    def __init__(self, root: Path, images: Path, shards: int) -> None:
        self.root, self.images, self.shards = root, images, shards
        self._runs = 0

    def _folder(self) -> Path:
        self._runs += 1
        return self.root / f"run{self._runs}"

    def tokenize_overhead(self, checkout: Path) -> float:
        """All processes of one `tokenize`, its fit left out."""
        out = self._folder()
        words = [
            "tokenize",
            str(self.images),
            str(out),
            "--tokenizer",
            str(self.root / "tok"),
            "--workers",
            "2",
            "--shard-rows",
            "250",
            "-q",
        ]
        seconds, _ = run(checkout, "cli.py", *words, "--workers", "2", "--shard-rows", "250", "-q")
        shutil.rmtree(out)
        return seconds

    def driver_scale(self, checkout: Path) -> float:
        """The driver alone, per thousand shards."""
        words = ["--shards", str(self.shards), "--warm-up", "1000", "--actors", "2", "--traced-shards", "0", "--bare-calls", "0"]
        _, shown = run(checkout, "infra/bench/driver_scale.py", *words, stdout=subprocess.PIPE)
        found: dict[str, Any] = json.loads(shown.splitlines()[-1])
        return float(found["cpu_milliseconds_per_shard"])

    def loader_throughput(self, checkout: Path) -> float:
        """Five hundred epochs from a warm cache."""
        cache = self._folder()
        _, shown = run(checkout, "-c", LOADER, str(self.root / "dataset"), str(cache), stdout=subprocess.PIPE)
        shutil.rmtree(cache, ignore_errors=True)
        return float(shown)


def bootstrap(ratios: list[float], draws: int = 10_000) -> tuple[float, float]:
    """Return the 95 % interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def compare(work: Callable[[Path], float], before: Path, after: Path, pairs: int, bar: float = BAR) -> dict[str, Any]:
    """Run the pairs, after one run of each checkout that does not count."""
    for checkout in (before, after):
        work(checkout)
    ratios, seconds = [], []
    for index in range(pairs):
        order = (before, after) if index % 2 == 0 else (after, before)
        taken = {checkout: work(checkout) for checkout in order}
        ratios.append(taken[after] / taken[before])
        seconds.append((taken[before], taken[after]))
    low, high = bootstrap(ratios)
    return {
        "ratio": round(statistics.median(ratios), 4),
        "interval": [round(low, 4), round(high, 4)],
        "within_bar": low <= bar,
        "before": round(statistics.median(pair[0] for pair in seconds), 4),
        "after": round(statistics.median(pair[1] for pair in seconds), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="checkout of the older commit")
    parser.add_argument("--after", type=Path, required=True, help="checkout of the newer commit")
    parser.add_argument("--data", type=Path, required=True, help="folder with images")
    parser.add_argument("--copies", type=int, default=4, help="times that each image is tokenized")
    parser.add_argument("--shards", type=int, default=6000, help="of driver_scale")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--only", nargs="*", help="parts to run")
    options = parser.parse_args()
    before, after = options.before.resolve(), options.after.resolve()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        for copy in range(options.copies):
            for path in sorted(options.data.rglob("*.*")):
                if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
                    shutil.copyfile(path, root / "images" / f"{copy}_{path.name}")
        run(before, "cli.py", "fit-tokenizer", str(root / "images"), str(root / "tok"), "--size", "128", "--sample", "200")
        run(before, "cli.py", "tokenize", str(root / "images"), str(root / "dataset"), "--tokenizer", str(root / "tok"), "-q")
        work = Work(root, root / "images", options.shards)
        parts = {part.__name__: part for part in (work.tokenize_overhead, work.driver_scale, work.loader_throughput)}
        result: dict[str, Any] = {"name": "before_after", "pairs": options.pairs, "bar": BAR}
        for name, part in parts.items():
            if not options.only or name in options.only:
                result[name] = compare(part, before, after, options.pairs)
                print(f"{name}: {result[name]}", file=sys.stderr, flush=True)
    measured = [value["ratio"] for value in result.values() if isinstance(value, dict)]
    print(json.dumps({**result, "ratio": max(measured)}))


if __name__ == "__main__":
    main()
