from __future__ import annotations

import argparse
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tests.datasets import ROOT
from tokenshards.pipeline.errors import MissingObjectError, TokenizerError
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.networks import checkpoint_file
from tokenshards.pipeline.tokenizers.networks.checkpoint_file import read_state_dict
from tokenshards.pipeline.tokenizers.networks.weights import as_arrays, as_tensors, load_into, with_ema


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


class RunsACommand:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch /tmp/tokenshards-was-unpickled",))


class Evaluates:
    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("open('/tmp/tokenshards-was-unpickled', 'w')",))


class ModelCheckpoint:
    """As Lightning up to 1.4 has it: `callbacks` are keyed by the class."""

    def __init__(self) -> None:
        self.monitor = "val/rec_loss"


def lightning_1_4() -> dict[str, Any]:
    callbacks = {ModelCheckpoint: {"best_model_score": np.float64(0.25), "best_model_path": "x.ckpt"}}
    return {"epoch": 3, "pytorch-lightning_version": "1.0.8", "callbacks": callbacks, "state_dict": state()}


class Opens:
    """Nothing refuses its name; it still makes nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/tokenshards-was-unpickled", "w"))


STRANGERS: dict[str, Any] = {
    "what opens files": lambda: {"state_dict": state(), "x": Opens()},
    "a class as a key": lightning_1_4,
    "arguments": lambda: {"model": state(), "optimizer": {}, "args": argparse.Namespace(lr=1, data="x", out=Path("x"))},
    "numpy scalars": lambda: {"state_dict": state(), "best": np.float32(1), "seen": np.arange(3)},
    "an object": lambda: {"state_dict": state(), "callback": ModelCheckpoint()},
}


@pytest.fixture
def marker() -> Iterator[Path]:
    path = Path("/tmp/tokenshards-was-unpickled")
    path.unlink(missing_ok=True)
    yield path
    assert not path.exists(), "something of the file ran"


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("old_format", [False, True])
def test_tensors_are_read_beside_objects_of_which_nothing_runs(
    kind: str, old_format: bool, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(STRANGERS[kind](), tmp_path / "x.ckpt", _use_new_zipfile_serialization=not old_format)
    monkeypatch.delattr(f"{__name__}.ModelCheckpoint")  # its code is not installed here
    found = read_state_dict(str(tmp_path / "x.ckpt"))
    assert found.keys() == state().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state().items())
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global|Weights only load failed"):  # what was allowed is forbidden again
        torch.load(tmp_path / "x.ckpt", weights_only=True)


class Gelu(nn.Module):
    """A module of classes that are not installed where it is read, with a buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("passing", torch.ones(2), persistent=False)


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: {"model": module}, lambda module: nn.DataParallel(module)])
def test_of_a_pickled_module_the_tensors_are_read(wrap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Gelu()
    torch.save(wrap(module), tmp_path / "x.ckpt")
    monkeypatch.delattr(f"{__name__}.Gelu")
    found, expected = read_state_dict(str(tmp_path / "x.ckpt")), module.state_dict()
    assert found.keys() == expected.keys() and "passing" not in found
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_pickled_module_without_an_end_is_one_sentence(tmp_path: Path) -> None:
    module: nn.Module = nn.Linear(1, 1)
    for _ in range(checkpoint_file.MAX_DEPTH + 1):
        module = nn.Sequential(module)
    torch.save(module, tmp_path / "x.ckpt")
    with pytest.raises(TokenizerError, match=r"x\.ckpt: a pickled module holds modules more than 100 deep"):
        read_state_dict(str(tmp_path / "x.ckpt"))


@pytest.mark.parametrize(
    ("hostile", "expected"),
    [
        (RunsACommand(), "it asks for posix.system, which run commands and which no checkpoint needs"),
        (Evaluates(), "it asks for builtins.eval, which"),
        (Boom(), "Python objects that only their own code can open: ['builtins.getattr', 'pathlib.Path'"),
    ],
)
@pytest.mark.parametrize("how", ["beside", "old format", "plain pickle"])
def test_what_would_run_code_is_refused_and_does_not_run(hostile: Any, expected: str, how: str, tmp_path: Path, marker: Path) -> None:
    target = tmp_path / "x.ckpt"
    if how == "plain pickle":
        target.write_bytes(pickle.dumps({"state_dict": hostile}))
    else:
        torch.save({"state_dict": state(), "boom": hostile}, target, _use_new_zipfile_serialization=how == "beside")
    with pytest.raises(TokenizerError, match=r"x\.ckpt: ") as refused:
        read_state_dict(str(target))
    if how == "plain pickle":
        return
    assert "othing of it was run" in str(refused.value) and expected in str(refused.value)


def test_the_way_to_convert_a_file_works(tmp_path: Path) -> None:
    torch.save({"model": network(), "x": Boom}, tmp_path / "x.ckpt")
    converted = str(tmp_path / "converted.safetensors")
    (way,) = re.findall(r'python -c "(.*)" IN OUT\.safetensors', checkpoint_file._CONVERT)
    subprocess.run(
        [sys.executable, "-c", way, str(tmp_path / "x.ckpt"), converted], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )
    assert read_state_dict(converted).keys() == state().keys()


def named(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state().items()}


@pytest.mark.parametrize(
    "tensors",
    [
        named("module."),
        named("_orig_mod."),
        named("module._orig_mod."),
        {name.replace("0.", "0._orig_mod."): tensor for name, tensor in state().items()},
        {**named("first_stage_model."), "model.diffusion_model.out.0.weight": torch.ones(3), "model_ema.decay": torch.ones(())},
    ],
)
def test_prefixes_come_off(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": tensors}, tmp_path / "x.ckpt")
    found = read_state_dict(str(tmp_path / "x.ckpt"))
    assert found.keys() == state().keys() and all(torch.equal(found[name], tensor) for name, tensor in state().items())


def test_moving_averages_beside_the_state_dict_are_taken_where_asked_for(tmp_path: Path) -> None:
    averages = {name: tensor + 1 for name, tensor in state().items()}
    torch.save({"model": state(), "ema": averages, "steps": 3}, tmp_path / "x.pt")
    for asked, expected in (((), state()), (("ema",), averages), (("model_ema",), state())):
        found = read_state_dict(str(tmp_path / "x.pt"), averages=asked)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


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
    (tmp_path / "folder.pth").mkdir()
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
    with pytest.raises(MissingObjectError, match=r"folder\.pth: this is no file; expected a state dict"):
        read_state_dict(str(tmp_path / "folder.pth"))
    with pytest.raises(MissingObjectError, match=r"absent\.pth: no file is here; expected a state dict"):
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
