from __future__ import annotations

import argparse
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tokenshards.pipeline.errors import MissingObjectError, TokenizerError
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.networks.weights import as_arrays, as_tensors, load_into, read_state_dict, with_ema

ROOT = Path(__file__).resolve().parents[3]


def state() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network().state_dict().items()}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))


WRAPPED: dict[str, Any] = {
    "bare": lambda: state(),
    "lightning": lambda: {"epoch": 3, "global_step": 7, "state_dict": state(), "optimizer_states": [{"state": {}}]},
    "model": lambda: {"model": state(), "args": {"lr": 0.1}},
    "nested": lambda: {"model": {"state_dict": state(), "name": "x"}},
    "parameters": lambda: {name: nn.Parameter(tensor) for name, tensor in state().items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("old_format", [False, True])
def test_wrappers_are_taken_off(kind: str, old_format: bool, tmp_path: Path) -> None:
    torch.save(WRAPPED[kind](), tmp_path / "x.pth", _use_new_zipfile_serialization=not old_format)
    found = read_state_dict(str(tmp_path / "x.pth"))
    assert found.keys() == state().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state().items())


def test_safetensors_and_urls(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "x.safetensors")
    Store("memory://weights").write("x.bin", (tmp_path / "x.safetensors").read_bytes())
    for url in (str(tmp_path / "x.safetensors"), "memory://weights/x.bin"):
        found = read_state_dict(url)
        assert all(torch.equal(found[name], tensor) for name, tensor in state().items())


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/tokenshards-was-unpickled"),))


@pytest.mark.parametrize("kind", ["module", "object", "plain pickle"])
def test_objects_are_never_made(kind: str, tmp_path: Path) -> None:
    marker = Path("/tmp/tokenshards-was-unpickled")
    marker.unlink(missing_ok=True)
    target = tmp_path / "x.ckpt"
    if kind == "module":
        torch.save(network(), target)
    elif kind == "object":
        torch.save({"state_dict": state(), "args": argparse.Namespace(lr=1), "boom": Boom()}, target)
    else:
        target.write_bytes(pickle.dumps({"state_dict": Boom()}))
    with pytest.raises(TokenizerError, match=r"x\.ckpt: ") as refused:
        read_state_dict(str(target))
    assert not marker.exists()
    if kind == "plain pickle":
        return
    assert "Python objects beside tensors" in str(refused.value)
    (way,) = re.findall(r'python -c "(.*)" IN OUT\.safetensors', str(refused.value))
    converted = str(tmp_path / "converted.safetensors")
    subprocess.run([sys.executable, "-c", way, str(target), converted], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert read_state_dict(converted).keys() == state().keys()


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:  # as torch.jit.save names its parts
        for name in ("program/data.pkl", "program/constants.pkl", "program/code/__torch__.py", "program/version"):
            archive.writestr(name, b"3\n")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    save_file(state(), tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-5])
    torch.save(state(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:300])
    (tmp_path / "text.pth").write_text("<html>Not Found</html>")
    (tmp_path / "nothing.pth").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    for name, text in {
        "program.pt": "this is a TorchScript program; expected a state dict. It is for `import tokenizer --kind torchscript`",
        "list.pth": "it holds a list; expected a state dict",
        "empty.pth": "no tensors in it, its keys are 'epoch'; expected a state dict, bare or under state_dict",
        "cut.safetensors": "not a whole safetensors file",
        "cut.pth": "300 bytes that begin with .* are no state dict",
        "text.pth": "22 bytes that begin with .* are no state dict",
        "photo.jpg": r"bytes that begin with b'\\xff\\xd8.*' are no state dict; expected safetensors .*\. Is this the right file\?$",
        "nothing.pth": "0 bytes that begin with .* are no state dict",
    }.items():
        with pytest.raises(TokenizerError, match=text):
            read_state_dict(str(tmp_path / name))
    with pytest.raises(MissingObjectError, match=r"absent\.pth: no weights are here; expected a state dict"):
        read_state_dict(str(tmp_path / "absent.pth"))


def test_a_key_that_does_not_fit_is_named() -> None:
    whole = state()
    assert load_into(network(), whole, "x").training is False
    renamed = {f"net.{key}": value for key, value in whole.items()}
    assert torch.equal(load_into(network(), renamed, "x", names="net.{}".format).state_dict()["0.bias"], whole["0.bias"])
    with pytest.raises(TokenizerError, match=r"x: the key net\.2\.bias is missing"):
        load_into(network(), {key: value for key, value in renamed.items() if key != "net.2.bias"}, "x", names="net.{}".format)
    with pytest.raises(TokenizerError, match=r"x: the key loss.weight is not a part of this network"):
        load_into(network(), {**whole, "loss.weight": torch.zeros(1)}, "x")
    with pytest.raises(TokenizerError, match=r"x: the key 0.weight is missing, and so for 1 more"):
        load_into(network(), {key: value for key, value in whole.items() if not key.startswith("0.")}, "x")
    with pytest.raises(TokenizerError, match=r"x: the key 2.weight has another shape: \(1, 5\), expected \(1, 2\)"):
        load_into(network(), {**whole, "2.weight": torch.zeros(1, 5)}, "x")


def test_arrays_and_back() -> None:
    some = {"a": torch.ones(2, dtype=torch.float16), "b.c": torch.arange(3.0), "d": torch.full((2,), 1.5, dtype=torch.bfloat16)}
    arrays = as_arrays(some, "encoder.")
    assert {name: array.dtype for name, array in arrays.items()} == {
        "encoder.a": np.float16,
        "encoder.b.c": np.float32,
        "encoder.d": np.float32,
    }
    back = as_tensors({**arrays, "level_0": np.zeros(1)}, "encoder.")
    assert back.keys() == some.keys() and all(torch.equal(back[name], tensor.to(back[name].dtype)) for name, tensor in some.items())


def test_moving_averages_take_the_place_of_parameters() -> None:
    whole = state()
    averages = {f"model_ema.{key.replace('.', '')}": value + 1 for key, value in whole.items()}
    extras = {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones(()), "loss.x": torch.ones(1)}
    found = with_ema({**whole, **averages, **extras}, ("0.", "2."), "x")
    assert found.keys() == {*whole, "loss.x"} and all(torch.equal(found[key], value + 1) for key, value in whole.items())
    assert torch.equal(found["loss.x"], torch.ones(1)) and with_ema(whole, ("0.",), "x") == whole
    del averages["model_ema.2bias"]
    with pytest.raises(TokenizerError, match=r"x: it holds moving averages \(model_ema\.…\) and none of 2\.bias"):
        with_ema({**whole, **averages}, ("0.", "2."), "x")
