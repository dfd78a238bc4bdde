"""A table of labels that lies beside the images, joined by name: `--label-from file:TABLE`."""

from __future__ import annotations

from typing import Protocol

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError, shorten
from tokenshards.pipeline.records import Label
from tokenshards.pipeline.sources.labels import LabelType
from tokenshards.pipeline.sources.summary import SourceSummary
from tokenshards.pipeline.storage.store import Store

__all__ = ["LabelTable"]


class LabelTable(Protocol):
    """Labels by the relative path of an image, for folders and for members of tars."""

    rule: str
    """How labels are joined, as the end of a sentence."""
    label_type: LabelType | None

    def label_of(self, path: str) -> Label:
        """Return the label of an image, None if the table has none."""

    def finish(self, summary: SourceSummary) -> None:
        """Say how many images have no row, and how many rows no image."""

    @staticmethod
    def open(store: Store, table: str, config: SourceConfig) -> LabelTable:
        """Read a table; raises SourceError if it cannot be joined."""
        raise SourceError(f"{store.url}: --label-from file:{shorten(table)} is not built yet")
