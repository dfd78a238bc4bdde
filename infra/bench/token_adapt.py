"""How well does TokenAdapt move images that only exist as tokens? Ids after a mirror image, a rotation by 15 degrees and a random crop.

    python infra/bench/token_adapt.py --data TINY_IMAGENET_10 --latent-data JPEGS

Two tokenizers: the default one (k-means of patches, two levels) at 64 px on the images of train/ of --data, measured on some of val/; and
391 codes of taef2 latents at 256 px on --latent-data: 200 images to fit tokenizer and networks on, 50 to measure. Right are the ids that
the tokenizer gives to the moved image. Shares of right ids: `ids` over all ids, each level, and whole sites (all levels right).
TokenAdapt is compared with two ways of moving the grid directly: the ids of the nearest site, and the codes nearest to code vectors
resampled bicubic; `over_direct` is the difference to the better one of the two, with a 95 % bootstrap interval over images.

The last line is one JSON object: `ratio` is the smallest difference of `ids` over 0.05 and should be 1 or more; `clear` says whether every
interval is above zero. --work keeps tokenizers and states of fits: a bench that was
stopped continues, and more --epochs go on with a finished fit.

Shapes: M images, H and W pixels, L sites, Q ids per site.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from byte_budgets import generate_images  # noqa: E402
from latent_tokens import RememberingEncoder  # noqa: E402
from network_sides import TAEF2  # noqa: E402
from tokenize_overhead import find_images  # noqa: E402

from tokenshards.pipeline.canonical import sha256_hex  # noqa: E402
from tokenshards.pipeline.images.decode import DECODER, decode_image  # noqa: E402
from tokenshards.pipeline.shards.spec import Preprocess  # noqa: E402
from tokenshards.pipeline.storage.store import Store  # noqa: E402
from tokenshards.pipeline.tokenizers.base import Images, Tokenizer  # noqa: E402
from tokenshards.pipeline.tokenizers.config import FitConfig, LatentFitConfig  # noqa: E402
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, save_tokenizer  # noqa: E402
from tokenshards.pipeline.tokenizers.fitted.latent_fit import fit_latent_kmeans  # noqa: E402
from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import open_encoder  # noqa: E402
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import default_preprocess, fit_patch_kmeans  # noqa: E402
from tokenshards.stem_adaptors.training.adapt_fidelity import MOVES, fidelity_of, right_ids  # noqa: E402
from tokenshards.stem_adaptors.training.adapt_fit import AdaptFit  # noqa: E402
from tokenshards.stem_adaptors.training.adapt_fit_config import AdaptFitConfig  # noqa: E402

TINY = ROOT.parent / "shared" / "data" / "tiny_imagenet_10"
BAR = 0.05
RESAMPLES = 4000
Named = list[tuple[str, Images]]
SETTINGS = {
    "default": AdaptFitConfig(width=128, heads=1, epochs=6, learning_rate=2e-3),
    "taef2": AdaptFitConfig(width=64, heads=1, epochs=48, views=8, batch=4, learning_rate=2e-3),
}
"""For 10 and 20 minutes on 2 cores. A taef2 latent takes 0.2 s, so its fit sees each of eight views six times."""


def decoded(files: list[Path], preprocess: Preprocess) -> Named:
    found = {sha256_hex(data): data for data in (path.read_bytes() for path in files)}
    return [(name, decode_image(data, preprocess).pixels_HWC) for name, data in sorted(found.items())]


Side = tuple[Callable[[], Tokenizer], Named, Named]
"""What fits the tokenizer, the images that it and the networks are fitted to, and those to measure on."""


def default_side(options: argparse.Namespace, scratch: Path) -> Side:
    """Return the default tokenizer on the images of train/, to measure on those of val/."""
    data = options.data or (TINY if TINY.is_dir() else None)
    if data is None:
        data = scratch / "generated"
        generate_images(data)
    preprocess = default_preprocess(64, DECODER)
    fitted, measured = (
        decoded(sorted(path for path in (data / part).glob("*/*") if path.is_file()), preprocess) for part in ("train", "val")
    )
    if options.quick:
        fitted, measured = fitted[::20], measured[::20]
    return lambda: fit_patch_kmeans(iter(fitted), FitConfig(size=64), 64, preprocess)[0], fitted, measured[: options.measured]


def taef2_side(options: argparse.Namespace, scratch: Path) -> Side:
    """Return 391 codes of taef2 latents on 200 images, to measure on 50 others."""
    preprocess = Preprocess(size=256, filter="bicubic", exif_orientation=True, decoder=DECODER)
    images = decoded(find_images(options.latent_data, scratch), preprocess)
    fit_on, measured = (8, 4) if options.quick else (200, 50)
    opened = open_encoder(str(options.weights / "taef2_encoder.pth"), str(options.weights / "taef2_decoder.pth"))
    encoder = RememberingEncoder.from_arrays(opened.arrays())
    encoder.seen = {}
    config = LatentFitConfig(size=256, codes=32 if options.quick else 391, mirrored=True)
    fitted = images[:fit_on]
    return lambda: fit_latent_kmeans(iter(fitted), encoder, config, preprocess)[0], fitted, images[fit_on : fit_on + measured]


def interval(differences_M: np.ndarray) -> list[float]:
    """Return the central 95 % of the means of resampled images."""
    rng = np.random.default_rng(0)
    means = differences_M[rng.integers(0, len(differences_M), (RESAMPLES, len(differences_M)))].mean(axis=1)
    return [round(float(value), 4) for value in np.percentile(means, [2.5, 97.5])]


def over_direct(right: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Return for each move TokenAdapt minus the better direct way: of all ids, each level, whole sites, each with its interval."""
    found: dict[str, Any] = {}
    for move in MOVES:
        levels = right[move]["nothing"].shape[1] - 1
        columns = {"ids": slice(0, levels), **{f"level_{q}": slice(q, q + 1) for q in range(levels)}, "sites": slice(levels, None)}
        found[move] = {}
        for name, columns_of in columns.items():
            shares = {way: right[move][way][:, columns_of].mean(axis=1) for way in right[move]}
            direct = max(("direct_sites", "direct_codes"), key=lambda way: shares[way].mean())
            difference_M = shares["token_adapt"] - shares[direct]
            found[move][name] = {"difference": round(float(difference_M.mean()), 4), "interval": interval(difference_M), "against": direct}
    return found


