"""Read one tar: a record for each sample, and a count of what a stated rule leaves out."""

from __future__ import annotations

from collections.abc import Iterator

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, MissingObjectError, Reason, SourceError, Stage, UnreadableObjectError, shorten
from tokenshards.pipeline.records import FailedRecord, ImageRecord, LeftOutRecord, PlanRow, SourceRecord
from tokenshards.pipeline.sources.base import check_unchanged, readable_text
from tokenshards.pipeline.sources.fetch import MAX_BYTES, unreadable_input
from tokenshards.pipeline.sources.label_table import LabelTable, open_once
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType
from tokenshards.pipeline.sources.tables.rows import OTHER_SPLIT, wanted_split
from tokenshards.pipeline.sources.tars.archive import Archive
from tokenshards.pipeline.sources.tars.headers import HARD_LINK, SYMLINK, BadMember, Damaged, Member
from tokenshards.pipeline.sources.tars.labels import (
    MAX_TEXT,
    ListOfLabels,
    json_of,
    label_in_table,
    needed_suffixes,
    planned_label,
    planned_meta,
    raw_label,
)
from tokenshards.pipeline.sources.tars.mask_members import mask_of, mask_suffix, read_mask
from tokenshards.pipeline.sources.tars.members import (
    ARCHIVES,
    SNIFFED_BYTES,
    UNREAD_ARCHIVE,
    Part,
    SeenKeys,
    Stray,
    TarSample,
    group,
    is_image,
    looks_like_image,
    may_be_image,
    split_of_sample,
)
from tokenshards.pipeline.sources.tars.partner import partner_labels
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted

__all__ = ["FURTHER", "KeyOrder", "choose_images", "read_tar_by_members", "stray_parts"]

FURTHER = "further images of a sample"
BLOCK_BYTES, LOCAL_BLOCK_BYTES = 8 << 20, 1 << 20
TYPICAL_BYTES = 110_000
"""Bytes of a sample where the tar itself does not show them: an image of ImageNet."""
HOW_TO_SORT = "`tar --sort=name -cf sorted.tar -C FOLDER .` packs an unpacked tar in order"


def read_tar_by_members(
    store: Store, row: PlanRow, config: SourceConfig, label_type: LabelType | None, meta_types: dict[str, MetaType]
) -> Iterator[SourceRecord]:
    """Yield the records of one tar by rules 3; a sample id is `path#key`, with `--image-member all` it is `path#key#suffix`.

    A missing, changed or unreadable tar yields one failure under the id of the row. Damage further in yields one failure `path#@offset`
    behind the complete samples; it stands for every sample from that byte on. A repeated key is a failure `path#key@offset`.

    Raises TransientStorageError, and SourceError where the planned rules would lose images or labels: the shard stays uncommitted.
    """
    reader = _Reader(store, row, config, label_type, meta_types)
    uri = store.place(row.path)
    try:
        check_unchanged(store, row)
        block = LOCAL_BLOCK_BYTES if store.is_local else BLOCK_BYTES
        with Archive(store, row.path, row.size, least=block, most=block) as archive:
            yield from reader.records(archive)
    except UnreadableObjectError as error:
        failure = unreadable_input(error, config)
        if isinstance(failure, UnreadableObjectError):
            raise
        yield reader.failure("", failure)
    except MissingObjectError as error:
        yield reader.failure("", BadInput(Reason.MISSING, str(error), Stage.FETCH))
    except ListOfLabels as error:
        raise SourceError(f"{uri}: its label {error}; {LIST_OPTIONS}. Nothing of this shard is written") from None
    except BadInput as error:
        yield reader.failure("", error)
    for kind, (count, example) in reader.left_out.items():
        yield LeftOutRecord(kind=kind, count=count, example=example)


LIST_OPTIONS = "--label-first takes the first of them, --meta NAME keeps the list as text instead of a label"


class KeyOrder:
    """Judges whether the members of a key lie together."""

    def __init__(self) -> None:
        self._images, self._others = SeenKeys(), SeenKeys()

    def judge(self, sample: TarSample, needed: frozenset[str]) -> str:
        """Return `new`, `again` for a second image of a key, or `apart` if text and image of a key have other members between them."""
        if sample.images:
            if sample.key in self._others:
                return "apart"
            return "again" if self._images.add(sample.key) else "new"
        if not needed.isdisjoint(sample.parts):
            if sample.key in self._images:
                return "apart"
            self._others.add(sample.key)
        return "new"


def choose_images(suffixes: list[str], image_member: str | None) -> list[str]:
    """Return the suffixes of the images to take. A plain suffix (`jpg`) comes before a dotted one (`mask.png`)."""
    if image_member == "all":
        return suffixes
    if image_member in (None, "first"):
        return [min(suffixes, key=lambda suffix: "." in suffix)] if suffixes else []
    return next(([name] for name in told_members(image_member) if name in suffixes), [])


