"""The queue with simulated workers. Under all failures every shard is committed or given up, and only guilty inputs are named."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.runners.listening import KeptListener
from tokenshards.pipeline.config import RetryConfig, RunConfig
from tokenshards.pipeline.errors import DiskFullError
from tokenshards.pipeline.job.job_spec import ShardSummary
from tokenshards.pipeline.runners.shard_queue import MAX_VANISHED, ShardQueue, ShardTask

INPUTS = 9
SUMMARY = ShardSummary(rows=INPUTS, quarantined=0, inputs_seen=INPUTS, bytes_in=1, seconds={})


def names(shard: int) -> list[str]:
    return [f"{shard}/{index}" for index in range(INPUTS)]


def config(**changes: Any) -> RunConfig:
    return RunConfig(workers=2, retry=RetryConfig(first_delay_seconds=1.0, max_delay_seconds=5.0), **changes)


@dataclass
class Machine:
    """Workers that take one task at a time and fail by chance. A `guilty` input kills every worker that handles the input."""

    queue: ShardQueue
    listener: KeptListener
    rng: Random
    workers: int
    guilty: set[str] = field(default_factory=set)
    rates: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    alone: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(shard, index) -> number of probes of this input alone that lost their worker, by chance or not."""
    hangs: bool = False
    """If True, guilty inputs make their worker hang. If False, guilty inputs kill their worker."""
    tells: bool = False
    """A hanging worker names an input, rightly or wrongly."""
    controls: int = 0
    """Number of blank batches that passed."""
    named: list[str] = field(default_factory=list)
    steps: int = 0

    def run(self) -> None:
        """Work until no task waits."""
        flying: list[ShardTask] = []
        while self.queue or flying:
            self.steps += 1
            assert self.steps < 20_000, "it does not come to an end"
            while len(flying) < self.workers and (task := self.queue.next_due(self.now)) is not None:
                assert task.shard not in [other.shard for other in flying], "a shard is handed out twice"
                if task.command()["op"] == "run":
                    self.listener.started(task.shard)
                flying.append(task)
            self.now += 0.5
            if flying:
                self.end(flying.pop(self.rng.randrange(len(flying))))

    def end(self, task: ShardTask) -> None:
        command, chance = task.command(), self.rng.random()
        handled = [name for name in names(task.shard) if name not in command["killers"]]
        if command["op"] == "probe":
            handled = [name for name in names(task.shard)[command["start"] : command["stop"]] if name not in command["killers"]]
        elif command["op"] in ("count", "name", "control", "find"):
            handled = ["a blank batch"] if command["op"] == "control" else []
        fault = ""
        for kind, rate in self.rates.items():
            if chance < rate:
                fault = kind
                break
            chance -= rate
        lost = fault in ("vanish", "die", "hang") or bool(self.guilty.intersection(handled))
        if lost and command["op"] == "probe" and command["stop"] - command["start"] == 1:
            self.alone[task.shard, command["start"]] += 1
        if fault in ("transient", "fatal"):
            self.queue.failed_once(task, fault, f"{fault} failure", self.now)
        elif fault == "vanish":
            self.queue.worker_died(task, "left", blamed=False)
        elif lost:
            hung = fault == "hang" or (self.hangs and not fault)
            at = self.rng.choice([*sorted(self.guilty.intersection(handled)), "", "no such input"]) if hung and self.tells else ""
            self.queue.worker_died(task, "died", hung=hung, hung_at=at)
        elif command["op"] == "run":
            self.listener.committed(task.shard, SUMMARY)
        elif command["op"] == "count":
            self.queue.answered(task, {"event": "counted", "inputs": INPUTS})
        elif command["op"] == "find":
            found = names(task.shard)
            handled = [name for name in found if name not in command["killers"]]
            index = found.index(command["sample_id"]) if command["sample_id"] in handled else None
            self.queue.answered(task, {"event": "found", "index": index})
        elif command["op"] in ("probe", "control"):
            self.controls += command["op"] == "control"
            self.queue.answered(task, {"event": "survived"})
        else:
            name = names(task.shard)[command["index"]]
            self.named.append(name)
            self.queue.answered(task, {"event": "named", "sample_id": name})


def machine(shards: int, *, seed: int = 0, workers: int = 2, changes: dict[str, Any] | None = None, **fields: Any) -> Machine:
    listener = KeptListener()
    return Machine(ShardQueue(range(shards), config(**(changes or {})), listener), listener, Random(seed), workers, **fields)


