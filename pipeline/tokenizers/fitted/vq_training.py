"""Trains a small autoencoder with codes on images in memory. The same images give the same tokenizer, also after a stop and a resume.

Shapes: M images, B of them in a batch, C = 3 channels, H and W pixels, L sites, Q levels, D values of a vector, K codes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenshards.pipeline.canonical import canonical_json, keyed_hash64, sha256_hex
from tokenshards.pipeline.errors import TokenizerError, shorten
from tokenshards.pipeline.half_cosine import half_cosine
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.tokenizers.base import Images
from tokenshards.pipeline.tokenizers.code_usage import code_usage, rounded
from tokenshards.pipeline.tokenizers.config import FSQ_LEVELS, VqFitConfig
from tokenshards.pipeline.tokenizers.fitted.linear_start import start_linear
from tokenshards.pipeline.tokenizers.fitted.quantizers import TrainedQuantizer
from tokenshards.pipeline.tokenizers.fitted.training_state import TrainingState
from tokenshards.pipeline.tokenizers.fitted.vq_autoencoder import COLOURS, Decoder, Encoder, VqAutoencoder
from tokenshards.pipeline.tokenizers.networks.network import SLOTS, choose_device, device_name, scaled, to_device
from tokenshards.pipeline.tokenizers.psnr import image_psnr_db
from tokenshards.pipeline.words import counted

__all__ = ["EpochReport", "fit_vq_autoencoder"]

EpochReport = dict[str, Any]
Floats = npt.NDArray[np.float32]
FeatureLoss = Callable[[Tensor, Tensor], Tensor]

MAX_BYTES = 2 << 30
"""Most bytes of pixels held in memory."""
HELD_OUT_SHARE = 16
MAX_HELD_OUT = 256
WARM_UP_STEPS = 50
MAX_GRADIENT = 1.0


@contextmanager
def _own_generators() -> Iterator[None]:
    """Let torch draw what it likes in the block: afterwards the generators of the process are as before."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if choose_device().type == "cuda" else []):
        yield


