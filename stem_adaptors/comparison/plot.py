"""The plot of a comparison: accuracy against stored bytes, on a logarithmic axis. Needs matplotlib (extra `plot`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from tokenshards.stem_adaptors.comparison.result import Comparison, Row
from tokenshards.stem_adaptors.reporting.curves import load_pyplot

__all__ = ["plot_png", "png_of", "points"]

FILES = {"jpeg": ("C1", "JPEG"), "webp": ("C2", "WebP")}


def plot_png(found: Comparison) -> bytes:
    """Return a PNG of top-1 with its intervals, or of the linear probe where nothing was trained."""
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    rows = [row for row in found.rows if not row.side.absent]
    for kind, (colour, label) in FILES.items():
        files = sorted((row for row in rows if row.side.kind == kind), key=lambda row: row.side.stored_bytes or 0)
        if files:
            _points(axes, files, colour=colour, label=label, line="-")
    for number, row in enumerate(row for row in rows if row.side.kind == "tokens"):
        _points(axes, [row], colour=f"C{number + 3}", label=row.side.name, line="")
    for row in rows:
        if row.side.kind == "pixels":
            value, low, high = _values(row)
            axes.axhline(value, color="black", linewidth=1, label="pixels")
            axes.axhspan(low, high, color="black", alpha=0.08)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    trained = any(row.top1 is not None for row in rows)
    axes.set(
        xlabel="stored bytes of an image",
        ylabel=f"top-1 after {found.minutes:g} minutes, 95 % interval" if trained else "top-1 of a linear probe",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png_of(plt, figure)


def png_of(plt: Any, figure: Any) -> bytes:
    """Return a finished figure as a PNG, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    return buffer.getvalue()


def _values(row: Row) -> tuple[float, float, float]:
    if row.top1 is not None:
        return row.top1.value, row.top1.low, row.top1.high
    probe = row.probe or 0.0
    return probe, probe, probe


def points(axes: Any, bytes_: Sequence[float], values: Sequence[tuple[float, float, float]], *, colour: str, label: str, line: str) -> None:
    """Draw values with their intervals (value, low, high) at stored bytes."""
    errors = [[max(0.0, value - low) for value, low, _ in values], [max(0.0, high - value) for value, _, high in values]]
    axes.errorbar(bytes_, [value for value, _, _ in values], errors, color=colour, label=label, linestyle=line, marker="o", capsize=3)


def _points(axes: Any, rows: list[Row], *, colour: str, label: str, line: str) -> None:
    points(axes, [row.side.stored_bytes or 0.0 for row in rows], list(map(_values, rows)), colour=colour, label=label, line=line)
