"""Reads published weights: the tensors of a checkpoint at any path or URL, as safetensors or as torch saves it. Runs no code of the file.

`torch.load(weights_only=True)` builds tensors and plain containers. Objects of any other class (callbacks, arguments, numpy scalars,
pickled modules) become empty placeholders of ours, so that the tensors beside them can be read. The file is mapped: a tensor takes memory
only when its dtype is changed or it is copied.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tokenshards.pipeline.errors import TokenizerError, shorten
from tokenshards.pipeline.tokenizers.weight_files import local_path

__all__ = ["read_state_dict"]

WRAPPERS = ("state_dict", "model", "module", "params_ema", "params")
"""Keys under which projects put the state dict, outermost first."""
MAX_WRAPPERS = 4
MAX_DEPTH = 100
"""Deepest nesting of modules in a pickled module."""
PARALLEL = "module."
"""The prefix that DistributedDataParallel puts before every name."""
COMPILED = "_orig_mod."
"""The prefix that torch.compile puts before the names within a compiled module."""
FIRST_STAGE = "first_stage_model."
"""The autoencoder within the checkpoint of a whole latent diffusion model."""
_SAFETENSORS_HEADER_LIMIT = 1 << 30
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")
"""First bytes of the zip files and the pickles that torch.save writes."""
_KNOWN = ("torch.", "collections.OrderedDict")
_HOSTILE = ("os.", "posix.", "nt.", "sys.", "subprocess.", "builtins.eval", "builtins.exec")
_OLD_FORMAT_PICKLES = 4
"""Pickles in a file from before zip files: magic number, protocol, sizes of types, and then the object."""
_CONVERT = (
    'Nothing of it was run. Where you trust the file and have the code of its classes, convert it once: python -c "import sys, torch; '
    "from safetensors.torch import save_file; m = torch.load(sys.argv[1], 'cpu', weights_only=False); "
    "m = m if isinstance(m, dict) else m.state_dict(); "
    "m = m.get('state_dict', m.get('model', m)); m = m if isinstance(m, dict) else m.state_dict(); "
    'save_file({k: v.contiguous() for k, v in m.items() if isinstance(v, torch.Tensor)}, sys.argv[2])" IN OUT.safetensors'
)


class _Placeholder:
    """Stands for an object of any class that a file names: accepts all arguments and state, and ignores them."""

    parts: Mapping[Any, Any] = {}

    def __new__(cls, *args: Any, **options: Any) -> _Placeholder:
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.parts = state


def read_state_dict(url: str, storage_options: Mapping[str, Any] | None = None, *, averages: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, unwrapped, in their stored dtypes, mapped from the file where its format allows.

    Where an entry of moving averages, named as one of `averages`, lies beside the state dict, the averages are returned instead. Raises
    TokenizerError for a file that is not a checkpoint, cannot be read without running code, or holds no tensors; MissingObjectError where
    there is no file.
    """
    with local_path(url, storage_options, "a state dict, as safetensors or from torch.save") as (path, where):
        try:
            with open(path, "rb") as file:
                start = file.read(9)
            state = _safetensors(path, where) if _is_safetensors(start) else _torch_file(path, start[:8], where)
        except OSError as error:
            raise TokenizerError(f"{where}: it cannot be read ({error}); expected a checkpoint. Check its permissions") from error
    tensors = {
        key: value for key, value in _unwrapped(state, averages, where).items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise TokenizerError(
            f"{where}: no tensors in it, its keys are {_some(state)}; expected a state dict, bare or under {', '.join(WRAPPERS)}"
        )
    return _without_prefixes(tensors)


def _is_safetensors(start: bytes) -> bool:
    return len(start) > 8 and int.from_bytes(start[:8], "little") < _SAFETENSORS_HEADER_LIMIT and start[8:9] == b"{"


def _safetensors(path: str, where: str) -> dict[str, Tensor]:
    try:
        loaded: dict[str, Tensor] = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        size = Path(path).stat().st_size
        raise TokenizerError(f"{where}: not a whole safetensors file ({error}); {size:,} bytes. Copy it again") from None
    return loaded


def _torch_file(path: str, start: bytes, where: str) -> Mapping[Any, Any]:
    archived = zipfile.is_zipfile(path)
    if archived:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise TokenizerError(
                    f"{where}: this is a TorchScript program; expected a state dict. It is for `import tokenizer --kind torchscript`"
                )
    named: set[str] = set()
    try:
        named = _named_classes(path, archived)
        _check_harmless(named, where)
        strangers: list[Any] = [(_Placeholder, name) for name in named]
        with warnings.catch_warnings(), torch.serialization.safe_globals(strangers):
            warnings.simplefilter("ignore")  # torch warns of pickle protocols that it does not write
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=archived)
    except TokenizerError:
        raise
    except Exception as error:  # hostile bytes may raise any type of error
        if not start.startswith(_TORCH_STARTS):  # torch's message would speak of a pickle, which these bytes are not
            raise TokenizerError(f"{where}: {_not_a_checkpoint(path, start)}. Is this the right file?") from None
        foreign = sorted(name for name in named if not name.startswith(_KNOWN))
        if foreign:
            raise TokenizerError(
                f"{where}: it holds Python objects that only their own code can open: {shorten(foreign, 200)}. {_CONVERT}"
            ) from None
        reason = shorten((str(error).strip() or type(error).__name__).splitlines()[0], 160)
        raise TokenizerError(f"{where}: {_not_a_checkpoint(path, start)} ({type(error).__name__}: {reason})") from None
    state = _tensors_of(loaded, where) if isinstance(loaded, _Placeholder) else loaded
    if not isinstance(state, Mapping):
        raise TokenizerError(f"{where}: it holds a {type(loaded).__name__}; expected a state dict, which is a dictionary of tensors")
    return state


