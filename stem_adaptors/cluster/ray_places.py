"""Places on a Ray cluster for the workers of a training: what is free, what this driver has, and giving it back.

Ray Train tells none of it, and keeps places and demand of a training that was killed: so this asks Ray's own tables (`ray._private`, the
autoscaling coordinator's actor), which is why the range of Ray's versions has an end.
"""

from __future__ import annotations

import contextlib

import ray
import ray.exceptions
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup

__all__ = ["amount", "free_places", "give_places_back", "has_place", "withdraw_demand"]

WITHDRAW_SECONDS = 5.0


def has_place() -> bool:
    """Whether the workers of this driver have been given their place."""
    return any(state == "CREATED" for state in _places().values())


def free_places(resources: dict[str, float]) -> int:
    """Return how many workers of this size would fit on what is free now."""
    asked = {name: size for name, size in resources.items() if size > 0}
    nodes = available_resources_per_node().values()
    return sum(int(min((free.get(name, 0) // size for name, size in asked.items()), default=0)) for free in nodes)


def _places() -> dict[str, str]:
    """Return the state of each placement group of this driver: their ids end in that of its job."""
    job, groups = ray.get_runtime_context().get_job_id(), ray.util.placement_group_table().values()
    return {group["placement_group_id"]: group["state"] for group in groups if group["placement_group_id"].endswith(job)}


def give_places_back() -> None:
    """Remove the placement groups of this driver."""
    for name, state in _places().items():
        if state != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


def withdraw_demand(train_run: str) -> None:
    """Take back what a run of Ray Train asked for: else the next one, where it may have fewer workers, starts with what that leaves."""
    with contextlib.suppress(ValueError, ray.exceptions.RayError):  # no coordinator, or none that can be reached
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.cancel_request.remote(f"train-{train_run}"), timeout=WITHDRAW_SECONDS)


def amount(resources: dict[str, float], *, always_gpu: bool = False) -> str:
    """Return CPUs and GPUs in words."""
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus or always_gpu else "")
