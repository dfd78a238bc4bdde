"""Published weights: a state dict at any path or URL, as safetensors or as torch saves it. Nothing is ever unpickled.

`torch.load(weights_only=True)` builds tensors and plain containers alone. A file that needs more, such as a pickled module, is refused with
the way to convert it.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import MissingObjectError, TokenizerError, shorten
from tokenshards.pipeline.storage.store import open_parent

__all__ = ["EMA", "as_arrays", "as_tensors", "count_parts", "load_into", "read_file", "read_state_dict", "tensor_of", "with_ema"]

EMA = "model_ema."
WRAPPERS = ("state_dict", "model", "module", "params_ema", "params")
"""Keys under which projects put the state dict, outermost first."""
MAX_WRAPPERS = 4
_SAFETENSORS_HEADER_LIMIT = 1 << 30
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")
"""Of the zip files and the pickles that torch.save writes."""
_CONVERT = (
    'Where you trust the file and have the code of its classes, convert it once: python -c "import sys, torch; '
    "from safetensors.torch import save_file; m = torch.load(sys.argv[1], 'cpu', weights_only=False); "
    "m = m if isinstance(m, dict) else m.state_dict(); "
    "m = m.get('state_dict', m.get('model', m)); m = m if isinstance(m, dict) else m.state_dict(); "
    'save_file({k: v.contiguous() for k, v in m.items() if isinstance(v, torch.Tensor)}, sys.argv[2])" IN OUT.safetensors'
)


def read_state_dict(url: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, unwrapped, in the dtypes that it holds.

    Raises TokenizerError for what is no checkpoint, what holds more than tensors, and what holds none; MissingObjectError where nothing is.
    """
    data, where = read_file(url, storage_options, "a state dict, as safetensors or from torch.save")
    state = _safetensors(data, where) if _is_safetensors(data) else _torch_file(data, where)
    tensors = {key: value for key, value in _unwrapped(state).items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise TokenizerError(
            f"{where}: no tensors in it, its keys are {_some(state)}; expected a state dict, bare or under {', '.join(WRAPPERS)}"
        )
    return tensors


def read_file(url: str, storage_options: Mapping[str, Any] | None, expected: str) -> tuple[bytes, str]:
    """Return the bytes at a path or URL, and the name of their place; MissingObjectError where nothing is."""
    store, name = open_parent(url, storage_options)
    where = f"{store.url}/{name}"
    if store.info(name) is None:
        raise MissingObjectError(where, f"no weights are here; expected {expected}. Check the path")
    return store.read(name), where


def load_into(module: nn.Module, state: Mapping[str, Tensor], where: str, *, names: Callable[[str], str] = str) -> nn.Module:
    """Give the module its weights, as float32, and return it ready to run; `names` gives the key in `state` of a key of the module.

    Raises TokenizerError that names a key of `state` which is missing, of another shape, or of no use here.
    """
    keys_of = {names(key): key for key in module.state_dict()}
    expected, found = {key: module.state_dict()[own] for key, own in keys_of.items()}, state
    for problem, keys in (
        ("is missing", [key for key in expected if key not in found]),
        ("is not a part of this network", [key for key in found if key not in expected]),
        ("has another shape", [key for key in expected if key in found and found[key].shape != expected[key].shape]),
    ):
        if not keys:
            continue
        key, others = keys[0], f", and so for {len(keys) - 1} more" if len(keys) > 1 else ""
        shapes = f": {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}" if key in found and key in expected else ""
        raise TokenizerError(
            f"{where}: the key {key} {problem}{shapes}{others}. Is this the file of another model, or of another size of it?"
        )
    module.load_state_dict({keys_of[key]: value.float() for key, value in found.items()})
    return module.eval().requires_grad_(False)


def with_ema(state: Mapping[str, Tensor], prefixes: tuple[str, ...], where: str) -> dict[str, Tensor]:
    """Return a checkpoint with the moving averages of its parameters in their place, where it has any; the averages' own keys are gone.

    They are stored as `model_ema.` and the name without its dots. Raises TokenizerError where a key with one of the prefixes has none.
    """
    averages = {key.removeprefix(EMA): value for key, value in state.items() if key.startswith(EMA)}
    kept = {key: value for key, value in state.items() if not key.startswith(EMA)}
    if not averages:
        return kept
    for key in kept:
        if key.startswith(prefixes) and key.replace(".", "") not in averages:
            raise TokenizerError(
                f"{where}: it holds moving averages ({EMA}…) and none of {key}; expected one of every parameter. Is the file whole? "
                "--no-ema takes the parameters as they are"
            )
    return {key: averages.get(key.replace(".", ""), value) for key, value in kept.items()}


def tensor_of(state: Mapping[str, Tensor], key: str, dimensions: int, where: str, what: str) -> Tensor:
    """Return the tensor that tells the size of a network. Raises TokenizerError where it is missing or has another number of dimensions."""
    found = state.get(key)
    if found is None or found.ndim != dimensions:
        shape = "" if found is None else f" of {dimensions} dimensions, but one of shape {tuple(found.shape)}"
        shown = ", ".join(sorted(state)[:3]) or "nothing"
        raise TokenizerError(f"{where}: no tensor {key}{shape}, the keys begin with {shown}; expected the checkpoint of {what}")
    return found


def count_parts(state: Mapping[str, Tensor], name: str) -> int:
    """Return how many numbered parts, `name.0`, `name.1`, …, a state dict has, missing ones below the last included."""
    places = (key.removeprefix(f"{name}.").partition(".")[0] for key in state if key.startswith(f"{name}."))
    return 1 + max((int(place) for place in places if place.isdecimal()), default=-1)


def as_arrays(state: Mapping[str, Tensor], prefix: str) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors as arrays whose names begin with `prefix`, in their dtypes; bfloat16, which numpy lacks, becomes float32."""
    return {
        prefix + key: np.ascontiguousarray((value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy())
        for key, value in state.items()
    }


def as_tensors(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, Tensor]:
    """Return the tensors that `as_arrays` put under this prefix."""
    return {key.removeprefix(prefix): torch.from_numpy(np.array(value)) for key, value in arrays.items() if key.startswith(prefix)}


def _is_safetensors(data: bytes) -> bool:
    return len(data) > 9 and int.from_bytes(data[:8], "little") < _SAFETENSORS_HEADER_LIMIT and data[8:9] == b"{"


def _safetensors(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        loaded: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise TokenizerError(f"{where}: not a whole safetensors file ({error}); {len(data):,} bytes. Copy it again") from None
    return loaded


def _torch_file(data: bytes, where: str) -> Mapping[Any, Any]:
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise TokenizerError(
                    f"{where}: this is a TorchScript program; expected a state dict. It is for `import tokenizer --kind torchscript`"
                )
    try:
        with warnings.catch_warnings():  # of a pickle protocol that torch does not write
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # what it meets in hostile bytes may be of any type
        if not data.startswith(_TORCH_STARTS):  # of such bytes torch would speak as if somebody had pickled them
            raise TokenizerError(f"{where}: {_not_a_checkpoint(data)}. Is this the right file?") from None
        reason = _reason(error)
        if "global" in reason.lower() or "class" in reason.lower():
            raise TokenizerError(f"{where}: it holds Python objects beside tensors ({reason}), which could run code. {_CONVERT}") from None
        raise TokenizerError(f"{where}: {_not_a_checkpoint(data)} ({type(error).__name__}: {reason})") from None
    if not isinstance(loaded, Mapping):
        raise TokenizerError(f"{where}: it holds a {type(loaded).__name__}; expected a state dict, which is a dictionary of tensors")
    return loaded


def _not_a_checkpoint(data: bytes) -> str:
    return f"{len(data):,} bytes that begin with {shorten(data[:8])} are no state dict; expected safetensors or torch's format"


def _unwrapped(state: Mapping[Any, Any]) -> Mapping[Any, Any]:
    for _ in range(MAX_WRAPPERS):
        inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    return state


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line] or str(error).splitlines()
    return shorten(lines[0].strip() if lines else "", 160)


def _some(state: Mapping[Any, Any]) -> str:
    return ", ".join(shorten(key) for key in list(state)[:4]) or "none"
