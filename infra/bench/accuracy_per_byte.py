"""How much accuracy does a byte of storage buy? Tokens against JPEG and WebP at the same bytes an image, and against full pixels.

    python infra/bench/accuracy_per_byte.py --data DIR --plot FILE.png

DIR has train/ and val/ with class folders (default: Tiny-ImageNet-10 beside the repository, or else generated images). Everything runs on
64 pixels. All of val/ and a part of train/, an equal share of each class, are held out; only the final count sees them. The network (a
residual network through the timm bridge), steps, batches, optimiser, schedule and augmentations are the same for all sides:
- `pixels`: full images;
- `tokens_N`: N bytes an image, one byte per id, from shards through the loader, id augmentations and embedding of this project;
- `compact_N`: the same with tokens that take N bytes with the codec `compact`, tokenizer and model included (`token_budgets.py`);
- `jpeg_N`, `webp_N`: decoded images whose bytes are N on average (`byte_budgets.py` explains what counts and how settings are chosen);
- `recognition_N`, and with `--networks` `latent-ids_N`: the network gets the ids themselves, through their embedding and a stem adaptor;
  codec `compact` (`id_sides.py`);
- `vq_N`, `latent_N`, `latent-compact_N`, with `--networks`: N bytes from tokenizers with networks, decoded images (`network_sides.py`);
- `jpeg-own_N`, `webp-own_N`, for the sizes of `--own-qualities`: as `jpeg_N` and `webp_N`, with a quality for every single image.

Tokenizers, resolutions and qualities are fixed before any training and see training images alone. README.md beside this file says how the
recipe was chosen. `--work` keeps the prepared data and the result of every run, so that an interrupted bench continues; `--only` and
`--seeds` select a part. Intervals are 95 % of a paired bootstrap over held-out images and seeds. The last line is one JSON object: `ratio`
is top-1 of tokens at 512 bytes over top-1 of full pixels and should be 0.95 or more; `over_best_baseline` should be clear of zero at 128
bytes and less; `crossover_bytes` is the size at which the better of JPEG and WebP overtakes tokens, interpolated between two sizes.

Shapes: S seeds, N held-out images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from byte_budgets import SIZES, generate_images, prepare_baseline, prepare_images, split_files
from id_sides import RECOGNITION, prepare_ids
from network_sides import LATENT_COMPACT, LATENT_LEVELS, NETWORKS, VQ, prepare_network
from paired_runs import ID_SIDES, Job, Recipe, correctness, in_processes, run_jobs
from token_budgets import CHOICES, prepare_tokens

from tokenshards.stem_adaptors.comparison.paired import interval, resampled

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "tiny_imagenet_10"
HELD_OUT = 2000
CODECS = ("jpeg", "webp")
OWN_CODECS = ("jpeg-own", "webp-own")
CHOSEN = {**CHOICES, "recognition": RECOGNITION}
"""Settings that, changed, make a side anew."""
SIDES = {
    **CHOSEN,
    "latent-ids": LATENT_COMPACT,
    "vq": VQ,
    "latent": LATENT_LEVELS,
    "latent-compact": LATENT_COMPACT,
}
"""Sizes and settings of each kind of side that is not a file."""
STORED = ("compact", "recognition", "latent-ids", "latent-compact")
"""Kinds that are stored with the codec `compact`."""
WITH_NETWORKS = (*NETWORKS, "latent-ids")
LINES = (
    ("tokens", "C0", "-", "tokens, a byte an id"),
    ("compact", "C5", "-", "tokens, codec compact"),
    ("recognition", "C8", "-", "recognition tokens, codec compact, from ids"),
    ("latent-ids", "C9", "-", "latent-kmeans (taef2), codec compact, from ids"),
    ("vq", "C3", "-", "vq-autoencoder, decoded"),
    ("latent", "C4", "-", "latent-kmeans (taef2), decoded"),
    ("latent-compact", "C6", "-", "latent-kmeans (taef2), codec compact, decoded"),
    ("jpeg", "C1", "-", "JPEG (scan bytes)"),
    ("webp", "C2", "-", "WebP (whole files)"),
    ("jpeg-own", "C1", ":", "JPEG, a quality for each image"),
    ("webp-own", "C2", ":", "WebP, a quality for each image"),
)
SHOULD_BE = {"ratio": 0.95, "clear_of_zero_up_to": 128}


def options_of(description: str) -> argparse.Namespace:
    """Return the options that both accuracy benches take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--data", type=Path, help="folder with train/ and val/; default: Tiny-ImageNet-10 beside the repository, else generated"
    )
    parser.add_argument(
        "--work", "--results-dir", type=Path, help="folder that keeps prepared data and results; default: in the temp folder"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="train these sides alone, such as tokens_64")
    parser.add_argument(
        "--own-qualities", type=int, nargs="+", default=[], metavar="N", choices=SIZES, help="sizes with baselines of rate control too"
    )
    parser.add_argument("--networks", action="store_true", help="sides of tokenizers with networks too")
    parser.add_argument("--epochs", type=int, help="other than the recipe's")
    parser.add_argument("--plot", type=Path, help="PNG of accuracy against bytes")
    parser.add_argument("--quick", action="store_true", help="a run of a minute or two that shows that everything works, nothing more")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs = options.seeds[:2], options.epochs or 1
    return options


