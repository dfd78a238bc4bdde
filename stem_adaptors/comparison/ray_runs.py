"""The trainings of a comparison as tasks of a Ray cluster, one CPU each, or one GPU where the comparison asks for that device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.exceptions

from tokenshards.pipeline.errors import IncompleteError
from tokenshards.pipeline.runners.ray_connection import joined_cluster
from tokenshards.stem_adaptors.cluster.ray_connection import one_line, require_same_code
from tokenshards.stem_adaptors.comparison.timed_run import Run, train_run

__all__ = ["run_on_ray"]


def run_on_ray(
    address: str | None, out_url: str, storage_options: dict[str, Any], runs: Sequence[Run], done: Callable[[dict[str, Any]], None]
) -> None:
    """Train all runs; `done` gets each result as it arrives. A node that dies costs its trainings, which run again elsewhere.

    Raises ConfigError where the cluster runs other code, ClusterError where it cannot be joined, IncompleteError where it loses a training,
    and the errors of a training.
    """
    if not runs:
        return
    with joined_cluster(address):
        require_same_code()
        task = ray.remote(train_run)
        waiting = [
            task.options(num_cpus=1, num_gpus=int(run.device != "cpu"), max_retries=3).remote(out_url, storage_options, run) for run in runs
        ]
        while waiting:
            finished, waiting = ray.wait(waiting, num_returns=1)
            try:
                done(ray.get(finished[0]))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise IncompleteError(
                    f"the Ray cluster lost a training ({one_line(error)}); finished trainings are kept. Run the same command again"
                ) from None
