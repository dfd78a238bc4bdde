"""Choose how many worker processes run on this machine, and the share of the cores and the GPU that each process may use."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VISIBLE_DEVICES", "Place", "available_cores", "choose_places", "visible_gpus"]

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
ASK_SECONDS = 20.0
DEVICES = Path("/dev")
MAX_DECODE_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What one worker process may use."""

    gpu: str | None = None
    """Value of CUDA_VISIBLE_DEVICES; None leaves the variable unchanged."""
    torch_threads: int = 1
    decode_threads: int = 0
    """Threads that decode beside the tokenizer. With 0, decoding and encoding alternate."""


def available_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, without loading torch."""
    named = os.environ.get(VISIBLE_DEVICES)
    if named is not None:
        found = [name.strip() for name in named.split(",")]
        return found[: found.index("-1")] if "-1" in found else [name for name in found if name]
    try:
        command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):  # a container without nvidia-smi; CUDA numbers the devices from 0
        return [str(index) for index, _ in enumerate(DEVICES.glob("nvidia[0-9]*"))]
    return [line.strip() for line in answer.stdout.splitlines() if line.strip().startswith("GPU-")]


def choose_places(workers: int | None, shards: int, gpus: list[str], cores: int) -> list[Place]:
    """Return a place for each worker. `gpus` is empty if the tokenizer uses no GPU. There are never more workers than shards.

    Without GPUs there is one worker for each core, and each worker alternates between decoding and encoding. With GPUs there is one worker
    for each GPU, and the other cores decode beside the tokenizers. If there are more workers than GPUs, several workers share a GPU.
    """
    count = max(1, min(shards, workers or len(gpus) or cores))
    share = max(1, cores // count)
    if not gpus:
        return [Place(torch_threads=share) for _ in range(count)]
    decode_threads = min(MAX_DECODE_THREADS, share) if share > 1 else 0
    return [Place(gpu=gpus[index % len(gpus)], torch_threads=share, decode_threads=decode_threads) for index in range(count)]
