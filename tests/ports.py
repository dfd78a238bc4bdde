"""Ports for servers that tests start."""

from __future__ import annotations

import contextlib
import os
import random
import socket

_PORTS, _PORTS_EACH = range(20_000, 32_000), 2_000  # room for six pytest workers


def free_ports(count: int) -> list[int]:
    """Return ports nobody listens on.

    They lie below the kernel's ephemeral range and above Ray's own, each pytest worker in a range of its own: else a connection of a
    test beside this one could take a port between the moment it is found and the moment the server binds it.
    """
    first = _PORTS.start + _PORTS_EACH * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports: list[int] = []
    for port in random.sample(range(first, min(first + _PORTS_EACH, _PORTS.stop)), _PORTS_EACH):
        with socket.socket() as held, contextlib.suppress(OSError):
            held.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"only {len(ports)} of {count} ports are free from {first}")
