"""Pictures to tokens without a dataset: a handful of files, encoded as a shard's would be. For `predict`; datasets go through `job`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, MissingObjectError, SourceError
from tokenshards.pipeline.images.decode import decode_image, image_extensions
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.base import extension
from tokenshards.pipeline.storage.store import Store, display_url, open_parent
from tokenshards.pipeline.tokenizers.base import Tokenizer

__all__ = ["EncodedImages", "tokenize_images"]


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Some pictures as tokens, and why others are not."""

    names: list[str]
    tokens: TokenBatch | None
    """Rows in the order of `names`; None where every picture failed."""
    failed: list[tuple[str, str]]
    """(name, reason)."""


def tokenize_images(
    places: Sequence[str], tokenizer: Tokenizer, *, storage_options: dict[str, Any] | None = None, batch_size: int = 64
) -> Iterator[EncodedImages]:
    """Yield the pictures at paths and URLs as token batches, in order; a folder stands for every picture below it.

    A picture that cannot be read or decoded is named in `failed` and costs only itself. Raises SourceError for a folder without
    pictures, TransientStorageError when a store keeps failing.
    """
    for files in _batched(_files(places, storage_options or {}), batch_size):
        names, pixels, failed = [], [], []
        for store, path, name in files:
            try:
                pixels.append(decode_image(store.read(path), tokenizer.spec.preprocess).pixels_HWC)
                names.append(name)
            except (BadInput, MissingObjectError) as error:
                failed.append((name, str(error)))
        yield EncodedImages(names, tokenizer.encode(np.stack(pixels)) if pixels else None, failed)


def _files(places: Sequence[str], options: dict[str, Any]) -> Iterator[tuple[Store, str, str]]:
    for place in places:
        shown = display_url(place)
        if extension(place.rstrip("/")) in image_extensions():
            yield (*open_parent(place.rstrip("/"), options), shown)
            continue
        source = open_source(place, SourceConfig(storage_options=options))
        if source.kind != "folder":
            raise SourceError(f"{shown}: a {source.kind} source; expected pictures or folders of pictures. Tokenize it and use `evaluate`")
        for row in source.list_rows():
            yield source.store, row.path, f"{shown.rstrip('/')}/{row.path}"


def _batched(files: Iterator[tuple[Store, str, str]], size: int) -> Iterator[list[tuple[Store, str, str]]]:
    while batch := list(islice(files, size)):
        yield batch
