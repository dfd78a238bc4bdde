"""Which rank this process is, and the few collectives that training needs. Without torchrun one process is rank 0 of 1."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokenshards.pipeline.devices import choose_device
from tokenshards.pipeline.errors import ConfigError

__all__ = ["Ranks", "found_ranks", "joined_ranks"]

_GROUPS: list[dist.ProcessGroup] = []
"""Groups of wrapped models, kept to the end of the process.

A group of gloo waits for its threads when it is freed, and a thread may need Python's lock to free the tensor of its last collective. What
frees the group must not hold that lock then. Python's own reference gives the lock up; DistributedDataParallel's keeps it, and a training
then hangs at its end. It must therefore never be the last one.
"""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the processes that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks. The tensor is changed in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_sum(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin the sum over all ranks beside other work. The result waits for the sum and returns it. The tensor is changed in place."""
        if self.world_size == 1:
            return lambda: tensor
        work = dist.all_reduce(tensor, async_op=True)

        def finished() -> Tensor:
            work.wait()
            return tensor

        return finished

    def share(self, tensor: Tensor) -> None:
        """Give every rank the main rank's values."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on at least one rank."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=device)).item())

    def wait_for_all(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model with gradients averaged over the ranks. Buffers stay those of each rank."""
        # A frozen codebook is a buffer, may be large, and never changes.
        if self.world_size == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)
        _GROUPS.append(wrapped.process_group)
        return wrapped


def found_ranks() -> tuple[int, int]:
    """Return rank and world size: those of torch.distributed where it is initialised, else those of torchrun's environment, else (0, 1).

    Raises ConfigError where the environment names a world size above 1 and no rank.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    world_size = _number("WORLD_SIZE", 1)
    if world_size > 1 and "RANK" not in os.environ:
        raise ConfigError(
            f"WORLD_SIZE is {world_size}, and RANK is not set: every process would read the same samples. Give rank= and world_size=, or "
            "initialise torch.distributed before the first batch"
        )
    return _number("RANK", 0), world_size


@contextmanager
def joined_ranks(device: str = "auto") -> Iterator[tuple[Ranks, torch.device]]:
    """Join the process group that torchrun's environment names, yield (ranks, device), and leave the group at the end.

    Without torchrun there is no group to join. A group that Ray Train has already joined is used, and is not left.
    """
    world_size = _number("WORLD_SIZE", 1)
    ranks = Ranks(rank=_number("RANK", 0), world_size=world_size, local_rank=_number("LOCAL_RANK", 0))
    chosen = choose_device(device, ranks.local_rank)
    if world_size == 1 or dist.is_initialized():
        yield ranks, chosen
        return
    on_gpu = chosen.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=chosen if on_gpu else None)
    try:
        yield ranks, chosen
    finally:
        dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"the environment variable {name} is {text!r}; expected a number, as torchrun sets it")
    return int(text)
