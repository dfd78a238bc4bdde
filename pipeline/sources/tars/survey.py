"""Look at tars while a plan is made: at all headers and small texts on a local disk, else at a sample of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, MissingObjectError, UnreadableObjectError
from tokenshards.pipeline.sources.base import readable_text
from tokenshards.pipeline.sources.label_table import LabelTable, open_once
from tokenshards.pipeline.sources.splits import ALL_SPLITS, asked_split, split_of_file
from tokenshards.pipeline.sources.tables.rows import OTHER_SPLIT, wanted_split
from tokenshards.pipeline.sources.tars.archive import Archive
from tokenshards.pipeline.sources.tars.counts import KeyCounts, MetaKind, Values
from tokenshards.pipeline.sources.tars.headers import BadMember, Damaged, Member
from tokenshards.pipeline.sources.tars.labels import (
    LABEL_SUFFIXES,
    ListOfLabels,
    json_of,
    label_in_table,
    label_place,
    needed_suffixes,
    raw_label,
    raw_meta,
    tar_stem,
)
from tokenshards.pipeline.sources.tars.mask_members import mask_suffix
from tokenshards.pipeline.sources.tars.members import (
    SNIFFED_BYTES,
    Part,
    Stray,
    TarSample,
    group,
    is_image,
    looks_like_image,
    may_be_image,
    split_of_sample,
)
from tokenshards.pipeline.sources.tars.read import KeyOrder, choose_images, stray_parts, told_members
from tokenshards.pipeline.storage.store import ObjectInfo, Store

__all__ = ["SAMPLED_MEMBERS", "SAMPLED_TARS", "TarSurvey"]

SAMPLED_TARS, SAMPLED_MEMBERS = 16, 1000
READ_WHOLE = 64 << 20
"""A compressed tar on a local disk up to this size is read to its end, because its headers cannot be reached otherwise."""
MAX_SMALL = 1 << 20
"""Larger texts are not read at planning."""
LOCAL_BLOCKS, REMOTE_BLOCKS = (2 << 10, 1 << 20), (64 << 10, 2 << 20)
_Seen = TarSample | Stray | Member | BaseException


@dataclass(slots=True)
class TarSurvey:
    """Counts over the tars that were looked at."""

    config: SourceConfig
    store: Store
    complete: bool = True
    """Whether every member of every tar was seen."""
    tars: int = 0
    members: int = 0
    samples: int = 0
    """Samples with an image."""
    images: int = 0
    """Images that the rules take."""
    keys: KeyCounts = field(default_factory=KeyCounts)
    """Of the tars that hold an image: what lies in others, such as a devkit, decides nothing."""
    several: int = 0
    several_lost: int = 0
    several_example: str = ""
    several_members: list[str] = field(default_factory=list)
    others: int = 0
    """Samples whose images are others than --image-member names."""
    others_example: str = ""
    labels: Values = field(default_factory=Values)
    places: Counter[str] = field(default_factory=Counter)
    list_of_labels: str = ""
    json_keys: set[str] = field(default_factory=set)
    suffixes: Counter[str] = field(default_factory=Counter)
    """Of samples with an image."""
    lone_suffixes: Counter[str] = field(default_factory=Counter)
    """Of samples without one."""
    image_suffixes: set[str] = field(default_factory=set)
    candidates: dict[str, Values] = field(default_factory=dict)
    """Values of text members that may be labels: `.txt`, `.target` and so on."""
    parents: Values = field(default_factory=Values)
    """The folders of the images inside their tars."""
    stems: Values = field(default_factory=Values)
    """The names of the tars, once for each image."""
    stem_begins: int = 0
    """Images whose names begin with that of their tar."""
    meta: dict[str, MetaKind] = field(default_factory=dict)
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    apart: str = ""
    again: int = 0
    damages: list[str] = field(default_factory=list)
    unread: str = ""
    """What is wrong with the last text that could not be read."""
    without_images: list[str] = field(default_factory=list)
    """Paths of tars that hold members, but no image."""
    with_images: list[str] = field(default_factory=list)
    table: LabelTable | None = None
    """The table that labels come from, joined by name."""
    splits: Counter[str] = field(default_factory=Counter)
    """Images by the split that a folder inside a tar tells, where the name of the tar tells none."""
    _keys: KeyCounts = field(default_factory=KeyCounts)
    """Of the present tar."""
    _configs: dict[str, SourceConfig] = field(default_factory=dict)

    def look(self, files: Sequence[ObjectInfo]) -> None:
        """Look at the tars."""
        self.meta = {name: MetaKind() for name in self.config.meta}
        self.table = open_once(self.store, self.config)
        if self.store.is_local:
            for info in files:
                self._take(info, self._seen_in(info))
            return
        step = max(1, -(-len(files) // SAMPLED_TARS))
        chosen = list(files[::step])
        self.complete = False
        with ThreadPoolExecutor(SAMPLED_TARS) as pool:
            for info, seen in zip(chosen, pool.map(lambda info: list(self._seen_in(info)), chosen), strict=True):
                self._take(info, seen)

    def _seen_in(self, info: ObjectInfo) -> Iterator[_Seen]:
        """Yield what a tar holds, then its damage if there is some."""
        local, told, needed = self.store.is_local, told_members(self.config.image_member), self._texts()
        masks = mask_suffix(self.config)
        least, most = LOCAL_BLOCKS if local else REMOTE_BLOCKS

        def load(sample: TarSample, part: Part) -> None:
            sample.parts[part.suffix] = part
            try:
                if part.suffix == masks:
                    return
                if is_image(part.suffix, told):
                    if sample.sniffed:
                        sample.images, sample.sniffed = [], False
                    sample.images.append(part.suffix)
                elif part.suffix in needed:
                    if part.member.size <= MAX_SMALL:
                        part.data = archive.resolve(part.member).read(MAX_SMALL)
                elif (
                    may_be_image(part.suffix)
                    and (sample.sniffed or not sample.images)
                    and looks_like_image(archive.resolve(part.member).read(SNIFFED_BYTES))
                ):
                    sample.images.append(part.suffix)
                    sample.sniffed = True
            except BadMember as error:
                part.error = error

        try:
            with Archive(self.store, info.path, info.size, least=least, most=most) as archive:
                whole = local and (archive.packing in ("", "zip") or info.size <= READ_WHOLE)
                self.complete = self.complete and whole
                members = archive.members()
                yield from group(members if whole else islice(members, SAMPLED_MEMBERS), self.config.tar_key, load)
        except (Damaged, BadInput, MissingObjectError, UnreadableObjectError) as error:
            yield error

    def _only(self, suffix: str) -> SourceConfig:
        """Return the config that takes labels from one member."""
        if suffix not in self._configs:
            self._configs[suffix] = replace(self.config, label=suffix, label_from=None, no_labels=False)
        return self._configs[suffix]

    def _texts(self) -> frozenset[str]:
        config = self.config
        if config.no_labels or config.label or config.label_from:
            return needed_suffixes(config) | {"txt"}
        return needed_suffixes(config) | {"txt", *LABEL_SUFFIXES}

    def _take(self, info: ObjectInfo, seen: Iterable[_Seen]) -> None:
        path, order, images, members = readable_text(info.path), KeyOrder(), self.images + self.others, self.members
        needed, asked = needed_suffixes(self.config), asked_split(self.config.split)
        named, wanted = split_of_file(path, asked) is not None, wanted_split(self.config, info.path)
        asked = None if asked == ALL_SPLITS else asked
        self._keys = KeyCounts()
        self.tars += 1
        for found in seen:
            if isinstance(found, TarSample):
                self.members += len(found.parts)
                judged = order.judge(found, needed)
                if judged != "apart" and found.images and not named:
                    split = split_of_sample(found, asked)
                    if split is not None:
                        self.splits[split] += len(found.images)
                    if wanted is not None and split != wanted:
                        for _ in found.images:
                            self._leave_out(OTHER_SPLIT, f"{path}#{readable_text(found.key)}")
                        continue
                self._take_sample(found, path, judged)
            elif isinstance(found, Stray):
                self.members += 1
                self._leave_out(found.kind, f"{path}#{readable_text(found.name)}")
            elif isinstance(found, Member):
                self.damages.append(f"{path}, {readable_text(found.name)} in it: {found.target}")
            else:
                self.damages.append(f"{path}: {getattr(found, 'detail', found)}")
        if self.images + self.others > images:
            self.with_images.append(info.path)
            self.keys.merge(self._keys)
        elif self.members > members:
            self.without_images.append(info.path)

    def _leave_out(self, kind: str, example: str) -> None:
        count, first = self.left_out.get(kind, (0, example))
        self.left_out[kind] = (count + 1, first)

    def _take_sample(self, sample: TarSample, path: str, order: str) -> None:
        config = self.config
        if order == "apart":
            self.apart = self.apart or f"{path}, key {readable_text(sample.key)}"
            return
        self._keys.add(sample)
        if order == "again":
            self.again += 1
            return
        if not sample.images:
            self.lone_suffixes.update(sample.parts.keys())
            if not ({"cls", "json", config.label} & sample.parts.keys()):
                for kind, name in stray_parts(sample):
                    self._leave_out(kind, f"{path}#{readable_text(name)}")
            return
        self.suffixes.update(sample.parts.keys())
        self.image_suffixes.update(sample.images)
        chosen = choose_images(sample.images, config.image_member)
        self.samples += 1
        self.images += len(chosen)
        example = f"{path}#{readable_text(sample.key)} with {', '.join(f'.{suffix}' for suffix in sample.images[:4])}"
        if config.image_member is None and len(sample.images) > 1:
            self.several += 1
            self.several_lost += len(sample.images) - 1
            if not self.several_members:
                self.several_members = list(sample.images)
                self.several_example = f"{path}#{readable_text(sample.key)}"
        if not chosen:
            self.others += 1
            self.others_example = self.others_example or example
            return
        for _ in chosen:
            self._take_values(sample, path)

    def _take_values(self, sample: TarSample, path: str) -> None:
        config = self.config
        folder, _, name = sample.key.rpartition("/")
        stem = tar_stem(sample.inner or path)
        self.parents.add(folder.rpartition("/")[2] if folder and f"{folder}/" != sample.inner else None)
        self.stems.add(stem)
        self.stem_begins += name.startswith(stem)
        try:
            value = json_of(sample)
            self.json_keys |= value.keys()
            place = label_place(sample, value, config)
            raw = raw_label(sample, value, config, path) if self.table is None else label_in_table(self.table, sample, path)
            for meta, kind in self.meta.items():
                one = raw_meta(sample, value, meta)
                kind.add(one)
                kind.text_member = kind.text_member or (one is not None and meta not in value)
        except ListOfLabels as error:
            self.list_of_labels = self.list_of_labels or f"{path}#{readable_text(sample.key)}: its label {error}"
            return
        except BadInput as error:  # the work will quarantine it
            self.unread = error.detail
            return
        self.labels.add(raw)
        if raw is not None and place:
            self.places[place] += 1
        for suffix in ("txt", *LABEL_SUFFIXES):
            if suffix in sample.parts and suffix != config.label:
                try:
                    text = raw_label(sample, {}, self._only(suffix), path)
                except BadInput:
                    continue
                self.candidates.setdefault(suffix, Values()).add(text)