def prepared(options: argparse.Namespace, sides: list[str]) -> tuple[Path, dict[str, Any]]:
    """Prepare the sides that are missing; return the work folder and how each side was made."""
    data = options.data or (DATA if DATA.is_dir() else None)
    name = hashlib.sha256(f"{data and data.resolve()} {options.quick}".encode()).hexdigest()[:8]
    work = options.work or Path(tempfile.gettempdir()) / f"tokenshards-accuracy-{name}"
    work.mkdir(parents=True, exist_ok=True)
    if data is None:
        data = work / "generated"
        generate_images(data)
    split = split_files(data, HELD_OUT)
    if options.quick:
        split = replace(split, train=split.train[::15], held_out=split.held_out[::15])
    parts = (split.train, split.held_out)
    digest = hashlib.sha256("\n".join(f"{p.parent.name}/{p.name}" for files in parts for p in [*files, Path("/")]).encode()).hexdigest()[
        :16
    ]
    about = {"train": len(split.train), "held_out": len(split.held_out), "classes": len({path.parent.name for path in split.train})}
    print(f"{about['train']} training and {about['held_out']} held-out images of {about['classes']} classes from {data}; work in {work}")
    card = work / "sides.json"
    made: dict[str, Any] = json.loads(card.read_text()) if card.exists() else {}
    if made.get("images") != digest:
        made = {"images": digest, "split": about, "sides": {}}
        prepare_images(work, split)
    for side, choice in ((f"{kind}_{size}", choice) for kind, choices in CHOSEN.items() for size, choice in choices.items()):
        found = made["sides"].get(side, {})
        if found and asdict(choice) != {name: found.get(name) for name in asdict(choice)}:
            del made["sides"][side]  # made by another tokenizer
    # The slowest side first, so that the last process to finish is a short one.
    waiting = sorted((side for side in sides if side not in made["sides"] and side != "pixels"), key=_weight)
    for side, found in in_processes(_prepare, [(work, side, options.quick) for side in waiting], options.workers):
        made["sides"][side] = found
        card.write_text(json.dumps(made))
        print(f"{side}: {json.dumps(found)}", flush=True)
    card.write_text(json.dumps(made))
    return work, made


def digest_of(made: dict[str, Any], side: str) -> str:
    """Return a digest that differs for other images, and for other bytes of the same images."""
    return hashlib.sha256(json.dumps([made["images"], made["sides"].get(side)], sort_keys=True).encode()).hexdigest()[:16]


