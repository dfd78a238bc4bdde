"""The same images at a given number of bytes through tokenizers with networks, for the accuracy benches.

`vq` is a vq-autoencoder trained on the training images; `latent` is residual k-means on the latents that the taef2 encoder makes of them.
Both take one byte per id, like the token side. `latent-compact` is the same as `latent`, stored with the codec `compact`: streams, codebook
and model count as in `token_budgets`. No networks count: those of taef2 are published, and would take 27 bytes an image each over 100,000.
The classifier gets the decoded images, as for JPEG and WebP. These sides therefore measure the information left in the bytes, not training
straight from shards.

Shapes: N images.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from byte_budgets import SIDE, psnr
from token_budgets import shifted_copies, stored_bytes

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.records import TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards import Preprocess
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.config import LatentFitConfig, VqFitConfig

ROOT = Path(__file__).resolve().parents[2]
TAEF2 = ROOT.parent / "shared" / "data" / "taef2"
NETWORKS = ("vq", "latent", "latent-compact")
VQ = {64: (8, 1), 128: (8, 2), 256: (4, 1), 512: (4, 2)}
"""Side of a patch, and levels of 256 codes each."""
LATENT_LEVELS = {64: 1, 128: 2, 256: 4, 512: 8}
"""Levels of 256 codes each, on a grid of 8 x 8."""
LATENT_COMPACT = {64: (1, 512), 128: (2, 440)}
"""Levels and codes of `latent-compact`, whose tokens fit the size with the codec `compact`; chosen as those of `token_budgets`."""
VQ_EPOCHS = 2
"""Passes over four shifted or mirrored copies of each image."""


def prepare_network(work: Path, kind: str, size: int, *, quick: bool = False) -> dict[str, Any]:
    """Write `KIND_SIZE.npz` with the decoded pixels of both parts; return the fit and its results."""
    originals = np.load(work / "pixels.npz")
    if kind != "vq" and not TAEF2.is_dir():
        return {"bytes": None, "reason": f"the weights of taef2 are not in {TAEF2}"}
    if kind == "vq":
        tokenizer, found = _vq(originals["train"], size, quick)
    else:
        levels, codes = LATENT_COMPACT[size] if kind == "latent-compact" else (LATENT_LEVELS[size], 256)
        tokenizer, statistics = latent_tokenizer(originals["train"], levels, codes)
        found = {"levels": levels, "codes": codes, "latents": statistics["latents"]}
    layout = tokenizer.spec.layout
    if kind != "latent-compact" and (layout.sites * layout.ids_per_site != size or tokenizer.spec.id_dtype != np.uint8):
        raise ValueError(f"{kind}_{size}: {layout.sites} sites of {layout.ids_per_site} {tokenizer.spec.id_dtype}; expected {size} bytes")
    tokens = {part: _encoded(tokenizer, originals[part]) for part in ("train", "held_out")}
    decoded = {part: np.concatenate([tokenizer.decode(batch) for batch in batches]) for part, batches in tokens.items()}
    np.savez(work / f"{kind}_{size}.npz", **decoded)
    for part, name in (("train", "psnr_db_of_train"), ("held_out", "psnr_db")):
        found[name] = round(float(np.mean([psnr(a, b) for a, b in zip(originals[part], decoded[part], strict=True)])), 3)
    if kind == "latent-compact":
        mirrored = _encoded(tokenizer, originals["train"][:, :, ::-1])
        return {
            **found,
            **stored_bytes(tokenizer, concatenate_tokens([*tokens["train"], *mirrored]), concatenate_tokens(tokens["held_out"])),
        }
    return {**found, "bytes": float(size)}


def _vq(train_NHWC: np.ndarray, size: int, quick: bool) -> tuple[Tokenizer, dict[str, Any]]:
    from tokenshards.pipeline.tokenizers.fitted.training_state import TrainingState
    from tokenshards.pipeline.tokenizers.fitted.vq_autoencoder import COLOURS
    from tokenshards.pipeline.tokenizers.fitted.vq_training import fit_vq_autoencoder

    patch, levels = VQ[size]
    config = VqFitConfig(size=SIDE, patch=patch, levels=levels, epochs=1 if quick else VQ_EPOCHS)
    preprocess = Preprocess(size=SIDE, colour_range=COLOURS, exif_orientation=True, decoder=DECODER)
    copies = ((sha256_hex(pixels.tobytes()), pixels) for _, pixels in shifted_copies(train_NHWC, SIDE, patch))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, statistics = fit_vq_autoencoder(copies, config, preprocess, state=TrainingState(Store(folder)))
    return tokenizer, {"patch": patch, "levels": levels, "epochs": config.epochs, "images": statistics["images"]}


def latent_tokenizer(train_NHWC: np.ndarray, levels: int, codes: int) -> tuple[Tokenizer, dict[str, Any]]:
    """Fit codes on the latents of taef2 to the training images and their mirror images; return the tokenizer with its statistics."""
    from tokenshards.pipeline.tokenizers.fitted.latent_fit import fit_latent_kmeans
    from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import open_encoder

    config = LatentFitConfig(size=SIDE, codes=codes, levels=levels, mirrored=True)
    preprocess = Preprocess(size=SIDE, exif_orientation=True, decoder=DECODER)
    encoder = open_encoder(str(TAEF2 / "taef2_encoder.pth"), str(TAEF2 / "taef2_decoder.pth"))
    named = ((sha256_hex(pixels.tobytes()), pixels) for pixels in train_NHWC)
    return fit_latent_kmeans(named, encoder, config, preprocess)


def _encoded(tokenizer: Tokenizer, pixels_NHWC: np.ndarray) -> list[TokenBatch]:
    return [tokenizer.encode(np.ascontiguousarray(pixels_NHWC[start : start + 64])) for start in range(0, len(pixels_NHWC), 64)]
