"""Drawings of what a trained model makes of some images, kept in its run directory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from tokenshards.pipeline.errors import TokenshardsError
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.reporting.progress import TrainingReporter

__all__ = ["keep_drawing"]


def keep_drawing(out: Store, name: str, draw: Callable[[], Any], shows: str, reporter: TrainingReporter) -> None:
    """Write the image that `draw` returns as `name`, and say what it shows; where it cannot be drawn, say why."""
    try:
        drawing = draw()
    except TokenshardsError as error:
        reporter.say(f"note: no {name} was drawn, {error}")
        return
    buffer = io.BytesIO()
    drawing.save(buffer, format="PNG")
    out.write(name, buffer.getvalue())
    reporter.say(f"{out.url}/{name} shows {shows}")
