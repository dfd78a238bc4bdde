"""What Ray's public interface does not give: the only module of training that imports private names of Ray.

`SUPPORTED` is the range of versions that have these names; pyproject.toml says the same. `make soak` runs the tests of training on a
cluster with the lowest version, and `make test` with the pinned one, which is the highest.
"""

from __future__ import annotations

from ray._private.state import available_resources_per_node
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

__all__ = ["SUPPORTED", "free_resources_by_node", "had_no_place"]

SUPPORTED = (">=2.55", "<2.61")
"""2.55 is the first version whose number of workers may be a range."""


def free_resources_by_node() -> list[dict[str, float]]:
    """Return the free resources of each node, by name."""
    return list(available_resources_per_node().values())


def had_no_place(failure: BaseException | None) -> bool:
    """Whether Ray Train gave up because the cluster had no place for its workers in time."""
    return isinstance(getattr(failure, "controller_failure", None), WorkerGroupStartupTimeoutError)