@_own_generators()
def fit_vq_autoencoder(
    images: Iterable[tuple[str, Images]],
    config: VqFitConfig,
    preprocess: Preprocess,
    *,
    state: TrainingState,
    features: FeatureLoss | None = None,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
) -> tuple[VqAutoencoder, dict[str, Any]]:
    """Train on (content hash, uint8 pixels [size, size, 3]) pairs; return the tokenizer with statistics in plain JSON types.

    Equal hashes count once, and the order of the images does not matter. A stopped training continues from `state` after its last whole
    epoch. One image in 16 is held out for the report of each epoch. `features` is a further loss on pixels [B, 3, H, W] from -1 to 1.
    Raises TokenizerError where there are fewer than 2 images, or where `state` belongs to another training.
    """
    names, pixels_MHWC, left_out = _gathered(images, preprocess.size, config.seed)
    shown = min(MAX_HELD_OUT, max(1, len(names) // HELD_OUT_SHARE))  # the order of the names is random
    held_out, trained = pixels_MHWC[:shown], pixels_MHWC[shown:]
    digest = sha256_hex(canonical_json([asdict(config), preprocess.size, names]))
    training = _Training(config, preprocess, trained, features)
    reports: list[EpochReport] = training.load(state, digest)
    for epoch in range(len(reports), config.epochs):
        losses, rate = training.run(epoch)
        reports.append({"epoch": epoch + 1, **losses, **_fidelity(training.tokenizer(), held_out)})
        training.save(state, digest, reports)
        on_epoch({**reports[-1], "images_per_second": rate})  # the rate is not stored: equal tokenizers have equal bytes
    tokenizer = training.tokenizer()
    used = _histograms(tokenizer, pixels_MHWC)
    notes = [f"{counted(left_out, 'image')} left out: pixels in memory are limited to {MAX_BYTES >> 30} GB"] if left_out else []
    statistics = {
        "images": len(names),
        "held_out": shown,
        "fit": asdict(config),
        "epochs": reports,
        "levels": [{**code_usage(counts_K), **_psnr_of(reports[-1], q, len(used))} for q, counts_K in enumerate(used)],
        "embedding": _moments(tokenizer, held_out),
        "notes": notes,
    }
    return tokenizer, statistics


class _Training:
    """Networks, quantizer and optimiser, on the device."""

    def __init__(self, config: VqFitConfig, preprocess: Preprocess, pixels_MHWC: Images, features: FeatureLoss | None) -> None:
        self._config, self._preprocess, self._pixels_MHWC, self._features = config, preprocess, pixels_MHWC, features
        self._device = choose_device()
        side = preprocess.size // config.patch
        self._batch = min(config.batch, len(pixels_MHWC))
        self._steps = len(pixels_MHWC) // self._batch
        torch.manual_seed(keyed_hash64(str(config.seed), "start"))
        quantizer = TrainedQuantizer(config, vectors_per_batch=self._batch * side * side)
        sizes: dict[str, Any] = {"patch": config.patch, "width": config.width, "depth": config.depth, "code_width": quantizer.code_width}
        encoder, decoder = Encoder(**sizes), Decoder(**sizes, side=side)
        # FSQ and LFQ take equal steps in every dimension.
        start_linear(encoder.linear, decoder.linear, pixels_MHWC, alike=config.quantizer != "vq")
        self._networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        self._networks.to(self._device)
        self._quantizer = quantizer.to(self._device)
        parameters = [*self._networks.parameters(), *self._quantizer.parameters()]
        self._optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=1e-4)

    def run(self, epoch: int) -> tuple[dict[str, float], float]:
        """Train for an epoch; return its mean losses and its images/s."""
        self._networks.train(), self._quantizer.train()
        began, sums = time.perf_counter(), torch.zeros(2, device=self._device)
        order_M = np.random.default_rng(keyed_hash64(str(self._config.seed), f"epoch {epoch}")).permutation(len(self._pixels_MHWC))
        torch.manual_seed(keyed_hash64(str(self._config.seed), f"codes {epoch}"))
        for step in range(self._steps):
            chosen_B = order_M[step * self._batch : (step + 1) * self._batch]
            try:
                sums += self._step(epoch * self._steps + step, _mirrored(self._pixels_MHWC[chosen_B], epoch))
            except torch.OutOfMemoryError as error:
                raise TokenizerError(
                    f"fit: the memory of {device_name()} is too small for steps of {self._batch} images of {self._preprocess.size} "
                    f"pixels ({shorten(str(error), 120)}); expected room for them. Give a smaller --batch, or --width"
                ) from error
        pixel_loss, code_loss = (sums / self._steps).tolist()
        if not math.isfinite(pixel_loss + code_loss):
            raise TokenizerError(
                f"fit: the losses of epoch {epoch + 1} are {pixel_loss} and {code_loss}; expected finite numbers. "
                f"Try a smaller --learning-rate than {self._config.learning_rate}"
            )
        rate = self._steps * self._batch / (time.perf_counter() - began)
        return {"pixel_loss": rounded([pixel_loss])[0], "code_loss": rounded([code_loss])[0]}, rate

    def _step(self, step: int, images_BHWC: Images) -> Tensor:
        pixels_BCHW = scaled(to_device(images_BHWC), COLOURS)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._device.type == "cuda"):
            vectors_BLD = self._networks["encoder"](pixels_BCHW)
        quantised_BLD, code_loss = self._quantizer(vectors_BLD.float())
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._device.type == "cuda"):
            drawn_BCHW = self._networks["decoder"](quantised_BLD)
        pixel_loss = functional.mse_loss(drawn_BCHW.float(), pixels_BCHW)
        loss = pixel_loss + self._config.commitment * code_loss
        if self._features is not None:
            loss = loss + self._config.perceptual_weight * self._features(drawn_BCHW.float(), pixels_BCHW)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in self._optimiser.param_groups:
            nn.utils.clip_grad_norm_(group["params"], MAX_GRADIENT)
            group["lr"] = self._config.learning_rate * _schedule(step, self._steps * self._config.epochs)
        self._optimiser.step()
        return torch.stack([pixel_loss.detach(), code_loss.detach()])

    def tokenizer(self) -> VqAutoencoder:
        """Return the tokenizer of the current weights."""
        fsq = {"fsq_levels": list(FSQ_LEVELS[self._config.codes])} if self._config.quantizer == "fsq" else {}
        return VqAutoencoder(
            {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in self._networks.state_dict().items()},
            self._quantizer.tables(),
            preprocess=self._preprocess,
            config={"quantizer": self._config.quantizer, **fsq},
            dtype="float32",
            where="",
        )

    def save(self, state: TrainingState, digest: str, reports: list[EpochReport]) -> None:
        """Write everything that the next epoch needs."""
        tensors = {f"networks.{key}": value for key, value in self._networks.state_dict().items()}
        tensors |= {f"quantizer.{key}": value for key, value in self._quantizer.state_dict().items()}
        for number, moments in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{key}": value for key, value in moments.items()}
        state.save(tensors, digest, reports)

    def load(self, state: TrainingState, digest: str) -> list[EpochReport]:
        """Continue from the result of `save`; return the reports of the finished epochs, [] where there are none."""
        found = state.load(digest)
        if found is None:
            return []
        tensors, reports = found
        self._networks.load_state_dict(_part(tensors, "networks."))
        self._quantizer.load_state_dict(_part(tensors, "quantizer."))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(tensors, "optimiser.").items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = value
        self._optimiser.load_state_dict({"state": moments, "param_groups": self._optimiser.state_dict()["param_groups"]})
        return reports


