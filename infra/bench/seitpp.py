"""What do masked token modelling, TokenAdapt and ColorAdapt add to training from tokens, at equal training time, with few labels?

    python infra/bench/seitpp.py --data DIR

DIR has train/ and val/ with class folders (default: Tiny-ImageNet-10 beside the repository, or else generated images). The 2,000 images
held out are those of `accuracy_per_byte.py`; only the final count sees them. Tokens are those of the default tokenizer, fitted to the
training images. Sides, each with 100, 25 and 10 % of the labels:
- `supervised`: SeiT's augmentations, in strengths that suit small data;
- `mtm`: first masked token modelling on the tokens of all training images, without labels, then the same training from labels;
- `adapt`: supervised, with TokenAdapt and ColorAdapt among the augmentations;
- `all`: masked token modelling, TokenAdapt and ColorAdapt.

Every side trains for the same CPU seconds on one thread (`--budget`), the training without labels counted in: each step charges what the
process has used, the learning rate follows the share that is spent, and the training ends with the last second. TokenAdapt is fitted once
for the tokenizer, as the codebook is: its seconds are reported, and count in no side. Three seeds draw weights, order, augmentation and
the labelled images.

`--work` keeps the prepared data and the result of every run, so that an interrupted bench continues; `--only`, `--fractions` and
`--seeds` select a part. `--choose` measures on a third of the training images, in place of those held out: the settings were chosen so,
by trials with `--settings FILE.py`, whose names in capitals replace those of `seitpp_sides.py`.
Intervals are 95 % of a paired bootstrap over held-out images and seeds. The last line is one JSON object: `over_supervised` holds the
difference of each side to `supervised`; that of `mtm` at 10 % of the labels should be clear of zero.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import runpy
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import seitpp_sides
from paired_runs import Job, correctness, run_jobs
from seitpp_data import fit_adapt, prepared
from seitpp_sides import (
    FRACTIONS,
    SIDES,
    Plan,
    digest_of_stage,
    pretrain_once,
    stages_of,
    train_side,
)

from tokenshards.stem_adaptors.comparison.paired import interval, resampled

BUDGET = 300.0


def options_of(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="folder with train/ and val/; default: Tiny-ImageNet-10 beside the repository")
    parser.add_argument("--work", type=Path, help="folder that keeps prepared data and results; default: in the temp folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("--budget", type=float, default=BUDGET, help="CPU seconds of each side")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(SIDES), choices=SIDES, metavar="SIDE", help=f"some of {', '.join(SIDES)}")
    parser.add_argument("--fractions", type=float, nargs="+", default=list(FRACTIONS), choices=FRACTIONS, help="shares of the labels")
    parser.add_argument("--choose", action="store_true", help="measure on a third of the training images")
    parser.add_argument("--settings", type=Path, help="Python file with other values of the names in capitals of seitpp_sides.py")
    parser.add_argument("--quick", action="store_true", help="a run of a minute or two that shows that everything works, nothing more")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.budget = options.seeds[:2], min(options.budget, 3.0)
    return options


def plans(options: argparse.Namespace) -> dict[tuple[str, float], Plan]:
    """Return the plan of each side and fraction."""
    return {
        (side, fraction): Plan(stages=stages_of(side, fraction, options.budget), fraction=fraction, choosing=options.choose)
        for side in options.only
        for fraction in options.fractions
    }


def run_all(
    work: Path, options: argparse.Namespace, data: str, planned: dict[tuple[str, float], Plan]
) -> tuple[dict[str, Any], dict[tuple[str, int], dict[str, Any]]]:
    """Run what has no result; return the results of the trainings without labels by digest, and those of all sides."""
    first = {digest_of_stage(plan.stages[0]): plan for plan in planned.values() if len(plan.stages) > 1}
    jobs = [
        # Side, labels and later stages do not change a training without labels, so its job must not depend on them.
        Job(f"pretraining-{digest}", "mtm", seed, replace(plan, stages=plan.stages[:1], fraction=1.0), data)
        for seed in options.seeds
        for digest, plan in first.items()
    ]
    pretrainings = run_jobs(work, jobs, options.workers, train=pretrain_once, figure="loss")
    # The name of a run has its settings, so that a trial of others overwrites nothing.
    names = {f"{_name(*key)}-{_digest(plan)}": key for key, plan in planned.items()}
    jobs = [Job(name, key[0], seed, planned[key], data) for seed in options.seeds for name, key in names.items()]
    results = run_jobs(work, jobs, options.workers, train=train_side)
    return pretrainings, {(_name(*names[name]), seed): found for (name, seed), found in results.items()}


def _digest(plan: Plan) -> str:
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()[:8]


def _name(side: str, fraction: float) -> str:
    return f"{side}-{fraction:g}"


def summary(results: dict[tuple[str, int], dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Return accuracies and differences with their intervals."""
    names = [_name(side, fraction) for fraction in options.fractions for side in options.only]
    right = {name: correctness(results, name, options.seeds) for name in names}
    means, top1 = resampled(right), {name: float(right_SN.mean()) for name, right_SN in right.items()}
    differences = {}
    for fraction in options.fractions:
        base = _name("supervised", fraction)
        for side in options.only:
            name = _name(side, fraction)
            if base in top1 and name != base:
                differences[name] = [round(top1[name] - top1[base], 4), *interval(means[name] - means[base])]
    return {
        "over_supervised": differences,
        "top1": {name: [round(top1[name], 4), *interval(means[name])] for name in names},
        "top1_per_seed": {name: [round(float(value), 4) for value in right_SN.mean(axis=1)] for name, right_SN in right.items()},
    }


