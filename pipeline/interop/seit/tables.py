"""The files beside SeiT's token files: codebook, synonym table, class names. All are checked, and no code in them is run.

Shapes: K codes, D width of a code vector.
"""

from __future__ import annotations

import io
import json
import posixpath
from typing import Any

import numpy as np
import numpy.typing as npt
from fsspec.core import split_protocol

from tokenshards.pipeline.errors import ConfigError, MissingObjectError, NotFoundError, SourceError, TokenshardsError, shorten
from tokenshards.pipeline.interop.seit.bytes import MAX_CODES
from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.storage.store import Store, open_parent

__all__ = ["import_torch", "nearest_codes", "read_class_names", "read_codebook", "read_named", "read_synonyms"]

CODEBOOK_NAMES = ("codebook.safetensors", "codebook.npy", "codebook.ckpt", "codebook.pt", "codebook.pth")
SMALLEST_NORM = 1e-12


def read_class_names(path: str, storage_options: dict[str, Any], classes: int) -> tuple[str, ...]:
    """Return the class names from a file with one name per line; raises ConfigError for a missing, empty or repeated name."""
    names = [line.strip() for line in read_named(path, storage_options).decode("utf-8", "replace").removesuffix("\n").split("\n")]
    if len(names) < classes:
        raise ConfigError(f"--classes {path}: {len(names)} names; the labels go up to {classes - 1}, so at least {classes} are expected")
    firsts = {name: number for number, name in reversed(list(enumerate(names, 1)))}
    for number, name in enumerate(names, 1):
        if not name or firsts[name] != number:
            fault = "is empty" if not name else f"is {name!r} as line {firsts[name]}"
            raise ConfigError(f"--classes {path}: line {number} {fault}; expected a unique name for each class")
    return tuple(names)


def read_codebook(store: Store, path: str | None) -> npt.NDArray[np.float32]:
    """Return the codebook [K, D] at `path` (.ckpt, .safetensors or .npy), or the one in the split's folder.

    A .ckpt is read with torch.load(weights_only=True), so no code in it is run. Raises SourceError if there is no codebook, ConfigError if
    torch is missing or the file holds anything but one matrix of finite numbers with at most 510 rows.
    """
    if path is None:
        here = sorted(info.path for info in store.list() if posixpath.basename(info.path) in CODEBOOK_NAMES)
        here.sort(key=lambda name: CODEBOOK_NAMES.index(posixpath.basename(name)))
        if not here:
            raise SourceError(f"{store.url}: found none of {', '.join(CODEBOOK_NAMES)}; give the codebook of these tokens with --codebook")
        where, data = store.place(here[0]), store.read(here[0])
    else:
        where, data = path, read_named(path, store.storage_options)
    table = _matrix(data, where)
    if table.ndim != 2 or table.dtype.kind != "f" or 0 in table.shape:
        raise ConfigError(f"{where}: a tensor of {table.dtype} {list(table.shape)}; expected a codebook of floats [codes, width]")
    if len(table) > MAX_CODES:
        raise ConfigError(
            f"{where}: {len(table):,} rows; SeiT's byte code holds at most {MAX_CODES} codes. Give the codebook of these token files"
        )
    if not np.isfinite(table).all():
        raise ConfigError(f"{where}: row {int(np.argmin(np.isfinite(table).all(axis=1)))} has values that are not finite; expected numbers")
    codebook_KD: npt.NDArray[np.float32] = np.ascontiguousarray(table, dtype=np.float32)
    return codebook_KD


def _matrix(data: bytes, where: str) -> npt.NDArray[Any]:
    ending = posixpath.splitext(where)[1].lower()
    try:
        if ending == ".npy":
            return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
        if ending == ".safetensors":
            from safetensors.numpy import load

            tables: dict[str, npt.NDArray[Any]] = load(data)
            if len(tables) != 1:
                raise ConfigError(f"{where}: the tensors {shorten(sorted(tables))}; expected one, the codebook")
            return next(iter(tables.values()))
    except TokenshardsError:
        raise
    except Exception as error:  # both libraries may raise any type for damaged bytes
        raise ConfigError(f"{where}: cannot be read as {ending} ({type(error).__name__}: {shorten(str(error))})") from None
    torch = import_torch(f"{where}: reading it (unlike .safetensors and .npy)")
    try:
        tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch may raise any type for a damaged or unsafe file
        detail = shorten(str(error).partition("\n")[0])
        raise ConfigError(
            f"{where}: torch.load(weights_only=True) cannot read it ({type(error).__name__}: {detail}); expected a bare tensor"
        ) from None
    if not isinstance(tensor, torch.Tensor):
        inside = f"a dict with the keys {shorten(list(tensor))}" if isinstance(tensor, dict) else f"a {type(tensor).__name__}"
        raise ConfigError(f"{where}: {inside}; expected a bare tensor [codes, width]")
    matrix: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
    return matrix


def read_synonyms(store: Store, path: str | None, codes: int) -> bytes | None:
    """Return the checked bytes of the synonym table at `path` or in the split's folder, None if there is none.

    Raises ConfigError unless the table is a JSON object with a list of other ids for each id from 0 to codes - 1.
    """
    if path is None:
        here = next((info.path for info in store.list() if posixpath.basename(info.path) == "synonyms.json"), None)
        if here is None:
            return None
        where, data = store.place(here), store.read(here)
    else:
        where, data = path, read_named(path, store.storage_options)
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{where}: not JSON ({error}); expected an object such as {{"0": [17, 4]}}') from None
    wanted = {str(code) for code in range(codes)}
    if not isinstance(table, dict) or table.keys() != wanted:
        odd = sorted(wanted ^ table.keys())[:3] if isinstance(table, dict) else type(table).__name__
        raise ConfigError(f"{where}: its keys are not the ids 0 to {codes - 1} (see {odd}); expected the table of these tokens")
    for key, ids in table.items():
        if not isinstance(ids, list) or any(type(code) is not int or not 0 <= code < codes for code in ids):
            raise ConfigError(f"{where}: the entry of id {key} is {shorten(ids)}; expected a list of ids from 0 to {codes - 1}")
    return data


def read_named(path: str, storage_options: dict[str, Any]) -> bytes:
    """Return the bytes of the file at a local path or URL. Raises NotFoundError where there is none."""
    store, name = open_parent(path, storage_options if split_protocol(path)[0] is not None else {})
    try:
        return store.read(name)
    except MissingObjectError:
        raise NotFoundError(path, "no such file") from None


def nearest_codes(codebook_KD: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return for each code all other codes [K, K - 1], nearest by cosine first; ties in ascending order."""
    rows_KD = codebook_KD.astype(np.float64)
    rows_KD /= np.maximum(np.linalg.norm(rows_KD, axis=1, keepdims=True), SMALLEST_NORM)
    cosine_KK = rows_KD @ rows_KD.T
    np.fill_diagonal(cosine_KK, np.inf)
    order_KK: npt.NDArray[np.int64] = np.argsort(-cosine_KK, axis=1, kind="stable")
    return order_KK[:, 1:]


def import_torch(what: str) -> Any:
    """Return the torch module; raises ConfigError, which says how to install it, for `what`."""
    with optional_import(f"{what} needs torch", extra="train"):
        import torch
    return torch
