"""A slow tokenizer reports after each part of a batch: a watcher would take one long silence for a hang, and quarantine good images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.pipeline.tokenizers import python_plugins
from tests.pipeline.tokenizers.custom import test_python_callable
from tokenshards.pipeline import activity
from tokenshards.pipeline.activity import ENCODE, doing, slowest
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.tokenizers import nearest_code
from tokenshards.pipeline.tokenizers.kmeans import patch_kmeans
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import PatchKMeans
from tokenshards.pipeline.tokenizers.nearest_code import NearestCode
from tokenshards.pipeline.tokenizers.networks.network import SLOTS, Network

PART_SECONDS = 10.0
Slow = Callable[[Callable[..., Any]], Callable[..., Any]]


def network(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Identity()
    module.forward = slow(module.forward)  # type: ignore[method-assign]
    Network(module)(torch.ones(3 * SLOTS, 2))


def search(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NearestCode, "_nearest", slow(NearestCode._nearest))
    monkeypatch.setattr(nearest_code, "CPU_SCORES", 40 * 100)
    rows: Tensor = torch.ones(300, 5)
    NearestCode(np.ones((40, 5), np.float32))(rows)


def patches(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NearestCode, "nearest", slow(NearestCode.nearest))
    monkeypatch.setattr(patch_kmeans, "BLOCK_ROWS", 4)
    made = PatchKMeans([np.eye(4, 48, dtype=np.float32)], patch=4, preprocess=Preprocess(size=8, decoder="test-1"))
    made.encode(np.zeros((3, 8, 8, 3), np.uint8))


def callable_of_a_user(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    made = test_python_callable.make("Levels")
    monkeypatch.setattr(python_plugins.Levels, "encode", slow(python_plugins.Levels.encode))
    made.encode(np.zeros((9, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("work", [network, search, patches, callable_of_a_user])
def test_the_longest_silence_is_that_of_one_part(work: Callable[[Slow, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        def slowed(*arguments: Any) -> Any:
            now[0] += PART_SECONDS
            return function(*arguments)

        return slowed

    monkeypatch.setattr(activity.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(activity, "_slowest", {})
    with doing(ENCODE):
        work(slow, monkeypatch)
    assert now[0] == 3 * PART_SECONDS and slowest() == {ENCODE: PART_SECONDS}
