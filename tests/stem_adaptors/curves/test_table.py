"""The table, the page and the plot of a curve."""

from __future__ import annotations

import io
from unittest.mock import patch

from PIL import Image

from tests.stem_adaptors.curves.curves import curve_of
from tests.stem_adaptors.curves.test_result import ABSENT, POINTS, RIGHT, SMALL
from tokenshards.stem_adaptors.curves import plot
from tokenshards.stem_adaptors.curves.plot import plot_png
from tokenshards.stem_adaptors.curves.table import HEADER, as_html, as_markdown, footnotes, rows_of


def test_cells_say_what_the_rows_hold() -> None:
    rows = rows_of(curve_of(POINTS, RIGHT))
    assert {len(row) for row in rows} == {len(HEADER)}
    tokens, absent, _, _, files, jpegs = rows
    assert tokens[:5] == ("tokens", "1 kB", "10", "100.0", "3.5") and tokens[5] == f"{RIGHT[SMALL].mean():.1%}"
    assert tokens[7] == " ".join(f"{100 * seed.mean():.1f}" for seed in RIGHT[SMALL]) and tokens[8][0] in "+-"
    assert absent == ("fewer images", "1 kB", *["-"] * 8)
    assert files[:4] == ("fewer images", "5 kB", "2", "2,500.0") and files[8:] == ("-", "-")
    assert jpegs[:3] == ("jpeg (8 px, quality 3)", "5 kB", "60")


def test_footnotes_name_the_tokenizer_and_the_sides_that_are_there() -> None:
    alone, all_sides = footnotes(curve_of([SMALL], RIGHT)), footnotes(curve_of(POINTS, RIGHT))
    assert "The tokenizer takes 8.4 kB more (codebook, weights, model of the codec), which are in no budget." in alone[0]
    assert "an equal share of each class" in alone[0] and "after 2 minutes on each side, 2 seeds, 40 images of --val" in alone[1]
    assert len(alone) == 2 and len(all_sides) == 4 and "`fewer images`" in all_sides[2]
    assert all_sides[3] == f"`fewer images` at 1 kB is missing: {ABSENT.absent}."


def test_markdown_and_page_have_every_cell() -> None:
    found = curve_of(POINTS, RIGHT)
    table = [line for line in as_markdown(found).splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(POINTS) and {line.count("|") for line in table} == {len(HEADER) + 1}
    page = as_html(found, b"\x89PNG")
    assert page.count("<td>") == len(POINTS) * len(HEADER) and "<h1>Accuracy for a budget of bytes</h1>" in page
    assert 'src="data:image/png;base64,iVBORw=="' in page and "http" not in page and "<img" not in as_html(found, None)


def test_the_plot_has_a_line_for_each_side_that_was_trained() -> None:
    found, drawn = curve_of(POINTS, RIGHT), []

    def points(axes: object, bytes_: list[float], values: list[tuple[float, float, float]], **style: str) -> None:
        drawn.append((style["label"], bytes_, [round(value, 4) for value, _, _ in values]))
        original(axes, bytes_, values, **style)  # type: ignore[arg-type]

    original = plot.points
    with patch.object(plot, "points", points):
        image = Image.open(io.BytesIO(plot_png(found)))
    assert image.format == "PNG" and image.width > 800
    assert [(label, bytes_) for label, bytes_, _ in drawn] == [("tokens", [1000, 5000]), ("fewer images", [5000]), ("jpeg", [885, 4800])]
    assert drawn[0][2] == [row.top1.value for row in found.rows if row.side == "tokens" and row.top1]