def _named_classes(path: str, archived: bool) -> set[str]:
    """Return the classes and functions that a file of torch.save names, as torch spells them. Reads the pickle and builds nothing.

    torch never asks for the names that it knows itself, and always refuses those of `os` and `sys`.
    """
    found: set[str] = set()
    if archived:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.rpartition("/")[2] == "data.pkl":
                    with archive.open(name) as record:
                        found |= _globals_in(record)
        return found
    with open(path, "rb") as file:
        for _ in range(_OLD_FORMAT_PICKLES):
            found |= _globals_in(file)
    return found


def _check_harmless(named: set[str], where: str) -> None:
    hostile = sorted(name for name in named if name.startswith(_HOSTILE))
    if hostile:
        raise TokenizerError(
            f"{where}: it asks for {', '.join(hostile)[:200]}, which run commands and which no checkpoint needs; nothing of it was run. "
            "Do not use this file: get it from its project"
        )


def _globals_in(file: Any) -> set[str]:
    found = set()
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[module, name]
            found.add(f"{IMPORT_MAPPING.get(module, module)}.{name}")
    return found


def _tensors_of(pickled: _Placeholder, where: str, seen: frozenset[int] = frozenset()) -> dict[str, Tensor]:
    """Return the state dict of a pickled module: the tensors of the module and of the modules within it, by name."""
    if len(seen) > MAX_DEPTH:
        raise TokenizerError(f"{where}: a pickled module holds modules more than {MAX_DEPTH} deep; expected a network")
    parts = pickled.parts
    passing = parts.get("_non_persistent_buffers_set") or ()
    found: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        entries = parts.get(kind)
        for name, value in entries.items() if isinstance(entries, Mapping) else ():
            if isinstance(value, Tensor) and name not in passing:
                found[str(name)] = value
    inner = parts.get("_modules")
    for name, module in inner.items() if isinstance(inner, Mapping) else ():
        if isinstance(module, _Placeholder) and id(module) not in seen:
            found |= {f"{name}.{key}": value for key, value in _tensors_of(module, where, seen | {id(module)}).items()}
    return found


def _unwrapped(state: Mapping[Any, Any], averages: Sequence[str], where: str) -> Mapping[Any, Any]:
    for _ in range(MAX_WRAPPERS):
        entries = (_opened(state.get(key), where) for key in (*averages, *WRAPPERS))
        inner = next((entry for entry in entries if isinstance(entry, Mapping) and entry), None)
        if inner is None:
            break
        state = inner
    return state


def _opened(value: Any, where: str) -> Any:
    return _tensors_of(value, where) if isinstance(value, _Placeholder) else value


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of the network itself, without the other parts of a latent diffusion model."""
    tensors = {key.replace(COMPILED, ""): value for key, value in tensors.items()}
    while all(key.startswith(PARALLEL) for key in tensors):
        tensors = {key.removeprefix(PARALLEL): value for key, value in tensors.items()}
    first_stage = {key.removeprefix(FIRST_STAGE): value for key, value in tensors.items() if key.startswith(FIRST_STAGE)}
    return first_stage or tensors


def _not_a_checkpoint(path: str, start: bytes) -> str:
    size = Path(path).stat().st_size
    return f"{size:,} bytes that begin with {shorten(start)} are no state dict; expected safetensors or torch's format"


def _some(state: Mapping[Any, Any]) -> str:
    return ", ".join(shorten(key) for key in list(state)[:4]) or "none"
