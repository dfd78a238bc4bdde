"""A comparison as a table: for a terminal, as Markdown, and as one HTML page with its plot."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.result import Comparison, Row, Score

__all__ = [
    "HEADER",
    "SHORT",
    "as_html",
    "as_markdown",
    "footnotes",
    "html_page",
    "html_table",
    "markdown_table",
    "number_cell",
    "rows_of",
    "share_cells",
]

HEADER = (
    "side", "px", "ids", "bytes", "default", "publish", "compact", "of order-0", "tables kB", "PSNR dB", "SSIM", "codes used", "fit s",
    "encode/s", "probe", "top-1", "95 %", "over file", "95 %",
)  # fmt: skip
SHORT = ("side", "bytes", "PSNR dB", "probe", "top-1", "95 %", "over file", "95 %")
"""The columns that a terminal has room for."""
_NONE = "-"


def rows_of(found: Comparison, columns: Sequence[str] = HEADER) -> list[tuple[str, ...]]:
    """Return the cells of each side for these columns."""
    kept = [place for place, name in enumerate(HEADER) if name in columns]
    return [tuple(cells[place] for place in kept) for cells in map(_cells, found.rows)]


def _cells(row: Row) -> tuple[str, ...]:
    side, facts = row.side, row.side.facts
    if side.absent:
        return (side.name, *[_NONE] * (len(HEADER) - 1))
    file = facts.get("file")
    share = facts["compact"] / facts["order0"] if facts.get("order0") else None
    tables = (facts["table_bytes"] + facts["model_bytes"]) / 1000 if "table_bytes" in facts else None
    usage = facts.get("code_usage") if side.kind == "tokens" else None
    tokens = side.kind == "tokens"
    return (
        f"{side.name} ({file['side']} px, quality {file['quality']})" if file else side.name,
        str(side.size),
        f"{facts['ids']:,.0f}" if tokens else _NONE,
        number_cell(side.stored_bytes, 1),
        number_cell(facts.get("default"), 1),
        number_cell(facts.get("publish"), 1),
        number_cell(facts.get("compact"), 1),
        number_cell(share, 2),
        number_cell(tables, 0),
        number_cell(facts.get("psnr_db"), 2),
        number_cell(facts.get("ssim"), 3),
        _NONE if not usage else " + ".join(f"{used:.0%}" for used in usage),
        number_cell(facts.get("fit_cpu_seconds"), 1),
        number_cell(facts.get("encode_images_per_second") if tokens else None, 0),
        _NONE if row.probe is None else f"{row.probe:.1%}",
        *share_cells(row.top1, sign=False),
        *share_cells(row.over_files, sign=True),
    )


def number_cell(value: float | None, digits: int) -> str:
    """Return a number, or `-` for None."""
    return _NONE if value is None else f"{value:,.{digits}f}"


def share_cells(score: Score | None, *, sign: bool) -> tuple[str, str]:
    """Return a share and its interval in percent; with `sign` as a difference in points."""
    if score is None:
        return _NONE, _NONE
    if sign:
        return f"{100 * score.value:+.1f}", f"{100 * score.low:+.1f} to {100 * score.high:+.1f}"
    return f"{score.value:.1%}", f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def footnotes(found: Comparison) -> list[str]:
    """Return what the columns mean."""
    trained = (
        f"`top-1`: a small ViT after {found.minutes:g} minutes on each side, {counted(found.seeds, 'seed')}, "
        f"{counted(found.measured, 'image')} of --val; "
        "`over file`: points above the better of JPEG and WebP at as many bytes."
    )
    return [
        f"`bytes` of tokens: the codec compact, with tables and model divided over {found.stored_images:,} images; published networks "
        "do not count. Of JPEG: the scan without headers and tables, which are the same in all files; of WebP: whole files.",
        "`PSNR` and `SSIM` are measured in the size of each tokenizer, `px`: those of a smaller size are not comparable.",
        "`probe`: a linear classifier on averaged embeddings, no seed.",
        trained if found.minutes else "No classifier was trained (--minutes 0).",
    ]


def as_markdown(found: Comparison) -> str:
    """Return the table with its footnotes."""
    return markdown_table(HEADER, rows_of(found), footnotes(found))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return a table with its footnotes as Markdown; all columns but the first hold numbers."""
    lines = [_markdown_row(header), _markdown_row(["---", *["---:"] * (len(header) - 1)]), *map(_markdown_row, rows)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def as_html(found: Comparison, plot: bytes | None) -> str:
    """Return one page with everything in it; `plot` is a PNG."""
    return html_page("Tokenizers compared", HEADER, rows_of(found), footnotes(found), plot)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls where a page is narrow."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows)
    return f"""<div style="overflow-x: auto"><table>
<tr>{head}</tr>
{body}
</table></div>"""


def html_page(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    plot: bytes | None,
    *,
    shown: str = "top-1 against bytes",
    below: str = "",
) -> str:
    """Return a table, a plot and footnotes as one page. `plot` is a PNG, `shown` what it shows; `below` is HTML that follows."""
    drawn = "" if plot is None else f'<img alt="{shown}" src="data:image/png;base64,{base64.b64encode(plot).decode()}">'
    listed = "\n".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em; color: #222; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; }}
</style>
<h1>{html.escape(title)}</h1>
{html_table(header, rows)}
{drawn}
<ul>
{listed}
</ul>
{below}</html>
"""
