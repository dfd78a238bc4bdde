"""The masks of the samples of tars: members with one suffix, such as `key.seg.png` beside `key.jpg`."""

from __future__ import annotations

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, Reason, Stage
from tokenshards.pipeline.sources.base import bad_mask, readable_text
from tokenshards.pipeline.sources.fetch import MAX_BYTES
from tokenshards.pipeline.sources.tars.archive import Archive
from tokenshards.pipeline.sources.tars.headers import BadMember
from tokenshards.pipeline.sources.tars.members import Part, TarSample

__all__ = ["mask_of", "mask_suffix", "read_mask"]


def mask_suffix(config: SourceConfig) -> str | None:
    """Return the suffix of the members that are masks, without a leading dot; None if there are none."""
    name = config.mask_rules.mask_column
    return None if name is None else name.strip().lower().removeprefix(".")


def read_mask(archive: Archive, part: Part) -> None:
    """Read the bytes of a mask. Raises BadMember."""
    member = archive.resolve(part.member)
    if member.size > MAX_BYTES:
        detail = f"{readable_text(part.member.name)} has {member.size} bytes; expected at most {MAX_BYTES}"
        raise BadMember(Reason.TOO_LARGE, detail, Stage.FETCH)
    part.data = member.read(MAX_BYTES)


def mask_of(sample: TarSample, suffix: str | None) -> bytes | None:
    """Return the mask of a sample, None if it has none. Raises BadInput for one that cannot be read."""
    part = None if suffix is None else sample.parts.get(suffix)
    if part is None:
        return None
    if part.error is not None or part.data is None:
        raise bad_mask(part.error or BadInput(Reason.EMPTY, f"{part.member.name} was not read", Stage.FETCH))
    return part.data
