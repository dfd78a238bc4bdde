"""Check that a tokenizer gets pixels in the range it was trained on: encode the same images under other ranges and compare.

A checkpoint does not record its range, and a wrong range raises no error: fewer codes are used, and reconstructions are worse.

Shapes: B images, H height, W width, C = 3 channels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.quality.round_trip import RoundTrip
from tokenshards.pipeline.tokenizers.base import Images, Tokenizer, WeightedTokenizer
from tokenshards.pipeline.tokenizers.code_usage import entropy_per_id

__all__ = ["NormalisationProbe", "Trial", "probe_normalisation"]

RANGES: dict[str, tuple[float, float]] = {"0 to 1": (0.0, 1.0), "-1 to 1": (-1.0, 1.0), "ImageNet's mean and deviation": (-1.987, 2.438)}
"""Ranges of published encoders. ImageNet's is the mean over its three channels, because a spec has one range for all channels."""
MARGIN_DB = 1.0
MARGIN_BITS = 0.3
"""Smallest gains that count as clearly better. With 256 codes of taef2 latents a wrong range costs 1.1 to 4.8 dB and 0.2 to 1.7 bits."""
UNITS = {"psnr_db": "dB PSNR", "entropy_bits": "bits per id"}
PROBED_IMAGES = 32
FEW = 8
NARROW_RANGE = 64
"""Smallest span of grey values that a batch of natural images has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The result of encoding the images under one range."""

    name: str
    colour_range: tuple[float, float]
    entropy_bits: float | None
    """Entropy per id, levels weighted by their ids; None if there are too many codes to count."""
    psnr_db: float | None
    """None if the tokenizer cannot decode to pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalisationProbe:
    """The results of the spec's own range and of the other ranges."""

    own: Trial
    others: tuple[Trial, ...]
    """Empty if the family ignores or refuses another range in its spec."""
    pixel_range: tuple[int, int]
    """Lowest and highest uint8 value of the probed images."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            **dataclasses.asdict(self),
            "pixel_range": list(self.pixel_range),
            "others": [dataclasses.asdict(one) for one in self.others],
        }

    def warnings(self) -> list[str]:
        """Return a sentence for each likely mistake. PSNR decides if the tokenizer decodes, else entropy."""
        found = []
        low, high = self.pixel_range
        if high - low < NARROW_RANGE:
            found.append(
                f"the pixels of these images are between {low} and {high}; expected most of 0 to 255: were the images scaled before?"
            )
        best = max(self.others, key=self._gain, default=self.own)
        if self._gain(best) >= 1:
            gives = [
                f"{getattr(best, key):.2f} instead of {value:.2f} {unit}"
                for key, unit in UNITS.items()
                if (value := getattr(self.own, key))
            ]
            found.append(
                f"the normalisation looks wrong: the spec maps pixels to {self.own.name} (preprocess.colour_range), but {best.name} gives "
                f"{' and '.join(gives)}; look up the range that the encoder was trained on, and make the tokenizer again with that range"
            )
        return found

    def _gain(self, trial: Trial) -> float:
        """Return the gain of another range over the own range, as a multiple of MARGIN_DB or MARGIN_BITS."""
        if trial.psnr_db is not None and self.own.psnr_db is not None:
            return (trial.psnr_db - self.own.psnr_db) / MARGIN_DB
        return ((trial.entropy_bits or 0.0) - (self.own.entropy_bits or 0.0)) / MARGIN_BITS


def probe_normalisation(tokenizer: Tokenizer, images_BHWC: Images) -> NormalisationProbe:
    """Encode, and decode if possible, one batch of images under the tokenizer's own range and under each other range.

    Each other range needs a tokenizer built from the same codebook and weights; one of them is in memory at a time. `tokenizer` itself
    does not change.
    """
    low, high = tokenizer.spec.preprocess.colour_range
    name = next((name for name, known in RANGES.items() if np.allclose(known, (low, high), atol=0.15)), f"{low:g} to {high:g}")
    images_BHWC = images_BHWC[:PROBED_IMAGES]
    own, others = _tried(tokenizer, images_BHWC, name), []
    few_BHWC = images_BHWC[:FEW]
    ids_BLQ = tokenizer.encode(few_BHWC).ids_BLQ
    for other_name, colour_range in RANGES.items():
        if other_name == name:
            continue
        other = _with_range(tokenizer, colour_range)
        if other is None or np.array_equal(other.encode(few_BHWC).ids_BLQ, ids_BLQ):
            break  # this family ignores the range of its spec
        others.append(_tried(other, images_BHWC, other_name))
    return NormalisationProbe(own=own, others=tuple(others), pixel_range=(int(images_BHWC.min()), int(images_BHWC.max())))


def _with_range(tokenizer: Tokenizer, colour_range: tuple[float, float]) -> Tokenizer | None:
    """Return the same tokenizer with another range; None if its family refuses it."""
    spec = tokenizer.spec
    changed = dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, colour_range=colour_range))
    weights = tokenizer.weights() if isinstance(tokenizer, WeightedTokenizer) else {}
    try:
        return type(tokenizer).from_saved(changed, {**tokenizer.codebook(), **weights})
    except TokenizerError:
        return None


def _tried(tokenizer: Tokenizer, images_BHWC: Images, name: str) -> Trial:
    trip = RoundTrip(tokenizer)
    trip.add(images_BHWC, with_ssim=False)
    psnr_db = round(trip.fidelity.mean_psnr_db, 4) if trip.fidelity.images else None
    colour_range = tokenizer.spec.preprocess.colour_range
    return Trial(name=name, colour_range=colour_range, entropy_bits=entropy_per_id(trip.histograms), psnr_db=psnr_db)
