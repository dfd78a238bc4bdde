"""The sides of a continual learning: tokens and images in memories of bytes, between no memory and all images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.continual.chain import Chain
from tokenshards.stem_adaptors.continual.continual_config import ALL, FILES, NONE, ContinualRequest
from tokenshards.stem_adaptors.continual.result import Line
from tokenshards.stem_adaptors.curves.both_sets import BothSets, WholePixels, jpegs_missing
from tokenshards.stem_adaptors.curves.curve_config import JPEG, TOKENS

__all__ = ["class_names", "image_lines", "token_lines"]


def class_names(dataset: TokenDataset) -> tuple[str, ...]:
    """Return the classes that have images."""
    return tuple(str(name) for name, count in zip(dataset.classes, dataset.manifest.class_counts, strict=True) if count)


def token_lines(request: ContinualRequest, sets: BothSets) -> list[Line]:
    """Return the sides of tokens, with both references where they are wanted."""
    mean = sets.stock.mean
    held: list[tuple[str, int | None, int | None]] = [(TOKENS, budget, sets.stock.fitting(budget)) for budget in request.budgets]
    if request.references:
        held = [(NONE, None, 0), *held, (ALL, None, None)]
    return [
        Line(
            side=side,
            budget=budget,
            bytes_per_image=mean,
            place=TOKENS,
            chains=_chains(request, sets, images, sets.digest, (request.data_url, request.val_url, request.data_url)),
        )
        for side, budget, images in held
    ]


def image_lines(request: ContinualRequest, sets: BothSets, whole: WholePixels, store: Store) -> Iterator[Line]:
    """Yield the sides of images at each budget: JPEGs of as many bytes as the tokens of an image, and original files.

    Raises ConfigError where --images lacks a class of DATA.
    """
    names = class_names(sets.data)
    lacking = sorted(set(names) - set(class_names(whole.data.train)))
    if lacking:
        raise ConfigError(
            f"--images has no image of {counted(len(lacking), 'class')} of DATA: {shorten(lacking)}; expected the images that DATA was "
            "made from. Give their source, with the same --label"
        )
    jpegs, own = whole.jpegs_of(sets.stock.mean), f"{store.location}/{whole.place}"
    for budget in request.budgets:
        if jpegs is None:
            yield Line(side=JPEG, budget=budget, bytes_per_image=0, absent=jpegs_missing(sets.stock.mean))
        else:
            line = Line(side=JPEG, budget=budget, bytes_per_image=jpegs.bytes_per_image, detail=jpegs.detail, place=whole.place)
            stored = f"{store.location}/{jpegs.place}/train"
            yield _held(line, request, sets, whole, (own, stored, jpegs.data.digest))
        line = Line(side=FILES, budget=budget, bytes_per_image=whole.files.mean, place=whole.place)
        yield _held(line, request, sets, whole, (own, f"{own}/train", ""))


def _held(line: Line, request: ContinualRequest, sets: BothSets, whole: WholePixels, stored: tuple[str, str, str]) -> Line:
    """Return the line with as many images as its budget holds. `stored`: folder of the whole images, URL and digest of the memory's."""
    folder, memory_url, memory_data = stored
    classes, images = len(class_names(sets.data)), min(whole.files.labelled, int((line.budget or 0) / line.bytes_per_image))
    if images < classes:
        held = f"room for {counted(images, 'image')} of {line.bytes_per_image:,.0f} bytes, not for one of each of {classes:,} classes"
        return replace(line, absent=held)
    urls = (f"{folder}/train", f"{folder}/val", memory_url)
    return replace(line, chains=_chains(request, sets, images, whole.data.digest, urls, memory_data))


def _chains(
    request: ContinualRequest, sets: BothSets, images: int | None, data: str, urls: tuple[str, str, str], memory_data: str = ""
) -> tuple[Chain, ...]:
    """Return a chain for each seed. `data`: digest of the datasets at the first two `urls`; the third is that of the memory."""
    chain = Chain(
        data=data,
        memory_data=memory_data,
        classes=class_names(sets.data),
        steps=request.steps,
        until=request.steps,
        images=images,
        choice=request.choice,
        seed=0,
        step_seconds=60 * request.minutes,
        device=request.device,
        train_url=urls[0],
        val_url=urls[1],
        memory_url=urls[2],
    )
    return tuple(replace(chain, seed=seed) for seed in range(request.seeds))
