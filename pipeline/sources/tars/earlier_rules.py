"""Tars by rules 1 and 2, for plans that were made with them: members that share a key are one sample.

We group members as the webdataset package does (a test compares both), except that we skip hidden files: webdataset turns the `a/._1.jpg`
that macOS puts beside an image into a sample `a/`. We do not use webdataset's reader: it ends silently at a damaged header and so loses
the rest of a tar, and importing it loads torch (two seconds and 180 MB in every worker). We never unpickle and never run a command.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, MissingObjectError, Reason, Stage, TransientStorageError, UnreadableObjectError, shorten
from tokenshards.pipeline.images.decode import image_extensions
from tokenshards.pipeline.records import FailedRecord, ImageRecord, PlanRow
from tokenshards.pipeline.sources.base import check_unchanged, readable_text
from tokenshards.pipeline.sources.fetch import MAX_BYTES, unreadable_input
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType, as_label, as_meta, infer_label_type
from tokenshards.pipeline.sources.summary import SourceSummary
from tokenshards.pipeline.sources.tars.earlier_values import PeekedSamples, TarSample, json_of, raw_label, raw_meta
from tokenshards.pipeline.storage.object_file import open_stream
from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = ["describe_before", "read_tar_before"]

PEEKED_TARS = 3
PEEKED_SAMPLES = 64
"""Samples read from each of the first tars to infer the types of labels and meta columns."""
_KEY_AND_SUFFIX = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)
_META_MEMBER = re.compile(r"__[^/]*__($|/)")


class _Damaged(Exception):
    """A tar cannot be read from `offset` on, where its first incomplete sample begins."""

    def __init__(self, offset: int, cause: Exception) -> None:
        super().__init__(f"cannot be read from byte {offset} on: {type(cause).__name__}: {cause}")
        self.offset = offset
        self.cause = cause


class _StrictTarInfo(tarfile.TarInfo):
    """A header that must be intact; plain tarfile treats a damaged header after the first one as the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} (no end-of-archive mark before it)") from None


def describe_before(store: Store, files: Sequence[ObjectInfo], config: SourceConfig, summary: SourceSummary) -> None:
    """Read the first samples to infer the types of label and meta; fills the summary."""
    peeked = _peek(store, files, config)
    summary.label_type = infer_label_type(peeked.labels)
    summary.meta_types = peeked.meta_types()
    summary.notes.append("samples in tars are counted when they are read")
    summary.notes.append(peeked.understood(config, summary.label_type))


def _peek(store: Store, files: Sequence[ObjectInfo], config: SourceConfig) -> PeekedSamples:
    """Read the first samples; raises SourceError if they lack the values that --label or --meta name."""
    peeked = PeekedSamples(meta={name: [] for name in config.meta})
    for info in files[:PEEKED_TARS]:  # more than one, in case the first is damaged
        try:
            for sample in islice(_samples(store, info.path, info.size), PEEKED_SAMPLES):
                peeked.add(sample, config)
        except (_Damaged, BadInput, MissingObjectError):
            continue
        if peeked.samples and not peeked.absent(config):
            break
    if config.rules > 1:
        peeked.refuse_absent(config, store.url)
    return peeked


