"""What may be meant otherwise than it was understood: each doubt is a sentence, with the option that settles it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import DoubtError, shorten
from tokenshards.pipeline.images.extras import missing_extras, needs_extra
from tokenshards.pipeline.optional_packages import install_hint
from tokenshards.pipeline.records import Label
from tokenshards.pipeline.sources.beside import label_option
from tokenshards.pipeline.sources.splits import in_order, known_split
from tokenshards.pipeline.sources.summary import Doubt, SourceSummary
from tokenshards.pipeline.words import counted

__all__ = ["ANY_IMAGES", "add_doubts", "images_not_taken", "new_classes", "null_column", "refuse_grave", "several_images"]

FEW_CLASSES = 5
"""Up to so many classes, one whose name is that of a split is a doubt; among more it may well be a class."""
FEW_IMAGES, GRAVE_IMAGES = 10, 100
"""From how many labelled images on, many classes are a doubt, and a grave one."""
_NUMBER = re.compile(r"-?[0-9]+")
_LIKE_MASK = re.compile(r"\b(seg|masks?|seg(mentation)?_?masks?|label_?(map|ids)|annotations?|segmentations?)\b", re.IGNORECASE)
_DATE = re.compile(r"(19|20)[0-9]{2}([-_. ]?)(0[1-9]|1[0-2])(\2(0[1-9]|[12][0-9]|3[01]))?([T_ -].*)?")
_SHARD = re.compile(r"[0-9]{4,}|(part|shard|chunk|batch)[-_ ]?[0-9]+", re.IGNORECASE)
ANY_IMAGES = {"image", "images", "img", "imgs", "jpeg", "jpegs", "jpegimages", "photos", "pictures"}
"""Names of folders that say nothing about the images in them."""
_NO_LABELS = "--label-from none if these are no classes"


def add_doubts(summary: SourceSummary, asked: SourceConfig, *, from_paths: bool) -> None:
    """Add the doubts that the counts of a finished listing show, behind those of the source itself.

    `asked` is what the user gave: an option that answers a doubt takes it away. `from_paths`: names of folders or tars are the labels.
    """
    found = [_splits_mixed(summary, asked)]
    if not asked.no_labels and asked.label_from is None and asked.label is None:
        found += [_split_names(summary), _one_class(summary, from_paths)]
        if from_paths:
            found += [_numbers(summary), _any_images(summary)]
    found += [_many_classes(summary, asked), _nearly_equal(summary), _table_beside(summary, asked), _archived(summary, asked)]
    found += _without_decoder(summary)
    summary.doubts += [doubt for doubt in found if doubt is not None and doubt not in summary.doubts]


def refuse_grave(summary: SourceSummary, asked: SourceConfig) -> None:
    """Raise DoubtError if a grave doubt is left and --yes was not given."""
    grave = [(number, doubt) for number, doubt in enumerate(summary.doubts, 1) if doubt.grave]
    if grave and not asked.yes:
        listed = "\n".join(f"  doubt {number}: {doubt.text()}" for number, doubt in grave)
        raise DoubtError(
            f"the input may be meant otherwise than it is understood; expected an option that settles this, or --yes to go on:\n{listed}",
            understood=summary.to_json(),
        )


def several_images(samples: int, example: str, members: Sequence[str], *, lost: int) -> Doubt:
    """Return the doubt about samples of tars with several images each, of which `lost` images would not be taken."""
    shown = ", ".join(members[:4])
    mask = next((name for name in members if _LIKE_MASK.search(name)), None)
    what = f"{lost:,} of their images would be lost" if lost else "each image is a row of its own"
    return Doubt(
        sentence=f"{counted(samples, 'sample')} such as {example} {'holds' if samples == 1 else 'hold'} several images ({shown}): {what}",
        option=f"--image-member {members[0]} takes one a sample, --image-member all takes each"
        + (f", --mask-column {mask} takes it as the mask of the image" if mask else ""),
        grave=lost > 0,
    )


def images_not_taken(sentence: str, option: str) -> Doubt:
    """Return the grave doubt about images that would be lost."""
    return Doubt(sentence=sentence, option=option, grave=True)


def new_classes(summary: SourceSummary, known: Iterable[Label]) -> Doubt | None:
    """Return the doubt about classes that the class table of the dataset with the tokenizer does not have; None without a table."""
    table = set(map(str, known))
    new = [label for label in summary.classes if str(label) not in table]
    if not table or not new:
        return None
    count = sum(summary.classes[label] for label in new)
    what = f"the class {shorten(new[0])} ({count:,}) is" if len(new) == 1 else f"{len(new):,} classes, such as {shorten(new[0])}, are"
    every = ", which is every class of this input" if len(new) == len(summary.classes) else ""
    return Doubt(
        sentence=f"{what} not in the class table of the training set{every}: added at its end",
        option="--label, --label-from or --split if its classes are meant otherwise",
    )


def null_column(column: str, nulls: int, rows: int, option: str) -> Doubt | None:
    """Return the doubt about a column of which half of the values or more are null; None if fewer are."""
    if not nulls or 2 * nulls < rows:
        return None
    return Doubt(sentence=f"column {column} is null in {nulls:,} of {counted(rows, 'row')}", option=option)


def _splits_mixed(summary: SourceSummary, asked: SourceConfig) -> Doubt | None:
    splits = summary.splits
    if asked.split is not None or len(splits) < 2 or asked.label_from == "first":
        return None
    inputs = max(summary.files, summary.images, splits.total())
    noun = "input" if splits.total() > summary.files else summary.noun  # rows, or members of tars
    if "train" not in splits and 2 * splits.total() <= inputs:
        return None  # for example two of a hundred classes are called `test` and `dev`
    counts = ", ".join(f"{split} ({splits[split]:,})" for split in in_order(splits))
    first = in_order(splits)[0]
    return Doubt(
        sentence=f"the {noun}s are of {len(splits)} splits, {counts}, and would be mixed in one dataset",
        option=f"--split {first} takes one, --splits makes a dataset of each, --split all mixes them",
        grave=True,
    )


def _split_names(summary: SourceSummary) -> Doubt | None:
    names = [label for label in list(summary.classes)[:100] if isinstance(label, str)]
    splits = [name for name in names if known_split(name) is not None]
    if not splits or (len(splits) < len(summary.classes) and len(summary.classes) > FEW_CLASSES):
        return None
    return Doubt(
        sentence=f"labels are names of splits, such as {shorten(splits[0])}",
        option="--split NAME takes one split, --label-from parent takes the folder of the image, --label-from first keeps them",
    )


def _one_class(summary: SourceSummary, from_paths: bool) -> Doubt | None:
    if len(summary.classes) != 1 or summary.unlabelled:
        return None
    ((label, count),) = summary.classes.items()
    if count < 2:
        return None
    option = "--label NAME names another column, --no-labels takes none"
    if from_paths:
        deeper = any(example.count("/") > 1 for example in summary.examples)
        flat = str(label).lower() in ANY_IMAGES and not deeper
        folder = "file:TABLE takes a table" if flat else "parent takes the folder that holds the image"
        option = f"--label-from {folder}, --label-from none takes no labels"
    return Doubt(sentence=f"one class, {shorten(label)}, holds all {count:,} labelled inputs", option=option)


def _numbers(summary: SourceSummary) -> Doubt | None:
    names = [label for label in summary.classes if isinstance(label, str)]
    if not names:
        return None
    if all(_DATE.fullmatch(name) for name in names):
        kind = "dates"
    elif all(_SHARD.fullmatch(name) for name in names):
        kind = "numbers of shards"
    elif all(_NUMBER.fullmatch(name) for name in names):
        kind = "numbers"
    else:
        return None
    return Doubt(sentence=f"all labels look like {kind}, such as {shorten(min(names))}", option=_NO_LABELS)


def _any_images(summary: SourceSummary) -> Doubt | None:
    name = next((label for label in summary.classes if isinstance(label, str) and label.lower() in ANY_IMAGES), None)
    if name is None or len(summary.classes) == 1:  # then it is said that one class holds all
        return None
    return Doubt(
        sentence=f"one of the classes is {shorten(name)} ({summary.classes[name]:,}), the name of a folder of any images",
        option="--label-from parent, depth:N or file:TABLE if the class is elsewhere",
    )


def _many_classes(summary: SourceSummary, asked: SourceConfig) -> Doubt | None:
    labelled, classes = summary.classes.total(), len(summary.classes)
    if labelled < FEW_IMAGES or 2 * classes <= labelled:
        return None
    answered = asked.label is not None or asked.label_from is not None
    return Doubt(
        sentence=f"{counted(classes, 'class')} for {counted(labelled, 'labelled input')}: nearly as many classes as images, such as "
        f"{shorten(min(summary.classes, key=str))}",
        option="--no-labels if these are captions or names, or --label, --label-from to say where the class is",
        grave=labelled >= GRAVE_IMAGES and not answered,
    )


def _nearly_equal(summary: SourceSummary) -> Doubt | None:
    seen: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for label in summary.classes:
        if isinstance(label, str):
            other = seen.setdefault(" ".join(unicodedata.normalize("NFKC", label).casefold().split()), label)
            if other != label:
                pairs.append((other, label))
    if not pairs:
        return None
    (one, other), count = pairs[0], len(pairs)
    also = f", and {count - 1} more such pairs" if count > 1 else ""
    return Doubt(
        sentence=f"the classes {shorten(one)} and {shorten(other)} differ in case, spaces or Unicode form only{also}; both are kept",
        option="rename them, or --label-from file:TABLE, if they are one",
    )


def _table_beside(summary: SourceSummary, asked: SourceConfig) -> Doubt | None:
    if not summary.tables_beside or asked.label_from is not None or asked.no_labels:
        return None
    shown = ", ".join(summary.tables_beside)
    one = len(summary.tables_beside) == 1
    return Doubt(
        sentence=f"{shown} {'lies' if one else 'lie'} beside the images and may be {'a table' if one else 'tables'} of their labels; "
        "no labels are taken from there",
        option=label_option(summary.tables_beside),
    )


def _archived(summary: SourceSummary, asked: SourceConfig) -> Doubt | None:
    found = summary.archived
    if not found.count or asked.unreadable is not None:
        return None
    return Doubt(
        sentence=f"{counted(found.count, 'object is', 'objects are')} archived (storage class GLACIER or DEEP_ARCHIVE), "
        f"such as {found.example}, and cannot be read until restored",
        option="restore them, or --unreadable quarantine goes on without them",
    )


def _without_decoder(summary: SourceSummary) -> Iterator[Doubt]:
    for extra, kinds in missing_extras(summary.left_out).items():
        files = sum(summary.left_out[kind].count for kind in kinds)
        yield Doubt(
            sentence=f"{counted(files, 'image is', 'images are')} left out: {needs_extra(extra, kinds)}",
            option=f"{install_hint(extra)} installs it, --yes goes on without them",
            grave=files >= GRAVE_IMAGES,
        )
