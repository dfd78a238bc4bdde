"""Import published tokenizers: check another project's checkpoint key by key, and keep only the codes that images use.

Shapes: K codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.conversion.fit import count_codes
from tokenshards.pipeline.errors import ConfigError, TokenizerError, shorten
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.named_code import ALLOW_PYTHON
from tokenshards.pipeline.planning.planner import Listing
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.pixel_depth import settle_sixteen_bit
from tokenshards.pipeline.tokenizers.base import PublishedTokenizer, TellingTokenizer, Tokenizer
from tokenshards.pipeline.tokenizers.code_usage import code_moments, code_usage, rounded
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.registry import load_family, published_families

__all__ = ["CodeSample", "import_notes", "keep_used_codes", "open_published", "tokenizer_rows"]

PYTHON = "python"


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeSample:
    """The images to count codes on, and the fewest uses of a code to keep."""

    source_url: str
    source: SourceConfig
    images: int = 20_000
    seed: int = 0
    min_uses: int = 1

    def __post_init__(self) -> None:
        if self.images < 1 or self.min_uses < 1:
            raise ConfigError(f"--sample is {self.images} and --min-uses {self.min_uses}; expected at least 1")


def open_published(kind: str, weights: str, config: ImportConfig, storage_options: Mapping[str, Any] | None = None) -> PublishedTokenizer:
    """Return the tokenizer of a checkpoint at any path or URL; `python:package.module:callable` needs no checkpoint ("").

    Raises ConfigError for an unknown kind, TokenizerError with file and key for weights that do not belong to this kind.
    """
    name, colon, target = kind.partition(":")
    if colon and name == PYTHON:
        config = replace(config, target=target)
    elif kind not in published_families():
        kinds = ", ".join(published_families())
        raise ConfigError(f"--kind is {shorten(kind)}; expected one of {kinds}, or python:package.module:callable")
    elif not weights:
        raise ConfigError(f"CHECKPOINT or OUT.tok is missing; expected both for --kind {kind}")
    family = cast(type[PublishedTokenizer], load_family(name))
    if not hasattr(family, "from_checkpoint"):
        raise ConfigError(f"--kind is {kind}, which takes no checkpoints; expected a family with read_checkpoint and from_checkpoint")
    return family.from_checkpoint(family.read_checkpoint(weights, config, storage_options), config, decoder=DECODER, where=weights or kind)


def import_notes(tokenizer: Tokenizer) -> list[str]:
    """Return sentences about an import for the user. Call it before `keep_used_codes`, which makes another tokenizer."""
    return tokenizer.take_notes() if isinstance(tokenizer, TellingTokenizer) else []


def keep_used_codes(tokenizer: PublishedTokenizer, sample: CodeSample) -> tuple[PublishedTokenizer, dict[str, Any]]:
    """Count the codes of sampled images, drop codes with fewer than `min_uses` uses, return the tokenizer and its statistics as JSON types.

    The order of the images does not matter. Raises TokenizerError if no image can be decoded or no code is left.
    """
    if len(tokenizer.spec.vocabulary) != 1:
        raise ConfigError(f"--keep-codes was given; {tokenizer.spec.family} has several ids per site and no table to drop codes from")
    if tokenizer.spec.codebook is None or tokenizer.spec.codebook.metric == "fsq":
        raise ConfigError(f"--keep-codes was given; {tokenizer.spec.family} finds its ids without a table to drop codes from")
    source = open_source(sample.source_url, sample.source)
    with Listing(source.list_rows(), order_seed=0, keep_order=source.ordered, sample=sample.images, sample_seed=sample.seed) as listing:
        settle_sixteen_bit(source, listing.sample)
        counts_K = count_codes(source, listing.sample, sample.images, tokenizer)
    kept = np.flatnonzero(counts_K >= sample.min_uses)
    if not len(kept):
        raise TokenizerError(f"no code is used {sample.min_uses} times or more, the most common {counts_K.max()} times; lower --min-uses")
    smaller = tokenizer.keep(kept.tolist())
    left_K = counts_K[kept]
    statistics: dict[str, Any] = {
        "images": int(counts_K.sum()) // tokenizer.spec.layout.sites,
        "levels": [code_usage(left_K)],
        "published_codes": len(counts_K),
        "min_uses": sample.min_uses,
        "kept_share": rounded([left_K.sum() / counts_K.sum()])[0],
    }
    tables = list(smaller.codebook().values())
    if tables:
        statistics["embedding"] = code_moments(tables[0], left_K)
    return smaller, statistics


def tokenizer_rows(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return preprocessing, size and networks of a tokenizer as (name, value) text."""
    spec, preprocess = tokenizer.spec, tokenizer.spec.preprocess
    how = "squashed to" if preprocess.resize == "squash" else "short side and centre crop to"
    low, high = preprocess.colour_range
    # In bfloat16 Cosmos gives other ids for images in channels-last memory format, and published code uses both formats.
    layout = ", images contiguous as [B, 3, H, W]" if spec.family == "torchscript" and spec.dtype == "bfloat16" else ""
    bits = sum(int(np.ceil(np.log2(max(2, size)))) for size in spec.vocabulary) * spec.layout.sites
    return [
        ("images", f"{how} {preprocess.size} x {preprocess.size} px, {preprocess.filter}, values from {low:g} to {high:g}"),
        ("ids per image", f"{spec.layout.sites * spec.layout.ids_per_site:,}, {-(-bits // 8):,} bytes before compression"),
        ("to use it", f"export {ALLOW_PYTHON}={spec.config['target']}") if spec.family == PYTHON else ("networks", f"{spec.dtype}{layout}"),
    ]
