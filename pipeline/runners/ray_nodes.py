"""The nodes of a Ray cluster as the driver last saw them: the live nodes, their resources, and their free CPUs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from tokenshards.pipeline.runners.ray_connection import ASK_SECONDS, HeadWatch
from tokenshards.pipeline.words import counted

__all__ = ["ClusterSize", "ClusterView"]


@dataclass(frozen=True, slots=True)
class ClusterSize:
    """The total resources of the live nodes."""

    nodes: int
    cpus: int
    gpus: float

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{counted(self.nodes, 'node')}, {counted(self.cpus, 'CPU')}{gpus}"

    def room_for(self, cpus: int, gpus: float) -> int:
        """Return how many actors of this size fit into the totals of the cluster."""
        by_cpus = self.cpus // max(1, cpus)
        return by_cpus if not gpus else min(by_cpus, int(self.gpus / gpus + 1e-6))


class ClusterView:
    """The live nodes, read again every few seconds. We ask Ray only while the head answers, because Ray would block forever."""

    def __init__(self, head: HeadWatch) -> None:
        self._head = head
        self._nodes: dict[str, dict[str, Any]] = {}
        self._asked = -ASK_SECONDS
        self._look()

    def _look(self) -> bool:
        """Read the nodes now. If the head does not answer, keep the known nodes and return False."""
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
        """The total resources of the nodes."""
        nodes = self._known().values()
        cpus = sum(int(resources.get("CPU", 0)) for resources in nodes)
        return ClusterSize(len(nodes), cpus, sum(float(resources.get("GPU", 0)) for resources in nodes))

    def lacks(self, cpus: int, gpus: float) -> str:
        """Return why no live node could ever hold an actor of this size; empty if a node could."""
        nodes = self._known().values()
        if any(float(node.get("CPU", 0)) >= cpus and float(node.get("GPU", 0)) >= gpus for node in nodes):
            return ""
        if gpus and not any(node.get("GPU", 0) for node in nodes):
            return "no node has a GPU"
        most_cpus, most_gpus = (max((float(node.get(kind, 0)) for node in nodes), default=0.0) for kind in ("CPU", "GPU"))
        return f"the largest nodes have {most_cpus:g} CPUs and {most_gpus:g} GPUs"

    def has(self, node_id: str) -> bool:
        """Return whether a node is alive at this moment; False if the head does not answer."""
        return self._look() and node_id in self._nodes

    def free_cpus(self, actors: Mapping[str, int], pending: int, *, cpus: int, gpus: float) -> int:
        """Return the most CPUs of one node that actors of this size leave free.

        `actors` are counts by node; `pending` actors may start on any node. Only pending actors for which there are GPUs take CPUs.
        """
        if gpus:
            pending = min(pending, max(0, int(self.size.gpus / gpus + 1e-6) - sum(actors.values())))
        free = [int(resources.get("CPU", 0)) - cpus * actors.get(node_id, 0) for node_id, resources in self._known().items()]
        return max(0, min(max(free, default=0), sum(free) - cpus * pending))
