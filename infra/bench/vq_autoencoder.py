"""Does a small network trained here reconstruct images better than k-means of patches, at the same bits, in minutes on a CPU?

    python infra/bench/vq_autoencoder.py --data DIR

DIR has train/ and val/ with class folders (default: Tiny-ImageNet-10 beside the repository, or else generated images). `fit-tokenizer` runs
with its defaults on train/; every image of val/ goes through either tokenizer and back. `vq-autoencoder` and `patch-kmeans` have the same
grid, levels and codes, hence the same bits; `patch-kmeans-beam-8` is the slower and closer encoding of the latter. `psnr_gain_db` is the
mean PSNR of the network minus that of the better k-means. `ratio` is the smaller of two figures: allowed minutes over minutes taken, and
mean squared error of the k-means over that of the network (from the mean PSNRs); both bars are 1.

Shapes: H and W pixels, C = 3 channels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
from byte_budgets import generate_images  # noqa: E402

from tokenshards.pipeline.images.decode import decode_image  # noqa: E402
from tokenshards.pipeline.quality.fidelity import Fidelity  # noqa: E402
from tokenshards.pipeline.storage.store import Store  # noqa: E402
from tokenshards.pipeline.tokenizers.base import Tokenizer  # noqa: E402
from tokenshards.pipeline.tokenizers.directory import load_tokenizer  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "tiny_imagenet_10"
MINUTES = 10.0
KINDS = {
    "vq-autoencoder": ("--kind", "vq-autoencoder"),
    "patch-kmeans": ("--kind", "patch-kmeans"),
    "patch-kmeans-beam-8": ("--kind", "patch-kmeans", "--beam", "8"),
}


def fit(train: Path, out: Path, words: tuple[str, ...]) -> float:
    """Return the seconds of the whole command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tokenshards.cli", "fit-tokenizer", str(train), str(out), *words], check=True, env=environment, cwd=ROOT
    )
    return time.perf_counter() - began


def measured(tokenizer: Tokenizer, files: list[Path]) -> dict[str, Any]:
    fidelity, seconds = Fidelity(), 0.0
    for start in range(0, len(files), 64):
        images = np.stack([decode_image(path.read_bytes(), tokenizer.spec.preprocess).pixels_HWC for path in files[start : start + 64]])
        began = time.perf_counter()
        tokens = tokenizer.encode(images)
        seconds += time.perf_counter() - began
        fidelity.add(images, tokenizer.decode(tokens))
    layout = tokenizer.spec.layout
    return {
        "bits": float(layout.sites * sum(np.log2(tokenizer.spec.vocabulary))),
        "psnr_db": round(fidelity.mean_psnr_db, 3),
        "encoded_images_per_second": round(len(files) / seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="folder with train/ and val/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or (DATA if DATA.is_dir() else None)
        if data is None:
            data = Path(folder) / "images"
            generate_images(data)
        files = sorted(path for path in (data / "val").glob("*/*") if path.is_file())
        sides: dict[str, dict[str, Any]] = {}
        for kind, words in KINDS.items():
            out = Path(folder) / kind
            seconds = fit(data / "train", out, words)
            sides[kind] = {"fit_seconds": round(seconds, 1), **measured(load_tokenizer(Store(str(out))), files)}
            print(kind, json.dumps(sides[kind]), file=sys.stderr, flush=True)
    if len({side["bits"] for side in sides.values()}) != 1:
        sys.exit(f"the sides have different bits: {sides}")
    network, kmeans = sides["vq-autoencoder"], max(side["psnr_db"] for kind, side in sides.items() if kind != "vq-autoencoder")
    gain = network["psnr_db"] - kmeans
    line = {
        "name": "vq_autoencoder",
        "ratio": round(min(MINUTES * 60 / network["fit_seconds"], 10 ** (gain / 10)), 3),
        "psnr_gain_db": round(gain, 3),
        "allowed_minutes": MINUTES,
        "sides": sides,
        "images": len(files),
        "load": [round(value, 2) for value in os.getloadavg()],
        "cores": os.cpu_count(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
