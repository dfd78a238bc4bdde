"""Encode a few image files without a dataset, exactly as a shard's images are encoded. `predict` uses it; datasets use room `job`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, MissingObjectError, SourceError
from tokenshards.pipeline.images.decode import decode_image, image_extensions
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.summary import extension
from tokenshards.pipeline.storage.store import Store, display_url, open_parent
from tokenshards.pipeline.tokenizers.base import Tokenizer

__all__ = ["EncodedImages", "tokenize_images"]


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Tokens of some images, and the reasons why others failed."""

    names: list[str]
    tokens: TokenBatch | None
    """Rows in the order of `names`; None if every image failed."""
    failed: list[tuple[str, str]]
    """(name, reason)."""


def tokenize_images(
    places: Sequence[str], tokenizer: Tokenizer, *, config: SourceConfig | None = None, batch_size: int = 64
) -> Iterator[EncodedImages]:
    """Yield the images at paths and URLs as token batches, in order; a folder stands for every image below it.

    `config` has the rules of decoding and the access options. With `--sixteen-bit auto` each 16-bit image is scaled by the bits it uses,
    because there is no sample to look at; an image that uses all of them gives the same tokens either way.

    An image that cannot be read or decoded is listed in `failed` and does not stop the others. Raises SourceError for a folder without
    images, TransientStorageError if a store keeps failing.
    """
    config = config or SourceConfig()
    rules = config.image_rules
    if rules.sixteen_bit == "auto":
        rules = replace(rules, sixteen_bit="scale")
    for files in _batched(_files(places, config), batch_size):
        names, pixels, failed = [], [], []
        for store, path, name in files:
            try:
                pixels.append(decode_image(store.read(path), tokenizer.spec.preprocess, rules).pixels_HWC)
                names.append(name)
            except (BadInput, MissingObjectError) as error:
                failed.append((name, str(error)))
        yield EncodedImages(names, tokenizer.encode(np.stack(pixels)) if pixels else None, failed)


def _files(places: Sequence[str], config: SourceConfig) -> Iterator[tuple[Store, str, str]]:
    for place in places:
        shown = display_url(place)
        if extension(place.rstrip("/")) in image_extensions():
            yield (*open_parent(place.rstrip("/"), config.storage_options), shown)
            continue
        source = open_source(place, config)
        if source.kind != "folder":
            raise SourceError(
                f"{shown}: this is a {source.kind} source; expected images or folders of images. Tokenize it and use `evaluate`"
            )
        for row in source.list_rows():
            yield source.store, row.path, f"{shown.rstrip('/')}/{row.path}"


def _batched(files: Iterator[tuple[Store, str, str]], size: int) -> Iterator[list[tuple[Store, str, str]]]:
    while batch := list(islice(files, size)):
        yield batch
