"""A curve as a table: for a terminal, as Markdown, and as one HTML page with its plot."""

from __future__ import annotations

from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.table import html_page, markdown_table, number_cell, share_cells
from tokenshards.stem_adaptors.curves.byte_sizes import byte_text
from tokenshards.stem_adaptors.curves.result import Curve, CurveRow

__all__ = ["HEADER", "as_html", "as_markdown", "footnotes", "rows_of"]

HEADER = ("side", "budget", "images", "bytes/image", "epochs", "top-1", "95 %", "seeds", "over images", "95 %")


def rows_of(found: Curve) -> list[tuple[str, ...]]:
    """Return the cells of each row."""
    return [_cells(row) for row in found.rows]


def _cells(row: CurveRow) -> tuple[str, ...]:
    budget = byte_text(row.budget)
    if row.absent:
        return (row.side, budget, *["-"] * (len(HEADER) - 2))
    return (
        f"{row.side} ({row.detail})" if row.detail else row.side,
        budget,
        f"{row.images:,}",
        number_cell(row.bytes_per_image, 1),
        number_cell(row.epochs, 1),
        *share_cells(row.top1, sign=False),
        " ".join(f"{100 * top1:.1f}" for top1 in row.per_seed) or "-",
        *share_cells(row.over_images, sign=True),
    )


def footnotes(found: Curve) -> list[str]:
    """Return what the columns mean, and why sides are missing."""
    chosen = "an equal share of each class" if found.choice == "stratified" else "any images"
    notes = [
        f"`images`: as many as the budget holds, {chosen}, drawn by each seed; `bytes/image` of tokens: their ids alone. The tokenizer "
        f"takes {byte_text(found.tokenizer_bytes)} more (codebook, weights, model of the codec), which are in no budget.",
        f"`top-1`: a small ViT after {found.minutes:g} minutes on each side, {counted(found.seeds, 'seed')}, "
        f"{counted(found.measured, 'image')} of --val.",
    ]
    if any(row.side != found.rows[0].side for row in found.rows):
        notes.append(
            "`fewer images`: original files; `jpeg`: all images in the size of the tokenizer, as the best JPEGs that fit the budget on "
            "average, of which the scan counts without headers and tables, which are the same in all files. `over images`: points above "
            "the better of both."
        )
    return notes + [f"`{row.side}` at {byte_text(row.budget)} is missing: {row.absent}." for row in found.rows if row.absent]


def as_markdown(found: Curve) -> str:
    """Return the table with its footnotes."""
    return markdown_table(HEADER, rows_of(found), footnotes(found))


def as_html(found: Curve, plot: bytes | None) -> str:
    """Return one page with everything in it; `plot` is a PNG."""
    return html_page("Accuracy for a budget of bytes", HEADER, rows_of(found), footnotes(found), plot)