def read_tar_before(
    store: Store, row: PlanRow, config: SourceConfig, label_type: LabelType | None, meta_types: dict[str, MetaType]
) -> Iterator[ImageRecord | FailedRecord]:
    """Yield the samples of one tar; a sample id is `path#key`. A repeated key is a failure with the id `path#key@offset`.

    A missing, changed or unreadable tar yields one failure under the id of the row. A tar with damage further in yields its complete
    samples before the damage, then one failure `path#@offset`, which stands for every sample from that byte on. Raises only
    TransientStorageError.
    """
    uri = store.place(row.path)
    seen: set[str] = set()
    try:
        check_unchanged(store, row)
        for sample in _samples(store, row.path, row.size):
            again = sample.key in seen
            seen.add(sample.key)
            sample_id = f"{row.sample_id}#{readable_text(sample.key)}" + (f"@{sample.offset}" if again else "")
            if again:
                detail = f"the key {shorten(sample.key)} is repeated at byte {sample.offset}; only the first sample of a key is kept"
                yield FailedRecord(sample_id=sample_id, error=BadInput(Reason.DUPLICATE_ID, detail, Stage.FETCH), uri=uri)
                continue
            yield _record(sample, sample_id, uri, config, label_type, meta_types)
    except _Damaged as damage:
        sample_id = f"{row.sample_id}#@{damage.offset}" if damage.offset else row.sample_id
        failure: BadInput | UnreadableObjectError = BadInput(Reason.BAD_CONTAINER, f"{uri} {damage}", Stage.FETCH)
        if isinstance(damage.cause, UnreadableObjectError):
            failure = unreadable_input(damage.cause, config)
        if isinstance(failure, UnreadableObjectError):
            raise failure from None
        yield FailedRecord(sample_id=sample_id, error=failure, uri=uri)
    except UnreadableObjectError as error:
        failure = unreadable_input(error, config)
        if isinstance(failure, UnreadableObjectError):
            raise
        yield FailedRecord(sample_id=row.sample_id, error=failure, uri=uri)
    except MissingObjectError as error:
        yield FailedRecord(sample_id=row.sample_id, error=BadInput(Reason.MISSING, str(error), Stage.FETCH), uri=uri)
    except BadInput as error:
        yield FailedRecord(sample_id=row.sample_id, error=error, uri=uri)


def _samples(store: Store, path: str, size: int) -> Iterator[TarSample]:
    """Yield the samples of a tar as webdataset groups them: neighbouring members with one key; raises _Damaged."""
    sample: TarSample | None = None
    position = 0
    try:
        with open_stream(store, path, size) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every header in memory
                match = _KEY_AND_SUFFIX.fullmatch(member.name)
                if not member.isreg() or match is None or _META_MEMBER.match(member.name):
                    continue
                key, suffix = match[1], match[2].lower()
                if sample is None or sample.key != key or suffix in sample.members or suffix in sample.too_large:
                    if sample is not None:
                        yield sample
                    sample = TarSample(key, member.offset)
                    position = member.offset
                if member.size > MAX_BYTES:
                    sample.too_large[suffix] = member.size
                    continue
                content = archive.extractfile(member)
                sample.members[suffix] = content.read() if content else b""
    except UnreadableObjectError as error:
        raise _Damaged(position, error) from error
    except (TransientStorageError, MissingObjectError, BadInput, MemoryError):
        raise
    except Exception as error:  # tarfile and decompressors raise many types; failures of the store were handled above
        raise _Damaged(position, error) from error
    if sample is not None:
        yield sample


def _record(
    sample: TarSample, sample_id: str, uri: str, config: SourceConfig, label_type: LabelType | None, meta_types: dict[str, MetaType]
) -> ImageRecord | FailedRecord:
    suffix = _image_suffix([*sample.members, *sample.too_large])
    data = sample.members.get(suffix)
    try:
        if suffix in sample.too_large:
            detail = f"{sample.key}.{suffix} has {sample.too_large[suffix]} bytes; expected at most {MAX_BYTES}"
            raise BadInput(Reason.TOO_LARGE, detail, Stage.FETCH)
        if data is None:
            detail = f"the members {', '.join(sample.members)} hold no image; expected an extension such as jpg, png or webp"
            raise BadInput(Reason.NO_IMAGE, detail, Stage.FETCH)
        value = json_of(sample)
        label = as_label(raw_label(sample, value, config), label_type)
        meta = {name: as_meta(name, raw_meta(sample, value, name, config), meta_type) for name, meta_type in meta_types.items()}
    except BadInput as error:
        return FailedRecord(sample_id=sample_id, error=error, data=data, uri=uri)
    return ImageRecord(sample_id=sample_id, data=data, label=label, meta=meta, uri=uri)


def _image_suffix(suffixes: list[str]) -> str:
    """Return the suffix of the image member, or an empty string; a plain suffix (`jpg`) wins over a dotted one (`mask.png`)."""
    images = [suffix for suffix in suffixes if posixpath.splitext(f"x.{suffix}")[1] in image_extensions()]
    return min(images, key=lambda suffix: "." in suffix, default="")
