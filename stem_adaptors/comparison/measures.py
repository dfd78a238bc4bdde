"""What a side's tokens take and keep: stored bytes by codec, bits, fidelity, use of the codes, speed."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.conversion.codec_model import fit_codec, most_rows
from tokenshards.pipeline.quality.evaluation import evaluate_tokenizer
from tokenshards.pipeline.records import TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards.codecs import get_codec
from tokenshards.pipeline.shards.compact.model_file import model_bytes
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.token_columns import Codec
from tokenshards.pipeline.shards.writer import ShardRows, encode_shard
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Tokenizer, WeightedTokenizer
from tokenshards.pipeline.tokenizers.code_usage import order0_entropy_bits
from tokenshards.pipeline.tokenizers.directory import load_statistics, load_tokenizer
from tokenshards.pipeline.tokenizers.pixels.small_file import SmallFile

__all__ = ["fidelity", "file_bytes", "stored_bytes", "table_bytes"]

MOST_MEASURED = 2000
"""Images whose bytes and fidelity are measured."""
FITTED_HERE = ("patch-kmeans", "layered-kmeans", "vq-autoencoder")
"""Families whose networks and tables are made from the user's images: all of them count. Published networks do not."""


def table_bytes(tokenizer: Tokenizer) -> int:
    """Return the bytes of what a dataset keeps of its tokenizer: the codebook, and all else that was fitted here."""
    tables = list(tokenizer.codebook().values())
    if tokenizer.spec.family in FITTED_HERE and isinstance(tokenizer, WeightedTokenizer):
        tables += list(tokenizer.weights().values())
    return sum(int(table.nbytes) for table in tables)


def stored_bytes(train: TokenDataset, val: TokenDataset, tokenizer: Tokenizer, stored_images: int) -> dict[str, Any]:
    """Return what an image takes: `default`, `publish`, `compact` (streams alone), `order0`, and `bytes`, all that counts with compact.

    The model of compact is fitted to training images and measured on others, as the order-0 table is.
    """
    spec = train.spec
    fitted, measured = _first(train, most_rows(spec)), _first(val, MOST_MEASURED)
    compact = fit_codec(fitted, tokenizer, stored_images)
    found = {name: _token_bytes(measured, train, get_codec(name)) for name in ("default", "publish")}
    found["compact"] = _token_bytes(measured, train, compact)
    bits = sum(order0_entropy_bits(counts_K) * int(counts_K.sum()) for counts_K in measured.count_ids(spec.vocabulary))
    tables, model = table_bytes(tokenizer), len(model_bytes(compact.model))
    return {
        **{name: round(value, 2) for name, value in found.items()},
        "order0": round(bits / 8 / len(measured), 2),
        "table_bytes": tables,
        "model_bytes": model,
        "bytes": round(found["compact"] + (tables + model) / stored_images, 2),
    }


def _first(dataset: TokenDataset, most: int) -> TokenBatch:
    """Return the tokens of the first images; a plan has shuffled them."""
    batches, rows = [], 0
    for batch in dataset.batches(256):
        batches.append(batch.tokens)
        rows += len(batch.tokens)
        if rows >= most:
            break
    tokens = concatenate_tokens(batches)
    return tokens.take(np.arange(min(most, len(tokens))))


def _token_bytes(tokens: TokenBatch, dataset: TokenDataset, codec: Codec) -> float:
    count = len(tokens)
    rows = ShardRows(
        sample_id=[str(row) for row in range(count)],
        view=np.zeros(count, np.int16),
        label=[None] * count,
        meta={},
        orig_width=np.zeros(count, np.int32),
        orig_height=np.zeros(count, np.int32),
        orig_bytes=np.zeros(count, np.int64),
    )
    shard = encode_shard(rows, tokens, spec=dataset.spec, codec=codec, label_type=None, meta_types={}, copies=False)
    return shard.token_bytes / count


def fidelity(tokenizer_folder: Store, val_url: str, val: SourceConfig) -> dict[str, Any]:
    """Return PSNR, SSIM, use of the codes and images per second, as `evaluate-tokenizer` measures them."""
    tokenizer, statistics = load_tokenizer(tokenizer_folder, ""), load_statistics(tokenizer_folder, "")
    found = evaluate_tokenizer(tokenizer, statistics, val_url, val, sample=MOST_MEASURED, seed=0).to_json()
    used = [level["usage_share"] for level in found["code_usage"]]
    return {
        "psnr_db": found["psnr_db"],
        "ssim": found["ssim"],
        "code_usage": used,
        "encode_images_per_second": found["encode_images_per_second"],
        "ids": found["tokens_per_image"],
    }


def file_bytes(file: SmallFile, images: TokenDataset) -> float:
    """Return the mean bytes of files of the measured images; `images` holds their pixels."""
    side, sizes = images.spec.preprocess.size, []
    for pixels_LC in _first(images, MOST_MEASURED).ids_BLQ:
        sizes.append(file.stored(pixels_LC.reshape(side, side, -1))[0])
    return round(float(np.mean(sizes)), 2)
