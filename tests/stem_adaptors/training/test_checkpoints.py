"""Checkpoints: every tensor back bit for bit, and damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, FormatVersionError, MissingObjectError
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.training.checkpoints import (
    Checkpoint,
    load_model,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    read_weights,
    require_finite,
    write_checkpoint,
    write_weights,
)


def trained(
    steps: int, model: nn.Module | None = None, tensors: dict[str, torch.Tensor] | None = None
) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(1)
    model = model or nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    if tensors is not None:
        load_optimizer(optimizer, tensors)
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(6, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    model, optimizer = trained(3)
    average = {"0.weight": torch.randn(8, 4, dtype=torch.bfloat16)}
    counts = {"sums": torch.tensor([1.0, 2.0], dtype=torch.float64), "confusion": torch.arange(4).view(2, 2)}
    state = {"step": 3, "loader": {"next": 5}, "best": {"top1": None}}
    write_checkpoint(
        store,
        "c.safetensors",
        Checkpoint(model=model.state_dict(), optimizer=optimizer_tensors(optimizer), average=average, counts=counts, state=state),
    )
    found = read_checkpoint(store, "c.safetensors")
    assert found.state == state
    for group, expected in (("model", model.state_dict()), ("average", average), ("counts", counts)):
        tensors = getattr(found, group)
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert tensor.dtype == tensors[name].dtype
            assert torch.equal(tensor, tensors[name])


def test_an_optimiser_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, _ = trained(3)
    model, optimizer = trained(2)
    other = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    other.load_state_dict(model.state_dict())
    resumed = torch.optim.AdamW(other.parameters(), lr=0.1)
    load_optimizer(resumed, optimizer_tensors(optimizer))
    torch.manual_seed(2)
    other(torch.randn(6, 4)).square().sum().backward()
    resumed.step()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_weights_are_read_alone_or_out_of_a_checkpoint(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    model, optimizer = trained(1)
    write_weights(store, "w.safetensors", model.state_dict(), {"epoch": 4})
    write_checkpoint(store, "c.safetensors", Checkpoint(model=model.state_dict(), optimizer=optimizer_tensors(optimizer), state={}))
    weights, state = read_weights(store, "w.safetensors")
    assert state == {"epoch": 4}
    again, _ = read_weights(store, "c.safetensors")
    assert weights.keys() == again.keys() == model.state_dict().keys()
    with pytest.raises(CorruptObjectError, match="do not fit"):
        load_model(nn.Linear(3, 3), weights, "w.safetensors")


def test_tensors_that_share_memory_can_be_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    table = torch.randn(3, 3)
    write_weights(store, "w.safetensors", {"a": table, "b": table, "c": table.T}, {})
    weights, _ = read_weights(store, "w.safetensors")
    assert torch.equal(weights["a"], table) and torch.equal(weights["b"], table) and torch.equal(weights["c"], table.T)


@pytest.mark.parametrize("place", [0.5, 0.9, 0.999])
def test_a_flipped_bit_is_named(tmp_path: Path, place: float) -> None:
    store = Store(str(tmp_path))
    write_weights(store, "w.safetensors", {"a": torch.randn(200)}, {})
    path = tmp_path / "w.safetensors"
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptObjectError, match=r"w\.safetensors"):
        read_weights(store, "w.safetensors")


def test_missing_cut_and_foreign_files_are_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(MissingObjectError):
        read_weights(store, "none.safetensors")
    write_weights(store, "w.safetensors", {"a": torch.randn(200)}, {})
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:300])
    (tmp_path / "text.safetensors").write_bytes(b"hello")
    for name in ("cut.safetensors", "text.safetensors"):
        with pytest.raises(CorruptObjectError, match="not a checkpoint"):
            read_weights(store, name)
    (tmp_path / "new.safetensors").write_bytes(data.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    with pytest.raises(FormatVersionError, match="reads 1"):
        read_weights(store, "new.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_weight_that_is_not_finite_is_named(dtype: torch.dtype) -> None:
    weights = {"good": torch.ones(3).to(dtype), "steps": torch.tensor(4)}
    require_finite(weights, "file")
    with pytest.raises(ConfigError, match=r"^file: 1 of the 3 weights .* not finite: bad \(2 of 3\)"):
        require_finite({**weights, "bad": torch.tensor([float("nan"), 1.0, float("nan")]).to(dtype)}, "file")
