"""`evaluate-tokenizer`: a tokenizer's fidelity, code usage and speed, and warnings about likely mistakes.

Shapes: K codes of a level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import ConfigError, TokenizerError
from tokenshards.pipeline.planning.planner import Listing
from tokenshards.pipeline.quality.fidelity import usage_rows
from tokenshards.pipeline.quality.normalisation import NormalisationProbe, Trial, probe_normalisation
from tokenshards.pipeline.quality.round_trip import RoundTrip
from tokenshards.pipeline.records import FailedRecord, PlanRow
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.sources.pixel_depth import settle_sixteen_bit
from tokenshards.pipeline.sources.sample import SampledImage, decoded_sample
from tokenshards.pipeline.storage.store import display_url
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.code_usage import code_usage, entropy_per_id, order0_entropy_bits
from tokenshards.pipeline.tokenizers.networks.device import describe_device

__all__ = ["Evaluation", "evaluate_tokenizer"]

BATCH_ROWS = 64
"""Images encoded at a time; the normalisation probe uses the first batch."""
EXAMPLES = 5
PROMISE_BITS = 1.0
"""Allowed loss of entropy per id against the statistics of the tokenizer; a larger loss gives a warning."""


@dataclass(slots=True)
class _Failures:
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def take(self, failed: FailedRecord) -> None:
        self.reasons[str(failed.error.reason)] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{failed.sample_id}: {failed.error}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Measurements on a sample of images."""

    tokenizer: Tokenizer
    trip: RoundTrip
    probe: NormalisationProbe
    failures: _Failures
    promised_bits: list[float]
    """Entropy of each level from the tokenizer's statistics; [] if the statistics lack it."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of `evaluate-tokenizer --json`; a value that could not be measured is null, with the reason."""
        trip, spec, fidelity = self.trip, self.tokenizer.spec, self.trip.fidelity
        bits = self._bits_per_token
        decoded = fidelity.images > 0
        return {
            "fingerprint": spec.fingerprint,
            "family": spec.family,
            "images": trip.images,
            "images_failed": sum(self.failures.reasons.values()),
            "failed_reasons": dict(sorted(self.failures.reasons.items())),
            "failed_examples": self.failures.examples,
            "tokens_per_image": round(trip.ids / trip.images, 4),
            "vocabulary_bits_per_token": round(self._vocabulary_bits, 4),
            "bits_per_token": bits,
            "bits_per_image": None if bits is None else round(bits * trip.ids / trip.images, 1),
            "code_usage": [code_usage(counts_K) for counts_K in trip.histograms or []],
            "psnr_db": round(fidelity.mean_psnr_db, 4) if decoded else None,
            "psnr_db_worst": round(fidelity.worst_psnr_db, 4) if decoded else None,
            "psnr_db_all_pixels": round(fidelity.pixel_psnr_db, 4) if decoded else None,
            "ssim": None if trip.mean_ssim is None else round(trip.mean_ssim, 6),
            "ssim_worst": None if trip.mean_ssim is None else round(trip.worst_ssim, 6),
            "no_psnr_because": trip.no_images or None,
            "no_ssim_because": trip.no_images or trip.no_ssim or None,
            "encode_images_per_second": round(trip.images / max(1e-9, trip.encode_seconds), 2),
            "decode_images_per_second": round(fidelity.images / max(1e-9, trip.decode_seconds), 2) if decoded else None,
            "device": describe_device(self.tokenizer),
            "dtype": spec.dtype,
            "normalisation": self.probe.to_json(),
            "warnings": self.warnings(),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the table as (name, value) text."""
        facts = self.to_json()
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in facts["failed_reasons"].items())
        psnr, structure, decode = f"- ({facts['no_psnr_because']})", f"- ({facts['no_ssim_because']})", "not decoded"
        entropy = "not counted: the vocabulary is too large"
        if facts["psnr_db"] is not None:
            psnr = f"{facts['psnr_db']:.2f} dB mean, {facts['psnr_db_worst']:.2f} worst, {facts['psnr_db_all_pixels']:.2f} over all pixels"
            decode = f"{facts['decode_images_per_second']:,.0f} decoded"
        if facts["ssim"] is not None:
            structure = f"{facts['ssim']:.4f} mean, {facts['ssim_worst']:.4f} worst"
        if facts["bits_per_token"] is not None:
            entropy = f"{facts['bits_per_token']:.2f} (order-0 entropy), {facts['bits_per_image']:,.0f} per image"
        others = ", ".join(_measured(trial) for trial in self.probe.others)
        return [
            ("images", f"{facts['images']:,}"),
            ("failed", f"{facts['images_failed']:,}{f'  ({reasons})' if reasons else ''}"),
            *(("", example) for example in facts["failed_examples"]),
            ("PSNR", psnr),
            ("SSIM", structure),
            ("tokens per image", f"{facts['tokens_per_image']:,.10g} of {facts['vocabulary_bits_per_token']:.2f} bits"),
            ("bits per token", entropy),
            *usage_rows(facts["code_usage"]),
            ("images per second", f"{facts['encode_images_per_second']:,.0f} encoded, {decode}; {facts['device']}, {facts['dtype']}"),
            ("normalisation", f"{_measured(self.probe.own)}; {f'others: {others}' if others else 'fixed by the family'}"),
        ]

    def warnings(self) -> list[str]:
        """Return a sentence for each likely mistake."""
        found = self.probe.warnings()
        for level, (promised, counts_K) in enumerate(zip(self.promised_bits, self.trip.histograms or [], strict=False)):
            ids, used = int(counts_K.sum()), int(np.count_nonzero(counts_K))
            measured = order0_entropy_bits(counts_K) + (used - 1) / (
                2 * ids * np.log(2)
            )  # Miller-Madow correction: few ids underestimate entropy
            if ids >= len(counts_K) and measured < promised - PROMISE_BITS:
                found.append(
                    f"level {level} has {measured:.2f} bits per id here, but had {promised:.2f} when the tokenizer was made: these images "
                    "are of another kind, or the tokenizer gets them in another range or size than it expects"
                )
        return found

    @property
    def _bits_per_token(self) -> float | None:
        return entropy_per_id(self.trip.histograms)

    @property
    def _vocabulary_bits(self) -> float:
        return float(np.mean(np.log2(self.tokenizer.spec.vocabulary)))


def evaluate_tokenizer(
    tokenizer: Tokenizer, statistics: dict[str, Any], source_url: str, config: SourceConfig, *, sample: int, seed: int
) -> Evaluation:
    """Measure a tokenizer on up to `sample` images of a source; `statistics` come from its tokenizer.json.

    Works batch by batch and keeps only the first batch. Raises ConfigError for an invalid sample size, the errors of listing a source, and
    TokenizerError if no image can be decoded.
    """
    if sample < 1:
        raise ConfigError(f"--sample is {sample}; expected at least 1 image")
    trip, failures, first = RoundTrip(tokenizer), _Failures(), None
    source = open_source(source_url, config)
    with Listing(source.list_rows(), order_seed=0, keep_order=source.ordered, sample=sample, sample_seed=seed) as listing:
        settle_sixteen_bit(source, listing.sample)
        decoded = islice(_decoded(source, listing.sample, sample, tokenizer.spec.preprocess, failures), sample)
        while some := list(islice(decoded, BATCH_ROWS)):
            if first is None:
                trip.warm_up()
            images_BHWC = np.stack([found.image.pixels_HWC for found in some])
            trip.add(images_BHWC)
            first = images_BHWC if first is None else first
    if first is None:
        raise TokenizerError(
            f"{display_url(source_url)}: nothing to measure: none of {len(listing.sample)} sampled inputs holds an image that decodes "
            f"({'; '.join(failures.examples) or 'no image was found'}). Check the source"
        )
    promised = [float(np.log2(level["perplexity"])) for level in statistics.get("levels", ()) if level.get("perplexity")]
    return Evaluation(
        tokenizer=tokenizer,
        trip=trip,
        probe=probe_normalisation(tokenizer, first),
        failures=failures,
        promised_bits=promised if len(promised) == len(tokenizer.spec.vocabulary) else [],
    )


def _decoded(source: ImageSource, rows: list[PlanRow], limit: int, preprocess: Preprocess, failures: _Failures) -> Iterator[SampledImage]:
    for outcome in decoded_sample(source, rows, limit, preprocess):
        if isinstance(outcome, SampledImage):
            yield outcome
        else:
            failures.take(outcome)


def _measured(trial: Trial) -> str:
    values = [f"{value:.2f} {unit}" for value, unit in ((trial.psnr_db, "dB"), (trial.entropy_bits, "bits")) if value is not None]
    return f"{trial.name} {' and '.join(values)}"