def _weight(side: str) -> tuple[int, int]:
    kind, _, size = side.partition("_")
    slowest = ("vq", "webp-own", "jpeg-own", "latent-ids", "latent-compact", "latent", "webp", "recognition", "compact", "tokens", "jpeg")
    return slowest.index(kind), -int(size)


def _prepare(work: Path, side: str, quick: bool) -> tuple[str, dict[str, Any]]:
    kind, _, size = side.partition("_")
    if kind in CHOICES:
        return side, prepare_tokens(work, kind, int(size), **({"fit_patches": 10_000} if quick else {}))
    if kind in ID_SIDES:
        return side, prepare_ids(work, kind, int(size))
    if kind in NETWORKS:
        return side, prepare_network(work, kind, int(size), quick=quick)
    return side, prepare_baseline(work, kind, int(size), **({"sample": 10} if quick else {}))


def summary(right: dict[str, Any], sizes: list[int], seeds: list[int]) -> dict[str, Any]:
    """Return accuracies, differences and their intervals."""
    means = resampled(right)
    top1 = {name: float(right_SN.mean()) for name, right_SN in right.items()}
    found: dict[str, Any] = {
        "top1": {name: [round(top1[name], 4), *interval(means[name])] for name in right},
        "top1_per_seed": {name: [round(float(value), 4) for value in right_SN.mean(axis=1)] for name, right_SN in right.items()},
    }
    over = {size: over_best(top1, means, size, CODECS) for size in sizes}
    found["over_best_baseline"] = {str(size): entry for size, entry in over.items() if entry}
    found["crossover_bytes"] = crossover({size: entry["difference"] for size, entry in over.items() if entry})
    for ours in STORED:
        differences = {size: over_best(top1, means, size, CODECS, ours) for size in SIDES[ours]}
        found[f"{ours}_over_best_baseline"] = {str(size): entry for size, entry in differences.items() if entry}
    own = {size: over_best(top1, means, size, OWN_CODECS) for size in sizes}
    found["over_best_with_own_qualities"] = {str(size): entry for size, entry in own.items() if entry}
    largest = f"tokens_{max(SIZES)}"
    if "pixels" in top1 and largest in top1:
        ratio = means[largest] / means["pixels"]
        found = {"ratio": round(top1[largest] / top1["pixels"], 4), "ratio_interval": interval(ratio), **found}
    return {**found, "seeds": seeds}


def over_best(
    top1: dict[str, float], means: dict[str, Any], size: int, kinds: tuple[str, ...], ours: str = "tokens"
) -> dict[str, Any] | None:
    """Return how far tokens of a size are above the better of some baselines of that size; None where a side was not run."""
    tokens, rivals = f"{ours}_{size}", [f"{kind}_{size}" for kind in kinds if f"{kind}_{size}" in top1]
    if tokens not in top1 or not rivals:
        return None
    # The mean picks the better baseline, and every resample picks again: the choice is part of the uncertainty.
    best = max(rivals, key=lambda name: top1[name])
    redrawn = means[tokens] - [max(draws) for draws in zip(*(means[name] for name in rivals), strict=True)]
    return {
        "best_baseline": best,
        "difference": round(top1[tokens] - top1[best], 4),
        "interval": interval(means[tokens] - means[best]),
        "interval_best_redrawn": interval(redrawn),
    }


def crossover(differences: dict[int, float]) -> float | str | None:
    """Return the bytes at which the difference first falls to zero, interpolated between sizes on a logarithmic scale."""
    sizes = sorted(differences)
    if not sizes:
        return None
    if differences[sizes[0]] <= 0:
        return f"below {sizes[0]}"
    for low, high in zip(sizes, sizes[1:], strict=False):
        if differences[high] <= 0:
            share = differences[low] / (differences[low] - differences[high])
            return round(math.exp(math.log(low) + share * math.log(high / low)), 1)
    return f"above {sizes[-1]}"


