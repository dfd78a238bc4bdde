"""The plot of a curve: accuracy against stored bytes, on a logarithmic axis, a line for each side. Needs matplotlib (extra `plot`)."""

from __future__ import annotations

from tokenshards.stem_adaptors.comparison.plot import png_of, points
from tokenshards.stem_adaptors.curves.byte_sizes import byte_text
from tokenshards.stem_adaptors.curves.curve_config import FEWER, JPEG, TOKENS
from tokenshards.stem_adaptors.curves.result import Curve
from tokenshards.stem_adaptors.reporting.curves import load_pyplot

__all__ = ["plot_png"]

COLOURS = {TOKENS: "C0", FEWER: "C3", JPEG: "C1"}


def plot_png(found: Curve) -> bytes:
    """Return a PNG of top-1 with its intervals."""
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for side, colour in COLOURS.items():
        scores = {row.stored_bytes: row.top1 for row in found.rows if row.side == side and row.top1 is not None}
        if scores:
            values = [(score.value, score.low, score.high) for score in scores.values()]
            points(axes, list(scores), values, colour=colour, label=side, line="-")
    axes.set_xscale("log")
    budgets = sorted({row.budget for row in found.rows})
    axes.set_xticks(budgets, [byte_text(budget) for budget in budgets])
    axes.minorticks_off()
    axes.set(xlabel="stored bytes, without the tokenizer", ylabel=f"top-1 after {found.minutes:g} minutes, 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png_of(plt, figure)
