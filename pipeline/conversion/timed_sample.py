"""A few inputs of a source read, decoded, encoded and written, with the seconds and bytes of each stage."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.config import PlanConfig
from tokenshards.pipeline.conversion.codec_model import fit_codec
from tokenshards.pipeline.errors import BadInput, TokenizerError
from tokenshards.pipeline.images.views import decode_views
from tokenshards.pipeline.records import AbsentRecord, ImageRecord, LeftOutRecord, PlanRow, TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards.codebook import pack_codebook
from tokenshards.pipeline.shards.codecs import get_codec, needs_model
from tokenshards.pipeline.shards.compact.codec import CompactCodec
from tokenshards.pipeline.shards.compact.model_file import model_bytes
from tokenshards.pipeline.shards.token_columns import Codec
from tokenshards.pipeline.shards.writer import ShardRows, encode_shard
from tokenshards.pipeline.sources import ImageSource
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.view_policy import ViewPolicy
from tokenshards.pipeline.words import counted

__all__ = ["SAMPLE_IMAGES", "TimedSample", "time_sample"]

SAMPLE_IMAGES, FEWEST_IMAGES = 256, 16
"""Most images to time, and the fewest if each has many views, because all views are in memory."""
TAR_BLOCK = 512


@dataclass(slots=True, kw_only=True)
class TimedSample:
    """Seconds per stage that a few inputs took on one worker, and their counts. Absent inputs are counted apart."""

    seconds: dict[str, float] = field(default_factory=lambda: {"fetch": 0.0, "decode": 0.0, "encode": 0.0, "write": 0.0})
    inputs: int = 0
    decoded: int = 0
    absent: int = 0
    failure: str = ""
    """The first input that failed, with its reason."""
    bytes_in: int = 0
    bytes_out: int = 0
    once_bytes: int = 0
    """Bytes of codebook and model in `tokenizer/`."""
    copy_bytes: int = 0
    """Bytes of their copies, in one shard of sixteen."""
    slice_bytes: int = 0
    """Bytes read from the files that hold the inputs."""


def time_sample(
    source: ImageSource, rows: list[PlanRow], tokenizer: Tokenizer, config: PlanConfig, *, images: int | None = None
) -> TimedSample:
    """Read, decode, encode and write the first inputs of the sampled rows; raises TokenizerError if none of them decodes.

    `images`: of the whole job, None where they are not known.
    """
    spec, views = tokenizer.spec, ViewPolicy.parse(config.views)
    limit = max(FEWEST_IMAGES, SAMPLE_IMAGES // views.count)
    size = spec.preprocess.size
    warm_up = _encode(tokenizer, [np.zeros((size, size, 3), np.uint8)], 1)
    if not needs_model(config.codec):
        _encoded_bytes(tokenizer, warm_up, [(1, 1, 1)], get_codec(config.codec))
    timed = TimedSample()
    last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        timed.seconds[stage] += now - last
        last = now

    pixels: list[npt.NDArray[np.uint8]] = []
    sizes: list[tuple[int, int, int]] = []
    for row in rows:
        members = 0
        for record in source.read(row):
            lap("fetch")
            if isinstance(record, LeftOutRecord):
                continue
            if isinstance(record, AbsentRecord):
                timed.absent += 1
                continue
            data = record.data or b""
            timed.inputs += 1
            timed.bytes_in += len(data)
            members += TAR_BLOCK * (1 + -(-len(data) // TAR_BLOCK) + 2 * (record.label is not None))  # each member has a header
            if isinstance(record, ImageRecord):
                try:
                    found = decode_views(
                        data, spec.preprocess, views, seed=config.order_seed, sample_id=record.sample_id, rules=source.config.image_rules
                    )
                    pixels.extend(found.pixels_VHWC)
                    sizes.extend([(found.width, found.height, len(data))] * views.count)
                except BadInput as error:  # counted as an input that was not decoded
                    timed.failure = timed.failure or f"{record.sample_id} ({error.reason})"
            else:
                timed.failure = timed.failure or f"{record.sample_id} ({record.error.reason})"
            lap("decode")
            if timed.inputs >= limit:
                break
        stopped = timed.inputs >= limit  # the last row was read only in part, so only its read bytes count
        timed.slice_bytes += min(members, max(0, row.size)) if stopped else max(0, row.size)
        if stopped:
            break
    if not pixels:
        raise TokenizerError(
            f"{source.store.url}: none of {counted(timed.inputs, 'sampled input')} decodes, such as {timed.failure}; check the source"
        )
    tokens = _encode(tokenizer, pixels, config.batch_rows)
    lap("encode")
    planned = None if images is None else images * views.count
    codec, share = _fitted_on_half(tokenizer, tokens, sizes, planned) if needs_model(config.codec) else (get_codec(config.codec), 1.0)
    last = time.perf_counter()
    timed.bytes_out = round(share * _encoded_bytes(tokenizer, tokens, sizes, codec))
    lap("write")
    timed.once_bytes, timed.copy_bytes = _tables_bytes(tokenizer, codec)
    timed.decoded = len(pixels) // views.count
    return timed


def _encode(tokenizer: Tokenizer, images: list[npt.NDArray[np.uint8]], batch_rows: int) -> TokenBatch:
    batches = []
    for start in range(0, len(images), batch_rows):
        batches.append(tokenizer.encode(np.stack(images[start : start + batch_rows])))
    return concatenate_tokens(batches)


def _fitted_on_half(
    tokenizer: Tokenizer, tokens: TokenBatch, sizes: list[tuple[int, int, int]], planned: int | None
) -> tuple[Codec, float]:
    """Return a codec fitted to every other row, and how much larger all rows would be were they all like those that it has not seen.

    The run fits to more rows, so that its shards are smaller than what follows from this.
    """
    rows = np.arange(len(tokens))
    known, unseen = rows[rows % 2 == 0], rows[rows % 2 == 1]
    codec = fit_codec(tokens.take(known), tokenizer, planned)
    if not len(unseen):
        return codec, 1.0
    each = [_encoded_bytes(tokenizer, tokens.take(part), [sizes[row] for row in part], codec) / len(part) for part in (unseen, rows)]
    return codec, each[0] / each[1]


def _tables_bytes(tokenizer: Tokenizer, codec: Codec) -> tuple[int, int]:
    """Return the bytes of codebook and model in `tokenizer/`, and of their copies in a footer."""
    tables = tokenizer.codebook()
    once = sum(table.nbytes for table in tables.values()) + (len(model_bytes(codec.model)) if isinstance(codec, CompactCodec) else 0)
    return once, len((pack_codebook(tables) if tables else None) or "") + len(codec.model_copy() or "")


def _encoded_bytes(tokenizer: Tokenizer, tokens: TokenBatch, sizes: list[tuple[int, int, int]], codec: Codec) -> int:
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
    return len(encode_shard(rows, tokens, spec=tokenizer.spec, codec=codec, label_type=None, meta_types={}, copies=False).data)
