"""`plan`: estimate time, size and cost of a job from a small timed sample; writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenshards.pipeline.config import PlanConfig, RunConfig, SourceConfig
from tokenshards.pipeline.conversion.fit import fit_own_tokenizer
from tokenshards.pipeline.conversion.timed_sample import SAMPLE_IMAGES, TimedSample, time_sample
from tokenshards.pipeline.conversion.understand import understand
from tokenshards.pipeline.planning.partition import RowSpool
from tokenshards.pipeline.planning.planner import Listing
from tokenshards.pipeline.shards.codebook import carries_copies
from tokenshards.pipeline.sources import SourceSummary, open_source
from tokenshards.pipeline.sources.lfs import doubt_lfs_pointers
from tokenshards.pipeline.sources.mask_values import settle_masks
from tokenshards.pipeline.sources.pixel_depth import settle_sixteen_bit
from tokenshards.pipeline.tokenizers.base import Tokenizer, describe_tokenizer
from tokenshards.pipeline.tokenizers.config import OwnFitConfig
from tokenshards.pipeline.words import counted

__all__ = ["Estimate", "count_images", "estimate_job"]

LABELS_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Estimated time, size and cost of a job on one machine with `workers` workers."""

    images: int
    images_exact: bool
    """False where the number is extrapolated from a sample, as for tars of a remote store."""
    bytes_in: int
    shards: int
    requests: int
    """GETs of inputs and PUTs of outputs."""
    workers: int
    images_per_second: float
    hours: float
    bytes_out: int
    """Of all shards and `tables_bytes`."""
    bytes_per_image: float
    """Of a shard, without copies of tables."""
    tables_bytes: int
    """Of codebook and model of the codec, in `tokenizer/` and as copies in shards."""
    money: float | None
    bottleneck: str
    seconds_per_stage: dict[str, float]
    """Seconds per image on one worker."""
    bad_share: float
    bad_example: str
    """The first input of the sample that failed, with the reason; empty if none did."""
    absent_share: float
    """Of the sample: inputs of which a table says that there is no image."""
    tokenizer: str
    matched: tuple[str, ...]
    understood: dict[str, Any]
    """The summary of the listing in JSON types, with its doubts."""
    labels: tuple[int | str, ...]
    """Up to ten labels that the listing found; labels of tars are known only when the tars are read."""
    label_count: int
    classes: frozenset[int | str]
    """All labels that the listing found, up to 100,000; not in the JSON."""

    def to_json(self) -> dict[str, object]:
        """Return plain JSON types."""
        plain = {name: value for name, value in asdict(self).items() if name != "classes"}
        return {**plain, "matched": list(self.matched), "labels": list(self.labels)}

    def rows(self) -> list[tuple[str, str]]:
        """Return the table as (name, value) text."""
        stages = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in self.seconds_per_stage.items())
        about = "" if self.images_exact else "about "
        time_text = f"{self.hours:.2f} hours" if self.hours >= 0.1 else counted(round(3600 * self.hours), "second")
        return [
            ("images", f"{about}{self.images:,} ({self.bytes_in / 1e6:,.1f} MB)"),
            ("tokenizer", self.tokenizer),
            ("shards", f"{self.shards:,}"),
            ("requests", f"{self.requests:,}"),
            ("images per second", f"{self.images_per_second:,.0f} with {counted(self.workers, 'worker')}"),
            ("time", time_text),
            (
                "output",
                f"{self.bytes_out / 1e6:,.1f} MB ({self.bytes_per_image:,.0f} bytes per image, and {self.tables_bytes / 1e6:,.1f} MB of "
                "codebook and model with their copies)",
            ),
            ("money", "give --price-per-hour" if self.money is None else f"{self.money:,.2f}"),
            ("bottleneck", f"{self.bottleneck} ({stages} per image and worker)"),
            ("bad inputs in the sample", self._bad_text()),
            *([("absent in the sample", f"{self.absent_share:.1%} (the table says that there is no image)")] if self.absent_share else []),
        ]

    def _bad_text(self) -> str:
        such = f", such as {self.bad_example}" if self.bad_example else ""
        limit = RunConfig().max_bad
        stops = f". `tokenize` stops where more than {limit:.0%} are bad, unless --max-bad is above {limit:g}"
        return f"{self.bad_share:.1%}{such}{stops if self.bad_share > limit else ''}"


