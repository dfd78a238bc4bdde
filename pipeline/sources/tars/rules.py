"""Settle the rules of tars from a look at them. A plan freezes them; no worker guesses."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import SourceError
from tokenshards.pipeline.sources.base import readable_text
from tokenshards.pipeline.sources.doubts import several_images
from tokenshards.pipeline.sources.label_table import FILE_RULE, names_table, table_version
from tokenshards.pipeline.sources.labels.values import as_label
from tokenshards.pipeline.sources.summary import Doubt, SourceSummary
from tokenshards.pipeline.sources.tables.rows import OTHER_SPLIT
from tokenshards.pipeline.sources.tars.counts import Values
from tokenshards.pipeline.sources.tars.damage import damage_notes
from tokenshards.pipeline.sources.tars.labels import CAPTION, LABEL_SUFFIXES
from tokenshards.pipeline.sources.tars.members import TWO_DEEP, UNREAD_ARCHIVE, is_image
from tokenshards.pipeline.sources.tars.partner import partner_labels, partner_path
from tokenshards.pipeline.sources.tars.read import HOW_TO_SORT, LIST_OPTIONS, told_members
from tokenshards.pipeline.sources.tars.survey import TarSurvey
from tokenshards.pipeline.storage.store import ObjectInfo, Store
from tokenshards.pipeline.words import counted

__all__ = ["describe", "settle", "survey_tars"]

NAMES_SHOWN = 12
FEW_PARENTS = 8
"""So many folders may be classes even if each holds one image."""
_ARCHIVES = {"zip", "7z", "rar", "gz"}
_SHARD_NAME = re.compile(r"\d+|.*[-_.]\d+|(shard|part|chunk|data|images?|train|val|test|valid|validation|dev)s?\d*", re.IGNORECASE)
_SPLIT_OR_KIND = re.compile(
    r"\d+|train(ing)?|val(id(ation)?)?|dev|test|images?|imgs?|jpe?gs?|pngs?|masks?|labels?|data|(part|shard|chunk|batch)[-_ ]?\d+",
    re.IGNORECASE,
)


def survey_tars(store: Store, files: Sequence[ObjectInfo], config: SourceConfig) -> tuple[TarSurvey, SourceConfig]:
    """Look at the tars, and return what they show and the config with every rule settled.

    Raises SourceError if members of samples lie apart, if no tar holds an image, or if options name what no sample has.
    """
    ends = config.tar_key
    if config.frozen:
        return _looked(store, files, config), config
    config = replace(config, tar_key="first-dot" if ends == "auto" else ends)
    survey = _looked(store, files, config)
    if ends == "auto" and survey.keys.rule() == "last-dot":
        config = replace(config, tar_key="last-dot")
        survey = _looked(store, files, config)
    settled = settle(survey, store.url)
    if names_table(settled.label_from):
        settled = replace(settled, label_table=table_version(store, str(settled.label_from).removeprefix(FILE_RULE)))
    elif settled.label_from and settled.label_from.startswith(FILE_RULE):
        _take_partners(survey, store, settled)
    return survey, settled


def _looked(store: Store, files: Sequence[ObjectInfo], config: SourceConfig) -> TarSurvey:
    survey = TarSurvey(config, store)
    survey.look(files)
    return survey


def settle(survey: TarSurvey, where: str) -> SourceConfig:
    """Return the config with the rules that a look at the tars suggests."""
    config = survey.config
    if survey.apart:
        raise SourceError(
            f"{where}: the members of a sample lie apart ({survey.apart}); expected them as neighbours, sorted by name. Sort the tar "
            f"({HOW_TO_SORT}), then run this again"
        )
    if survey.complete and survey.damages and not survey.members:
        raise SourceError(f"{where}: nothing can be read; {survey.damages[0]}. Expected a tar, or a zip of images")
    if OTHER_SPLIT in survey.left_out and not survey.with_images and (survey.complete or not survey.splits):
        seen = ", ".join(survey.splits) or "none"
        raise SourceError(
            f"{where}: no image is of the split {config.split!r}; expected the name of a tar or of a folder inside (seen: {seen}). Leave "
            "--split out to take every image"
        )
    if survey.members and not survey.with_images and not survey.damages:
        suffixes = ", ".join(f".{suffix}" for suffix, _ in survey.lone_suffixes.most_common(NAMES_SHOWN)) or "none with an extension"
        inside = "; of archives inside it only tars are read, so unpack the others" if _ARCHIVES & survey.lone_suffixes.keys() else ""
        raise SourceError(
            f"{where}: no image in {survey.tars} tar{'s' if survey.tars > 1 else ''}, whose members are {suffixes}; expected members such "
            f"as NAME.jpg, or the suffix of the images by --image-member NAME{inside}"
        )
    if survey.list_of_labels:
        raise SourceError(f"{survey.list_of_labels}; expected one value. {LIST_OPTIONS}; --no-labels takes no labels")
    if survey.several:
        config = replace(config, image_member="first")
    _refuse_absent(survey, where)
    if config.label is None and config.label_from is None and not config.no_labels and not survey.labels.count:
        config = _other_label(survey, config)
    if "txt" in survey.suffixes and config.label != "txt" and not {"txt", CAPTION} & {config.label, *config.meta}:
        config = replace(config, meta=(*config.meta, CAPTION))
    return config


def _other_label(survey: TarSurvey, config: SourceConfig) -> SourceConfig:
    """Return the config with a label from another place, if there is one that is plainly meant."""
    for suffix in LABEL_SUFFIXES:
        values = survey.candidates.get(suffix)
        if values is not None and values.count and (values.whole or values.are_classes()):
            return replace(config, label=suffix)
    partner = _partner_folder(survey)
    if partner:
        return replace(config, label_from=f"{FILE_RULE}{partner}")
    if survey.candidates.get("txt", Values()).are_classes():
        return replace(config, label="txt")
    stems, parents = survey.stems, survey.parents
    plain = not any(_SHARD_NAME.fullmatch(str(name)) for name in stems.distinct)
    if len(stems.distinct) > 1 and plain and survey.stem_begins == survey.images:
        return replace(config, label_from="tar")
    few = 1 < len(parents.distinct) <= max(parents.count // 2, FEW_PARENTS)
    if few and not parents.missing and not any(_SPLIT_OR_KIND.fullmatch(str(name)) for name in parents.distinct):
        return replace(config, label_from="parent")
    return config


def _partner_folder(survey: TarSurvey) -> str:
    """Return the folder of tars without images that has a tar of the name of each tar with images; empty if there is none, or two."""
    names: dict[str, set[str]] = {}
    for path in survey.without_images:
        names.setdefault(posixpath.dirname(path), set()).add(posixpath.basename(path))
    wanted = {posixpath.basename(path) for path in survey.with_images}
    found = [folder for folder, there in names.items() if wanted and folder and wanted <= there]
    return found[0] if len(found) == 1 else ""


def _take_partners(survey: TarSurvey, store: Store, config: SourceConfig) -> None:
    """Count the labels of the tars beside the tars of images."""
    survey.labels = Values()
    for path in survey.with_images:
        survey.labels.add_all((partner_labels(store, path, config) or {}).values())
    beside = {partner_path(path, str(config.label_from)) for path in survey.with_images}
    survey.without_images = [path for path in survey.without_images if path not in beside]


def _refuse_absent(survey: TarSurvey, where: str) -> None:
    """Raise SourceError if an option names a value that no sample has: its column would hold only nulls."""
    config, there = survey.config, survey.json_keys | survey.suffixes.keys() | ({CAPTION} if "txt" in survey.suffixes else set())
    named = [("--label", None if survey.table is not None else config.label), *(("--meta", name) for name in config.meta)]
    absent = [f"{option} {name}" for option, name in named if name is not None and name not in there]
    keys, suffixes = (", ".join(sorted(names)[:NAMES_SHOWN]) or "none" for names in (survey.json_keys, survey.suffixes))
    if survey.unread and named[1:] + ([named[0]] if config.label else []) and not survey.labels.count + survey.labels.missing:
        raise SourceError(f"{where}: none of the first samples can be read with --label and --meta: {survey.unread}")
    if absent and survey.samples and not (config.as_text and not survey.complete):
        raise SourceError(
            f"{where}: none of the first {survey.samples} samples has the value that {' and '.join(absent)} names; expected a key of "
            f"their .json members (they have {keys}) or the suffix of a text member (they have {suffixes})"
        )
    images = [f"{option} {name}" for option, name in named if name in survey.suffixes and not _is_text(str(name), survey)]
    if images and not survey.json_keys & {config.label, *config.meta}:
        raise SourceError(f"{where}: {' and '.join(images)} names images; expected a key of the .json members, or a text member")
    told = told_members(config.image_member)
    if told and not set(told) & survey.suffixes.keys() and survey.samples + survey.others:
        raise SourceError(f"{where}: no sample has the member that --image-member {config.image_member} names; they have {suffixes}")


def describe(survey: TarSurvey, config: SourceConfig, summary: SourceSummary) -> None:
    """Fill the summary of a source with what was understood."""
    from_path = bool(config.label_from and not config.label_from.startswith(FILE_RULE))
    values = _labels_of(survey, config)
    summary.label_type = values.label_type()
    if summary.label_type is not None and (from_path or config.as_text):
        summary.label_type = "string"
    if config.as_text and config.label and summary.label_type is None:
        summary.label_type = "string"
    if survey.table is not None:
        summary.label_type = survey.table.label_type
    for value, count in values.distinct.items():
        label = as_label(value, summary.label_type)
        if label is not None:
            summary.classes[label] += count
    summary.unlabelled = values.missing
    if not summary.splits:
        summary.splits.update(survey.splits)
    types = {name: kind.type() for name, kind in survey.meta.items()}
    summary.meta_types = {name: "string" if config.as_text else types.get(name, "string") for name in config.meta}
    summary.images = survey.images if survey.complete else -1
    for kind, (count, example) in survey.left_out.items():
        summary.leave_out(kind, example, count)
    end = "first" if config.tar_key == "first-dot" else "last"
    member = "#member" if config.image_member == "all" else ""
    summary.id_rule = f"the path of the tar, #, and the key, which ends at the {end} dot of the member's name{member}"
    summary.label_rule = _label_words(survey, config, summary)
    summary.newer_inputs = not survey.complete or bool(survey.left_out or survey.several)
    summary.meta_rule = ", ".join(
        ".txt as caption" if name == CAPTION and CAPTION not in survey.json_keys else name for name in config.meta
    )
    summary.meta_rule = summary.meta_rule or "none"
    summary.notes += _notes(survey, config, summary)
    summary.doubts += _doubts(survey, config)
    if survey.table is not None and survey.complete:
        survey.table.finish(summary)


def _labels_of(survey: TarSurvey, config: SourceConfig) -> Values:
    if config.no_labels or config.label_from == "none":
        return Values(missing=survey.images)
    if survey.config.label_from != config.label_from and config.label_from in ("tar", "parent"):
        return survey.stems if config.label_from == "tar" else survey.parents
    if survey.config.label != config.label:
        return survey.candidates[str(config.label)]
    return survey.labels


def _label_words(survey: TarSurvey, config: SourceConfig, summary: SourceSummary) -> str:
    kind = "whole numbers" if summary.label_type == "int64" else "text"
    if config.no_labels or config.label_from == "none":
        return "none, as --no-labels asks" if config.no_labels else "none, as --label-from none asks"
    if config.label_from == "tar":
        return f"the name of the tar ({_first(summary)})"
    if survey.table is not None:
        return f"{survey.table.rule}, {kind}"
    if config.label_from and config.label_from.startswith(FILE_RULE):
        return f"the tars of the same names in {config.label_from.removeprefix(FILE_RULE)}, {kind}"
    if config.label_from:
        place = {"parent": "the folder of the image", "first": "the first folder"}.get(config.label_from, config.label_from)
        return f"{place} inside the tar ({_first(summary)})"
    if summary.label_type is None:
        seen = f"{'all' if survey.complete else 'the first'} {counted(survey.samples, 'sample')}"
        return f"none (no .cls and no label in .json in {seen})"
    places = [place for place, _ in survey.places.most_common()] or [f".{config.label}"]
    return f"{' or '.join(places)}, {kind}"


def _first(summary: SourceSummary) -> str:
    names = [str(label) for label, _ in summary.classes.most_common(3)]
    return ", ".join(names) + (", …" if len(summary.classes) > 3 else "")


def _notes(survey: TarSurvey, config: SourceConfig, summary: SourceSummary) -> list[str]:
    notes = [] if survey.complete else ["samples in tars are counted when they are read"]
    if summary.label_rule.startswith("none"):
        notes.append(f"no labels{summary.label_rule.removeprefix('none')}")
    if summary.label_type is None and not config.no_labels and config.label_from is None:
        places = [("parent", survey.parents), ("tar", survey.stems)]
        offers = [f"--label-from {rule} ({values.shown()})" for rule, values in places if len(values.distinct) > 1]
        if offers:
            notes.append(f"labels could be {' or '.join(offers)}")
    if survey.config.label != config.label:
        notes.append(f"the .{config.label} members are taken as labels, because nothing else is one; --label-from none takes no labels")
    if CAPTION in config.meta and CAPTION not in survey.config.meta:
        notes.append("the .txt members are kept as meta.caption; --label txt makes them the classes")
    if config.tar_key == "last-dot" and survey.keys.dotted == 0:
        notes.append("keys end at the last dot of a name, because that loses no image; --key first-dot is webdataset's rule")
    used = {"json", "txt", "cls", config.label, *config.meta}
    unused = [
        f".{suffix} ({count})" for suffix, count in survey.suffixes.most_common(30) if _is_text(suffix, survey) and suffix not in used
    ]
    if unused:
        notes.append(f"members that are not used: {', '.join(unused[:NAMES_SHOWN])}; --label NAME or --meta NAME takes one")
    if survey.again:
        samples = counted(survey.again, "sample has", "samples have")
        notes.append(f"{samples} a key that came before, and will be quarantined as duplicate_id")
    return [*notes, *damage_notes(survey.damages)]


def _is_text(suffix: str, survey: TarSurvey) -> bool:
    return bool(suffix) and suffix not in survey.image_suffixes and not is_image(suffix, told_members(survey.config.image_member))


def _doubts(survey: TarSurvey, config: SourceConfig) -> list[Doubt]:
    doubts = []
    if survey.several:
        doubt = several_images(survey.several, survey.several_example, survey.several_members, lost=survey.several_lost)
        key = ", --key last-dot ends keys at the last dot" if config.tar_key == "first-dot" and survey.keys.dotted else ""
        doubts.append(replace(doubt, option=f"{doubt.option}{key}"))
    for count, example in (survey.left_out[kind] for kind in (TWO_DEEP, UNREAD_ARCHIVE) if kind in survey.left_out):
        sentence = f"{counted(count, 'archive is', 'archives are')} not read, such as {example}, and may hold images"
        doubts.append(Doubt(sentence=sentence, option="unpack them, to take the images inside"))
    if survey.others:
        doubts.append(
            Doubt(
                sentence=f"{counted(survey.others, 'sample has', 'samples have')} no member {config.image_member}, but other images, "
                f"such as {survey.others_example}, and will be quarantined",
                option="--image-member NAME,NAME takes the first that is there",
                grave=True,
            )
        )
    if config.label_from in ("tar", "parent") and survey.config.label_from is None:
        what = "name of its tar" if config.label_from == "tar" else "folder inside the tar"
        doubts.append(Doubt(sentence=f"the label of an image is the {what}, because nothing else is one", option="--label-from none"))
    if survey.without_images and survey.with_images:
        example = readable_text(survey.without_images[0])
        tars = counted(len(survey.without_images), "tar holds no image and is", "tars hold no image and are")
        doubts.append(
            Doubt(
                sentence=f"{tars} left out, such as {example}",
                option="--label-from file:FOLDER takes labels from tars of the same names",
            )
        )
    return doubts
