"""Read and decode a sample of a source's images, in threads and bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.config import SourceConfig, UrlLimits
from tokenshards.pipeline.errors import BadInput
from tokenshards.pipeline.images.decode import DecodedImage, decode_image
from tokenshards.pipeline.records import AbsentRecord, FailedRecord, ImageRecord, LeftOutRecord, PlanRow
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.sources import read_slice
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.sources.fetch import fetch_ahead, fetch_file, urls_to_probe

__all__ = ["SampledImage", "decoded_sample", "look_at_sample"]

_T = TypeVar("_T")

MAX_SAMPLED_SLICES = 64
URL_THREADS, URLS_AHEAD = 32, 512


@dataclass(frozen=True, slots=True)
class SampledImage:
    """One decoded image; `bytes_in` is the size of its encoded bytes, `sha256` their hash."""

    sample_id: str
    sha256: str
    bytes_in: int
    image: DecodedImage


def decoded_sample(source: ImageSource, rows: list[PlanRow], limit: int, preprocess: Preprocess) -> Iterator[SampledImage | FailedRecord]:
    """Yield an image or a failure for about `limit` inputs of the sampled rows, as `look_at_sample` chooses them."""
    rules = source.config.image_rules

    def decoded(sample_id: str, data: bytes) -> SampledImage:
        return SampledImage(sample_id, sha256_hex(data), len(data), decode_image(data, preprocess, rules))

    for sample_id, outcome in look_at_sample(source, rows, limit, decoded):
        yield FailedRecord(sample_id=sample_id, error=outcome) if isinstance(outcome, BadInput) else outcome


def look_at_sample(
    source: ImageSource, rows: list[PlanRow], limit: int, look: Callable[[str, bytes], _T]
) -> Iterator[tuple[str, _T | BadInput]]:
    """Yield sample id and result of `look` at id and bytes, or the failure, for about `limit` inputs of the sampled rows.

    Each tar and table slice gives an equal share of the inputs, from its start.
    """
    # A sample leaves out unreadable objects, as it leaves out bad images, and waits for no host for long.
    config = replace(source.config, unreadable="quarantine", urls=_hasty(source.config.urls))
    others = urls_to_probe(rows)

    def load(item: PlanRow | ImageRecord | FailedRecord) -> _T:
        if isinstance(item, FailedRecord):
            raise item.error
        data = item.data if isinstance(item, ImageRecord) else fetch_file(source.store, item, config, others=others)
        return look(item.sample_id, data)

    # Reading waits for I/O, and decoding releases the GIL. Hosts of others may be dead, and to find that out takes long.
    threads = URL_THREADS if others else max(2, os.cpu_count() or 1)
    ahead = URLS_AHEAD if others else 4 * threads
    for item, outcome in fetch_ahead(_items(source, config, rows, limit), load, threads=threads, ahead=ahead):
        yield item.sample_id, outcome


def _hasty(urls: UrlLimits) -> UrlLimits:
    timeout, total = min(10.0, urls.timeout_seconds), min(30.0, urls.total_seconds)
    return replace(urls, attempts=1, timeout_seconds=timeout, total_seconds=total)


def _items(source: ImageSource, config: SourceConfig, rows: list[PlanRow], limit: int) -> Iterator[PlanRow | ImageRecord | FailedRecord]:
    slices = [row for row in rows if row.kind not in ("file", "absent")][:MAX_SAMPLED_SLICES]
    for row in slices:
        left = -(-limit // len(slices))  # failures do not count against the share of a slice
        for record in read_slice(source.store, row, config, source.summary.label_type, source.summary.meta_types):
            if isinstance(record, AbsentRecord | LeftOutRecord):
                continue
            yield record
            left -= isinstance(record, ImageRecord)
            if left == 0:
                break
    yield from [row for row in rows if row.kind == "file"][:limit]