def _gathered(images: Iterable[tuple[str, Images]], size: int, seed: int) -> tuple[list[str], Images, int]:
    """Return hashes in a random order that depends on the seed and the hashes alone, the pixels, and the number of images left out."""
    most = max(2, MAX_BYTES // (size * size * 3))
    kept: dict[str, Images] = {}
    rank = {}
    left_out = 0
    for name, pixels_HWC in images:
        if name in kept:
            continue
        kept[name], rank[name] = pixels_HWC, keyed_hash64(str(seed), name)
        if len(kept) > most:
            del kept[max(kept, key=lambda key: rank[key])]
            left_out += 1
    if len(kept) < 2:
        raise TokenizerError(
            f"fit: {counted(len(kept), 'image')} to train a tokenizer on; expected at least 2, and some thousands for a good one"
        )
    names = sorted(kept, key=lambda key: rank[key])
    return names, np.stack([kept.pop(name) for name in names]), left_out


def _mirrored(images_BHWC: Images, epoch: int) -> Images:
    """Mirror every second image, with the other half mirrored in the next epoch."""
    images_BHWC = images_BHWC.copy()
    images_BHWC[epoch % 2 :: 2] = images_BHWC[epoch % 2 :: 2, :, ::-1]
    return images_BHWC


def _schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: a short linear rise, then a cosine down to 0."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * half_cosine(step / max(1, steps))


def _fidelity(tokenizer: VqAutoencoder, images_MHWC: Images) -> dict[str, Any]:
    """Return PSNR and code usage of each level on the held-out images."""
    total = 0.0
    counts = [np.zeros(size, np.int64) for size in tokenizer.spec.vocabulary]
    for images_BHWC in _batches(images_MHWC):
        tokens = tokenizer.encode(images_BHWC)
        total += float(image_psnr_db(images_BHWC, tokenizer.decode(tokens)).sum())
        _count(counts, tokens)
    usage = [code_usage(counts_K) for counts_K in counts]
    return {
        "psnr_db": rounded([total / len(images_MHWC)])[0],
        "usage_share": [level["usage_share"] for level in usage],
        "perplexity": [level["perplexity"] for level in usage],
    }


def _histograms(tokenizer: VqAutoencoder, images_MHWC: Images) -> list[npt.NDArray[np.int64]]:
    counts = [np.zeros(size, np.int64) for size in tokenizer.spec.vocabulary]
    for images_BHWC in _batches(images_MHWC):
        _count(counts, tokenizer.encode(images_BHWC))
    return counts


def _count(counts: list[npt.NDArray[np.int64]], tokens: TokenBatch) -> None:
    for q, counts_K in enumerate(counts):
        counts_K += np.bincount(tokens.ids_BLQ[:, :, q].ravel(), minlength=len(counts_K))


def _moments(tokenizer: VqAutoencoder, images_MHWC: Images) -> dict[str, list[float]]:
    """Return mean and standard deviation of each channel of a site's vector. Training reads them as `embedding`."""
    rows_ND = np.concatenate(
        [
            tokenizer.dequantise(torch.from_numpy(tokenizer.encode(part).ids_BLQ.astype(np.int64))).flatten(0, 1).cpu().numpy()
            for part in _batches(images_MHWC)
        ]
    )
    return {"mean": rounded(rows_ND.mean(axis=0)), "std": rounded(rows_ND.std(axis=0))}


def _batches(images_MHWC: Images) -> Iterator[Images]:
    for start in range(0, len(images_MHWC), SLOTS):
        yield images_MHWC[start : start + SLOTS]


def _psnr_of(report: EpochReport, q: int, levels: int) -> dict[str, float]:
    return {"psnr_db": report["psnr_db"]} if q == levels - 1 else {}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
