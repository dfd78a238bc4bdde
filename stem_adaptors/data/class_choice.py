"""A choice of classes by name: which labels are meant, their part of a dataset, and what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.words import counted, near_names
from tokenshards.stem_adaptors.data.selection import Selection, sample_count, select

__all__ = ["class_part", "left_out_words", "named_classes", "whole_images"]

Part = TokenDataset | Selection
MOST_NAMED = 3
"""Classes left out that are named one by one."""


def named_classes(given: Iterable[str], known: Iterable[int | str]) -> frozenset[str]:
    """Return the names that `given` means. Each text is one class as it stands, or else several with commas between.

    A number and its decimal text are the same name. Raises ConfigError for a name that is not known, with the names spelt alike.
    """
    names = list(dict.fromkeys(map(str, known)))
    table, chosen = frozenset(names), set[str]()
    for text in given:
        for name in [text] if text in table else filter(None, map(str.strip, text.split(","))):
            if name not in table:
                raise ConfigError(
                    f"--classes has {shorten(name)}, which is no class of the dataset{near_names(name, names)}; it has {shorten(names)}"
                )
            chosen.add(name)
    if not chosen:
        raise ConfigError(f"--classes names no class; expected some of {shorten(names)}")
    return frozenset(chosen)


def class_part(
    dataset: TokenDataset, names: Collection[str], *, fraction: float = 1.0, seed: int = 0, remap: bool = False
) -> TokenDataset | Selection:
    """Return the images of these classes, or a share of each class; without names, of all classes. `remap`: number them anew from 0.

    Raises ConfigError where the dataset has none of them.
    """
    wanted = [label for label in dataset.classes if str(label) in names]
    if not names or len(wanted) == len(dataset.classes):
        return dataset if fraction == 1.0 else select(dataset, fraction=fraction, seed=seed)
    if not wanted:
        raise ConfigError(
            f"{dataset.store.url} has none of the classes {shorten(sorted(names))} of --classes; it has {shorten(list(dataset.classes))}"
        )
    return select(dataset, classes=wanted, fraction=fraction, seed=seed, remap=remap)


def whole_images(part: Part) -> int:
    """Return the images that a part would have without its fraction: all of its classes, or of the dataset."""
    if not isinstance(part, Selection):
        return sample_count(part)
    dataset = part.dataset
    if part.classes == dataset.classes:
        return sample_count(dataset)
    kept = set(part.classes)
    return sum(rows for name, rows in _rows_by_class(dataset) if name in kept) // dataset.views


def left_out_words(parts: Iterable[Part]) -> str:
    """Return ` (left out: 24 images of 'cat', 3 images without a label)`, or nothing where all classes are kept."""
    left: Counter[int | str] = Counter()
    unlabelled = 0
    for part in parts:
        if isinstance(part, Selection) and part.classes != part.dataset.classes:
            rows, views = _rows_by_class(part.dataset), part.dataset.views
            left.update({name: count // views for name, count in rows if name not in part.classes})
            unlabelled += sample_count(part.dataset) - sum(count for _, count in rows) // views
    if not left:
        return ""
    which = ", ".join(map(repr, left)) if len(left) <= MOST_NAMED else f"{len(left):,} classes"
    without = f", {counted(unlabelled, 'image')} without a label" if unlabelled else ""
    return f" (left out: {counted(left.total(), 'image')} of {which}{without})"


def _rows_by_class(dataset: TokenDataset) -> list[tuple[int | str, int]]:
    return list(zip(dataset.classes, dataset.manifest.class_counts, strict=True))
