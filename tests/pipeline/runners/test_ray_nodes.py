"""How many actors and decoding tasks fit on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tokenshards.pipeline.runners import ray_nodes as cluster_view
from tokenshards.pipeline.runners.ray_nodes import ASK_SECONDS, ClusterSize, ClusterView


class Nodes:
    """A head that answers or not, the nodes that Ray would show, and the number of questions to Ray."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cpus: dict[str, float] = {}
        self.gpus: dict[str, float] = {}
        self.gone: set[str] = set()
        self.head = True
        self.asked = 0
        self.now = 1000.0
        monkeypatch.setattr(cluster_view.ray, "nodes", self.shown)
        monkeypatch.setattr(cluster_view.time, "monotonic", lambda: self.now)

    def answers(self) -> bool:
        return self.head

    def shown(self) -> list[dict[str, object]]:
        assert self.head, "Ray blocks without an end where the head is gone"
        self.asked += 1
        found = {name: {"memory": 1e9, **({"CPU": cpus} if cpus else {})} for name, cpus in self.cpus.items()}
        for name, gpus in self.gpus.items():
            found[name]["GPU"] = gpus
        return [{"NodeID": name, "Alive": name not in self.gone, "Resources": resources} for name, resources in found.items()]

    def view(self) -> ClusterView:
        return ClusterView(self)  # type: ignore[arg-type]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    return Nodes(monkeypatch)


@pytest.mark.parametrize(
    ("cpus", "actors", "pending", "largest"),
    [
        ({"a": 4, "b": 8}, {}, 0, 8),
        ({"a": 4, "b": 8}, {"b": 3}, 0, 4),
        ({"a": 4, "b": 8}, {"a": 2, "b": 4}, 0, 0),
        ({"a": 4, "b": 8}, {"a": 2, "b": 2}, 1, 2),
        ({"a": 4, "b": 8}, {"a": 2, "b": 2}, 3, 0),
        ({"a": 4}, {"a": 2, "left": 8}, 0, 0),
        ({"head": 0, "a": 3}, {"a": 1}, 0, 1),
        ({"head": 0}, {}, 0, 0),
        ({}, {}, 0, 0),
    ],
)
def test_free_cpus_of_one_node(nodes: Nodes, cpus: dict[str, float], actors: dict[str, int], pending: int, largest: int) -> None:
    nodes.cpus = cpus
    assert nodes.view().free_cpus(actors, pending, cpus=2, gpus=0.0) == largest


@pytest.mark.parametrize(("gpus", "actors", "pending", "largest"), [(1.0, 1, 99, 16), (0.5, 0, 99, 16), (0.0, 1, 10, 7), (0.0, 1, 99, 0)])
def test_actors_that_wait_for_gpus_hold_no_cpus(nodes: Nodes, gpus: float, actors: int, pending: int, largest: int) -> None:
    nodes.cpus, nodes.gpus = {"gpu": 2, "cpu": 16}, {"gpu": 1.0}
    assert nodes.view().free_cpus({"gpu": actors}, pending, cpus=1, gpus=gpus) == largest


def test_nodes_are_asked_for_every_few_seconds_and_those_that_left_have_no_cpus(nodes: Nodes) -> None:
    nodes.cpus = {"a": 4, "b": 2}
    view = nodes.view()

    def largest() -> int:
        return view.free_cpus({}, 0, cpus=1, gpus=0.0)

    assert [largest() for _ in range(50)] == [4] * 50 and nodes.asked == 1
    nodes.gone.add("a")
    assert largest() == 4, "not asked again yet"
    nodes.now += ASK_SECONDS
    assert largest() == 2 and nodes.asked == 2


def test_while_the_head_is_silent_nothing_is_asked_of_ray(nodes: Nodes) -> None:
    nodes.cpus = {"a": 4}
    view = nodes.view()
    nodes.head = False
    nodes.now += ASK_SECONDS
    assert view.size.cpus == 4 and view.free_cpus({}, 0, cpus=1, gpus=0.0) == 4, "as it was last seen"
    assert not view.has("a"), "what cannot be asked is out of reach, and no shard is to blame"


def test_size_and_life_of_nodes(nodes: Nodes) -> None:
    nodes.cpus, nodes.gpus = {"head": 0, "a": 4, "b": 2}, {"a": 1.0}
    nodes.gone.add("b")
    view = nodes.view()
    assert str(view.size) == "2 nodes, 4 CPUs, 1 GPUs" and str(ClusterSize(1, 3, 0.0)) == "1 node, 3 CPUs"
    assert [view.has(name) for name in ("a", "b", "c")] == [True, False, False]
    nodes.gone.clear()
    assert view.has("b"), "asked again each time"


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"), [(1, 0.0, 12), (5, 0.0, 2), (0, 0.0, 12), (1, 0.5, 4), (5, 0.5, 2), (1, 0.3, 6), (1, 4.0, 0), (16, 0.0, 0)]
)
def test_room_for_actors(cpus: int, gpus: float, room: int) -> None:
    count: Callable[[int, float], int] = ClusterSize(3, 12, 2.0).room_for
    assert count(cpus, gpus) == room


@pytest.mark.parametrize(
    ("cpus", "gpus", "why"),
    [
        (4, 0.0, ""),
        (4, 1.0, ""),
        (5, 0.0, "the largest nodes have 4 CPUs and 1 GPUs"),
        (1, 2.0, "the largest nodes have 4 CPUs and 1 GPUs"),
    ],
)
def test_why_no_actor_of_a_size_can_start(nodes: Nodes, cpus: int, gpus: float, why: str) -> None:
    nodes.cpus, nodes.gpus = {"head": 0, "a": 4, "b": 2}, {"a": 1.0}
    assert nodes.view().lacks(cpus, gpus) == why


def test_a_cluster_without_gpus_is_said_to_have_none(nodes: Nodes) -> None:
    nodes.cpus = {"a": 4}
    assert nodes.view().lacks(1, 1.0) == "no node has a GPU" and nodes.view().lacks(1, 0.0) == ""
    nodes.cpus.clear()
    assert nodes.view().lacks(1, 0.0) == "the largest nodes have 0 CPUs and 0 GPUs"
