"""Tars and zips of images: webdataset's, and others.

Each archive is one slice of the plan. What its members mean is settled once, at planning (rules.py); the workers read by those rules
(read.py). We read the headers ourselves: webdataset's reader ends silently at a damaged header and so loses the rest of a tar, and
importing it loads torch. We never unpickle and never run a command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError
from tokenshards.pipeline.records import PlanRow, SourceRecord
from tokenshards.pipeline.sources.base import readable_text, refuse_options
from tokenshards.pipeline.sources.label_table import names_table
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType
from tokenshards.pipeline.sources.summary import SourceSummary
from tokenshards.pipeline.sources.tars.earlier_rules import describe_before, read_tar_before
from tokenshards.pipeline.sources.tars.mask_members import mask_suffix
from tokenshards.pipeline.sources.tars.read import read_tar_by_members
from tokenshards.pipeline.sources.tars.rules import describe, survey_tars
from tokenshards.pipeline.sources.tars.survey import TarSurvey
from tokenshards.pipeline.storage.store import ObjectInfo, Store
from tokenshards.pipeline.words import counted

__all__ = ["TarSource", "read_tar"]

NO_IMAGES = "tars without images"
NAMES_SHOWN = 12


class TarSource:
    """Archives in a given order; each is one slice, and its samples are counted when it is read."""

    kind = "tar"
    ordered = True

    def __init__(self, store: Store, config: SourceConfig, files: Sequence[ObjectInfo]) -> None:
        self.store = store
        self.config = config
        self.files = files
        self.summary = SourceSummary(noun="tar")
        no_columns = "tars have no columns; an id consists of path and key"
        members = "tars have no columns; --image-member NAME takes one of several images of a sample"
        refuse_options(
            config,
            store.url,
            "a set of tars",
            id_column=no_columns,
            image_column=members,
            **({} if names_table(config.label_from) else {"key_column": "there is no --label-from file:TABLE"}),
            masks="a mask is a member of its sample: --mask-column seg.png takes it",
            image_root="its images are members of tars",
            path_template="its images are members of tars",
        )

    @property
    def root(self) -> str:
        """The place that row paths are relative to: an absolute path or a URL."""
        return self.store.root if self.store.is_local else self.store.url

    def list_rows(self) -> Iterator[PlanRow]:
        """Yield a row per tar in the given order, and settle the rules.

        Raises SourceError if the tars cannot be read as samples, or lack what options name.
        """
        self.summary = summary = self.summary.restarted()
        empty: set[str] = set()
        if self.config.rules < 3:
            describe_before(self.store, self.files, self.config, summary)
        else:
            survey, self.config = survey_tars(self.store, self.files, self.config)
            describe(survey, self.config, summary)
            _describe_masks(survey, self.config, summary, self.store.url)
            empty = {path for path in survey.without_images if survey.complete}
            partners = self.config.label_from and self.config.label_from.startswith("file:")
            if partners:
                folder = str(self.config.label_from).removeprefix("file:").strip("/")
                empty |= {info.path for info in self.files if info.path.rpartition("/")[0] == folder}
        for info in self.files:
            name = readable_text(info.path)
            if info.path in empty:
                summary.leave_out(NO_IMAGES, name)
                continue
            summary.take(name, info.size)
            yield PlanRow(kind="tar", sample_id=name, path=info.path, size=info.size, version=info.version, inputs=-1)

    def read(self, row: PlanRow) -> Iterator[SourceRecord]:
        """Yield the samples of one tar in their order."""
        return read_tar(self.store, row, self.config, self.summary.label_type, self.summary.meta_types)


def read_tar(
    store: Store, row: PlanRow, config: SourceConfig, label_type: LabelType | None, meta_types: dict[str, MetaType]
) -> Iterator[SourceRecord]:
    """Yield the records of one tar by the rules of its plan; raises TransientStorageError, and by rules 3 SourceError."""
    read = read_tar_by_members if config.rules >= 3 else read_tar_before
    return read(store, row, config, label_type, meta_types)


def _describe_masks(survey: TarSurvey, config: SourceConfig, summary: SourceSummary, where: str) -> None:
    """Say which members are masks. Raises SourceError if the samples that were seen have none."""
    suffix = mask_suffix(config)
    if suffix is None:
        return
    there, seen = survey.suffixes[suffix], f"{'all' if survey.complete else 'the first'} {counted(survey.samples, 'sample')}"
    summary.mask_rule = f"member .{suffix} of a sample, {there:,} of {seen}"
    if there or config.frozen or (config.yes and not survey.complete):
        return
    names = ", ".join(f".{name}" for name, _ in survey.suffixes.most_common(NAMES_SHOWN)) or "none"
    sure = "" if survey.complete else ". If others have one, --yes goes on"
    raise SourceError(
        f"{where}: none of {seen} has the member that --mask-column {config.mask_rules.mask_column} names; they have {names}. Expected the "
        f"suffix of the masks, such as seg.png{sure}"
    )