def told_members(image_member: str | None) -> tuple[str, ...]:
    """Return the suffixes that --image-member names."""
    if image_member in (None, "all", "first"):
        return ()
    return tuple(name.strip().lower().removeprefix(".") for name in str(image_member).split(","))


def stray_parts(sample: TarSample) -> Iterator[tuple[str, str]]:
    """Yield the rule by which each member of a sample without image is left out, and its name."""
    for part in sample.parts.values():
        if part.member.kind in (HARD_LINK, SYMLINK) and isinstance(part.error, BadMember):
            kind = "links to folders or out of the tar"
        elif part.member.name.lower().endswith(ARCHIVES):
            kind = UNREAD_ARCHIVE
        else:
            kind = f".{part.suffix.rpartition('.')[2]} without an image" if part.suffix else "without extension"
        yield kind, part.member.name


class _Reader:
    def __init__(
        self, store: Store, row: PlanRow, config: SourceConfig, label_type: LabelType | None, meta_types: dict[str, MetaType]
    ) -> None:
        self._store, self._row, self._config = store, row, config
        self._label_type, self._meta_types = label_type, meta_types
        self._uri = store.place(row.path)
        self._needed = needed_suffixes(config)
        self._told = told_members(config.image_member)
        self._labels: dict[str, object] | None = None
        self._table: LabelTable | None = None
        self._wanted, self._mask = wanted_split(config, row.path), mask_suffix(config)
        self._samples = 0
        self.left_out: dict[str, tuple[int, str]] = {}

    def records(self, archive: Archive) -> Iterator[ImageRecord | FailedRecord]:
        """Yield a record for each image of an opened tar, and for its damage."""
        self._archive, order = archive, KeyOrder()
        self._labels = partner_labels(self._store, self._row.path, self._config)
        self._table = open_once(self._store, self._config)
        try:
            for found in group(archive.members(), self._config.tar_key, self._load):
                if isinstance(found, Stray):
                    self._leave_out(found.kind, found.name)
                elif isinstance(found, Member):
                    lost = self._lost_bytes(found.size)
                    error = BadInput(Reason.BAD_CONTAINER, f"{self._uri}, {found.name} in it: {found.target}{_about(lost)}", Stage.FETCH)
                    yield self.failure(f"{readable_text(found.name)}@{found.offset}", error, stands_for=lost)
                else:
                    yield from self._sample(found, order)
        except Damaged as damage:
            share = damage.offset / max(1, self._row.size) if not archive.packing else archive.taken
            lost = self._lost_bytes(round((1 - min(1.0, share)) * self._row.size), share)
            error = BadInput(damage.reason, f"{self._uri}: {damage.detail}{_about(lost)}", Stage.FETCH)
            yield self.failure(f"@{damage.offset}" if damage.offset else "", error, stands_for=lost)

    def failure(self, name: str, error: BadInput, data: bytes | None = None, stands_for: int = 1) -> FailedRecord:
        """Return the failure of an input of this tar; an empty name stands for the whole tar."""
        sample_id = f"{self._row.sample_id}#{name}" if name else self._row.sample_id
        return FailedRecord(sample_id=sample_id, error=error, data=data, uri=self._uri, stands_for=stands_for)

    def _lost_bytes(self, lost: int, share: float | None = None) -> int:
        """Return about how many samples so many stored bytes hold, by the size of those that were read."""
        read = (self._archive.taken if share is None else share) * self._row.size
        each = read / self._samples if self._samples and read > 0 else TYPICAL_BYTES
        return max(1, round(lost / each))

    def _leave_out(self, kind: str, name: str, count: int = 1) -> None:
        before, example = self.left_out.get(kind, (0, f"{self._row.sample_id}#{readable_text(name)}"))
        self.left_out[kind] = (before + count, example)

    def _load(self, sample: TarSample, part: Part) -> None:
        """Read what the plan needs of a member."""
        sample.parts[part.suffix] = part
        try:
            if part.suffix == self._mask:
                read_mask(self._archive, part)
            elif is_image(part.suffix, self._told):
                if sample.sniffed:
                    for suffix in sample.images:
                        sample.parts[suffix].data = None
                    sample.images, sample.sniffed = [], False
                self._load_image(sample, part)
            elif part.suffix in self._needed:
                member = self._archive.resolve(part.member)
                if member.size > MAX_TEXT:
                    detail = f"{part.member.name} has {member.size} bytes; expected a text of at most {MAX_TEXT}"
                    raise BadMember(Reason.BAD_LABEL, detail, Stage.FETCH)
                part.data = member.read(MAX_TEXT)
            elif may_be_image(part.suffix) and (sample.sniffed or not sample.images):
                if looks_like_image(self._archive.resolve(part.member).read(SNIFFED_BYTES)):
                    sample.sniffed = True
                    self._load_image(sample, part)
        except BadMember as error:
            part.error = error

    def _load_image(self, sample: TarSample, part: Part) -> None:
        config = self._config
        sample.images.append(part.suffix)
        if config.image_member is None and len(sample.images) > 1:
            raise SourceError(
                f"{self._uri}: the sample {shorten(readable_text(sample.key))} holds several images, {_names(sample.images)}, but the plan "
                "was made for one image a sample. Nothing of this shard is written. Plan again, into another output, with --image-member "
                f"NAME (one of those), --image-member all (each is a row)"
                + (", or --key last-dot (the key ends at the last dot of a name)" if config.tar_key == "first-dot" else "")
            )
        chosen = choose_images(sample.images, config.image_member)
        if part.suffix not in chosen:
            return
        for suffix in sample.images:
            if suffix not in chosen:
                sample.parts[suffix].data = None
        member = self._archive.resolve(part.member)
        held = sum(len(sample.parts[suffix].data or b"") for suffix in chosen)
        if member.size > MAX_BYTES:
            detail = f"{readable_text(part.member.name)} has {member.size} bytes; expected at most {MAX_BYTES}"
            raise BadMember(Reason.TOO_LARGE, detail, Stage.FETCH)
        if held + member.size > MAX_BYTES:
            raise SourceError(
                f"{self._uri}: the images of the sample {shorten(readable_text(sample.key))} have more than {MAX_BYTES} bytes together. "
                "Nothing of this shard is written. Plan again, into another output, with --key last-dot, which makes a sample of each"
            )
        part.data = member.read(MAX_BYTES)

    def _sample(self, sample: TarSample, order: KeyOrder) -> Iterator[ImageRecord | FailedRecord]:
        key = readable_text(sample.key)
        seen = order.judge(sample, self._needed)
        if seen == "apart":
            raise SourceError(
                f"{self._uri}: the members of the sample {shorten(key)} lie apart; expected them as neighbours, sorted by name. "
                f"Nothing of this shard is written. Sort the tar ({HOW_TO_SORT}), then plan again"
            )
        if self._wanted is not None and split_of_sample(sample, self._wanted) != self._wanted:
            self._leave_out(OTHER_SPLIT, key, max(1, len(sample.images)))
            return
        if seen == "again":
            detail = f"the key {shorten(key)} is repeated at byte {sample.offset}; only the first sample of a key is kept"
            yield self.failure(f"{key}@{sample.offset}", BadInput(Reason.DUPLICATE_ID, detail, Stage.FETCH))
            return
        chosen = choose_images(sample.images, self._config.image_member)
        if len(sample.images) > len(chosen) > 0:
            further = next(suffix for suffix in sample.images if suffix not in chosen)
            self._leave_out(FURTHER, sample.parts[further].member.name, len(sample.images) - len(chosen))
        self._samples += bool(chosen)
        if chosen:
            for suffix in chosen:
                yield self._record(sample, suffix, f"{key}#{suffix}" if self._config.image_member == "all" else key)
        elif sample.images:
            detail = f"--image-member is {self._config.image_member}; the sample has {_names(sample.images)}"
            yield self.failure(key, BadInput(Reason.NO_IMAGE, detail, Stage.FETCH))
        elif "cls" in sample.parts or "json" in sample.parts or self._config.label in sample.parts:
            detail = f"the members {', '.join(sample.parts)} hold no image; expected an extension such as jpg or png, or --image-member"
            yield self.failure(key, BadInput(Reason.NO_IMAGE, detail, Stage.FETCH))
        else:
            for kind, name in stray_parts(sample):
                self._leave_out(kind, name)

    def _record(self, sample: TarSample, suffix: str, name: str) -> ImageRecord | FailedRecord:
        part = sample.parts[suffix]
        if part.error is not None or part.data is None:
            return self.failure(name, part.error or BadInput(Reason.EMPTY, f"{part.member.name} was not read", Stage.FETCH))
        where = f"{self._uri}#{readable_text(sample.key)}"
        try:
            value = json_of(sample)
            if self._table is not None:
                raw: object = label_in_table(self._table, sample, self._row.path)
            elif self._labels is not None:
                raw = self._labels.get(sample.key)
            else:
                raw = raw_label(sample, value, self._config, self._row.path)
            label = planned_label(raw, self._label_type, where, self._config)
            meta = planned_meta(sample, value, self._meta_types, where)
            mask = mask_of(sample, self._mask)
        except BadInput as error:
            return self.failure(name, error, part.data)
        return ImageRecord(sample_id=f"{self._row.sample_id}#{name}", data=part.data, label=label, meta=meta, uri=self._uri, mask=mask)


def _about(lost: int) -> str:
    return f"; about {counted(lost, 'sample is', 'samples are')} lost, by their bytes" if lost > 1 else ""


def _names(suffixes: list[str]) -> str:
    return ", ".join(f".{suffix}" for suffix in suffixes[:6]) + (" …" if len(suffixes) > 6 else "")
