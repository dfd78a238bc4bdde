"""The nodes of a Ray cluster as its driver last saw them: what they have, which are there, and what no actor holds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from tokenshards.pipeline.runners.ray_connection import ASK_SECONDS, HeadWatch

__all__ = ["ClusterSize", "ClusterView"]


@dataclass(frozen=True, slots=True)
class ClusterSize:
    """What the nodes that are alive have in all."""

    nodes: int
    cpus: int
    gpus: float

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.nodes} node{'' if self.nodes == 1 else 's'}, {self.cpus} CPUs{gpus}"

    def room_for(self, cpus: int, gpus: float) -> int:
        """Return how many actors of this size the cluster could hold, by its totals."""
        by_cpus = self.cpus // max(1, cpus)
        return by_cpus if not gpus else min(by_cpus, int(self.gpus / gpus + 1e-6))


class ClusterView:
    """Nodes that are alive. They are asked for again every few seconds, and only while the head answers: else Ray blocks without an end."""

    def __init__(self, head: HeadWatch) -> None:
        self._head = head
        self._nodes: dict[str, dict[str, Any]] = {}
        self._asked = -ASK_SECONDS
        self._look()

    def _look(self) -> bool:
        """Ask now; return False, and keep what was known, where the head does not answer."""
        self._asked = time.monotonic()
        if not self._head.answers():
            return False
        self._nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        return True

    def _known(self) -> dict[str, dict[str, Any]]:
        if time.monotonic() - self._asked >= ASK_SECONDS:
            self._look()
        return self._nodes

    @property
    def size(self) -> ClusterSize:
        """What the nodes have in all."""
        nodes = self._known().values()
        cpus = sum(int(resources.get("CPU", 0)) for resources in nodes)
        return ClusterSize(len(nodes), cpus, sum(float(resources.get("GPU", 0)) for resources in nodes))

    def lacks(self, cpus: int, gpus: float) -> str:
        """Return why no node that is there could ever hold an actor of this size, empty where one could."""
        nodes = self._known().values()
        if any(float(node.get("CPU", 0)) >= cpus and float(node.get("GPU", 0)) >= gpus for node in nodes):
            return ""
        if gpus and not any(node.get("GPU", 0) for node in nodes):
            return "no node has a GPU"
        most_cpus, most_gpus = (max((float(node.get(kind, 0)) for node in nodes), default=0.0) for kind in ("CPU", "GPU"))
        return f"the largest nodes have {most_cpus:g} CPUs and {most_gpus:g} GPUs"

    def has(self, node_id: str) -> bool:
        """Return whether a node is there at this moment; False where the head cannot be asked."""
        return self._look() and node_id in self._nodes

    def free_cpus(self, actors: Mapping[str, int], pending: int, *, cpus: int, gpus: float) -> int:
        """Return the most CPUs of one node that actors of this size leave free: `actors` of each node, `pending` that may start anywhere.

        Of those that are pending, only as many take CPUs as there are GPUs for.
        """
        if gpus:
            pending = min(pending, max(0, int(self.size.gpus / gpus + 1e-6) - sum(actors.values())))
        free = [int(resources.get("CPU", 0)) - cpus * actors.get(node_id, 0) for node_id, resources in self._known().items()]
        return max(0, min(max(free, default=0), sum(free) - cpus * pending))
