"""How much of a masked token modelling step do dropped patches save? Encoder alone, and the whole step, against nothing dropped.

    python infra/bench/masked_encoder.py

Two models on random ids: ViT-B on 28 x 28 sites of 391 codes, as in SeiT++, and a small one on 16 x 16 sites with two ids. One thread, one
process: in each round all cases take their turn, CPU seconds count, and a ratio is the median over rounds of the ratios within a round.
The encoder is stem, positions, choice of patches and blocks, forward and backward from embeddings; the step is lookup, encoder, decoder,
loss, backward and AdamW. All cases hide 60 % of the patches: nothing dropped, 40 % dropped (the paper's share) and all of the 60 % dropped.

The last line is one JSON object: `ratio` is the larger of both encoder ratios over its bar (0.5 at 60 %, 0.7 at 40 %), at most 1; it is
that of ViT-B. The step has no bar.

Shapes: B samples, L sites, Q ids per site, D channels of an embedding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from tokenshards.pipeline.shards.codebook import codebook_sha256
from tokenshards.pipeline.shards.spec import CodebookInfo, Layout, Preprocess, TokenizerSpec
from tokenshards.stem_adaptors.augment import SampleKeys
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models.masked import MaskedTokenModel, build_masked_model
from tokenshards.stem_adaptors.models.masks import MaskDraws, Masks

HIDDEN = 0.6
DROPPED = (0.0, 0.4, 0.6)
BARS = {0.4: 0.7, 0.6: 0.5}


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model and what it reads."""

    model: ModelConfig
    side: int
    levels: int
    codes: int
    channels: int
    batch: int


VIT = {"stem": "patch", "learned_codebook": True, "embed_norm": True}
SIZES = {
    "vit_base": Size(model=ModelConfig(name="vit_base", **VIT), side=28, levels=1, codes=391, channels=32, batch=4),
    "vit_micro": Size(model=ModelConfig(name="vit_micro", **VIT), side=16, levels=2, codes=256, channels=48, batch=32),
}
QUICK = Size(model=ModelConfig(name="vit_nano", depth=1, **VIT), side=16, levels=2, codes=256, channels=48, batch=4)


class Case:
    """One model with one share of dropped patches. Weights, ids and hidden patches are the same for every share."""

    def __init__(self, size: Size, dropped: float) -> None:
        rng = np.random.default_rng(0)
        names = [f"level_{level}" for level in range(size.levels)]
        tables = {name: rng.normal(size=(size.codes, size.channels)).astype(np.float32) for name in names}
        sites, vocabulary = size.side**2, (size.codes,) * size.levels
        layout = Layout(
            kind="grid", grid=(size.side, size.side), sites=sites, ids_per_site=size.levels, combine="sum" if size.levels > 1 else "single"
        )
        info = CodebookInfo(sha256=codebook_sha256(tables), dims=(size.channels,) * size.levels)
        spec = TokenizerSpec(family="bench", layout=layout, vocabulary=vocabulary, preprocess=Preprocess(size=256), codebook=info)
        mask = MaskConfig(ratio_mean=HIDDEN, ratio_std=0.0, ratio_min=HIDDEN, drop_share=dropped)
        self.model: MaskedTokenModel = build_masked_model(spec, tables, None, size.model, mask, None)
        draws = MaskDraws(mask, spec.layout, self.model.backbone.patch_embed)
        self.masks: Masks = draws(SampleKeys(0, 0, torch.arange(size.batch)))
        self.ids_BLQ = torch.from_numpy(rng.integers(0, size.codes, (size.batch, sites, size.levels)))
        self.x = self.model.embedding(self.ids_BLQ).detach()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def encoder(self) -> None:
        """Run the encoder forward and backward."""
        x = self.x.requires_grad_()  # as in a step, where the code vectors learn
        self.model.encode(x, self.masks).square().mean().backward()
        self.model.zero_grad(set_to_none=True)
        self.x.grad = None

    def step(self) -> None:
        """Make a whole step of training."""
        x = self.model.embedding(self.ids_BLQ)
        self.model(x, self.ids_BLQ, self.masks).loss_B.mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def cpu_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measured(size: Size, rounds: int) -> dict[str, Any]:
    """Return the median CPU seconds of each share, and the median ratios to nothing dropped."""
    cases = {share: Case(size, share) for share in DROPPED}
    found: dict[str, Any] = {"batch": size.batch, "parameters": sum(value.numel() for value in cases[0.0].model.parameters())}
    for part in ("encoder", "step"):
        for case in cases.values():
            getattr(case, part)()  # memory and the optimiser's state are made here
        seconds = {share: [0.0] * rounds for share in DROPPED}
        for number in range(rounds):
            for share in DROPPED if number % 2 == 0 else DROPPED[::-1]:
                seconds[share][number] = cpu_seconds(getattr(cases[share], part))
        found[part] = {
            "cpu_seconds": {f"{share:g}": round(statistics.median(values), 4) for share, values in seconds.items()},
            "over_nothing_dropped": {
                f"{share:g}": round(statistics.median(a / b for a, b in zip(seconds[share], seconds[0.0], strict=True)), 4)
                for share in BARS
            },
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one tiny model, to see that everything works")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"vit_nano": QUICK} if options.quick else SIZES
    found = {}
    for name, size in sizes.items():
        found[name] = measured(size, options.rounds)
        print(name, json.dumps(found[name]), flush=True)
    encoder = found[next(iter(sizes))]["encoder"]["over_nothing_dropped"]
    ratio = max(encoder[f"{share:g}"] / bar for share, bar in BARS.items())
    line = {
        "name": "masked_encoder",
        "ratio": round(ratio, 4),
        "should_be": {f"{share:g}": bar for share, bar in BARS.items()},
        "hidden": HIDDEN,
        "threads": 1,
        "rounds": options.rounds,
        "models": found,
        "quick": options.quick,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
