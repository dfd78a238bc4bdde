"""Rows of a continual learning: figures, paired differences and their intervals; tables, pages and the plot."""

from __future__ import annotations

import io
import json
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from tests.stem_adaptors.continual.continuals import GROUPS_SN, IMAGES, LINES, SEEDS, STEPS, continual_of, right_of
from tests.stem_adaptors.continual.test_accuracies import slow
from tokenshards.stem_adaptors.comparison.paired import drawn
from tokenshards.stem_adaptors.continual import plot
from tokenshards.stem_adaptors.continual.paired_figures import resampled_figures
from tokenshards.stem_adaptors.continual.plot import plot_png
from tokenshards.stem_adaptors.continual.result import Continual
from tokenshards.stem_adaptors.continual.table import HEADER, SHORT, as_html, as_markdown, footnotes, matrices_of, rows_of
from tokenshards.stem_adaptors.curves.curve_config import TOKENS


@pytest.fixture(scope="module")
def found() -> Continual:
    return continual_of()


def figures(right_STN: np.ndarray, groups_SN: np.ndarray) -> np.ndarray:
    """Mean over the seeds of: last accuracy, average incremental accuracy, forgetting."""
    each = [slow(right_TN, group_N) for right_TN, group_N in zip(right_STN, groups_SN, strict=True)]
    return np.mean([[after[-1], incremental, forgetting] for after, incremental, forgetting in each], axis=0)


def test_rows_have_the_means_over_seeds_whatever_the_order_of_the_images(found: Continual) -> None:
    assert [(row.side, row.budget) for row in found.rows] == [(one.side, one.budget) for one in LINES]
    for one, row in zip(LINES, found.rows, strict=True):
        if one.absent:
            assert (row.absent, row.figures, row.memory, row.matrices) == (one.absent, None, (), ())
            continue
        right_STN, mine = right_of(one).astype(float), row.figures
        assert mine is not None
        values = [mine.accuracy.value, mine.incremental.value, mine.forgetting.value]
        np.testing.assert_allclose(values, figures(right_STN, GROUPS_SN), atol=1e-4)
        assert mine.accuracy == row.steps[-1] and len(row.steps) == STEPS and row.epochs == 2.5
        assert row.matrices[1][2][0] == pytest.approx(right_STN[1, 2, GROUPS_SN[1] == 0].mean(), abs=1e-4) and row.matrices[0][0][1] is None
        assert row.matrix[2][0] == pytest.approx((row.matrices[0][2][0] + row.matrices[1][2][0]) / 2)  # type: ignore[operator]
        assert row.memory == ((0, one.chains[0].images or 0, 2 * (one.chains[0].images or 0)),) * 2


def test_tokens_are_ahead_of_images_at_as_many_bytes_with_paired_intervals(found: Continual) -> None:
    ahead = {(row.side, row.budget): row.tokens_ahead for row in found.rows}
    assert {key for key, one in ahead.items() if one is not None} == {("jpeg", 1000), ("files", 3000)}
    for key, (tokens, other) in {("jpeg", 1000): (1, 2), ("files", 3000): (4, 5)}.items():
        one, rights = ahead[key], [right_of(LINES[place]).astype(float) for place in (tokens, other)]
        assert one is not None
        expected = figures(rights[0], GROUPS_SN) - figures(rights[1], GROUPS_SN)
        np.testing.assert_allclose([one.accuracy.value, one.incremental.value, one.forgetting.value], expected, atol=1e-4)
        assert one.accuracy.low < one.accuracy.value < one.accuracy.high


def test_resamples_draw_images_and_seeds_the_same_for_all_sides() -> None:
    present = [one for one in LINES[:3]]
    rights = {one: right_of(one).astype(float) for one in present}
    found = resampled_figures(rights, GROUPS_SN, 6)
    for place, (images_N, seeds_S) in enumerate(drawn(SEEDS, IMAGES, 6)):
        for one in present:
            expected = figures(rights[one][seeds_S][:, :, images_N], GROUPS_SN[seeds_S][:, images_N])
            np.testing.assert_allclose(found[one][place, -3:], expected, atol=1e-9)


def test_tables_have_every_row_and_the_terminal_the_columns_that_fit(found: Continual) -> None:
    rows = rows_of(found)
    assert {len(row) for row in rows} == {len(HEADER)} and rows[3] == ("files", "1 kB", *["-"] * 10)
    assert rows[0][:4] == ("no memory", "-", "0", "-") and rows[1][:4] == ("tokens", "1 kB", "20", "100.0")
    assert rows[2][0] == "jpeg (8 px, quality 3)" and rows[2][10][0] in "+-" and rows[1][10:] == ("-", "-")
    assert [len(row) for row in rows_of(found, SHORT)] == [10] * 7 and HEADER[SHORT[-2]] == "tokens ahead"
    notes = footnotes(found)
    assert any("`files, 1 kB` is missing: room for 0 images." in note for note in notes) and any("8.4 kB more" in note for note in notes)
    (name, header, matrix), *others = matrices_of(found)
    assert name == "no memory" and header[1:] == ("group 1", "group 2", "group 3") and len(others) == 5
    assert matrix[0][2:] == ("", "") and all(cell.endswith("%") for cell in matrix[2][1:])
    markdown, page = as_markdown(found), as_html(found, b"\x89PNG")
    assert markdown.count("| after step |") == 6 and page.count("<h3>") == 6 and page.count("<td>") == 7 * len(HEADER) + 6 * 12
    assert 'src="data:image/png;base64,iVBORw=="' in page and "http" not in page and "<img" not in as_html(found, None)


def test_the_plot_has_a_line_for_each_side_that_was_trained(found: Continual) -> None:
    lines, original = [], plot.points

    def points(axes: object, places: list[float], values: list[tuple[float, float, float]], **style: str) -> None:
        lines.append((style["label"], [round(place) for place in places], [value for value, _, _ in values]))
        original(axes, places, values, **style)  # type: ignore[arg-type]

    with patch.object(plot, "points", points):
        image = Image.open(io.BytesIO(plot_png(found)))
    assert image.format == "PNG" and image.width > 800
    assert [label for label, _, _ in lines] == ["no memory", "tokens, 1 kB", "jpeg, 1 kB", "tokens, 3 kB", "files, 3 kB", "all kept"]
    assert all(places == [1, 2, 3] for _, places, _ in lines) and lines[1][2] == [score.value for score in found.rows[1].steps]


def test_a_result_survives_json_and_shows_its_sides(found: Continual) -> None:
    again = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert again["rows"][2]["tokens_ahead"]["accuracy"]["value"] == found.rows[2].tokens_ahead.accuracy.value  # type: ignore[union-attr]
    assert repr(found).startswith("Continual(out='out'") and "steps=3" in repr(found) and TOKENS in repr(found) and len(repr(found)) < 300
