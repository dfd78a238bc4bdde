"""How much is each augmentation worth? Trains on tokens at 512 bytes an image with all augmentations, then with one at a time turned off.

    python infra/bench/ablation.py --data DIR

Data, split, network, recipe, options and intervals are those of `accuracy_per_byte.py`; its prepared data are used where they exist. That
bench leaves synonyms and block swap off; this one turns them on. The last line is one JSON object. `differences` holds top-1 without the
augmentation minus top-1 with all, with a 95 % interval of a paired bootstrap; a value below zero means that the augmentation helps. A
further row uses SeiT's synonyms, by cosine. No figure has a limit.

Shapes: S seeds, N held-out images.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import Any

from accuracy_per_byte import digest_of, options_of, prepared
from paired_runs import Job, Recipe, correctness, run_jobs

from tokenshards.stem_adaptors.comparison.paired import interval, resampled

SIDE = "tokens_512"
FULL = "all augmentations"
TOKEN_ONLY = {"synonym_prob": 0.25, "swap_prob": 0.25}
"""SeiT's shares."""
OFF: dict[str, dict[str, Any]] = {
    "synonyms": {"synonym_prob": 0.0},
    "swap": {"swap_prob": 0.0},
    "random-resized crop": {"crop": "centre"},
    "noise": {"noise_prob": 0.0},
    "CutMix": {"cutmix_prob": 0.0},
    "mirror": {"flip_prob": 0.0},
}
COSINE = {"synonym_metric": "cosine"}
"""SeiT's choice of synonyms. The default is the tokenizer's own metric, here the distance."""
ALL_OFF = {name: value for changes in OFF.values() for name, value in changes.items()}


def main() -> None:
    options = options_of(__doc__.split("\n")[0])
    recipe = replace(Recipe(), **({"epochs": options.epochs} if options.epochs else {}))
    changes = {f"no {name}": change for name, change in OFF.items()} | {"synonyms by cosine": COSINE, "no augmentation": ALL_OFF}
    names = options.only or list(changes)
    if unknown := sorted(set(names) - set(changes)):
        sys.exit(f"--only has {unknown}; expected some of {', '.join(changes)}")
    work, made = prepared(options, [SIDE])
    full = replace(recipe.augment, **TOKEN_ONLY)
    recipes = {name: replace(recipe, augment=replace(full, **changes.get(name, {}))) for name in (FULL, *names)}
    jobs = [Job(name, SIDE, seed, changed, digest_of(made, SIDE)) for seed in options.seeds for name, changed in recipes.items()]
    results = run_jobs(work, jobs, options.workers)
    right = {name: correctness(results, name, options.seeds) for name in recipes}
    means, top1 = resampled(right), {name: float(right_SN.mean()) for name, right_SN in right.items()}
    differences = {name: [round(top1[name] - top1[FULL], 4), *interval(means[name] - means[FULL])] for name in names}
    print(f"{FULL:<24}{top1[FULL]:>8.4f}")
    for name, (difference, low, high) in differences.items():
        print(f"{name:<24}{top1[name]:>8.4f}  {difference:+.4f}, {low:+.4f} to {high:+.4f}")
    line = {
        "name": "ablation",
        "top1": {name: [round(top1[name], 4), *interval(means[name])] for name in recipes},
        "differences": differences,
        "top1_per_seed": {name: [round(float(value), 4) for value in right_SN.mean(axis=1)] for name, right_SN in right.items()},
        "side": made["sides"][SIDE],
        "split": made["split"],
        "recipe": asdict(recipes[FULL]),
        "seeds": options.seeds,
        "seconds_per_run_most": max(result["seconds"] for result in results.values()),
        "quick": options.quick,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