def table(found: dict[str, Any], made: dict[str, Any]) -> str:
    lines = [f"{'side':<20}{'bytes':>9}{'PSNR dB':>9}{'top-1':>8}  95 % interval"]
    for name, (top1, low, high) in found["top1"].items():
        side = made["sides"].get(name, {})
        size, quality = (f"{side[key]:.1f}" if key in side else "" for key in ("bytes", "psnr_db"))
        lines.append(f"{name:<20}{size:>9}{quality:>9}{top1:>8.4f}  {low:.4f} to {high:.4f}")
    compared = [("tokens", "over_best_baseline"), ("tokens", "over_best_with_own_qualities")]
    compared += [(ours, f"{ours}_over_best_baseline") for ours in STORED]
    for ours, size, entry in [(ours, size, entry) for ours, name in compared for size, entry in found[name].items()]:
        low, high = entry["interval"]
        lines.append(f"{size} bytes: {ours} over {entry['best_baseline']} {entry['difference']:+.4f}, {low:+.4f} to {high:+.4f}")
    return "\n".join(lines)


def plot(found: dict[str, Any], made: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for kind, colour, style, label in LINES:
        names = [name for name in found["top1"] if name.startswith(f"{kind}_")]
        if not names:
            continue
        sizes = [made["sides"][name]["bytes"] for name in names]
        values = [found["top1"][name] for name in names]
        errors = [[value[0] - value[1] for value in values], [value[2] - value[0] for value in values]]
        axes.errorbar(sizes, [value[0] for value in values], errors, marker="o", linestyle=style, capsize=3, color=colour, label=label)
    if "pixels" in found["top1"]:
        top1, low, high = found["top1"]["pixels"]
        axes.axhline(top1, color="black", linewidth=1, label="full pixels")
        axes.axhspan(low, high, color="black", alpha=0.08)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.set_xlabel("bytes per image")
    axes.set_ylabel("top-1 on held-out images, 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    options = options_of(__doc__.split("\n")[0])
    sizes = [64, 512] if options.quick else list(SIZES)
    every = ["pixels", *(f"{codec}_{size}" for size in sizes for codec in CODECS)]
    every += [f"{kind}_{size}" for size in sizes for kind in ("tokens", "compact", "recognition") if size in SIDES[kind]]
    every += [f"{kind}_{size}" for size in options.own_qualities for kind in OWN_CODECS]
    every += [f"{kind}_{size}" for size in sizes for kind in WITH_NETWORKS if options.networks and size in SIDES[kind]]
    sides = options.only or every
    if unknown := sorted(set(sides) - set(every)):
        sys.exit(f"--only has {unknown}; expected some of {', '.join(every)}")
    work, made = prepared(options, sides)
    possible = [side for side in sides if side == "pixels" or made["sides"][side]["bytes"] is not None]
    recipe = replace(Recipe(), **({"epochs": options.epochs} if options.epochs else {}))
    jobs = [Job(side, side, seed, recipe, digest_of(made, side)) for seed in options.seeds for side in possible]
    results = run_jobs(work, jobs, options.workers)
    right = {side: correctness(results, side, options.seeds) for side in possible}
    found = summary(right, sizes, options.seeds)
    print(table(found, made))
    if options.plot:
        plot(found, made, options.plot)
    seconds = [result["seconds"] for result in results.values()]
    cpu_seconds = [result["cpu_seconds"] for result in results.values()]
    line = {
        "name": "accuracy_per_byte",
        **found,
        "should_be": SHOULD_BE,
        "sides": {side: made["sides"][side] for side in sides if side in made["sides"]},
        "split": made["split"],
        "recipe": asdict(recipe),
        "parameters": next(iter(results.values()))["parameters"],
        "steps": next(iter(results.values()))["steps"],
        "seconds_per_run": {"median": sorted(seconds)[len(seconds) // 2], "most": max(seconds), "most_cpu": max(cpu_seconds)},
        "workers": options.workers,
        "quick": options.quick,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
