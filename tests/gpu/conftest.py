"""The device of these tests: a GPU, or with TOKENSHARDS_GPU_TESTS=cpu the CPU, so that they are tried where there is no GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

ON_CPU = os.environ.get("TOKENSHARDS_GPU_TESTS") == "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the code under test runs."""
    if ON_CPU:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here; TOKENSHARDS_GPU_TESTS=cpu tries this on the CPU")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def without_gpu(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A block in which torch sees no GPU, so that a tokenizer that is built and used in it runs on the CPU."""

    @contextmanager
    def hidden() -> Iterator[None]:
        with patch.object(torch.cuda, "is_available", lambda: False):
            yield

    return hidden


@pytest.fixture(autouse=True)
def _emptied(device: torch.device) -> Iterator[None]:
    """Give the memory of a test back: the next one may want all of it."""
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()
