"""The records of a run as TensorBoard events, where TensorBoard is installed and the run lies on a local disk."""

from __future__ import annotations

import importlib.util
from typing import Any

from tokenshards.pipeline.storage.store import Store

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Writes RUN/tensorboard, or nothing where there is no TensorBoard or no local disk. Records from `first_epoch` on replace older
    ones."""

    def __init__(self, store: Store, first_epoch: int) -> None:
        self._writer: Any = None
        if store.is_local and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(store.join("tensorboard"), purge_step=first_epoch)

    def add(self, record: dict[str, Any]) -> None:
        """Write every number of a record under its name, at its epoch."""
        if self._writer is None:
            return
        for name, value in record.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()
