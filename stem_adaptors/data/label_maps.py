"""The label maps of data to train on: their format, and how many classes their pixels have.

A label map is the mask of an image, stored with the image's tokens: the class of each pixel, or `ignore`.
"""

from __future__ import annotations

from typing import TypeAlias

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.selection import Selection

__all__ = ["map_classes", "map_format"]

Data: TypeAlias = TokenDataset | Selection | Mix

NEEDED = "Tokenize the images with --masks FOLDER, or with --mask-column NAME"


def map_format(data: Data) -> MaskFormat:
    """Return the format of the label maps. Raises ConfigError where a dataset has none, or another one than the first dataset."""
    datasets = _datasets(data)
    formats = [_format(dataset) for dataset in datasets]
    for dataset, found in zip(datasets, formats, strict=True):
        if found != formats[0]:
            raise ConfigError(
                f"{dataset.store.url} has masks of {_words(found)}; {datasets[0].store.url} of {_words(formats[0])}. Expected one format: "
                "tokenize both with the same tokenizer and the same --mask-bits"
            )
    return formats[0]


def map_classes(data: Data) -> int:
    """Return one more than the largest class of a pixel. Raises what `map_format` raises, and ConfigError where no pixel has a class."""
    map_format(data)
    datasets = _datasets(data)
    count = max(dataset.mask_classes for dataset in datasets)
    if not count:
        raise ConfigError(f"{datasets[0].store.url}: every pixel of every mask is to be ignored, so nothing can be learned")
    return count


def _format(dataset: TokenDataset) -> MaskFormat:
    if dataset.mask is None:
        raise ConfigError(f"{dataset.store.url} has no masks; expected the class of each pixel. {NEEDED}")
    return dataset.mask


def _words(found: MaskFormat) -> str:
    return f"{found.width} x {found.height} pixels in {found.dtype}"


def _datasets(data: Data) -> list[TokenDataset]:
    parts = data.parts if isinstance(data, Mix) else (data,)
    return [part.dataset if isinstance(part, Selection) else part for part in parts]
