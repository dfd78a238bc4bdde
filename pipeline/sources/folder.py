"""Loose image files below a folder; the names of folders, or a table beside the images, become labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError, shorten
from tokenshards.pipeline.images.decode import image_extensions
from tokenshards.pipeline.records import FailedRecord, ImageRecord, Label, PlanRow
from tokenshards.pipeline.sources.base import read_file_row, readable_text, refuse_options
from tokenshards.pipeline.sources.beside import Beside
from tokenshards.pipeline.sources.doubts import FEW_IMAGES, images_not_taken
from tokenshards.pipeline.sources.junk import HIDDEN, is_hidden, junk_kind_of_folder, junk_kind_of_name
from tokenshards.pipeline.sources.label_files import likely_tables
from tokenshards.pipeline.sources.label_table import LabelTable
from tokenshards.pipeline.sources.labels.rule import LabelRule
from tokenshards.pipeline.sources.mask_folder import MaskFolder
from tokenshards.pipeline.sources.splits import ALL_SPLITS, asked_split, known_split, split_at
from tokenshards.pipeline.sources.summary import Doubt, LeftOut, SourceSummary, extension
from tokenshards.pipeline.storage.store import Store

__all__ = ["FolderSource"]

MASKS = "of the masks"
"""What lies in the folder of masks is no image."""


@dataclass(slots=True)
class _Place:
    """What the path of a folder decides for all files directly in it."""

    junk: str | None = None
    label: str | None = None
    split: str | None = None
    split_at: int = -1
    files: int = 0


class FolderSource:
    """Files at any depth whose extension (any case) Pillow reads, or all files.

    Without --label-from the label of a file is the first folder of its path below the root; files directly in the root have no label.
    Where every folder in the root is a split, or several are, that is the first folder below the split. Hidden files and those of a system
    are left out and counted, as in tars. Pipes, broken links and the like with an image extension are planned too, so that they become
    visible as failed inputs. Raises SourceError for options that a folder cannot use.
    """

    kind = "folder"
    ordered = False

    def __init__(self, store: Store, config: SourceConfig) -> None:
        self.store = store
        self.config = config
        self.summary = SourceSummary(noun="file" if config.all_files else "image")
        no_table = "there is no --label-from file:TABLE"
        no_columns = "it has no columns, only images"
        labels = "the label of an image is a folder of its path; --label-from says which"
        self._rule = LabelRule.parse("none" if config.no_labels else config.label_from)
        by_table = self._rule.kind == "file"
        refuse_options(
            config,
            store.url,
            "a folder of images",
            **({} if by_table else {"label": labels, "key_column": no_table, "label_first": "an image has one folder"}),
            meta=no_columns,
            id_column=no_columns,
            image_column=no_columns,
            image_root=no_columns,
            path_template=no_columns,
            image_member="it has no samples of several members",
        )
        if config.mask_rules.mask_column is not None and not config.frozen:
            column = shorten(config.mask_rules.mask_column)
            raise SourceError(
                f"{store.url} is a folder of images, and --mask-column was given as {column}: {no_columns}. Give --masks FOLDER"
            )
        self._masks: MaskFolder | None = None
        if config.tar_key != "auto":
            raise SourceError(f"{store.url} is a folder of images, and --key was given as {config.tar_key!r}: it has no tars. Leave it out")
        if self._rule.kind == "tar":
            raise SourceError(f"{store.url} is a folder of images, and --label-from was given as 'tar': there is no tar. Leave it out")

    @property
    def root(self) -> str:
        """The place that row paths are relative to: an absolute path or a URL."""
        return self.store.root if self.store.is_local else self.store.url

    def list_rows(self) -> Iterator[PlanRow]:
        """Yield a row per matched file in any order, with one folder in memory at a time, and its mask if there are masks; fills `summary`.

        Settles in `config` where masks are, and how their paths differ from those of images. Raises SourceError if no image has a mask.
        """
        if self.config.masks is None:
            yield from self._images()
            return
        self._masks = masks = MaskFolder.open(self.store, self.config)
        yield from masks.joined(self._images())
        self.config = masks.settled(self.config)
        masks.describe(self.summary)

    def _images(self) -> Iterator[PlanRow]:
        self.summary = summary = SourceSummary(noun=self.summary.noun)
        self._settle()
        rules, all_files, images = self.config.rules, self.config.all_files, image_extensions()
        beside = Beside()
        asked = asked_split(self.config.split)
        wanted = None if asked == ALL_SPLITS else asked
        rule, table = self._rule, self._label_table()
        by_folder = rule.of_folders
        folder, place = None, _Place()
        for info in self.store.list():
            name = readable_text(info.path)
            slash = name.rfind("/") + 1
            if name[:slash] != folder:  # the files of a folder come together, and share all that its path decides
                self._count(place)
                folder = name[:slash]
                place = self._place(folder)
            junk = place.junk
            if junk is None and rules > 1 and (all_files or name[slash] == "."):  # others are no images by their extension
                junk = junk_kind_of_name(name[slash:]) if rules > 2 else HIDDEN if name[slash] == "." else None
            if junk is None and self._masks is not None and self._masks.holds(name):
                junk = MASKS
            if junk is not None:
                summary.leave_out(junk, name)
                continue
            kind = extension(name)
            if not (all_files or kind in images):
                self._leave_out(kind, name, info.size, beside)
                continue
            if wanted is not None and place.split != wanted:
                summary.leave_out(f"of {f'the split {place.split}' if place.split else 'no split'}", name)
                continue
            label: Label = place.label
            if not by_folder:
                label = rule.label_of(name, place.split_at) if table is None else table.label_of(name)
                summary.take_label(label)
            place.files += 1
            summary.take(name, info.size, kind)
            if info.archived:
                summary.archived.count += 1
                summary.archived.example = summary.archived.example or name
            yield PlanRow(kind="file", sample_id=name, path=info.path, size=info.size, version=info.version, inputs=1, label=label)
        self._count(place)
        self._finish(beside, table, wanted)

    def _settle(self) -> None:
        """Take the folders in the root as splits if all of them, or several, have such names: then the classes are the folders below."""
        config = self.config
        if config.rules < 3 or config.frozen or config.split is not None or config.label_from is not None or config.no_labels:
            return
        masks = self._masks.recorded if self._masks is not None else None
        names = [name for name in self.store.folders() if junk_kind_of_folder(name) is None and name != masks]
        splits = {split for name in names if (split := known_split(name)) is not None}
        if len(splits) > 1 or (splits and all(known_split(name) for name in names)):
            self.config = replace(config, split=ALL_SPLITS)

    def _label_table(self) -> LabelTable | None:
        return LabelTable.open(self.store, self._rule.table, self.config) if self._rule.kind == "file" else None

    def _place(self, folder: str) -> _Place:
        """Return what a folder path, with its last slash, decides."""
        config, path = self.config, folder[:-1]
        if config.rules < 3:
            hidden = HIDDEN if config.rules == 2 and is_hidden(path) else None
            return _Place(junk=hidden, label=None if config.no_labels else path.partition("/")[0] or None)
        split, place = split_at(path, asked_split(config.split))
        counted_below = place if config.split is not None else -1
        label = self._rule.label_of(folder, counted_below) if self._rule.of_folders else None
        return _Place(junk=junk_kind_of_folder(path), label=label, split=split, split_at=counted_below)

    def _count(self, place: _Place) -> None:
        """Count the inputs of a folder by label and split."""
        if place.files:
            if self._rule.of_folders:
                self.summary.take_label(place.label, place.files)
            if place.split is not None:
                self.summary.splits[place.split] += place.files

    def _leave_out(self, kind: str, name: str, size: int, beside: Beside) -> None:
        junk = junk_kind_of_name(name.rpartition("/")[2]) if self.config.rules > 2 else None
        self.summary.leave_out(junk or kind, name)
        if junk is None:
            beside.add(kind, name, size)

    def _finish(self, beside: Beside, table: LabelTable | None, wanted: str | None) -> None:
        """Say what the whole listing shows."""
        config, summary = self.config, self.summary
        summary.id_rule = "the path below the folder"
        below = ", counted below that of the split" if config.split is not None else ""
        summary.label_rule = self._rule.sentence(below) if table is None else table.rule
        summary.meta_rule = "none"
        summary.label_type = "string" if summary.classes else None
        if table is not None:
            summary.label_type = table.label_type
            table.finish(summary)
        if wanted is not None and not summary.files:
            seen = ", ".join(kind.rpartition(" ")[2] for kind in summary.left_out if kind.startswith("of the split")) or "none"
            raise SourceError(
                f"{self.store.url}: no image is of the split {shorten(config.split)}; expected the name of a folder that is a split (seen: "
                f"{seen}). Leave --split out to take every image"
            )
        if config.no_labels:
            summary.notes.append("no labels, as --no-labels asks")
        elif config.label_from == "none":
            summary.notes.append("no labels, as --label-from none asks")
        elif not summary.classes and self._rule.of_folders:
            summary.label_rule = "none"
            summary.notes.append("no labels (flat folder: put each class in its own sub-folder to get labels)")
        if self._rule.of_folders and not self.config.frozen:
            summary.tables_beside = likely_tables(self.store, beside.few(), self.config)
        texts = summary.left_out.get(".txt", LeftOut()).count
        if 2 * texts >= summary.files >= FEW_IMAGES:
            summary.notes.append(f"{texts:,} .txt files lie beside the images; captions are read from tars only, as meta.caption")
        larger = beside.container_bytes > summary.bytes
        if beside.tars or (beside.containers and larger):  # a small Parquet file is rather a table about the images
            sentence = f"{beside.containers} tar or Parquet files beside the images are ignored"
            option = "to take them, give a pattern such as FOLDER/*.tar"
            if larger:
                summary.doubts.append(images_not_taken(f"{sentence}, although they hold more bytes than the images", option))
            else:
                summary.doubts.append(Doubt(sentence=sentence, option=option))

    def read(self, row: PlanRow) -> Iterator[ImageRecord | FailedRecord]:
        """Yield the one record of a file row."""
        yield read_file_row(self.store, row, self.config)