def side_figures(
    figure: str,
    planned: dict[tuple[str, float], Plan],
    pretrainings: dict[tuple[str, int], dict[str, Any]],
    results: dict[tuple[str, int], dict[str, Any]],
    seeds: list[int],
) -> dict[str, list[list[float]]]:
    """Return a figure of the trainings of each side, by seed: of the one without labels, where there is one, and of the one from labels."""
    found = {}
    for (side, fraction), plan in planned.items():
        name, before = _name(side, fraction), f"pretraining-{digest_of_stage(plan.stages[0])}"
        runs = [[*([pretrainings[before, seed]] if len(plan.stages) > 1 else []), results[name, seed]] for seed in seeds]
        found[name] = [[run[figure] for run in of_seed] for of_seed in runs]
    return found


def main() -> None:
    options = options_of(__doc__.split("\n")[0])
    start = time.perf_counter()
    if options.settings:
        for name, value in runpy.run_path(str(options.settings)).items():
            if name.isupper():
                setattr(seitpp_sides, name, value)
    work, made = prepared(options.data, options.work, options.quick)
    print(f"{made['split']['train']} training and {made['split']['held_out']} held-out images; work in {work}")
    adapt = fit_adapt(work, options.quick) if {"adapt", "all"} & set(options.only) else None
    planned = plans(options)
    pretrainings, results = run_all(work, options, made["images"] + made["tokenizer"]["fingerprint"][:16], planned)
    found = summary(results, options)
    for name, (top1, low, high) in found["top1"].items():
        over = found["over_supervised"].get(name)
        beside = "" if over is None else f"   over supervised {over[0]:+.4f}, {over[1]:+.4f} to {over[2]:+.4f}"
        print(f"{name:<18}{top1:>8.4f}, {low:.4f} to {high:.4f}{beside}")
    seconds = side_figures("cpu_seconds", planned, pretrainings, results, options.seeds)
    line = {
        "name": "seitpp",
        **found,
        "should_be": {"mtm-0.1": "clear of zero"},
        "cpu_seconds": {name: [round(sum(of_seed), 1) for of_seed in of_side] for name, of_side in seconds.items()},
        "budget_cpu_seconds": options.budget,
        "token_adapt": adapt and {"fitted_once_outside_of_the_sides": True, **adapt},
        "epochs": side_figures("epochs", planned, pretrainings, results, options.seeds),
        "plans": {_name(*key): asdict(plan) for key, plan in planned.items()},
        "pretraining": {
            f"{name}.{seed}": {key: value for key, value in row.items() if key != "key"} for (name, seed), row in pretrainings.items()
        },
        "parameters": {name: row["parameters"] for (name, _), row in results.items()},
        "split": made["split"],
        "tokenizer": made["tokenizer"],
        "choosing": options.choose,
        "seeds": options.seeds,
        "seconds": round(time.perf_counter() - start),
        "quick": options.quick,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
