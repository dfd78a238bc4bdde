"""One sample per item, as the Trainer of transformers and accelerate's `prepare` expect: they cut such a dataset into batches and ranks.

Shapes: B samples, L sites, Q ids per site.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.data.class_names import class_map, require_names
from tokenshards.stem_adaptors.data.decoded import DecodedSet
from tokenshards.stem_adaptors.data.given import require_data
from tokenshards.stem_adaptors.data.same_tokenizer import require_same_tokenizer
from tokenshards.stem_adaptors.data.selection import Ints, Selection, sample_count
from tokenshards.stem_adaptors.data.sources import drawn_rows

__all__ = ["TokenSamples"]


class TokenSamples(Dataset[dict[str, Tensor]]):
    """A map-style dataset of dicts: `input_ids`, int64 [L, Q], or [L] where a site has one id; `labels`, an int64 class index.

    >>> samples = tokenshards.TokenSamples(tokenshards.open_dataset("photos.tokens"))
    >>> {name: tuple(value.shape) for name, value in samples[0].items()}
    {'input_ids': (256, 2), 'labels': ()}
    >>> batch = next(iter(torch.utils.data.DataLoader(samples, batch_size=24, shuffle=True)))
    >>> batch["input_ids"].shape
    torch.Size([24, 256, 2])

    The dataset is decoded once per machine into the cache folder, which every process maps. A batch is read at once (`__getitems__`). A
    sample is an image: where it has several views, the epoch of `set_epoch`, which accelerate calls, and `seed` draw one.
    """

    def __init__(
        self,
        data: TokenDataset | Selection,
        *,
        classes: Sequence[int | str] | None = None,
        like: TokenDataset | Selection | None = None,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_gb: float = 64.0,
    ) -> None:
        """Open the data. `classes`: the table that labels index, by default the data's own. `like`: the training set of a validation set,
        whose classes are the table and whose tokenizer must be the same.

        `cache_dir`, `cache_gb`: as in LoaderConfig. Raises OtherTokenizerError for data of another tokenizer than that of `like`.
        Raises ConfigError for a layout of varying size, for images without labels, for classes that the table lacks, and where the cache
        budget is too small.
        """
        require_data(data, like)
        if data.spec.layout.variable:
            raise ConfigError(
                "TokenSamples needs samples of one size; this layout varies, and the frameworks' own code to join samples cannot pad it. "
                "Read it with tokenshards.TokenLoader, whose batches have a mask"
            )
        if like is not None:
            require_same_tokenizer(data, like.spec, "the training set")
            classes = like.classes if classes is None else classes
        if classes is not None:
            require_names(classes)
        self.classes: tuple[int | str, ...] = data.classes if classes is None else tuple(classes)
        """Labels in the order of their class index."""
        self._data, self._size = data, sample_count(data)
        self._dataset = data.dataset if isinstance(data, Selection) else data
        # A selection with a smaller table chose its rows by it; what another table lacks would count as wrong.
        strict = classes is not None
        self._table = class_map(self._dataset.classes, self.classes, self._dataset.store.url, missing_is_error=strict).numpy()
        self._seed, self._epoch = seed, 0
        self._cache_dir, self._cache_gb = None if cache_dir is None else os.fspath(cache_dir), cache_gb
        self._opened: DecodedSet | None = None
        absent = int((self._labels(self._first_rows(np.arange(self._size))) < 0).sum())
        if absent:
            raise ConfigError(
                f"{absent} of the {self._size} images have no label; expected one for each, because the frameworks know no weight of a "
                "sample. Take the others: select(dataset, classes=dataset.classes) of tokenshards.stem_adaptors.data.selection"
            )

    def set_epoch(self, epoch: int) -> None:
        """Draw the views of another epoch from now on."""
        self._epoch = epoch

    def __repr__(self) -> str:
        return short_repr(self, data=self._data, classes=self.classes)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one sample; raises IndexError for one that does not exist."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Return several samples, which share their memory. DataLoader calls this with the indices of a batch."""
        samples_B = np.asarray(indices, np.int64)
        if samples_B.size and not -self._size <= samples_B.min() <= samples_B.max() < self._size:
            raise IndexError(f"sample {samples_B.min()} to {samples_B.max()} of a dataset of {self._size}")
        rows_B = drawn_rows(self._first_rows(samples_B % self._size), self._seed, self._epoch, self._dataset.views)
        ids_BLQ = torch.from_numpy(self._decoded.take(rows_B).ids_BLQ.astype(np.int64))
        ids = ids_BLQ[..., 0] if ids_BLQ.shape[2] == 1 else ids_BLQ
        labels_B = torch.from_numpy(self._labels(rows_B))
        return [{"input_ids": own, "labels": label} for own, label in zip(ids.unbind(), labels_B.unbind(), strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the mapped files, so that a worker process maps its own."""
        return {**self.__dict__, "_opened": None}

    def _first_rows(self, samples_B: Ints) -> Ints:
        """Return the rows of view 0."""
        return self._data.rows_n[samples_B] if isinstance(self._data, Selection) else samples_B * self._dataset.views

    def _labels(self, rows_B: Ints) -> Ints:
        labels_B: Ints = self._table[self._decoded.labels_N[rows_B]]
        return labels_B

    @property
    def _decoded(self) -> DecodedSet:
        if self._opened is None:
            self._opened = DecodedSet.open(self._dataset, cache_dir=self._cache_dir, cache_gb=self._cache_gb)
        return self._opened
