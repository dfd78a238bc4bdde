"""What are token datasets good for? Learning classes one group after another, few bytes, and the class of each pixel.

    python infra/bench/scenarios.py --data DIR

DIR has train/ and val/ with class folders (default: Tiny-ImageNet-10 beside the repository, or else generated images). Everything runs on
64 pixels. Tokens are stored with the codec `compact`, of two kinds: `pixel_codes` (patch-kmeans, the default tokenizer) and `recognition`
(layered-kmeans with 1,024 codes).
- `continual`: five groups of two classes, with a replay memory of 20 and 100 kB: the command `continual` on either kind of tokens, against
  JPEG files of as many bytes an image and original files that fit the memory.
- `curve`: the command `curve` on recognition tokens at 10, 40 and 160 kB, against small JPEGs and fewer original files.
- `dense`: shapes are drawn over the images (`shapes.py`). A segmenter with the same network and head learns their masks from pixel codes,
  from recognition tokens and from pixels, each for the same CPU seconds of one thread.

Three seeds. `--work` keeps everything, so that an interrupted bench continues; `--only` and `--seeds` select a part. Intervals are 95 % of
a bootstrap over measured images and seeds, paired between sides. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from accuracy_per_byte import DATA
from byte_budgets import generate_images
from dense_sides import KINDS, SIDES, dense_summary, prepare_dense, run_dense

import tokenshards

PARTS = ("continual", "curve", "dense")
CONTINUAL_MINUTES = 0.15
"""Of each of the five steps of a chain."""
REPLAY, CURVE_BYTES = "20kB,100kB", "10kB,40kB,160kB"
CURVE_MINUTES = 0.3
DENSE_SECONDS = 150.0
HEADS = ("linear",)


def options_of(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="folder with train/ and val/; default: Tiny-ImageNet-10 beside the repository")
    parser.add_argument("--work", type=Path, help="folder that keeps prepared data and results; default: in the temp folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=("linear", "upernet"), help="heads of the segmenter")
    parser.add_argument("--quick", action="store_true", help="a run of some minutes that shows that everything works, nothing more")
    options = parser.parse_args()
    options.scale = 0.02 if options.quick else 1.0
    if options.quick:
        options.seeds = min(2, options.seeds)
    return options


def tokens_of(side: str, data: Path, work: Path) -> dict[str, Any]:
    """Store the images as tokens of a kind, what is missing of them; return where they are and the bytes of an image."""
    train, val = (str(work / f"{side}.{part}") for part in ("train", "val"))
    for part, place, given in (("train", train, KINDS[side]), ("val", val, {"tokenizer": train})):
        tokenshards.tokenize(str(data / part), place, codec="compact", workers=1, **given)
    dataset = tokenshards.open_dataset(train)
    mean = dataset.manifest.totals["token_bytes"] / len(dataset)
    return {"train": train, "val": val, "bytes_per_image": round(mean, 1)}


def figures(result: Any) -> dict[str, Any]:
    """Return the JSON of a result without its place on this machine."""
    return {name: value for name, value in result.to_json().items() if name != "out"}


def continual_part(data: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of `continual` for each kind of tokens; the chains of reference are those of recognition tokens alone."""
    found = {}
    for side in KINDS:
        tokens = tokens_of(side, data, work)
        result = tokenshards.continual(
            tokens["train"],
            val=tokens["val"],
            images=str(data / "train"),
            val_images=str(data / "val"),
            replay=REPLAY,
            steps=5,
            minutes=CONTINUAL_MINUTES * options.scale,
            seeds=options.seeds,
            references=side == "recognition",
            out=str(work / f"continual.{side}"),
        )
        found[side] = {"bytes_per_image": tokens["bytes_per_image"], **figures(result)}
    return found


def curve_part(data: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of `curve`."""
    tokens = tokens_of("recognition", data, work)
    result = tokenshards.curve(
        tokens["train"],
        val=tokens["val"],
        images=str(data / "train"),
        val_images=str(data / "val"),
        bytes=CURVE_BYTES,
        minutes=CURVE_MINUTES * options.scale,
        seeds=options.seeds,
        out=str(work / "curve"),
    )
    return {"bytes_per_image": tokens["bytes_per_image"], **figures(result)}


def dense_part(data: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return mean IoU of each side and head, with intervals."""
    made = prepare_dense(data, work, options.quick)
    seconds, seeds = DENSE_SECONDS * options.scale, list(range(options.seeds))
    runs = run_dense(work, options.heads, seeds, seconds, options.workers)
    spent = [run["cpu_seconds"] for run in runs]
    return {
        "sides": made,
        "results": dense_summary(runs, seeds),
        "cpu_seconds": [min(spent), max(spent)],
        "epochs": {
            f"{side} {head}": [run["epochs"] for run in runs if (run["side"], run["head"]) == (side, head)]
            for side in SIDES
            for head in options.heads
        },
    }


def main() -> None:
    options = options_of(str(__doc__))
    work = options.work or Path(tempfile.gettempdir()) / "tokenshards-scenarios"
    work.mkdir(parents=True, exist_ok=True)
    data = options.data or (DATA if DATA.is_dir() else None)
    if data is None:
        data = work / "generated"
        if not data.exists():
            generate_images(data)
    parts = {"continual": continual_part, "curve": curve_part, "dense": dense_part}
    found = {name: parts[name](data, work, options) for name in options.only}
    print(json.dumps({"name": "scenarios", "data": data.name, "seeds": options.seeds, "quick": options.quick, **found}))


if __name__ == "__main__":
    sys.exit(main())
