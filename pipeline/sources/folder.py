"""Loose image files below a folder; the names of class sub-folders become labels."""

from __future__ import annotations

from collections.abc import Iterator

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.images.decode import image_extensions
from tokenshards.pipeline.records import FailedRecord, ImageRecord, PlanRow
from tokenshards.pipeline.sources.base import HIDDEN, is_hidden, read_file_row, readable_text, refuse_options
from tokenshards.pipeline.sources.summary import SourceSummary, extension
from tokenshards.pipeline.storage.store import Store

__all__ = ["FolderSource"]


class FolderSource:
    """Files at any depth whose extension (any case) Pillow reads, or all files.

    The label of a file is the first folder of its path below the root; files directly in the root have no label. Hidden files are skipped
    and counted, as in tars. Pipes, broken links and the like with an image extension are planned too, so that they become visible as failed
    inputs. Raises SourceError for options that a folder cannot use.
    """

    kind = "folder"
    ordered = False

    def __init__(self, store: Store, config: SourceConfig) -> None:
        self.store = store
        self.config = config
        self.summary = SourceSummary(noun="file" if config.all_files else "image")
        no_columns = "it has no columns, only images"
        labels = "the label of an image is its first sub-folder"
        refuse_options(
            config, store.url, "a folder of images", label=labels, meta=no_columns, id_column=no_columns, image_column=no_columns
        )

    @property
    def root(self) -> str:
        """The place that row paths are relative to: an absolute path or a URL."""
        return self.store.root if self.store.is_local else self.store.url

    def list_rows(self) -> Iterator[PlanRow]:
        """Yield a row per matched file in any order, with one folder in memory at a time; fills `summary`."""
        self.summary = summary = SourceSummary(noun=self.summary.noun)
        all_files, images, hidden_too = self.config.all_files, image_extensions(), self.config.rules == 1
        for info in self.store.list():
            name = readable_text(info.path)
            if not hidden_too and is_hidden(name):
                summary.leave_out(HIDDEN, name)
                continue
            kind = extension(name)
            if not (all_files or kind in images):
                summary.leave_out(kind, name)
                continue
            folder, slash, _ = name.partition("/")
            label = folder if slash and not self.config.no_labels else None
            summary.take(name, info.size, kind)
            summary.take_label(label)
            if label is not None:
                summary.label_type = "string"
            yield PlanRow(kind="file", sample_id=name, path=info.path, size=info.size, version=info.version, inputs=1, label=label)
        if self.config.no_labels:
            summary.notes.append("no labels, as --no-labels asks")
        elif not summary.labels:
            summary.notes.append("no labels (flat folder: put each class in its own sub-folder to get labels)")
        tables = sum(found.count for kind, found in summary.left_out.items() if kind.startswith((".tar", ".parquet")))
        if tables:
            summary.notes.append(
                f"{tables} tar or Parquet files beside the images are ignored; to take them, give a pattern such as FOLDER/*.tar"
            )

    def read(self, row: PlanRow) -> Iterator[ImageRecord | FailedRecord]:
        """Yield the one record of a file row."""
        yield read_file_row(self.store, row, self.config)