def estimate_job(
    source_url: str,
    source_config: SourceConfig,
    plan_config: PlanConfig,
    fit_config: OwnFitConfig,
    *,
    tokenizer: Tokenizer | None,
    workers: int,
    price_per_hour: float | None,
    classes: Iterable[int | str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Estimate:
    """List the source, say what was understood, time a sample of up to 256 images, and extrapolate. `classes`: an inherited class table.

    Raises what listing and fitting raise, and DoubtError where the input is in grave doubt.
    """
    # Unreadable objects count as bad inputs of the sample.
    source = open_source(source_url, replace(source_config, unreadable="quarantine"))
    config = replace(fit_config, sample=min(fit_config.sample, SAMPLE_IMAGES))
    with Listing(source.list_rows(), order_seed=0, keep_order=source.ordered, sample=SAMPLE_IMAGES, sample_seed=config.seed) as listing:
        settle_sixteen_bit(source, listing.sample)
        settle_masks(source, listing.sample)
        doubt_lfs_pointers(source, listing.sample)
        if source.config.takes_masks:
            source.summary.notes.append("this estimate counts no masks: neither their time nor their bytes")
        matched = understand(source, source_config, say, classes)
        used = tokenizer or fit_own_tokenizer(source, listing.sample, config).tokenizer
        spool = listing.spool
        timed = time_sample(source, listing.sample, used, plan_config, images=None if spool.tars else spool.inputs)
        images, exact = count_images(timed, listing.spool, source.summary)
        rows, tars = listing.spool.rows, listing.spool.tars
    if tars:
        shards = -(-rows // source_config.tars_per_shard)
    else:
        shards = -(-images // plan_config.rows_per_shard(images))
    per_image = {stage: seconds / timed.inputs for stage, seconds in timed.seconds.items()}
    rate = workers / max(1e-9, sum(per_image.values()))
    bytes_per_image = timed.bytes_out / timed.decoded
    tables = timed.once_bytes + sum(map(carries_copies, range(shards))) * timed.copy_bytes
    hours = images / rate / 3600
    about = describe_tokenizer(used)
    if tokenizer is None:  # the run fits on a larger sample and gets other codes
        about = f"{about.rpartition(', fingerprint')[0]}; the run fits its own"
    return Estimate(
        images=images,
        images_exact=exact,
        bytes_in=max(0, source.summary.bytes) or round(timed.bytes_in / timed.inputs * images),
        shards=shards,
        requests=rows + 2 * shards + 8,
        workers=workers,
        images_per_second=round(rate, 1),
        hours=hours,
        bytes_out=round(bytes_per_image * images) + tables,
        bytes_per_image=round(bytes_per_image, 1),
        tables_bytes=tables,
        money=None if price_per_hour is None else round(hours * price_per_hour, 4),
        bottleneck=max(per_image, key=lambda stage: per_image[stage]),
        seconds_per_stage={stage: round(seconds, 7) for stage, seconds in per_image.items()},
        bad_share=1 - timed.decoded / timed.inputs,
        bad_example=timed.failure,
        absent_share=timed.absent / (timed.inputs + timed.absent),
        tokenizer=about,
        matched=tuple(matched),
        understood=source.summary.to_json(),
        labels=tuple(sorted(source.summary.labels, key=lambda label: (isinstance(label, str), label))[:LABELS_SHOWN]),
        label_count=len(source.summary.labels),
        classes=frozenset(source.summary.labels),
    )


def count_images(timed: TimedSample, spool: RowSpool, summary: SourceSummary) -> tuple[int, bool]:
    """Return the number of images of a source, and whether it is exact.

    For tars that planning did not read whole it is extrapolated from the bytes of the sample; of inputs that may be absent, from their
    share in the sample.
    """
    if spool.tars and summary.images >= 0:
        return summary.images, True
    if spool.tars == 0:
        absent = round(spool.inputs * timed.absent / max(1, timed.inputs + timed.absent))
        return spool.inputs - absent, timed.absent == 0
    return max(timed.inputs, round(timed.inputs * max(0, summary.bytes) / max(1, timed.slice_bytes))), False
