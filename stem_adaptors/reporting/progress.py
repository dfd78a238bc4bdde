"""What a person sees while a classifier trains: one line per epoch on stdout, and a live line on a terminal."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.status import Status

__all__ = ["TrainingReporter"]


class TrainingReporter:
    """Implements the Reporter of a training for people. It keeps what it is told, quiet or not."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True, emoji=False)
        self._quiet = quiet or sys.stderr is None
        self._status: Status | None = None
        self.said: list[str] = []
        self.records: list[dict[str, Any]] = []
        """Records of finished epochs."""

    def say(self, message: str) -> None:
        """Print one line."""
        self.said.append(message)
        self._print(message)

    def step(self, epoch: int, step: int, steps: int, images_per_second: float, loss: float) -> None:
        """Show the place in the epoch; on a terminal only."""
        if self._quiet or not self._console.is_terminal:
            return
        text = f"epoch {epoch}: step {step:,} of {steps:,}  loss {loss:.3f}  {images_per_second:,.0f} images/s"
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        self._status.update(text)

    def epoch(self, record: dict[str, Any]) -> None:
        """Print the record of a finished epoch."""
        self.end()
        self.records.append(record)
        parts = [f"epoch {record['epoch']:>3}/{record['epochs']}", f"loss {record['train_loss']:.3f}"]
        if "val_top1" in record:
            parts.append(f"val loss {record['val_loss']:.3f}  top-1 {record['val_top1']:.1%}  top-5 {record['val_top5']:.1%}")
        if "val_miou" in record:
            parts.append(f"val loss {record['val_loss']:.3f}  mean IoU {record['val_miou']:.1%}  pixels {record['val_pixel_accuracy']:.1%}")
        if "ema_val_miou" in record:
            parts.append(f"averaged {record['ema_val_miou']:.1%}")
        if "ema_val_top1" in record:
            parts.append(f"averaged {record['ema_val_top1']:.1%}")
        for prefix, name in (("train", "hidden tokens right"), ("val", "val"), ("ema_val", "averaged")):
            if f"{prefix}_masked_accuracy" in record:
                perplexity = record.get(f"{prefix}_perplexity")
                words = "" if perplexity is None else f" perplexity {perplexity:.1f}"
                parts.append(f"{name} {record[f'{prefix}_masked_accuracy']:.1%}{words}")
        parts.append(f"{record['images_per_second']:,.0f} images/s  data wait {record['data_wait_share']:.1%}")
        self._print("  ".join(parts))

    def _print(self, line: str) -> None:
        if not self._quiet:
            self._console.print(line, markup=False)

    def end(self) -> None:
        """Remove the live line."""
        if self._status is not None:
            self._status.stop()
            self._status = None
