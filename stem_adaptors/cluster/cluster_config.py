"""What a training asks of a cluster, and a check that a cluster answers. Standard library only."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from tokenshards.pipeline.errors import ConfigError

__all__ = ["ADDRESS_ADVICE", "ClusterConfig", "answering_address", "parse_workers"]

ADDRESS_ADVICE = "Start one with `ray start --head`, or give --address HOST:PORT of its head, as `ray status` shows it"
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """How many workers of what size, where the cluster is, and how long to wait for the cluster."""

    workers: tuple[int, int]
    """Fewest and most workers. While nodes are missing, training goes on with fewer than the most."""
    gpus_per_worker: int | None = None
    """None takes 1 where the cluster has GPUs, else 0."""
    cpus_per_worker: float = 1.0
    address: str = "auto"
    """`auto`: the cluster that runs on this machine, or $RAY_ADDRESS. Otherwise host:port of the head."""
    wait_seconds: float = 60.0
    """How long the cluster may take to find a place for the workers."""
    losses: int = 5
    """Training gives up when workers die so many times in a row without a new checkpoint."""

    def __post_init__(self) -> None:
        fewest, most = self.workers
        if not 1 <= fewest <= most:
            raise ConfigError(f"--ray-workers is {fewest}-{most}; expected at least 1, and the smaller number first")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ConfigError(f"--gpus-per-worker is {self.gpus_per_worker}; expected 0 or more")
        if self.cpus_per_worker < 0 or (self.cpus_per_worker > 1 and self.cpus_per_worker != int(self.cpus_per_worker)):
            raise ConfigError(f"--cpus-per-worker is {self.cpus_per_worker:g}; expected a whole number, or a share of one CPU")
        if self.wait_seconds <= 0:
            raise ConfigError(f"--ray-wait is {self.wait_seconds:g}; expected more than 0 seconds")


def parse_workers(text: str) -> tuple[int, int]:
    """Return fewest and most workers of `4` or `2-8`; raises ConfigError for anything else."""
    fewest, dash, most = text.partition("-")
    if not fewest.isdecimal() or (dash and not most.isdecimal()):
        raise ConfigError(f"--ray-workers is {text!r}; expected a number, such as 4, or the fewest and the most, such as 2-8")
    return int(fewest), int(most or fewest)


def answering_address(address: str) -> str:
    """Return the address to give to Ray for `auto` or HOST:PORT. A TCP connect comes first, because Ray itself would try for minutes.

    Raises ConfigError where nothing answers, or where the text is not such an address.
    """
    target = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if target == "auto":
        return target
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdecimal() or "://" in target:
        raise ConfigError(f"--address is {target!r}; expected auto or HOST:PORT. {ADDRESS_ADVICE}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"--address {target}: no Ray cluster answers there ({error}). {ADDRESS_ADVICE}") from None
    return target
