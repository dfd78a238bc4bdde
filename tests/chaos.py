"""Chaos on real parts: a Ray cluster between two buckets, whose workers, nodes, driver, head and store are made to fail by a seed.

The plan of a run is drawn from its seed alone; when a fault strikes depends on the machine, so a seed repeats the faults, not the moments.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.datasets import content, quarantine_of, start_cli
from tests.ray_clusters import Node, RayCluster
from tests.s3_servers import FaultyProxy, S3Server
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.storage.store import Store

TOKEN = "c4a05" * 8
ACTOR, ANY_WORKER = "ray::ShardActor", "ray::"
STORE_FAULTS = ("slow_down", "internal_error", "reset", "truncated", "lost")
VICTIMS = ("actor", "actor", "worker", "driver", "node", "store", "store", "store", "forbidden", "stall")
COMMIT_SECONDS = 20.0
EARLY_SHARE = 0.3
HEAD_SHARE = 0.06
"""Share of the faults that strike the head, and with it the cluster."""
RUN_SECONDS = 200.0
"""Every run ends within this, on a busy machine too; what takes longer hangs. Where nothing else runs, it takes about 25."""
STOPPED = (0, 3)
"""Exit codes of a driver that ended by itself: complete, or told to be run again."""


@dataclass(slots=True)
class Chaos:
    """One proxy and one cluster, reused by run after run while its head and nodes live."""

    server: S3Server
    proxy: FaultyProxy
    cluster: RayCluster | None = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    workers: list[Node] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """Return the environment of nodes and driver: all their S3 requests go through the proxy."""
        return self.server.through(self.proxy.endpoint).env

    def start_cluster(self) -> RayCluster:
        """Return the cluster, started anew where its head was lost, with two worker nodes."""
        if self.cluster is None:
            self.cluster = self._stack.enter_context(RayCluster(cpus=0, token=TOKEN, env=self.env))
            self.workers = []
        for node in [node for node in self.workers if not node.alive]:  # one that lost its agent left by itself
            node.kill()
            self.workers.remove(node)
        while len(self.workers) < 2:
            self.workers.append(self.cluster.add_node(cpus=1))
        return self.cluster

    def lose_head(self) -> None:
        """Kill the head; Ray takes every node with it."""
        if self.cluster is not None:
            self.cluster.nodes[0].kill()
        self.stop()

    def stop(self) -> None:
        """End every process of the cluster."""
        self._stack.close()
        self._stack = contextlib.ExitStack()
        self.cluster = None


@dataclass(frozen=True, slots=True)
class ChaosResult:
    """What a run went through."""

    seed: int
    faults: dict[str, int]
    store_faults: dict[str, int]
    submissions: int
    seconds: float


def chaos_run(chaos: Chaos, seed: int, arguments: list[str], out: str, reference: Path, *, faults: int) -> ChaosResult:
    """Convert under `faults` faults, submit again until it is complete, and check that the dataset is the undisturbed one."""
    rng = random.Random(seed)
    began = time.monotonic()
    deadline = began + RUN_SECONDS
    struck: Counter[str] = Counter()
    submissions = 0
    chaos.proxy.calm()
    driver: subprocess.Popen[str] | None = None
    try:
        for fault, early, seconds in planned_faults(rng, faults):
            driver, fresh = _driver_at_work(chaos, driver, arguments)
            submissions += fresh
            if not early:
                _await_commit(chaos, driver, out)
            _pause(chaos, driver, seconds, deadline)
            if driver.poll() == 0:
                break
            struck[fault] += 1
            _strike(chaos, fault, driver, rng)
            assert time.monotonic() < deadline, f"seed {seed}: still at work after {RUN_SECONDS:.0f} s and {dict(struck)}"
        injected = chaos.proxy.report()["injected"]
        chaos.proxy.calm()
        while True:
            driver, fresh = _driver_at_work(chaos, driver, arguments)
            submissions += fresh
            output = _finish(chaos, driver, deadline, f"seed {seed}: hangs after {dict(struck)}")
            if driver.returncode == 0:
                break
            assert driver.returncode in STOPPED or driver.returncode < 0, f"seed {seed}: exit code {driver.returncode}\n{output}"
            assert submissions < 4 + faults, f"seed {seed}: no end after {submissions} submissions\n{output}"
    finally:
        chaos.proxy.calm()
        if driver is not None and driver.poll() is None:
            driver.kill()
            driver.communicate()
    seconds = round(time.monotonic() - began, 1)
    _check_same(chaos.server, out, reference, f"seed {seed}, {dict(struck)}, {injected}")
    return ChaosResult(seed, dict(struck), injected, submissions, seconds)


def _check_same(server: S3Server, out: str, reference: Path, message: str) -> None:
    """Fetch the dataset past the proxy, and compare: every input once, the same labels, ids and quarantine, every object intact."""
    with tempfile.TemporaryDirectory() as folder:
        for key, data in server.objects(out).items():
            path = Path(folder, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        copy = Path(folder, out.removeprefix("s3://").partition("/")[2])
        assert content(copy) == content(reference), message
        assert quarantine_of(copy) == quarantine_of(reference), message
        found = verify_dataset(Store(str(copy)))
        assert found.ok, f"{message}: {found.problems}"


def planned_faults(rng: random.Random, faults: int) -> list[tuple[str, bool, float]]:
    """Return what will fail, whether it may before the run has committed anything more, and after how many further seconds."""
    return [
        ("head" if rng.random() < HEAD_SHARE else rng.choice(VICTIMS), rng.random() < EARLY_SHARE, rng.uniform(0.0, 2.0))
        for _ in range(faults)
    ]


def _driver_at_work(chaos: Chaos, driver: subprocess.Popen[str] | None, arguments: list[str]) -> tuple[subprocess.Popen[str], bool]:
    """Return a driver that is running or has completed the job, and whether it had to be started."""
    if driver is not None and driver.poll() in (None, 0):
        return driver, False
    if driver is not None:
        driver.communicate()
    cluster = chaos.start_cluster()
    return start_cli(*arguments, "--address", cluster.address, env={**cluster.client_env, **chaos.env}), True


def _await_commit(chaos: Chaos, driver: subprocess.Popen[str], out: str) -> None:
    bucket, _, prefix = out.removeprefix("s3://").partition("/")
    client = chaos.server.client()

    def committed() -> int:
        return int(client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/commits/")["KeyCount"])

    before, until = committed(), time.monotonic() + COMMIT_SECONDS
    while committed() == before and driver.poll() is None and time.monotonic() < until:
        chaos.start_cluster()
        time.sleep(0.2)


def _pause(chaos: Chaos, driver: subprocess.Popen[str], seconds: float, deadline: float) -> None:
    until = min(time.monotonic() + seconds, deadline)
    while time.monotonic() < until and driver.poll() is None:
        chaos.start_cluster()  # an autoscaler brings back what leaves
        time.sleep(0.2)


def _finish(chaos: Chaos, driver: subprocess.Popen[str], deadline: float, message: str) -> str:
    _pause(chaos, driver, RUN_SECONDS, deadline)
    hangs = driver.poll() is None
    if hangs:
        driver.kill()
    output, errors = driver.communicate()
    assert not hangs, f"{message}\n{output}\n{errors}"
    assert "Traceback" not in errors, errors
    return output + errors


def _strike(chaos: Chaos, fault: str, driver: subprocess.Popen[str], rng: random.Random) -> None:
    match fault:
        case "actor" | "worker":
            _kill_one(chaos.workers, ACTOR if fault == "actor" else ANY_WORKER, rng)
        case "driver":
            driver.kill()
        case "node":
            chaos.workers.pop(rng.randrange(len(chaos.workers))).kill()
            chaos.start_cluster()
        case "head":  # a job that was submitted has its driver there
            driver.kill()
            chaos.lose_head()
        case "store":
            chaos.proxy.set(**{kind: rng.uniform(0.02, 0.15) for kind in rng.sample(STORE_FAULTS, 3)})
        case "forbidden":
            chaos.proxy.set(forbidden_seconds=rng.uniform(0.5, 6.0))
        case "stall":
            chaos.proxy.set(stall=0.05)


def _kill_one(nodes: list[Node], title: str, rng: random.Random) -> None:
    found = [process for node in nodes for process in node.find(title)]
    if found:
        with contextlib.suppress(psutil.NoSuchProcess):
            rng.choice(found).kill()