rates = st.fixed_dictionaries({kind: st.sampled_from([0.0, 0.05, 0.3]) for kind in ("transient", "fatal", "vanish", "die", "hang")})


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shards=st.integers(1, 12),
    workers=st.integers(1, 4),
    rates=rates,
    guilty=st.sets(st.tuples(st.integers(0, 11), st.integers(0, INPUTS - 1)), max_size=4),
)
def test_every_shard_ends_and_only_what_lost_its_worker_alone_is_named(
    seed: int, shards: int, workers: int, rates: dict[str, float], guilty: set[tuple[int, int]]
) -> None:
    wrong = {f"{shard}/{index}" for shard, index in guilty}
    found = machine(shards, seed=seed, workers=workers, guilty=wrong, rates=rates)
    found.run()
    assert found.listener.committed_shards.keys() | found.queue.failed.keys() == set(range(shards))
    assert not found.listener.committed_shards.keys() & found.queue.failed.keys()
    assert found.listener.in_flight == {} and len(found.queue) == 0
    for name in found.named:
        shard, _, index = name.partition("/")
        assert name in wrong or found.alone[int(shard), int(index)] >= 3, (
            "named without three deaths alone, nor the many that a machine which leaves is allowed"
        )
    for shard in found.listener.committed_shards:
        assert wrong.intersection(names(shard)) <= set(found.named), "a guilty input was handled and nobody died"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    guilty=st.sets(st.tuples(st.integers(0, 5), st.integers(0, INPUTS - 1)), max_size=6),
    vanish=st.sampled_from([0.0, 0.02]),
    hangs=st.booleans(),
)
def test_on_a_machine_that_works_exactly_the_guilty_inputs_are_named(
    seed: int, guilty: set[tuple[int, int]], vanish: float, hangs: bool
) -> None:
    wrong = {f"{shard}/{index}" for shard, index in guilty}
    found = machine(6, seed=seed, guilty=wrong, hangs=hangs, tells=bool(seed % 2), rates={"vanish": vanish})
    found.run()
    assert found.controls == (len(wrong) if hangs else 0), "a hang names an input after a blank batch has passed, a death names it at once"
    assert sorted(found.named) == sorted(wrong) and found.queue.failed == {}
    assert found.listener.committed_shards.keys() == set(range(6))


def test_the_input_that_a_worker_hung_at_is_tried_alone_at_once() -> None:
    queue, asked = ShardQueue([0], config(), KeptListener()), []
    while (task := queue.next_due(0.0)) is not None and len(asked) < 20:
        command = task.command()
        asked.append(command["op"])
        if command["op"] == "run" and command["killers"]:
            break
        if command["op"] in ("run", "probe"):
            queue.worker_died(task, "hung", hung=True, hung_at=names(0)[3])
        elif command["op"] == "find":
            queue.answered(task, {"event": "found", "index": 3})
        elif command["op"] == "name":
            assert command["index"] == 3
            queue.answered(task, {"event": "named", "sample_id": names(0)[3]})
        else:
            queue.answered(task, {"event": "survived"})
    assert asked == ["run", "find", "probe", "probe", "probe", "control", "name", "run"]


def test_a_hang_that_passes_clears_its_input_and_a_second_one_there_is_searched_by_bisection() -> None:
    queue, asked = ShardQueue([0], config(worker_deaths=2), KeptListener()), []
    for _ in range(6):
        task = queue.next_due(0.0)
        assert task is not None
        command = task.command()
        asked.append(command["op"])
        if command["op"] == "run":
            queue.worker_died(task, "hung", hung=True, hung_at=names(0)[3])
        elif command["op"] == "find":
            queue.answered(task, {"event": "found", "index": 3})
        elif command["op"] == "count":
            queue.answered(task, {"event": "counted", "inputs": INPUTS})
        else:
            queue.answered(task, {"event": "survived"})
    assert asked == ["run", "find", "probe", "run", "count", "probe"]


def test_a_tokenizer_that_hangs_on_blank_batches_too_names_nobody() -> None:
    everything = {*names(0), "a blank batch"}
    found = machine(1, guilty=everything, hangs=True)
    found.run()
    assert found.named == [] and "no single input is guilty" in found.queue.failed[0]


def test_a_few_deaths_by_chance_name_nobody() -> None:
    for seed in range(200):
        found = machine(8, seed=seed, rates={"die": 0.05, "vanish": 0.05})
        found.run()
        assert found.named == [] or all(found.alone[int(name[0]), int(name[2:])] >= 3 for name in found.named)
        assert found.queue.failed == {}


