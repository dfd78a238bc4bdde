"""`plan`: what a job would take, from a small timed sample; writes nothing."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.config import FitConfig, PlanConfig, SourceConfig
from tokenshards.pipeline.conversion.fit import fit_tokenizer
from tokenshards.pipeline.errors import BadInput, TokenizerError
from tokenshards.pipeline.images.views import decode_views
from tokenshards.pipeline.planning.planner import Listing
from tokenshards.pipeline.records import ImageRecord, TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards.codecs import get_codec
from tokenshards.pipeline.shards.writer import ShardRows, encode_shard
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.storage.store import display_url
from tokenshards.pipeline.tokenizers.base import Tokenizer, describe_tokenizer
from tokenshards.pipeline.view_policy import ViewPolicy

__all__ = ["Estimate", "estimate_job"]

SAMPLE_IMAGES, FEWEST_IMAGES = 256, 16
"""Images timed, and the fewest where each has many views, all of which are in memory."""
TAR_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job would take on one machine with so many workers."""

    images: int
    images_exact: bool
    """False for tars, whose members were extrapolated from a sample."""
    bytes_in: int
    shards: int
    requests: int
    """GETs of inputs and PUTs of outputs."""
    workers: int
    images_per_second: float
    hours: float
    bytes_out: int
    bytes_per_image: float
    money: float | None
    bottleneck: str
    seconds_per_stage: dict[str, float]
    """Seconds per image on one worker."""
    bad_share: float
    tokenizer: str
    matched: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain JSON types."""
        return {**asdict(self), "matched": list(self.matched)}

    def rows(self) -> list[tuple[str, str]]:
        """Return the table as (name, value) text."""
        stages = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in self.seconds_per_stage.items())
        about = "" if self.images_exact else "about "
        time_text = f"{self.hours:.2f} hours" if self.hours >= 0.1 else f"{3600 * self.hours:.0f} seconds"
        return [
            ("images", f"{about}{self.images:,} ({self.bytes_in / 1e6:,.1f} MB)"),
            ("tokenizer", self.tokenizer),
            ("shards", f"{self.shards:,}"),
            ("requests", f"{self.requests:,}"),
            ("images per second", f"{self.images_per_second:,.0f} with {self.workers} workers"),
            ("time", time_text),
            ("output", f"{self.bytes_out / 1e6:,.1f} MB ({self.bytes_per_image:,.0f} bytes per image)"),
            ("money", "give --price-per-hour" if self.money is None else f"{self.money:,.2f}"),
            ("bottleneck", f"{self.bottleneck} ({stages} per image and worker)"),
            ("bad inputs in the sample", f"{self.bad_share:.1%}"),
        ]


def estimate_job(
    source_url: str,
    source_config: SourceConfig,
    plan_config: PlanConfig,
    fit_config: FitConfig,
    *,
    tokenizer: Tokenizer | None,
    workers: int,
    price_per_hour: float | None,
) -> Estimate:
    """List the source, time a sample of up to 256 images, and extrapolate; raises what listing and fitting raise."""
    source = open_source(source_url, replace(source_config, unreadable="quarantine"))  # they count as bad inputs of the sample
    views = ViewPolicy.parse(plan_config.views)
    sample_images = max(FEWEST_IMAGES, SAMPLE_IMAGES // views.count)
    config = FitConfig(**{**asdict(fit_config), "sample": min(fit_config.sample, SAMPLE_IMAGES)})
    with Listing(source.list_rows(), order_seed=0, keep_order=source.ordered, sample=SAMPLE_IMAGES, sample_seed=config.seed) as listing:
        tokenizer = tokenizer or fit_tokenizer(source, listing.sample, config).tokenizer
        spec, size = tokenizer.spec, tokenizer.spec.preprocess.size
        spent = {"fetch": 0.0, "decode": 0.0, "encode": 0.0, "write": 0.0}
        last = time.perf_counter()

        def lap(stage: str) -> None:
            nonlocal last
            now = time.perf_counter()
            spent[stage] += now - last
            last = now

        _encoded_bytes(tokenizer, _encode(tokenizer, [np.zeros((size, size, 3), np.uint8)], 1), [(1, 1, 1)], plan_config)  # warm-up
        last = time.perf_counter()
        images: list[npt.NDArray[np.uint8]] = []
        sizes: list[tuple[int, int, int]] = []
        seen = bytes_seen = slice_bytes = 0
        for row in listing.sample:
            members = 0
            for record in source.read(row):
                lap("fetch")
                seen += 1
                bytes_seen += len(record.data or b"")
                members += TAR_BLOCK * (
                    1 + -(-len(record.data or b"") // TAR_BLOCK) + 2 * (record.label is not None)
                )  # a header for each member
                if isinstance(record, ImageRecord):
                    try:
                        found = decode_views(record.data, spec.preprocess, views, seed=plan_config.order_seed, sample_id=record.sample_id)
                        images.extend(found.pixels_VHWC)
                        sizes.extend([(found.width, found.height, len(record.data))] * views.count)
                    except BadInput:
                        pass  # counted below: seen but not in images
                lap("decode")
                if seen >= sample_images:
                    slice_bytes += min(members, max(0, row.size))  # left in the middle: only what was read counts
                    break
            else:
                slice_bytes += max(0, row.size)
                continue
            break
        if not images:
            raise TokenizerError(f"{display_url(source_url)}: none of {seen} sampled inputs decodes; check the source")
        tokens = _encode(tokenizer, images, plan_config.batch_rows)
        lap("encode")
        size_out = _encoded_bytes(tokenizer, tokens, sizes, plan_config)
        lap("write")
        counted = listing.spool.tars == 0
        total_bytes = max(0, source.summary.bytes)
        images_total = listing.spool.inputs if counted else max(seen, round(seen * total_bytes / max(1, slice_bytes)))
        shards = (
            -(-images_total // plan_config.rows_per_shard(images_total))
            if counted
            else -(-listing.spool.rows // source_config.tars_per_shard)
        )
        inputs = listing.spool.rows
    per_image = {stage: seconds / seen for stage, seconds in spent.items()}
    rate = workers / max(1e-9, sum(per_image.values()))
    decoded = len(images) // views.count
    per_image_bytes = size_out / decoded
    hours = images_total / rate / 3600
    return Estimate(
        images=images_total,
        images_exact=counted,
        bytes_in=total_bytes or round(bytes_seen / seen * images_total),
        shards=shards,
        requests=inputs + 2 * shards + 8,
        workers=workers,
        images_per_second=round(rate, 1),
        hours=hours,
        bytes_out=round(per_image_bytes * images_total),
        bytes_per_image=round(per_image_bytes, 1),
        money=None if price_per_hour is None else round(hours * price_per_hour, 4),
        bottleneck=max(per_image, key=lambda stage: per_image[stage]),
        seconds_per_stage={stage: round(seconds, 7) for stage, seconds in per_image.items()},
        bad_share=1 - decoded / seen,
        tokenizer=describe_tokenizer(tokenizer),
        matched=tuple(source.summary.lines()),
    )


def _encode(tokenizer: Tokenizer, images: list[npt.NDArray[np.uint8]], batch_rows: int) -> TokenBatch:
    batches = []
    for start in range(0, len(images), batch_rows):
        batches.append(tokenizer.encode(np.stack(images[start : start + batch_rows])))
    return concatenate_tokens(batches)


def _encoded_bytes(tokenizer: Tokenizer, tokens: TokenBatch, sizes: list[tuple[int, int, int]], config: PlanConfig) -> int:
    widths, heights, counts = zip(*sizes, strict=True)
    rows = ShardRows(
        sample_id=[f"sample/{index:08d}" for index in range(len(sizes))],
        view=np.zeros(len(sizes), np.int16),
        label=[None] * len(sizes),
        meta={},
        orig_width=np.array(widths, np.int32),
        orig_height=np.array(heights, np.int32),
        orig_bytes=np.array(counts, np.int64),
    )
    encoded = encode_shard(
        rows, tokens, spec=tokenizer.spec, codec=get_codec(config.codec), label_type=None, meta_types={}, codebook=None, extra_metadata={}
    )
    return len(encoded.data)
