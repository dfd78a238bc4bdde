"""Writes the objects of a run: checkpoints, best weights, logs and curves, in order, in a thread, from copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.storage.store import TEMPORARY_PREFIX, Store
from tokenshards.stem_adaptors.reporting.curves import curves_png
from tokenshards.stem_adaptors.reporting.tensorboard_log import TensorBoardLog
from tokenshards.stem_adaptors.training.background_writer import BackgroundWriter
from tokenshards.stem_adaptors.training.checkpoints import Checkpoint, copied_tensors, write_checkpoint, write_weights
from tokenshards.stem_adaptors.training.metrics_log import MetricsLog
from tokenshards.stem_adaptors.training.run_directory import BEST, CHECKPOINT, CURVES, METRICS_CSV, METRICS_JSONL

__all__ = ["MARK_PREFIX", "RunWriter", "remove_unfinished"]

MARK_PREFIX = f"{TEMPORARY_PREFIX}mark-"
"""Begins the name of a cluster's mark in the run directory, which outlives the processes that train (`cluster.run_mark`)."""


class RunWriter:
    """The only writer of a run, on the main rank. Errors of the thread are raised by the next call."""

    def __init__(self, out: Store, first_epoch: int) -> None:
        """`first_epoch`: events of TensorBoard from this epoch on are replaced."""
        remove_unfinished(out)
        self._out = out
        self._thread = BackgroundWriter()
        self._board = TensorBoardLog(out, first_epoch)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint of tensors that change after this call."""
        self._thread.wait()  # before the copies are made, so that there are never two
        copies = checkpoint.copied()
        self._thread.submit(lambda: write_checkpoint(self._out, CHECKPOINT, copies))

    def best(self, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the best weights so far, with facts about them."""
        copies = copied_tensors(weights)
        self._thread.submit(lambda: write_weights(self._out, BEST, copies, facts))

    def log(self, log: MetricsLog) -> None:
        """Write the records of all epochs so far."""
        lines, table = log.to_jsonl(), log.to_csv()

        def write() -> None:
            self._out.write(METRICS_JSONL, lines)
            self._out.write(METRICS_CSV, table)

        if log.records:
            self._thread.submit(write)

    def event(self, record: dict[str, Any]) -> None:
        """Add the record of an epoch to TensorBoard, where there is one."""
        self._board.add(record)

    def wait(self) -> None:
        """Wait until everything is written."""
        self._thread.wait()

    def close(self, log: MetricsLog) -> str | None:
        """Wait for everything, draw the curves, and end. Return a note where the curves could not be drawn."""
        try:
            self._thread.close()
        finally:
            self._board.close()
        if not log.records:
            return None
        try:
            self._out.write(CURVES, curves_png(log.records))
        except ConfigError as error:
            return f"note: no {CURVES} was drawn, {error}"
        return None


def remove_unfinished(out: Store) -> None:
    """Delete the unfinished files that a killed writer has left in a local run directory. Each may be as large as a checkpoint."""
    if not out.is_local:
        return  # there a write is one request, which happens or does not
    for info in list(out.list(temporary=True)):
        name = info.path.rpartition("/")[2]
        if name.startswith(TEMPORARY_PREFIX) and not name.startswith(MARK_PREFIX):
            out.delete(info.path)
