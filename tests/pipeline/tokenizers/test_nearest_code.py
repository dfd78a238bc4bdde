from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenshards.pipeline.tokenizers import nearest_code
from tokenshards.pipeline.tokenizers.nearest_code import CPU_SCORES, GPU_SCORES, NearestCode, block_rows, nearest_rows


def test_numpy_rows_and_tensors_find_the_same_rows() -> None:
    rng = np.random.default_rng(0)
    rows, table = rng.random((300, 5), np.float32), rng.random((40, 5), np.float32)
    expected = np.square(rows[:, None].astype(np.float64) - table).sum(axis=2).argmin(axis=1)
    assert np.array_equal(nearest_rows(rows, table), expected)
    assert np.array_equal(NearestCode(table)(torch.from_numpy(rows)).numpy(), expected)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_metrics_and_ties(metric: Any) -> None:
    table = np.array([[3, 0], [0, 2], [0, 2], [0.5, 0.1]], np.float32)
    rows = torch.tensor([[0.6, 0.1], [0.0, 1.9], [5.0, 1.5]])
    assert NearestCode(table, metric)(rows).tolist() == {"l2": [3, 1, 0], "cosine": [3, 1, 3], "dot": [0, 1, 0]}[metric]
    if metric != "l2":
        with pytest.raises(ValueError, match=f"numpy rows are compared by l2; this table has the metric {metric}"):
            NearestCode(table, metric).nearest(np.ones((1, 3), np.float32))


def test_blocks_are_large_on_a_gpu_and_fit_a_cache_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sites, codes = 64 * 1024, 8192
    assert -(-sites // block_rows(codes, GPU_SCORES)) <= 4, "64 images of 1,024 sites are few blocks"
    assert -(-sites // block_rows(262_144, GPU_SCORES)) <= 128
    assert block_rows(codes) * codes * 4 <= 16 << 20 and block_rows(CPU_SCORES * 2) == 1
    monkeypatch.setattr(nearest_code, "CPU_SCORES", 40 * 7)
    rng = np.random.default_rng(0)
    rows, table = rng.random((300, 5), np.float32), rng.random((40, 5), np.float32)
    assert np.array_equal(NearestCode(table)(torch.from_numpy(rows)).numpy(), nearest_rows(rows, table)), "blocks join without a seam"


class OnAGpu(torch.Tensor):
    """A tensor that says it is on a GPU, so that its blocks are those of a GPU."""

    @property
    def device(self) -> Any:
        return torch.device("cuda")


def test_memory_that_is_short_on_a_gpu_halves_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows, table = rng.random((300, 5), np.float32), rng.random((40, 5), np.float32)
    search, seen = NearestCode(table), list[int]()
    real = NearestCode._nearest

    def short(self: NearestCode, rows_ND: Tensor, *rest: Tensor) -> Tensor:
        seen.append(len(rows_ND))
        if len(rows_ND) > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, rows_ND, *rest)

    monkeypatch.setattr(NearestCode, "_nearest", short)
    monkeypatch.setattr(nearest_code, "CPU_SCORES", 40)
    monkeypatch.setattr(search, "_gpu_scores", 40 * 300)
    monkeypatch.setattr(Tensor, "to", lambda self, *_: self)
    found = search(torch.from_numpy(rows).as_subclass(OnAGpu))
    assert np.array_equal(found.as_subclass(Tensor).numpy(), nearest_rows(rows, table))
    assert seen == [300, 150, 75, 75, 75, 75]