def kept_tokenizer(make: Callable[[], Tokenizer], store: Store) -> Tokenizer:
    """Return the tokenizer of an earlier start, or fit it and keep it."""
    if store.info("tokenizer.json") is None:
        save_tokenizer(make(), store)
    return load_tokenizer(store)


def measure(name: str, side: Callable[..., Side], options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Fit and measure one side."""
    started = time.perf_counter()
    make, fitted, measured = side(options, work)
    if options.choose:
        apart = max(1, len(fitted) // 5)
        fitted, measured = fitted[:-apart], fitted[-apart:][: options.measured]
    work = work / f"{name}{'-choose' if options.choose else ''}{'-quick' if options.quick else ''}"
    tokenizer = kept_tokenizer(make, Store(str(work / "tokenizer")))
    config = SETTINGS[name]
    changes = {key: value for key in ("epochs", "width", "heads", "views") if (value := getattr(options, key))}
    if options.quick:
        changes |= {"epochs": 1, "width": 32, "views": 1 if config.views else 0}
    config = AdaptFitConfig(**{**asdict(config), **changes})

    def encode(pixels_BHWC: Images) -> Any:
        return tokenizer.encode(np.ascontiguousarray(pixels_BHWC)).ids_BLQ

    fit = AdaptFit(
        tokenizer.spec, tokenizer.codebook(), encode, fitted, config, device=torch.device("cpu"), held_out=max(1, len(fitted) // 50)
    )
    print(f"{name}: {fit.training_images} images to fit on, {len(measured)} to measure, {fit.steps} steps an epoch", flush=True)
    fit.run(Store(str(work)), lambda report: print(f"{name}: {report}", flush=True))
    right = right_ids(fit.adapter, tokenizer.spec, tokenizer.codebook(), encode, np.stack([pixels for _, pixels in measured]))
    result = {
        "images": fit.training_images,
        "measured": len(measured),
        "grid": list(fit.adapter.grid),
        "out_grid": list(fit.adapter.sizes.out_grid),
        "vocabulary": list(tokenizer.spec.vocabulary),
        "settings": asdict(config),
        "last_epoch": fit.reports[-1],
        "minutes_of_this_start": round((time.perf_counter() - started) / 60, 1),
        "right": fidelity_of(right),
        "over_direct": over_direct(right),
    }
    for move in MOVES:
        print(f"{name}: {move}: {result['right'][move]} {result['over_direct'][move]['ids']}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, help="folder with train/ and val/; default: Tiny-ImageNet-10 beside the repository, else generated"
    )
    parser.add_argument("--latent-data", type=Path, help="folder with 250 JPEGs for taef2; default: the samples beside the repository")
    parser.add_argument("--weights", type=Path, default=TAEF2, help="folder with taef2_encoder.pth and taef2_decoder.pth")
    parser.add_argument("--only", choices=sorted(SETTINGS), help="one of the two tokenizers")
    parser.add_argument("--measured", type=int, default=256, help="images of val/ to measure on, at 64 px")
    parser.add_argument("--epochs", type=int, help="other than the settings of this script")
    parser.add_argument("--width", type=int, help="likewise")
    parser.add_argument("--heads", type=int, help="likewise")
    parser.add_argument("--views", type=int, help="likewise")
    parser.add_argument("--choose", action="store_true", help="measure on a fifth of the images to fit on, which is held out then")
    parser.add_argument("--work", type=Path, help="folder that keeps the state of the fits; default: one that is removed at the end")
    parser.add_argument("--quick", action="store_true", help="a run of a minute that shows that everything works, nothing more")
    options = parser.parse_args()
    sides = {"default": default_side, "taef2": taef2_side}
    if not options.weights.is_dir() and options.only != "default":
        parser.error(f"{options.weights} is not there; expected a folder with the two .pth files of taef2: --weights, or --only default")
    load, found = os.getloadavg(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as scratch:
        for name in [options.only] if options.only else sides:
            found[name] = measure(name, sides[name], options, options.work or Path(scratch))
    ids = [side["over_direct"][move]["ids"] for side in found.values() for move in MOVES]
    report = {
        "name": "token_adapt",
        "ratio": round(min(entry["difference"] for entry in ids) / BAR, 3),
        "limit": 1,
        "clear": all(entry["interval"][0] > 0 for entry in ids),
        "tokenizers": found,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_before": [round(value, 2) for value in load],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
