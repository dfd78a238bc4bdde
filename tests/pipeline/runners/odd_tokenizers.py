"""Tokenizers that are slow or hang, for tests of the supervisor. They run in worker processes, like a user's own tokenizer."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

MAGENTA = (255, 0, 255)


class Slow:
    """Takes `seconds` for each batch. With `lock` the tokenizer holds Python's lock, so that no other thread of the process runs."""

    size, vocabulary, batch = 16, 256, 4

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._begun = 0

    def encode(self, images: np.ndarray) -> np.ndarray:
        self._begun += 1
        seconds = self._settings.get("seconds", 0.0) if self._begun > 1 or os.environ.get("SLOW_FROM_THE_FIRST") else 0.0
        if self._settings.get("lock"):
            ctypes.PyDLL(None).usleep(int(seconds * 1e6))
        else:
            time.sleep(seconds)
        return images.reshape(len(images), 2, 8, 2, 8, 3).mean(axis=(2, 4, 5)).astype(np.int64)


class HangsOnMagenta(Slow):
    """Hangs on every batch that holds an all-magenta image."""

    def encode(self, images: np.ndarray) -> np.ndarray:
        if (images == MAGENTA).all(axis=(1, 2, 3)).any():
            time.sleep(3600)
        return super().encode(images)


class TellsItsDevice(Slow):
    """Writes down the GPU of its worker, and encodes after $WORKERS_AWAITED workers have written theirs."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._file = Path(settings["folder"]) / "devices"
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if given and "," not in given:  # else this process is the driver, which may use all GPUs
            with self._file.open("a") as file:
                file.write(f"{given}\n")

    def encode(self, images: np.ndarray) -> np.ndarray:
        awaited = int(os.environ.get("WORKERS_AWAITED", "0"))
        while awaited and len(self._file.read_text().split()) < awaited:
            time.sleep(0.01)
        return super().encode(images)
