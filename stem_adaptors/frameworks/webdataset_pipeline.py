"""webdataset: its methods on the samples of a token dataset."""

from __future__ import annotations

from collections.abc import Sequence

from tokenshards.pipeline.errors import shorten
from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.frameworks.stream import TokenStream

with optional_import("TokenPipeline needs webdataset", package="webdataset"):
    import webdataset

__all__ = ["TokenPipeline"]


class TokenPipeline(webdataset.DataPipeline, webdataset.FluidInterface):  # type: ignore[misc]
    """What `webdataset.WebDataset` is, with the samples of a TokenStream: shuffle, map, to_tuple, batched and so on follow.

    >>> pipeline = tokenshards.TokenPipeline(tokenshards.open_dataset("photos.tokens"))
    >>> ids, labels = next(iter(pipeline.shuffle(1000).to_tuple("input_ids", "labels").batched(24)))
    >>> ids.shape, labels.shape
    (torch.Size([24, 256, 2]), torch.Size([24]))

    The stream splits the samples by rank and worker: no splitter of webdataset is needed.
    """

    def __init__(
        self, dataset: TokenDataset, *, classes: Sequence[int | str] | None = None, shuffle_shards: bool = True, seed: int = 0
    ) -> None:
        """Begin the pipeline with a TokenStream of these arguments."""
        super().__init__(TokenStream(dataset, classes=classes, shuffle_shards=shuffle_shards, seed=seed))

    def __repr__(self) -> str:
        return f"TokenPipeline({', '.join(shorten(stage) for stage in self.pipeline)})"
