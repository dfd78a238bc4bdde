"""A folder of masks: which of its files is the mask of an image, by its path.

A mask has the path of its image with another extension, or with a suffix behind the name. The path of the image may have leading folders
that the path of the mask lacks, as with `images/a/1.jpg` and `masks/a/1.png`. The list of masks is held in memory.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice

from fsspec.core import split_protocol

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError, shorten
from tokenshards.pipeline.images.decode import image_extensions
from tokenshards.pipeline.images.mask_pixels import LOSSLESS_EXTENSIONS
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.fetch import fetch_file
from tokenshards.pipeline.sources.junk import junk_kind
from tokenshards.pipeline.sources.source_store import SourceStore
from tokenshards.pipeline.sources.splits import ALL_SPLITS, asked_split, split_at
from tokenshards.pipeline.sources.summary import SourceSummary, extension
from tokenshards.pipeline.storage.store import Store, absolute_url, display_url, is_absolute
from tokenshards.pipeline.words import counted

__all__ = ["MaskFolder", "fetch_mask", "find_masks", "mask_store"]

SAME = "."
"""Recorded place of masks that lie among the images."""
LOOKED_AT = 4096
"""Images whose paths decide how many leading folders masks lack."""
MOST_BELOW = 4
KNOWN_SUFFIXES = (
    *("_mask", "_masks", "_seg", "_label", "_labels", "_lbl", "_gt", "_annotation", "_segmentation", "_L", "_matte", "-mask", "-seg"),
    *("_labelIds", "_labelTrainIds", "_gtFine_labelIds", "_gtFine_labelTrainIds", "_gtCoarse_labelIds", "_gtCoarse_labelTrainIds"),
)
"""Suffixes of masks that are proposed where no mask has the bare name of its image."""
IMAGE_SUFFIXES = ("_leftImg8bit", "_image", "_img", "_rgb", "_sat")
"""Suffixes of images that their masks may have another one for."""


@dataclass(frozen=True, slots=True)
class _File:
    extension: str
    size: int
    version: str


@lru_cache(maxsize=64)
def mask_store(source: Store, masks: str | None) -> Store | None:
    """Return the store of a folder of masks, named by a path below the source, an absolute path or a URL; None without a folder."""
    if masks is None or masks == SAME:
        return None if masks is None else source
    place = masks if is_absolute(masks) else source.join(masks) if source.is_local else f"{source.url.rstrip('/')}/{masks}".rstrip("/")
    same = split_protocol(place)[0] == split_protocol(source.location)[0]
    return SourceStore(place, storage_options=source.storage_options if same else {}, retry=source.retry)


def find_masks(source: Store, asked: str) -> tuple[str, Store]:
    """Return a folder of masks as a plan records it (relative if it lies in the source), and its store.

    A relative path begins at the present folder, or, where nothing is there, at the source. Raises SourceError if no file is there.
    """
    asked = asked.rstrip("/") or "/"
    tried = [asked] if is_absolute(asked) else [absolute_url(asked), asked] if source.is_local else [asked, absolute_url(asked)]
    for place in tried:
        store = mask_store(source, place)
        if store is not None and next(store.list(), None) is not None:
            return _recorded(source, store), store
    places = " nor ".join(dict.fromkeys(display_url(store.url) for place in tried if (store := mask_store(source, place)) is not None))
    raise SourceError(
        f"--masks {shorten(display_url(asked))}: no file is in {places}; expected a folder with a mask for each image, such as a/b.png for "
        "a/b.jpg"
    )


def _recorded(source: Store, store: Store) -> str:
    root, place = (one.root if one.is_local else one.url.rstrip("/") for one in (source, store))
    if place == root:
        return SAME
    return place[len(root) + 1 :] if place.startswith(f"{root}/") else display_url(absolute_url(store.location))


def fetch_mask(store: Store, row: PlanRow, config: SourceConfig, others: Iterable[str] = ()) -> bytes:
    """Return the bytes of the mask of a `file` row, from the folder of masks or where its table says, as `fetch_file` does."""
    masks = mask_store(store, config.masks) or store
    path = str(row.mask_path)
    mask = PlanRow(kind="file", sample_id=row.sample_id, path=path, size=row.mask_size, version=row.mask_version, inputs=1)
    return fetch_file(masks, mask, config, others=others)


class MaskFolder:
    """The masks of the images of one folder. `recorded` is the place as `find_masks` returns it."""

    def __init__(self, store: Store, config: SourceConfig, recorded: str, root: str) -> None:
        self.store, self.recorded = store, recorded
        self._config, self._root = config, root
        self._rules = config.mask_rules
        self._files: dict[str, _File] = {}
        self._used = 0
        self._images = 0
        self._without = ""
        self._example = ""
        self._proposed = ""

    @classmethod
    def open(cls, source: Store, config: SourceConfig) -> MaskFolder:
        """Find and list the folder. Raises SourceError if it is not there, or is SRC itself without --mask-suffix."""
        asked = str(config.masks)
        if config.frozen:
            recorded, store = asked, mask_store(source, asked)
        else:
            recorded, store = find_masks(source, asked)
        if store is None:
            raise SourceError(f"--masks {asked}: expected a folder")
        if recorded == SAME and not config.mask_rules.mask_suffix:
            raise SourceError(
                f"--masks is SRC itself, {source.url}; expected --mask-suffix too, such as _mask, which tells masks from images, or a "
                "folder of masks alone"
            )
        found = cls(store, config, recorded, store.root if store.is_local else store.url)
        found._list()
        return found

    def _list(self) -> None:
        suffix, kinds = self._rules.mask_suffix, image_extensions()
        for info in self.store.list():
            kind = extension(info.path)
            if kind not in kinds or junk_kind(info.path) is not None:
                continue
            stem = info.path[: -len(kind)]
            if self.recorded == SAME and not stem.endswith(suffix):
                continue
            before = self._files.get(stem)
            if before is None or (before.extension not in LOSSLESS_EXTENSIONS, before.extension) > (kind not in LOSSLESS_EXTENSIONS, kind):
                self._files[stem] = _File(info.path[len(stem) :], info.size, info.version)

    def holds(self, name: str) -> bool:
        """Return whether a path below the source is that of a mask, and so of no image."""
        if self.recorded == SAME:
            return posixpath.splitext(name)[0].endswith(self._rules.mask_suffix)
        return not is_absolute(self.recorded) and name.startswith(f"{self.recorded}/")

    def joined(self, rows: Iterable[PlanRow]) -> Iterator[PlanRow]:
        """Yield the rows of images with the place of their masks. Raises SourceError if no image has one."""
        rows = iter(rows)
        first = list(islice(rows, LOOKED_AT))
        if not self._config.frozen:
            self._settle([row.path for row in first])
        for row in chain(first, rows):
            self._images += 1
            found = self._mask_of(row.path, self._rules.mask_below, self._rules.mask_suffix)
            if found is None:
                self._without = self._without or row.sample_id
                yield row
                continue
            stem, file = found
            self._used += 1
            self._example = self._example or f"{stem}{file.extension} for {row.sample_id}"
            yield replace(row, mask_path=f"{stem}{file.extension}", mask_size=file.size, mask_version=file.version)
        of_a_split = self._config.yes and self._config.split not in (None, ALL_SPLITS)
        if self._images and not self._used and not self._config.frozen and not of_a_split:
            raise self._none_found(first)

    def settled(self, config: SourceConfig) -> SourceConfig:
        """Return the config with what the listing found."""
        return config if config.frozen else replace(config, masks=self.recorded, mask_rules=self._rules)

    def describe(self, summary: SourceSummary) -> None:
        """Say which images have masks, and which masks have no image."""
        below = self._rules.mask_below
        folders = "folder of an image's path is" if below == 1 else f"{below} folders of an image's path are"
        less = f"; the first {folders} not in that of its mask" if below else ""
        such = f", such as {self._example}{less}" if self._example else ""
        images = counted(self._images, "image has", "images have")
        summary.mask_rule = f"folder {display_url(self._root)}: {self._used:,} of {images} one{such}"
        if self._proposed:
            summary.notes.append(self._proposed)
        if self._without:
            lacking = self._images - self._used
            summary.notes.append(f"{counted(lacking, 'image has', 'images have')} no mask, such as {self._without}; stored without one")
        wanted = asked_split(self._config.split)
        alone = [
            stem for stem in self._files if wanted in (None, ALL_SPLITS) or split_at(posixpath.dirname(stem), wanted)[0] in (None, wanted)
        ]
        if (rest := len(alone) - self._used) > 0:
            summary.notes.append(f"{counted(rest, 'mask has', 'masks have')} no image and {'is' if rest == 1 else 'are'} left out")

    def _mask_of(self, path: str, below: int, suffix: str) -> tuple[str, _File] | None:
        stem = path[: len(path) - len(posixpath.splitext(path)[1])]
        for _ in range(below):
            stem = stem.partition("/")[2]
        for name in (f"{stem}{suffix}", *(f"{stem.removesuffix(end)}{suffix}" for end in IMAGE_SUFFIXES if stem.endswith(end))):
            if (file := self._files.get(name)) is not None:
                return name, file
        return None

    def _settle(self, paths: list[str]) -> None:
        counts = [self._matches(paths, below, self._rules.mask_suffix) for below in range(MOST_BELOW + 1)]
        best = max(counts)
        self._rules = replace(self._rules, mask_below=counts.index(best))
        if 2 * best >= len(paths):
            return
        others = self._suffixes(paths)
        with_suffix, without = "--mask-suffix {}, which {:,} have", "no --mask-suffix, as {1:,} fit without"
        proposed = " or ".join((with_suffix if name else without).format(name, fit) for name, fit in others)
        if others and best:
            self._proposed = f"few of the first {len(paths):,} images have a mask of their own name; expected {proposed}?"
        if others and not best:
            raise SourceError(
                f"--masks {display_url(self._root)}: of {counted(len(paths), 'image')} looked at none has a mask of its own name"
                f"{f' and the suffix {self._rules.mask_suffix}' if self._rules.mask_suffix else ''}, such as {paths[0]}; expected "
                f"{proposed}"
            )

    def _suffixes(self, paths: list[str]) -> list[tuple[str, int]]:
        """Return the known suffixes that the masks of half of the images or more have, the most frequent first."""
        known = [name for name in ("", *KNOWN_SUFFIXES) if name != self._rules.mask_suffix]
        counts = [(name, max(self._matches(paths, below, name) for below in range(MOST_BELOW + 1))) for name in known]
        return sorted(((name, count) for name, count in counts if 2 * count >= len(paths) > 0), key=lambda pair: -pair[1])

    def _matches(self, paths: list[str], below: int, suffix: str) -> int:
        return sum(self._mask_of(path, below, suffix) is not None for path in paths)

    def _none_found(self, rows: list[PlanRow]) -> SourceError:
        masks = ", ".join(f"{stem}{file.extension}" for stem, file in islice(self._files.items(), 3)) or "none"
        images = ", ".join(row.sample_id for row in rows[:3])
        split = f"; --yes takes the split {self._config.split} without masks" if self._config.split not in (None, ALL_SPLITS) else ""
        return SourceError(
            f"--masks {display_url(self._root)}: none of {counted(self._images, 'image')} has a mask there; expected the path of the image "
            f"with another extension. Images: {images}. Masks: {masks}. If names have an ending of their own, give --mask-suffix; if a "
            f"folder is missing in between, give the folder below which the paths are alike{split}"
        )
