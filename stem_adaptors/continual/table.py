"""A continual learning as tables: for a terminal, as Markdown, and as one HTML page with its plot."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.table import html_page, html_table, markdown_table, number_cell, share_cells
from tokenshards.stem_adaptors.continual.continual_config import ALL, FILES, NONE
from tokenshards.stem_adaptors.continual.result import Continual, ContinualRow
from tokenshards.stem_adaptors.curves.byte_sizes import byte_text
from tokenshards.stem_adaptors.curves.curve_config import JPEG

__all__ = ["HEADER", "SHORT", "as_html", "as_markdown", "footnotes", "matrices_of", "name_of", "rows_of"]

HEADER = (
    "side", "replay", "images", "bytes/image", "accuracy", "95 %", "incremental", "95 %", "forgetting", "95 %", "tokens ahead", "95 %",
)  # fmt: skip


SHORT = tuple(place for place in range(len(HEADER)) if place not in (3, 7))
"""Columns that a terminal has room for: bytes of an image and the interval of `incremental` are left out."""


def name_of(row: ContinualRow) -> str:
    """Return the side and its budget."""
    return row.side if row.budget is None else f"{row.side}, {byte_text(row.budget)}"


def rows_of(found: Continual, places: Sequence[int] = range(len(HEADER))) -> list[tuple[str, ...]]:
    """Return the cells of each row, of the columns at these places."""
    return [tuple(cells[place] for place in places) for cells in map(_cells, found.rows)]


def _cells(row: ContinualRow) -> tuple[str, ...]:
    budget = "-" if row.budget is None else byte_text(row.budget)
    if row.figures is None:
        return (row.side, budget, *["-"] * (len(HEADER) - 2))
    return (
        f"{row.side} ({row.detail})" if row.detail else row.side,
        budget,
        f"{row.images:,.0f}",
        "-" if row.side == NONE else number_cell(row.bytes_per_image, 1),
        *share_cells(row.figures.accuracy, sign=False),
        *share_cells(row.figures.incremental, sign=False),
        *share_cells(row.figures.forgetting, sign=False),
        *share_cells(None if row.tokens_ahead is None else row.tokens_ahead.accuracy, sign=True),
    )


def footnotes(found: Continual) -> list[str]:
    """Return what the columns mean, and why sides are missing."""
    chosen = "those whose mean stays nearest to that of their class (herding)" if found.choice == "herding" else "any"
    notes = [
        f"`images`: in the memory at the last step, {chosen}; `bytes/image` of tokens: their ids alone, mean of DATA. The tokenizer takes "
        f"{byte_text(found.tokenizer_bytes)} more (codebook, weights, model of the codec), which are in no budget.",
        f"`accuracy`: top-1 of a small ViT after {found.steps} steps of {found.minutes:g} minutes, {counted(found.seeds, 'seed')}, over "
        f"all {counted(found.measured, 'image')} of --val. `incremental`: mean over the steps of the accuracy on all classes seen so far "
        "(iCaRL).",
        "`forgetting`: how far the accuracy on a group of classes fell from its best to the last step, mean over all groups but the last "
        "(Chaudhry et al. 2018).",
    ]
    sides = {row.side for row in found.rows if row.figures is not None}
    if sides & {NONE, ALL}:
        notes.append(f"`{NONE}` learns from the new classes alone; `{ALL}` keeps the tokens of all images of earlier classes.")
    if sides & {JPEG, FILES}:
        notes.append(
            f"`{JPEG}`: the memory has small JPEGs of as many bytes as the tokens of an image; `{FILES}`: original files. New images are "
            "whole there, as are those of --val. `tokens ahead`: accuracy of tokens at as many bytes, less that of the side, in points."
        )
    return notes + [f"`{name_of(row)}` is missing: {row.absent}." for row in found.rows if row.absent]


def matrices_of(found: Continual) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield for each row: its name, then header and cells of its accuracy matrix, the mean over the seeds."""
    header = ("after step", *(f"group {group + 1}" for group in range(found.steps)))
    for row in found.rows:
        if row.figures is not None:
            cells = [[("" if value is None else f"{value:.1%}") for value in values] for values in row.matrix]
            yield name_of(row), header, [(str(step + 1), *line) for step, line in enumerate(cells)]


def as_markdown(found: Continual) -> str:
    """Return the table with its footnotes, and the accuracy matrices."""
    parts = [markdown_table(HEADER, rows_of(found), footnotes(found))]
    return "\n".join([*parts, *(f"{name}\n\n{markdown_table(header, rows, ())}" for name, header, rows in matrices_of(found))])


def as_html(found: Continual, plot: bytes | None) -> str:
    """Return one page with everything in it; `plot` is a PNG."""
    matrices = [f"<h3>{html.escape(name)}</h3>\n{html_table(header, rows)}\n" for name, header, rows in matrices_of(found)]
    below = f"<h2>Accuracy on each group of classes after each step</h2>\n{''.join(matrices)}"
    title = "Classes that come one group after another"
    return html_page(title, HEADER, rows_of(found), footnotes(found), plot, shown="accuracy over the steps", below=below)
