"""The plot of a continual learning: accuracy on all classes seen so far over the steps, a line for each side. Needs matplotlib (`plot`)."""

from __future__ import annotations

from tokenshards.stem_adaptors.comparison.plot import png_of, points
from tokenshards.stem_adaptors.continual.continual_config import ALL, FILES, NONE
from tokenshards.stem_adaptors.continual.result import Continual
from tokenshards.stem_adaptors.continual.table import name_of
from tokenshards.stem_adaptors.curves.curve_config import JPEG, TOKENS
from tokenshards.stem_adaptors.reporting.curves import load_pyplot

__all__ = ["plot_png"]

COLOURS = {NONE: "0.6", TOKENS: "C0", JPEG: "C1", FILES: "C3", ALL: "black"}
LINES = ("-", "--", "-.", ":")
"""Of the budgets, the smallest first."""
APART = 0.02
"""Steps between the points of two sides, whose intervals would hide each other."""


def plot_png(found: Continual) -> bytes:
    """Return a PNG of the accuracy after each step with its intervals."""
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    budgets = sorted({row.budget for row in found.rows if row.budget is not None})
    rows = [row for row in found.rows if row.figures is not None]
    for number, row in enumerate(rows):
        line = "-" if row.budget is None else LINES[budgets.index(row.budget) % len(LINES)]
        places = [step + 1 + APART * (number - (len(rows) - 1) / 2) for step in range(found.steps)]
        values = [(score.value, score.low, score.high) for score in row.steps]
        points(axes, places, values, colour=COLOURS[row.side], label=name_of(row), line=line)
    axes.set_xticks(range(1, found.steps + 1))
    axes.set(
        xlabel=f"steps, each with new classes and {found.minutes:g} minutes", ylabel="accuracy on all classes seen so far, 95 % interval"
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png_of(plt, figure)
