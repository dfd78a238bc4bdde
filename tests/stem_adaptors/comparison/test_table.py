"""Tables and plot: every column holds its own figure, and a name cannot break the page."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.stem_adaptors.comparison.results import IMAGES, comparison_of, side
from tokenshards.stem_adaptors.comparison.plot import plot_png
from tokenshards.stem_adaptors.comparison.result import Comparison
from tokenshards.stem_adaptors.comparison.table import HEADER, SHORT, as_html, as_markdown, rows_of

FACTS = {
    "default": 61.04, "publish": 60.0, "compact": 40.0, "order0": 50.0, "table_bytes": 30_000, "model_bytes": 12_000, "ids": 1024.0,
    "psnr_db": 21.258, "ssim": 0.7777, "code_usage": [1.0, 0.5], "encode_images_per_second": 1234.6, "fit_cpu_seconds": 3.21,
}  # fmt: skip
FILE = {"file": {"format": "jpeg", "side": 12, "quality": 7, "subsampling": "4:2:0"}, "psnr_db": 18.0, "ssim": 0.5, "ids": 3072.0}


def made(trained: bool = True) -> Comparison:
    sides = [
        side("k|means <b>", place="sides/k", stored_bytes=1040.42, facts=FACTS),
        side("jpeg:1040", "jpeg", budget=1040.42, stored_bytes=1000.0, facts=FILE),
        side("webp:1040", "webp", place="", budget=1040.42, absent="too small"),
        side("pixels", "pixels", facts={"file": None}),
    ]
    tokens, file = np.zeros((2, IMAGES)), np.zeros((2, IMAGES))
    tokens[:, :30] = 1
    file[:, :20] = 1
    right = {"sides/k": tokens, "sides/jpeg:1040": file, "sides/pixels": tokens}
    return comparison_of(sides, right if trained else {}, {"sides/k": 0.625, "sides/jpeg:1040": 0.5, "sides/pixels": 0.25})


def test_each_column_holds_its_figure() -> None:
    tokens, jpeg, webp, pixels = rows_of(made())
    assert all(len(row) == len(HEADER) for row in (tokens, jpeg, webp, pixels))
    assert tokens[:16] == (
        "k|means <b>", "32", "1,024", "1,040.4", "61.0", "60.0", "40.0", "0.80", "42", "21.26", "0.778", "100% + 50%", "3.2", "1,235",
        "62.5%", "75.0%",
    )  # fmt: skip
    low, high = (float(word) for word in tokens[16].split(" to "))
    assert low < 75 < high and tokens[17] == "+25.0"
    low, high = (float(word) for word in tokens[18].split(" to "))
    assert 0 < low < 25 < high and tokens[18].startswith("+")
    assert jpeg[0] == "jpeg:1040 (12 px, quality 7)" and jpeg[2:9] == ("-", "1,000.0", "-", "-", "-", "-", "-")
    assert jpeg[9:16] == ("18.00", "0.500", "-", "-", "-", "50.0%", "50.0%") and jpeg[17:] == ("-", "-")
    assert webp == ("webp:1040", *["-"] * 18)
    assert (pixels[3], pixels[9], pixels[14], pixels[15]) == ("-", "-", "25.0%", "75.0%")


def test_the_short_columns_are_those_of_the_same_names() -> None:
    short, full = rows_of(made(), SHORT), rows_of(made())
    assert [len(row) for row in short] == [len(SHORT)] * 4
    for chosen, row in zip(short, full, strict=True):
        assert chosen == tuple(row[place] for place in (0, 3, 9, 14, 15, 16, 17, 18))


def test_markdown_has_as_many_cells_in_every_line() -> None:
    lines = as_markdown(made()).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4 and "| k\\|means <b> |" in table[2]
    assert {line.replace("\\|", "").count("|") for line in table} == {len(HEADER) + 1}
    assert "- `top-1`: a small ViT after 2 minutes on each side, 2 seeds, 40 images of --val;" in "\n".join(lines)
    assert "No classifier was trained (--minutes 0)." in as_markdown(made(trained=False))


class Cells(HTMLParser):
    """The texts of a page's cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("td", "th"):
            self.cells[-1] += data.strip()


def test_a_page_shows_names_as_they_are_and_has_its_plot_in_it() -> None:
    page = as_html(made(), b"\x89PNG")
    found = Cells(page)
    assert found.cells == [*HEADER, *(cell for row in rows_of(made()) for cell in row)]
    assert "b" not in found.tags and 'src="data:image/png;base64,iVBORw=="' in page and "http" not in page
    assert "<img" not in as_html(made(), None)


@pytest.mark.parametrize("trained", [True, False])
def test_the_plot_is_drawn(trained: bool) -> None:
    image = Image.open(io.BytesIO(plot_png(made(trained))))
    colours = len(image.convert("RGB").getcolors(1 << 20) or ())
    assert image.format == "PNG" and image.width > 800 and colours > 50


def test_the_plot_of_one_side_that_stands_alone() -> None:
    alone = comparison_of([side("tokens", stored_bytes=9.0, facts=FACTS)], {}, {"sides/tokens": 0.5})
    assert plot_png(alone).startswith(b"\x89PNG")
