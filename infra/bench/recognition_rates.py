"""What do ids for recognition cost? Fit, encoding and `tokenize` of layered-kmeans beside the default, patch-kmeans.

    python infra/bench/recognition_rates.py --data DIR

DIR has images of 64 px (default: Tiny-ImageNet-10 beside the repository, or else generated ones). `fit_cpu_seconds` is the fit by
`fit-tokenizer` on all of them. `encode` is images per CPU second of one process of one thread, the best of some turns on decoded images.
`tokenize` is what the command tells with two workers, the tokenizer given, and the memory of its largest process. The last line is one
JSON object; `ratio` is the encoding rate of layered-kmeans over 600 and should be at least 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from byte_budgets import SIDE, generate_images, load_pixels

import tokenshards

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "tiny_imagenet_10" / "train"
KINDS = ("patch-kmeans", "layered-kmeans")
BAR, ENCODED, TURNS = 600.0, 512, 5


def fitted(kind: str, data: Path, out: Path) -> float:
    """Fit a tokenizer by its command; return the CPU seconds of that process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "tokenshards.cli", "fit-tokenizer", str(data), str(out), "--kind", kind, "--size", str(SIDE)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


def encode_rate(tokenizer: Path, data: Path) -> float:
    files = sorted(path for path in data.glob("*/*") if path.is_file())
    images_BHWC = load_pixels(files[:: max(1, len(files) // ENCODED)][:ENCODED])
    plain = tokenshards.load_tokenizer(str(tokenizer)).tokenizer
    seconds = []
    for _ in range(TURNS):
        begun = time.process_time()
        for start in range(0, len(images_BHWC), 64):
            plain.encode(images_BHWC[start : start + 64])
        seconds.append(time.process_time() - begun)
    return round(len(images_BHWC) / min(seconds), 1)


def tokenized(tokenizer: Path, data: Path, out: Path) -> dict[str, Any]:
    """Run `tokenize` in a process of its own, so that its memory can be told."""
    code = (
        "import json, resource, sys, tokenshards\n"
        "report = tokenshards.tokenize(sys.argv[1], sys.argv[2], tokenizer=sys.argv[3], workers=2)\n"
        "peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
        "print(json.dumps({'images_per_second': report.to_json()['images_per_second'], 'peak_mb': round(max(peaks))}))"
    )
    command = [sys.executable, "-c", code, str(data), str(out), str(tokenizer)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with class folders of images")
    data = parser.parse_args().data or (DATA if DATA.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="tokenshards-rates-") as folder:
        work = Path(folder)
        if data is None:
            generate_images(work / "generated")
            data = work / "generated" / "train"
        found: dict[str, Any] = {}
        for kind in KINDS:
            tokenizer = work / f"{kind}.tok"
            found[kind] = {"fit_cpu_seconds": fitted(kind, data, tokenizer), "encode": encode_rate(tokenizer, data)}
            found[kind]["tokenize"] = tokenized(tokenizer, data, work / f"{kind}.tokens")
            print(f"{kind}: {json.dumps(found[kind])}", flush=True)
    ratio = round(found["layered-kmeans"]["encode"] / BAR, 3)
    print(json.dumps({"name": "recognition_rates", "ratio": ratio, "should_be": 1.0, "cores": os.cpu_count(), "kinds": found}))


if __name__ == "__main__":
    main()
