"""Places on a Ray cluster for the workers of a training: free ones, those of this driver, and how to give them back.

Ray Train has no call for these, and keeps the places and the demand of a training that was killed. This module therefore asks Ray's own
tables (ray_internals.py, the actor of the autoscaling coordinator). That is why the range of Ray's versions has an upper end.
"""

from __future__ import annotations

import contextlib

import ray
import ray.exceptions
from ray.util.placement_group import PlacementGroup

from tokenshards.stem_adaptors.cluster.ray_internals import free_resources_by_node

__all__ = ["amount", "free_places", "give_places_back", "has_place", "withdraw_demand"]

WITHDRAW_SECONDS = 5.0


def has_place() -> bool:
    """Whether the workers of this driver have their place."""
    return any(state == "CREATED" for state in _places().values())


def free_places(resources: dict[str, float]) -> int:
    """Return how many workers of this size the free resources could hold now."""
    asked = {name: size for name, size in resources.items() if size > 0}
    nodes = free_resources_by_node()
    return sum(int(min((free.get(name, 0) // size for name, size in asked.items()), default=0)) for free in nodes)


def _places() -> dict[str, str]:
    """Return the state of each placement group of this driver. The id of such a group ends in the id of the driver's job."""
    job, groups = ray.get_runtime_context().get_job_id(), ray.util.placement_group_table().values()
    return {group["placement_group_id"]: group["state"] for group in groups if group["placement_group_id"].endswith(job)}


def give_places_back() -> None:
    """Remove the placement groups of this driver."""
    for name, state in _places().items():
        if state != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


def withdraw_demand(train_run: str) -> None:
    """Withdraw the resources that a run of Ray Train asked for. A next run with a range of workers would otherwise start with what this
    leftover demand leaves free.
    """
    with contextlib.suppress(ValueError, ray.exceptions.RayError):  # no coordinator, or no answer from it
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.cancel_request.remote(f"train-{train_run}"), timeout=WITHDRAW_SECONDS)


def amount(resources: dict[str, float], *, always_gpu: bool = False) -> str:
    """Return CPUs and GPUs in words."""
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus or always_gpu else "")
