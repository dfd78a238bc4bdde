"""Exactly once while workers, nodes, driver, head and the store fail: the dataset of an undisturbed local run, every time."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import VICTIMS, Chaos, chaos_run, planned_faults
from tests.datasets import convert, keep_result, write_images
from tests.s3_servers import S3Server, faulty_proxy, moto_server

# For a busy machine: a cluster is a dozen processes, each of which imports much. Where nothing else runs, 120 s are enough for each.
pytestmark = pytest.mark.timeout(300, func_only=True)  # the set-up converts 360 images, which then takes minutes itself

SEEDS = (193, 94)
"""Between them they strike everything that can fail; the head once and at the end, since the cluster starts anew after it."""
FAULTS = 4
SOAK_RUNS, SOAK_FAULTS = 50, 5


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="module")
def chaos(server: S3Server) -> Iterator[Chaos]:
    with faulty_proxy(server) as proxy:
        chaos = Chaos(server, proxy)
        try:
            yield chaos
        finally:
            chaos.stop()


@pytest.fixture(scope="module")
def reference(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_images(folder / "src", 360, bad=6, side=160)
    convert(folder / "src", folder / "out", shard_rows=12, workers=2, batch_rows=64)
    server.upload(folder / "src", "s3://chaos/src")
    server.upload(folder / "out" / "tokenizer", "s3://chaos/photos.tok")
    return folder / "out"


def arguments(out: str, codec: str = "default") -> list[str]:
    same = ["--tokenizer", "s3://chaos/photos.tok", "--shard-rows", "12", "--max-bad", "1", "--codec", codec]
    return ["tokenize", "s3://chaos/src", out, *same, "--runner", "ray", "--join", "--max-actors", "2"]


def test_everything_that_can_fail_is_struck() -> None:
    planned = {fault for seed in SEEDS for fault, _, _ in planned_faults(random.Random(seed), FAULTS)}
    assert planned == {*VICTIMS, "head"}


@pytest.mark.parametrize(("seed", "codec"), [*zip(SEEDS, ("default", "compact"), strict=True)])
def test_chaos(chaos: Chaos, reference: Path, seed: int, codec: str) -> None:
    out = f"s3://chaos/out-{seed}"
    result = chaos_run(chaos, seed, arguments(out, codec), out, reference, faults=FAULTS)
    print(result)
    assert sum(result.faults.values()) > 0


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_chaos_for_long(chaos: Chaos, reference: Path) -> None:
    first = int(os.environ.get("SOAK_SEED", "1000"))
    runs = int(os.environ.get("SOAK_RUNS", SOAK_RUNS))
    faults: Counter[str] = Counter()
    store_faults: Counter[str] = Counter()
    seconds: list[float] = []
    submissions = 0
    for seed in range(first, first + runs):
        out = f"s3://chaos/soak-{seed}"
        result = chaos_run(chaos, seed, arguments(out), out, reference, faults=SOAK_FAULTS)
        print(result, flush=True)
        faults.update(result.faults)
        store_faults.update(result.store_faults)
        seconds.append(result.seconds)
        submissions += result.submissions
    keep_result(
        "soak_chaos",
        seed=first,
        runs=runs,
        faults=dict(faults),
        store_faults=dict(store_faults),
        submissions=submissions,
        longest_seconds=max(seconds),
        equal_to_undisturbed=True,
    )
