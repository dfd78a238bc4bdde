"""The same images as ids that a classifier learns from directly, at a given number of bytes, for the accuracy benches.

`recognition` are tokens of `layered-kmeans`, fitted to the training images without labels; `latent-ids` are codes on the latents of taef2,
the same as those of `latent-compact` in `network_sides.py`, which get the decoded images. Both are stored with the codec `compact`, and
bytes count as in `token_budgets.py`: streams, model, and all of the tokenizer but taef2's published networks.

Shapes: N images.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from byte_budgets import SIDE
from network_sides import LATENT_COMPACT, TAEF2, latent_tokenizer
from token_budgets import shifted_copies, stored_bytes, written

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.records import concatenate_tokens
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.config import LayeredFitConfig
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import default_preprocess
from tokenshards.pipeline.tokenizers.layered.layered_fit import fit_layered_kmeans


@dataclass(frozen=True, kw_only=True)
class RecognitionChoice:
    """Sites of so many pixels, and levels of so many codes each."""

    site: int
    levels: int
    codes: int


RECOGNITION = {
    32: RecognitionChoice(site=16, levels=1, codes=1280),
    64: RecognitionChoice(site=8, levels=1, codes=1536),
    128: RecognitionChoice(site=8, levels=2, codes=896),
}
"""The settings tried that told most of those whose tokens fit the size: probes on folds of the training images. At 32 bytes a fit to 2,000
images allows no more codes."""


def prepare_ids(work: Path, kind: str, size: int, *, quick: bool = False) -> dict[str, Any]:
    """Fit a tokenizer to the training images and write `KIND_SIZE/train` and `/held_out` as datasets, as `tokenize` would."""
    if kind == "latent-ids" and not TAEF2.is_dir():
        return {"bytes": None, "reason": f"the weights of taef2 are not in {TAEF2}"}
    root, begun = work / f"{kind}_{size}", time.process_time()
    shutil.rmtree(root, ignore_errors=True)
    train_NHWC = np.load(work / "pixels.npz")["train"]
    if kind == "recognition":
        tokenizer, statistics, found = _recognition(train_NHWC, size)
        copies_NHWC = np.stack([pixels for _, pixels in shifted_copies(train_NHWC, SIDE, RECOGNITION[size].site)])
    else:
        tokenizer, statistics = latent_tokenizer(train_NHWC, *LATENT_COMPACT[size])
        found = dict(zip(("levels", "codes"), LATENT_COMPACT[size], strict=True))
        copies_NHWC = np.concatenate([train_NHWC, train_NHWC[:, :, ::-1]])
    found["fit_cpu_seconds"] = round(time.process_time() - begun, 1)
    quality, tokens = written(work, root, tokenizer, statistics, codec="compact")
    fit_to = [tokenizer.encode(np.ascontiguousarray(copies_NHWC[start : start + 64])) for start in range(0, len(copies_NHWC), 64)]
    return {**found, **quality, **stored_bytes(tokenizer, concatenate_tokens(fit_to), tokens)}


def _recognition(train_NHWC: np.ndarray, size: int) -> tuple[Tokenizer, dict[str, Any], dict[str, Any]]:
    choice = RECOGNITION[size]
    config = LayeredFitConfig(size=SIDE, site=choice.site, levels=choice.levels, codes=choice.codes)
    named = ((sha256_hex(pixels.tobytes()), pixels) for pixels in train_NHWC)
    tokenizer, statistics = fit_layered_kmeans(named, config, SIDE, default_preprocess(SIDE, DECODER))
    return tokenizer, statistics, asdict(choice)