def test_a_suspect_is_left_to_a_worker_that_has_nothing_else() -> None:
    queue = ShardQueue(range(3), config(), KeptListener())
    first = queue.next_due(0.0)
    assert first is not None and not first.suspect and queue.suspects() == 0
    queue.worker_died(first, "died")
    assert first.suspect and queue.suspects() == 1 and len(queue) == 3
    second = queue.next_due(0.0, suspects=False)
    assert second is not None and second.shard == 1
    assert queue.next_due(0.0) is first and queue.suspects() == 0
    queue.worker_died(second, "left", blamed=False)
    assert not second.suspect and queue.next_due(0.0, suspects=False) is second


def test_a_machine_that_leaves_blames_nobody_until_it_leaves_too_often() -> None:
    queue = ShardQueue([7], config(), KeptListener())
    for left in range(MAX_VANISHED + 1):
        task = queue.next_due(0.0)
        assert task is not None and task.attempt == left + 1 and not task.suspect
        queue.worker_died(task, "left", blamed=False)
    task = queue.next_due(0.0)
    assert task is not None and task.suspect and task.search is None


def test_the_pause_before_each_try_grows_to_its_limit() -> None:
    queue = ShardQueue([0], config(shard_attempts=6), KeptListener())
    now, pauses = 100.0, []
    task = queue.next_due(now)
    while task is not None:
        queue.failed_once(task, "transient", "the store is away", now)
        assert len(queue) == (not queue.failed), "one that waits for its time is counted"
        waited = 0.0
        while (task := queue.next_due(now + waited)) is None and queue:
            waited += 0.25
        now += waited
        pauses.append(waited)
    assert pauses == [2.0, 4.0, 5.0, 5.0, 5.0, 0.0]
    assert queue.failed == {0: "the store is away"}


def test_a_fatal_failure_is_not_tried_again_and_its_work_is_forgotten() -> None:
    listener = KeptListener()
    queue = ShardQueue([4], config(), listener)
    task = queue.next_due(0.0)
    assert task is not None
    listener.started(4)
    listener.progressed(4, 100, 1000, 3)
    queue.failed_once(task, "fatal", "the plan is gone", 0.0)
    assert queue.failed == {4: "the plan is gone"} and not queue and listener.in_flight == {}
    assert listener.says("shard 4 is left uncommitted", "the plan is gone")


def test_a_full_disk_stops_the_run_after_the_third_shard() -> None:
    listener = KeptListener()
    queue = ShardQueue(range(9), config(), listener)
    for shard in range(2):
        task = queue.next_due(0.0)
        assert task is not None
        queue.failed_once(task, "disk_full", "there is no room", 0.0)
        assert queue.failed[shard] == "there is no room", "it is not encoded again for a disk that is full"
    task = queue.next_due(0.0)
    assert task is not None
    with pytest.raises(DiskFullError, match="3 shards could not be written, so this run stops. The last error: there is no room"):
        queue.failed_once(task, "disk_full", "there is no room", 0.0)


def test_an_unreadable_object_ends_its_shard_at_once_and_is_told() -> None:
    listener = KeptListener()
    queue = ShardQueue([0], config(), listener)
    task = queue.next_due(0.0)
    assert task is not None
    queue.failed_once(task, "unreadable", "it is archived", 0.0, {"count": 2, "examples": ["a", "b"]})
    assert queue.failed == {0: "it is archived"} and listener.says("2 unreadable: a, b")


@pytest.mark.parametrize("how", ["transient", "died", "left"])
def test_what_an_attempt_had_done_counts_no_more_when_it_ends(how: str) -> None:
    listener = KeptListener()
    queue = ShardQueue([0], config(), listener)
    task = queue.next_due(0.0)
    assert task is not None
    listener.started(0)
    listener.progressed(0, 5, 50, 1)
    if how == "transient":
        queue.failed_once(task, how, "the store is away", 0.0)
    else:
        queue.worker_died(task, how, blamed=how == "died")
    assert listener.in_flight == {} and len(queue) == 1


def test_a_shard_whose_inputs_changed_under_the_search_is_given_up_in_the_end() -> None:
    queue = ShardQueue([0], config(), KeptListener())
    steps = 0
    while (task := queue.next_due(0.0)) is not None:
        steps += 1
        assert steps < 100, "it does not come to an end"
        command = task.command()
        if command["op"] == "count":
            queue.answered(task, {"event": "counted", "inputs": 1})
        elif command["op"] == "name":
            queue.answered(task, {"event": "named", "sample_id": None})
        else:
            queue.worker_died(task, "died")
    assert "no single input is guilty" in queue.failed[0]


def test_an_answer_to_no_question_is_an_error() -> None:
    queue = ShardQueue([0], config(), KeptListener())
    task = queue.next_due(0.0)
    assert task is not None
    with pytest.raises(RuntimeError, match="shard 0 has no search, but a worker reported survived"):
        queue.answered(task, {"event": "survived"})
