"""`preview`: a grid of reconstructions, beside their originals if the source is given, or beside variants of their tokens."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import BadInput, ConfigError
from tokenshards.pipeline.images.views import decode_views
from tokenshards.pipeline.job.context import TOKENIZER_FOLDER
from tokenshards.pipeline.job.originals import read_originals
from tokenshards.pipeline.planning.plan import load_chain
from tokenshards.pipeline.quality.fidelity import psnr
from tokenshards.pipeline.records import ImageRecord, TokenBatch, concatenate_tokens
from tokenshards.pipeline.reports.drawings import image_grid, image_table, publish_drawing, side_by_side
from tokenshards.pipeline.reports.mask_drawings import mask_caption, mask_colours, no_mask, with_legend
from tokenshards.pipeline.shards.dataset import Sample, TokenDataset, open_dataset
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.pipeline.sources import source_root
from tokenshards.pipeline.storage.store import display_url
from tokenshards.pipeline.tokenizers.directory import load_tokenizer
from tokenshards.pipeline.words import counted

__all__ = ["Preview", "View", "Views", "preview_dataset", "preview_views", "spread_samples", "views_drawing"]

Pixels = npt.NDArray[np.uint8]
MAX_IMAGES = 400
GREY = 128
View = tuple[str, TokenBatch] | tuple[str, TokenBatch, npt.NDArray[np.bool_]]
"""A caption and tokens; where sites of a grid are hidden, also True at these, [samples, height, width]."""
Views = Callable[[TokenDataset, TokenBatch], Sequence[View]]
"""Function from a dataset and the tokens of some samples to variants of these tokens."""


@dataclass(frozen=True, slots=True)
class Preview:
    """Path and content of a drawn preview."""

    path: str
    sample_ids: list[str]
    psnr_db: list[float]
    """PSNR of each image against its original; [] without a source."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    def text(self) -> str:
        """Return one line for the terminal."""
        fidelity = f", mean PSNR {np.mean(self.psnr_db):.2f} dB against the originals" if self.psnr_db else ""
        return f"{counted(len(self.sample_ids), 'image')} drawn in {self.path}{fidelity}"


def preview_dataset(
    url: str,
    to: str,
    *,
    count: int,
    sample_ids: tuple[str, ...],
    label: str | None,
    source_url: str | None,
    options: dict[str, Any],
    reading: SourceConfig | None = None,
) -> Preview:
    """Draw up to `count` images spread over the dataset, or the images chosen by id or class."""
    dataset, samples = _opened(url, to, count, sample_ids, label, options)
    tokenizer = load_tokenizer(dataset.store, TOKENIZER_FOLDER)
    images = list(tokenizer.decode(concatenate_tokens([sample.tokens for sample in samples])))
    ids = [str(sample.row["sample_id"]) for sample in samples]
    captions = [_caption(sample) for sample in samples]
    if source_url is None:
        columns = min(8, max(1, round(len(images) ** 0.5)))
        if dataset.mask is None:
            drawing = image_grid(images, captions, columns=columns)
        else:
            groups = [[(image, caption)] for image, caption in zip(images, captions, strict=True)]
            drawing = _with_masks(groups, samples, dataset.mask, columns=min(4, columns))
        _save(drawing, to)
        return Preview(to, ids, [])
    originals = _originals(dataset, source_url, set(ids), reading or SourceConfig(storage_options=options))
    kept = [index for index, sample_id in enumerate(ids) if sample_id in originals]
    if not kept:
        raise ConfigError(
            f"--source {display_url(source_url)}: none of {counted(len(ids), 'image')} "
            "exists there unchanged; give the source that was tokenized"
        )
    pairs = [(originals[ids[index]], images[index]) for index in kept]
    fidelity = [psnr(original, image) for original, image in pairs]
    names, shown = [captions[index] for index in kept], [samples[index] for index in kept]
    if dataset.mask is None:
        drawing = side_by_side([original for original, _ in pairs], [image for _, image in pairs], names)
    else:
        told = [f"tokens, {decibels:.1f} dB" for decibels in fidelity]
        groups = [[(pair[0], name), (pair[1], text)] for pair, name, text in zip(pairs, names, told, strict=True)]
        drawing = _with_masks(groups, shown, dataset.mask, columns=2)
    _save(drawing, to)
    return Preview(to, [ids[index] for index in kept], [round(decibels, 3) for decibels in fidelity])


def preview_views(
    url: str, to: str, views: Views, *, count: int, sample_ids: tuple[str, ...], label: str | None, options: dict[str, Any]
) -> Preview:
    """Draw the variants that `views` makes of the images that `preview_dataset` would choose: one row per image, one column per variant."""
    dataset, samples = _opened(url, to, count, sample_ids, label, options)
    drawing = views_drawing(dataset, samples, views)
    _save(drawing, to)
    return Preview(to, [str(sample.row["sample_id"]) for sample in samples], [])


