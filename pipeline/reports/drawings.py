"""Drawings for people: grids of images, originals beside reconstructions, code usage in a terminal or a plot."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.quality.fidelity import psnr
from tokenshards.pipeline.storage.store import Store

__all__ = ["image_grid", "image_table", "plot_usage", "publish_drawing", "side_by_side", "usage_text_histogram"]

Pixels = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.integer[Any]]

MIN_SIDE = 96
"""Smallest side in pixels that a person can see well; smaller images are enlarged by whole factors."""
GAP = 6
FONT_SIZE = 12
LINE_HEIGHT = 16
BLOCKS = " ▁▂▃▄▅▆▇█"


def image_grid(images: Sequence[Pixels], captions: Sequence[str] | None = None, columns: int = 4) -> Image.Image:
    """Return uint8 RGB images (height, width, 3) of any sizes in rows of `columns`, each with its caption below.

    Raises ConfigError for no images, or if the numbers of captions and images differ.
    """
    if not images:
        raise ConfigError("there are 0 images to draw; expected at least 1. Choose other samples")
    if captions is not None and len(captions) != len(images):
        raise ConfigError(f"{len(captions)} captions for {len(images)} images; expected one caption per image")
    tiles = [_enlarged(image) for image in images]
    columns = max(1, min(columns, len(tiles)))
    cell_width, cell_height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    step_x, step_y = cell_width + GAP, cell_height + GAP + (LINE_HEIGHT if captions else 0)
    canvas = Image.new("RGB", (GAP + columns * step_x, GAP + math.ceil(len(tiles) / columns) * step_y), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    for index, tile in enumerate(tiles):
        left, top = GAP + index % columns * step_x, GAP + index // columns * step_y
        canvas.paste(tile, (left + (cell_width - tile.width) // 2, top + (cell_height - tile.height) // 2))
        if captions:
            draw.text((left, top + cell_height + 1), _fitted(captions[index], cell_width, draw, font), fill="black", font=font)
    return canvas


def image_table(rows: Sequence[Sequence[Pixels]], headers: Sequence[str], captions: Sequence[str]) -> Image.Image:
    """Return rows of uint8 RGB images below their column headers, each row with its caption below.

    Headers may have several lines. Raises ConfigError for no images, or if the numbers of rows, headers and captions do not match.
    """
    if not rows or not headers:
        raise ConfigError(f"the table has {len(rows)} rows and {len(headers)} columns; expected at least 1 of both")
    if len(captions) != len(rows) or any(len(row) != len(headers) for row in rows):
        raise ConfigError(f"rows of {[len(row) for row in rows]} images, {len(captions)} captions and {len(headers)} headers do not fit")
    tiles = [[_enlarged(image) for image in row] for row in rows]
    step_x = max(tile.width for row in tiles for tile in row) + GAP
    cell_height = max(tile.height for row in tiles for tile in row)
    step_y = cell_height + GAP + LINE_HEIGHT
    head = LINE_HEIGHT * max(header.count("\n") + 1 for header in headers)
    canvas = Image.new("RGB", (GAP + len(headers) * step_x, GAP + head + GAP + len(rows) * step_y), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_SIZE)
    for column, header in enumerate(headers):
        for line, text in enumerate(header.split("\n")):
            colour = "black" if line == 0 else "dimgray"
            place = (GAP + column * step_x, GAP + line * LINE_HEIGHT)
            draw.text(place, _fitted(text, step_x - GAP, draw, font), fill=colour, font=font)
    for row, (tiles_of_row, caption) in enumerate(zip(tiles, captions, strict=True)):
        top = GAP + head + GAP + row * step_y
        for column, tile in enumerate(tiles_of_row):
            canvas.paste(tile, (GAP + column * step_x, top + (cell_height - tile.height) // 2))
        text = _fitted(caption, len(headers) * step_x - GAP, draw, font)
        draw.text((GAP, top + cell_height + 1), text, fill="dimgray", font=font)
    return canvas


def side_by_side(
    originals: Sequence[Pixels], reconstructions: Sequence[Pixels], captions: Sequence[str] | None = None, columns: int = 3
) -> Image.Image:
    """Return pairs of original (left) and reconstruction (right) with their PSNR, `columns` pairs per row."""
    if len(originals) != len(reconstructions):
        raise ConfigError(f"{len(originals)} originals and {len(reconstructions)} reconstructions; expected equal numbers")
    names = captions if captions is not None else [""] * len(originals)
    images = [image for pair in zip(originals, reconstructions, strict=True) for image in pair]
    fidelity = [f"tokens, {psnr(original, image):.1f} dB" for original, image in zip(originals, reconstructions, strict=True)]
    labels = [label for pair in zip(names, fidelity, strict=True) for label in pair]
    return image_grid(images, labels, 2 * max(1, columns))


def usage_text_histogram(counts_K: Counts, width: int = 64, height: int = 8) -> str:
    """Return a histogram of codes 0 .. K - 1: `height` lines of block characters, at most `width` wide, and a line of labels.

    If codes share a column, it shows their mean. A column with any use is never drawn empty.
    """
    columns = min(width, len(counts_K))
    edges = np.arange(columns) * len(counts_K) // columns
    means = np.add.reduceat(counts_K.astype(np.float64), edges) / np.diff(np.append(edges, len(counts_K)))
    peak = means.max()
    eighths = np.ceil(means / peak * height * 8).astype(int) if peak > 0 else np.zeros(columns, dtype=int)
    lines = ["".join(BLOCKS[np.clip(eighth - row * 8, 0, 8)] for eighth in eighths) for row in reversed(range(height))]
    last = str(len(counts_K) - 1)
    axis = "0" if columns <= len(last) else f"0{last:>{columns - 1}}"
    return "\n".join([*lines, f"{axis}  highest {peak:.0f}"])


def plot_usage(histograms: Sequence[Counts], path: Path) -> None:
    """Write a plot of code usage to `path`, for each level by id and sorted; the extension decides the format.

    Raises ConfigError if matplotlib is missing or does not know the extension, TransientStorageError if the file cannot be written.
    """
    with optional_import(f"{path}: plots need matplotlib", extra="plot"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 2.8 * len(histograms)), layout="constrained")
    for level, (counts_K, (by_id, by_rank)) in enumerate(zip(histograms, figure.subplots(len(histograms), 2, squeeze=False), strict=True)):
        share_K = counts_K / max(1, counts_K.sum())
        by_id.bar(np.arange(len(share_K)), share_K, width=1.0)
        by_id.set(title=f"level {level}", xlabel="code", ylabel="share of ids")
        by_rank.plot(np.sort(share_K)[::-1])
        by_rank.axhline(1 / len(share_K), color="grey", linestyle=":", label="even use")
        by_rank.set(title=f"level {level}, most used first", xlabel="rank", yscale="log")
        by_rank.legend()
    buffer = io.BytesIO()
    try:
        figure.savefig(buffer, format=path.suffix.removeprefix(".") or "png", dpi=120)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be written as a plot ({error}); use an extension such as .png") from None
    publish_drawing(path, buffer.getvalue())


def publish_drawing(path: Path, data: bytes) -> None:
    """Write a file whole, in a folder that is made if it does not exist."""
    target = path.resolve()
    Store(str(target.parent)).write(target.name, data)


def _enlarged(image: Pixels) -> Image.Image:
    factor = max(1, math.ceil(MIN_SIDE / min(image.shape[:2])))
    return Image.fromarray(np.repeat(np.repeat(image, factor, axis=0), factor, axis=1))


def _fitted(text: str, width: int, draw: ImageDraw.ImageDraw, font: Any) -> str:
    """Shorten the text to `width` pixels; cut its front, where paths differ least."""
    text = text.replace("\n", " ")
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(f"…{text}", font=font) > width:
        text = text[1:]
    return f"…{text}"
