"""Parallel tars: images in one folder of tars, their labels in tars of the same names in another (`--label-from file:FOLDER`)."""

from __future__ import annotations

import posixpath

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, SourceError
from tokenshards.pipeline.sources.label_table import FILE_RULE, names_table
from tokenshards.pipeline.sources.tars.archive import Archive
from tokenshards.pipeline.sources.tars.headers import BadMember, Damaged
from tokenshards.pipeline.sources.tars.labels import MAX_TEXT, json_of, raw_label
from tokenshards.pipeline.sources.tars.members import Part, TarSample, group
from tokenshards.pipeline.storage.store import Store

__all__ = ["FILE_RULE", "partner_labels", "partner_path"]

MAX_LABELS = 4_000_000


def partner_path(path: str, rule: str) -> str:
    """Return the place of the tar that holds the labels of the tar at `path`: the folder of the rule, and the same name."""
    folder = rule.removeprefix(FILE_RULE).strip("/")
    return posixpath.join(folder, posixpath.basename(path))


def partner_labels(store: Store, path: str, config: SourceConfig) -> dict[str, object] | None:
    """Return the raw labels by key of the tar beside the tar at `path`; None if labels do not come from one.

    Raises SourceError if that tar is not there, is damaged, or holds too much for the memory.
    """
    rule = config.label_from
    if rule is None or not rule.startswith(FILE_RULE) or names_table(rule):
        return None
    partner = partner_path(path, rule)
    info = store.info(partner)
    if info is None or not info.regular:
        raise SourceError(
            f"{store.place(partner)}: no such tar; --label-from {rule} takes the labels of {store.place(path)} from it. Expected a folder "
            "with a tar of the same name for each tar of images"
        )
    of_members = SourceConfig(label_first=config.label_first, tar_key=config.tar_key, label=config.label)

    def load(sample: TarSample, part: Part) -> None:
        sample.parts[part.suffix] = part
        try:
            part.data = archive.resolve(part.member).read(MAX_TEXT)
        except BadMember as error:
            part.error = error

    found: dict[str, object] = {}
    try:
        with Archive(store, partner, info.size, least=1 << 16, most=1 << 22) as archive:
            for sample in group(archive.members(), config.tar_key, load):
                if not isinstance(sample, TarSample):
                    continue
                raw = raw_label(sample, json_of(sample), of_members, partner)
                if raw is None and "txt" in sample.parts and config.label is None:
                    raw = raw_label(sample, {}, SourceConfig(label="txt"), partner)
                found[sample.key] = raw
                if len(found) > MAX_LABELS:
                    raise SourceError(f"{store.place(partner)} holds more than {MAX_LABELS:,} labels; expected smaller tars")
    except (Damaged, BadInput) as error:
        raise SourceError(f"{store.place(partner)}, which holds the labels of {store.place(path)}, cannot be read: {error}") from None
    return found