def views_drawing(dataset: TokenDataset, samples: Sequence[Sample], views: Views) -> Any:
    """Return an image with one row per sample and one column per variant. Sites that a variant hides are drawn grey."""
    tokenizer = load_tokenizer(dataset.store, TOKENIZER_FOLDER)
    found = views(dataset, concatenate_tokens([sample.tokens for sample in samples]))
    columns = []
    for _, tokens, *hidden in found:
        pixels_BHWC = tokenizer.decode(tokens)
        columns.append(list(_greyed(pixels_BHWC, hidden[0]) if hidden else pixels_BHWC))
    rows = [list(row) for row in zip(*columns, strict=True)]
    return image_table(rows, [str(caption) for caption, *_ in found], [_caption(sample) for sample in samples])


def spread_samples(dataset: TokenDataset, count: int) -> list[Sample]:
    """Return samples spread over a dataset."""
    return list(_chosen(dataset, count, (), None))


def _with_masks(groups: list[list[tuple[Pixels, str]]], samples: Sequence[Sample], mask: MaskFormat, columns: int) -> Any:
    """Draw groups of images with their captions, `columns` groups in a row, each with the mask of its sample at its end, and a legend."""
    for group, sample in zip(groups, samples, strict=True):
        found = sample.mask_HW
        drawn = no_mask(mask.height, mask.width) if found is None else mask_colours(found, mask.ignore)
        group.append((drawn, mask_caption(found, mask.ignore)))
    images, captions = zip(*(tile for group in groups for tile in group), strict=True)
    classes = {int(value) for sample in samples if sample.mask_HW is not None for value in np.unique(sample.mask_HW)} - {mask.ignore}
    return with_legend(image_grid(images, captions, columns * len(groups[0])), classes)


def _greyed(pixels_BHWC: Pixels, hidden_Bhw: npt.NDArray[np.bool_]) -> Pixels:
    """Return the images with grey in the place of hidden sites of a grid h x w."""
    places = [np.arange(side) * sites // side for side, sites in zip(pixels_BHWC.shape[1:3], hidden_Bhw.shape[1:], strict=True)]
    hidden_BHW1 = hidden_Bhw[:, places[0][:, None], places[1][None, :]][..., None]
    return np.where(hidden_BHW1, np.uint8(GREY), pixels_BHWC)


def _opened(
    url: str, to: str, count: int, sample_ids: tuple[str, ...], label: str | None, options: dict[str, Any]
) -> tuple[TokenDataset, list[Sample]]:
    """Check the arguments and return the dataset with the samples to show."""
    if not 1 <= count <= MAX_IMAGES:
        raise ConfigError(f"-n is {count}; expected 1 to {MAX_IMAGES} images")
    if Path(to).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"--to is {to!r}; expected a name that ends in .png, .jpg or .webp")
    dataset = open_dataset(url, storage_options=options)
    samples = list(_chosen(dataset, count, sample_ids, label))
    if not samples:
        wanted = "the dataset has no rows" if label is None else f"none of --class {label!r}; its classes are {list(dataset.classes[:10])}"
        raise ConfigError(f"{display_url(url)}: no image to show, {wanted}")
    return dataset, samples


def _save(drawing: Any, to: str) -> None:
    buffer = io.BytesIO()
    drawing.save(buffer, format={".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(Path(to).suffix.lower(), "PNG"))
    publish_drawing(Path(to), buffer.getvalue())


def _caption(sample: Sample) -> str:
    return str(sample.row["sample_id"]) if sample.label is None else f"{sample.label}: {sample.row['sample_id']}"


def _chosen(dataset: TokenDataset, count: int, sample_ids: tuple[str, ...], label: str | None) -> Iterator[Sample]:
    if sample_ids:
        for sample_id in sample_ids:
            yield dataset.sample(sample_id)
        return
    if label is None:
        total = len(dataset) // dataset.views
        for image in np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)):
            yield dataset[int(image) * dataset.views]
        return
    found = position = 0
    for batch in dataset.batches(4096):
        names = np.array([str(name) for name in dataset.classes] or [""])
        first_B = (position + np.arange(len(batch))) % dataset.views == 0
        for row in np.flatnonzero(first_B & (batch.labels_B >= 0) & (names[batch.labels_B] == label)):
            yield dataset[position + int(row)]
            found += 1
            if found == count:
                return
        position += len(batch)


def _originals(dataset: TokenDataset, source_url: str, wanted: set[str], reading: SourceConfig) -> dict[str, Pixels]:
    """Return sample id -> preprocessed pixels of the wanted samples; the plan says where they are."""
    originals: dict[str, Pixels] = {}
    preprocess = dataset.spec.preprocess
    for plan in load_chain(dataset.store):
        config = plan.source_config(reading)
        root = source_root(source_url, config)
        for shard in plan.shard_numbers:
            for record in read_originals(dataset.store, plan, shard, root, config, frozenset(wanted - originals.keys())):
                if isinstance(record, ImageRecord):
                    try:
                        found = decode_views(
                            record.data,
                            preprocess,
                            plan.views,
                            seed=plan.order_seed,
                            sample_id=record.sample_id,
                            rules=config.image_rules,
                        )
                        originals[record.sample_id] = found.pixels_VHWC[0]
                    except BadInput:
                        continue  # another object has taken the name since; the caller reports missing images
            if len(originals) == len(wanted):
                return originals
    return originals
