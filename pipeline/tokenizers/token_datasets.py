"""`tokenshards.open_dataset`: datasets that can decode their ids. The room `shards`, from which training reads, knows no tokenizers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tokenshards.pipeline.shards import dataset as datasets
from tokenshards.pipeline.shards.dataset import Decoder, TokenDataset
from tokenshards.pipeline.shards.joined import JoinedDataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import load_tokenizer

__all__ = ["open_dataset"]


def open_dataset(
    url: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    storage_options: dict[str, Any] | None = None,
    verify: bool = False,
) -> TokenDataset:
    """Open a complete dataset, local or at any fsspec URL, or several datasets of one tokenizer as one.

    `verify`: each shard is checked against its sha256 before it is read. Datasets in a list keep their order; their classes are joined by
    name. Raises MissingObjectError if there is no dataset, IncompleteError if tokenization has not finished, CorruptObjectError or
    FormatVersionError if the manifest cannot be read, OtherTokenizerError if the datasets have different tokenizers.

    >>> dataset = tokenshards.open_dataset("photos.tokens")
    >>> len(dataset), dataset.classes
    (72, ('class_0', 'class_1', 'class_2'))
    >>> dataset[-1].ids_LQ.shape, dataset[-1].label  # one row; -1 is the last
    ((256, 2), 'class_0')
    >>> dataset[:4].ids_BLQ.shape  # some rows, as one Batch
    (4, 256, 2)
    >>> dataset.decode(dataset[:4]).shape  # back to images, where the tokenizer can
    (4, 64, 64, 3)
    >>> both = tokenshards.open_dataset(["photos.tokens", "more.tokens"])
    >>> len(both)
    84
    """
    if isinstance(url, (str, os.PathLike)):
        found = datasets.open_dataset(os.fspath(url), storage_options=storage_options, verify=verify)
        found.open_tokenizer = _decoder
        return found
    parts = [open_dataset(place, storage_options=storage_options, verify=verify) for place in url]
    return parts[0] if len(parts) == 1 else JoinedDataset(parts)


def _decoder(store: Store) -> Decoder:
    from tokenshards.pipeline.tokenizers.image_tokenizer import ImageTokenizer  # images load Pillow, which reading does without

    return ImageTokenizer(load_tokenizer(store, "tokenizer"))
