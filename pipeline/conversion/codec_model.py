"""The model of the codec `compact`: fitted to the tokens of a sample before the plan is frozen, and kept beside the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.job.context import TOKENIZER_FOLDER
from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.records import PlanRow, TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards.compact.codec import CompactCodec
from tokenshards.pipeline.shards.compact.model_file import model_bytes, model_path, model_sha256, remember_model
from tokenshards.pipeline.shards.compact.model_size import WIDEST, paying_width
from tokenshards.pipeline.shards.compact.rows import expected_bits
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.token_columns import check_tokens
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.sources.sample import SampledImage, decoded_sample
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.words import counted

__all__ = ["fit_codec", "fit_told_codec", "keep_model", "most_rows", "sampled_tokens", "too_few_note"]

SAMPLED_IDS, MOST_IMAGES = 2_000_000, 8192
"""Of a level; more made models 0.3 % smaller."""
ENCODED_TOGETHER = 64
SAVING_ROWS = 256


def most_rows(spec: TokenizerSpec) -> int:
    """Return of how many images a fit needs the tokens at most."""
    return min(MOST_IMAGES, max(1, SAMPLED_IDS // spec.layout.sites))


def sampled_tokens(source: ImageSource, sample: list[PlanRow], tokenizer: Tokenizer) -> TokenBatch:
    """Return the tokens of as many sampled images as a fit needs. Raises TokenizerError if no sampled input can be decoded."""
    spec = tokenizer.spec
    outcomes = decoded_sample(source, sample, most_rows(spec), spec.preprocess)
    images = (found.image.pixels_HWC for found in outcomes if isinstance(found, SampledImage))
    batches = []
    while some := list(islice(images, ENCODED_TOGETHER)):
        batches.append(tokenizer.encode(np.stack(some)))
    if not batches:
        raise TokenizerError(
            f"no model of the codec compact can be fitted: none of {counted(len(sample), 'sampled input')} holds an image that decodes. "
            "Check the source, or use --codec default"
        )
    return check_tokens(concatenate_tokens(batches), spec)


def fit_codec(
    tokens: TokenBatch, tokenizer: Tokenizer, rows: int | None = None, say: Callable[[str], None] = lambda line: None
) -> CompactCodec:
    """Return the codec whose model is fitted to these tokens, for a dataset of so many rows, None for many.

    Raises ConfigError where torch is not installed.
    """
    with optional_import("--codec compact fits its model with torch", extra="train"):
        from tokenshards.pipeline.shards.compact.fit import CompactFitConfig, fit_compact
    hidden = WIDEST if rows is None else paying_width(tokenizer.spec, rows)
    model = fit_compact(tokens, tokenizer.spec, tokenizer.codebook(), CompactFitConfig(hidden=hidden), say)
    return CompactCodec(model, model_sha256(model))


def fit_told_codec(tokens: TokenBatch, tokenizer: Tokenizer, store: Store, rows: int | None, say: Callable[[str], None]) -> CompactCodec:
    """Fit a codec for a dataset of so many rows, and tell the user about its model. `rows`: None where they are not known yet."""
    say(f"codec compact: fitting its model to the tokens of {counted(len(tokens), 'image')} …")
    codec = fit_codec(tokens, tokenizer, rows, say)
    size = len(model_bytes(codec.model))
    say(f"model {codec.sha256[:12]} of the codec compact: {size / 1000:,.0f} kB; kept in {store.url}/{TOKENIZER_FOLDER}")
    if rows is not None and (note := too_few_note(codec, tokens, tokenizer, rows)) is not None:
        say(f"note: {note}")
    return codec


def too_few_note(codec: CompactCodec, tokens: TokenBatch, tokenizer: Tokenizer, rows: int) -> str | None:
    """Return a note for the user where the model takes more than it saves on so many rows; `tokens` are some of these."""
    spec, some = tokenizer.spec, tokens.take(np.arange(min(len(tokens), SAVING_ROWS)))
    order0_bits = 0.0
    for counts_K in some.count_ids(spec.vocabulary):
        used_K = counts_K[counts_K > 0]
        order0_bits -= float((used_K * np.log2(used_K / used_K.sum())).sum())
    saved = (order0_bits - expected_bits(codec.model, some, spec)) / 8 / len(some) * rows
    taken = len(model_bytes(codec.model)) + len(codec.model_copy() or "")
    if saved >= taken:
        return None
    return (
        f"so few images do not pay for the model: it takes {taken / 1000:,.0f} kB with its copy in a shard, and saves about "
        f"{max(0.0, saved) / 1000:,.0f} kB; --codec publish would be smaller"
    )


def keep_model(codec: CompactCodec, store: Store) -> dict[str, str]:
    """Write the model of a codec beside the tokenizer of a dataset; return its path and the sha256 of its bytes."""
    path, data = model_path(codec.sha256), model_bytes(codec.model)
    store.write(path, data)
    remember_model(codec.sha256, codec.model)
    return {path: sha256_hex(data)}
