"""The switches between float32 and TF32: off around a tokenizer's work, and back as they were. What they do shows on a GPU (tests/gpu)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contracts.tokenizer_contract import sample_images
from tests.pipeline.tokenizers.fitted import test_latent_kmeans
from tests.pipeline.tokenizers.published import test_vit_vqgan
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.tokenizers.custom.torchscript import _Program
from tokenshards.pipeline.tokenizers.nearest_code import NearestCode
from tokenshards.pipeline.tokenizers.networks.exact_float32 import exact_float32
from tokenshards.pipeline.tokenizers.networks.network import Network

CONVOLUTIONS, MATRICES = torch.backends.cudnn.conv, torch.backends.cuda.matmul

pytestmark = pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="the switches of torch 2.9 and newer")


def switches() -> tuple[str, str, str]:
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # the new switch says something else
        old = "mixed"
    return CONVOLUTIONS.fp32_precision, MATRICES.fp32_precision, old


@pytest.fixture(params=["default", "old", "new"])
def rounded(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, str]]:
    """The state of a process in which somebody let products of matrices be rounded, by either switch, or nobody did."""
    if request.param == "old":
        torch.set_float32_matmul_precision("high")
    elif request.param == "new":
        MATRICES.fp32_precision = "tf32"
    yield switches()
    torch.set_float32_matmul_precision("highest")
    MATRICES.fp32_precision = "none"


class Seen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.switches: list[tuple[str, str, str]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.switches.append(switches())
        return x


def test_a_network_runs_without_tf32_and_leaves_the_switches_as_they_were(rounded: tuple[str, str, str]) -> None:
    seen = Seen()
    Network(seen)(torch.zeros(9, 2))
    assert_exact(seen, 2)
    assert switches() == rounded
    assert isinstance(torch.backends.cudnn.allow_tf32, bool), "a mix of old and new switches would be refused"


@pytest.mark.parametrize("make", [test_vit_vqgan.make, test_latent_kmeans.make], ids=["vit-vqgan", "latent-kmeans"])
def test_the_search_of_a_tokenizer_does_too(make: Any, rounded: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, seen, real = make(), Seen(), NearestCode.__call__
    monkeypatch.setattr(NearestCode, "__call__", lambda self, rows: real(self, seen(rows)))
    tokenizer.encode(sample_images(3, 32))
    assert_exact(seen, 1)
    assert switches() == rounded


def assert_exact(seen: Seen, calls: int) -> None:
    assert len(seen.switches) == calls and {(conv, old) for conv, _, old in seen.switches} == {("ieee", "highest")}
    assert {new for _, new, _ in seen.switches} <= {"none", "ieee"}


def test_an_error_leaves_them_as_they_were(rounded: tuple[str, str, str]) -> None:
    with pytest.raises(ZeroDivisionError), exact_float32():
        _ = 1 / 0
    assert switches() == rounded


def test_a_program_without_memory_is_one_that_needs_a_smaller_batch_and_not_a_wrong_one() -> None:
    def program(values: Tensor) -> Tensor:
        raise RuntimeError("The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory. Tried to …")

    network = Network(_Program(program, torch.float32, "x.jit", gives_ids=True), fixed_rows=4)
    with pytest.raises(TokenizerError, match="memory of .* is too small for 4 images at a time, the fewest"):
        network(torch.zeros(4, 3, 8, 8))
