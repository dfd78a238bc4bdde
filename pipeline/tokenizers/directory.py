"""A tokenizer on a store: `tokenizer.json` (sealed) and its tensors, codebook and weights. Equal tokenizers give equal bytes."""

from __future__ import annotations

import mmap
import tempfile
from typing import Any, cast

import numpy as np
from safetensors.numpy import save_file

from tokenshards import __version__
from tokenshards.pipeline.canonical import seal, sha256_hex, unseal
from tokenshards.pipeline.errors import CorruptObjectError, TokenizerError, shorten
from tokenshards.pipeline.shards.codebook import load_codebook
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.split_index import refuse_split_root
from tokenshards.pipeline.shards.version import FORMAT_VERSION, check_version
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Tables, Tokenizer, WeightedTokenizer, codebook_sha256
from tokenshards.pipeline.tokenizers.registry import load_family

__all__ = ["load_spec", "load_statistics", "load_tokenizer", "open_tokenizer", "resolve_tokenizer", "save_tokenizer"]

JSON_NAME = "tokenizer.json"
CODEBOOK_NAME = "codebook.safetensors"
WEIGHTS_NAME = "weights.safetensors"


def save_tokenizer(tokenizer: Tokenizer, store: Store, prefix: str = "", statistics: dict[str, Any] | None = None) -> dict[str, str]:
    """Write the tokenizer below `prefix`, its tensors first; return the SHA-256 of each written path.

    Raises TokenizerError where codebook or weights differ from those that the spec names.
    """
    spec, tables = tokenizer.spec, tokenizer.codebook()
    weights = tokenizer.weights() if isinstance(tokenizer, WeightedTokenizer) else {}
    _check_tensors(spec, "codebook", tables, spec.codebook.sha256 if spec.codebook else None)
    _check_tensors(spec, "weights", weights, spec.weights_sha256 or None)
    written = {
        _join(prefix, name): _write_tensors(store, _join(prefix, name), tensors)
        for name, tensors in ((CODEBOOK_NAME, tables), (WEIGHTS_NAME, weights))
        if tensors
    }
    path = _join(prefix, JSON_NAME)
    data = seal(
        {
            "format_version": FORMAT_VERSION,
            "fingerprint": spec.fingerprint,
            "spec": spec.to_json(),
            "statistics": statistics or {},
            "made_by": {"tokenshards": __version__},
        }
    )
    store.write(path, data)
    return {**written, path: sha256_hex(data)}


def _write_tensors(store: Store, path: str, tensors: Tables) -> str:
    """Publish tensors as safetensors; return the SHA-256. The bytes go through a mapped file, because networks may be large."""
    with tempfile.NamedTemporaryFile(prefix="tokenshards-") as file:
        save_file({key: np.ascontiguousarray(tensors[key]) for key in sorted(tensors)}, file.name)
        with open(file.name, "rb") as written, mmap.mmap(written.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            store.write(path, cast(bytes, mapped))
            return sha256_hex(cast(bytes, mapped))


def load_tokenizer(store: Store, prefix: str = "") -> Tokenizer:
    """Read, check and build the tokenizer below `prefix`.

    Raises CorruptObjectError where a byte changed, FormatVersionError for a newer major version, MissingObjectError where a file is
    missing, TokenizerError where this version has no such family, or where the family needs a permission to run code.
    """
    spec, tables, made_by = _read(store, prefix)
    if spec.newer_json:
        raise TokenizerError(
            f"{_join(prefix, JSON_NAME)}: its spec has fields that this version does not know, so that images would get other ids; "
            f"its tokens can be read. To encode, use the version that wrote it ({shorten(made_by)})"
        )
    tokenizer = load_family(spec.family).from_saved(spec, tables)
    if tokenizer.spec.fingerprint != spec.fingerprint:
        raise TokenizerError(
            f"{_join(prefix, JSON_NAME)}: family {spec.family!r} of this version builds a tokenizer with fingerprint "
            f"{tokenizer.spec.fingerprint}, the file says {spec.fingerprint}; load it with the version that wrote it ({shorten(made_by)})"
        )
    return tokenizer


def load_spec(store: Store, prefix: str = "") -> TokenizerSpec:
    """Read and check the tokenizer below `prefix` as `load_tokenizer` does. Builds nothing and runs no code of the tokenizer."""
    return _read(store, prefix)[0]


def _read(store: Store, prefix: str) -> tuple[TokenizerSpec, Tables, Any]:
    value = _read_json(store, prefix)
    path = _join(prefix, JSON_NAME)
    spec = TokenizerSpec.from_json(value["spec"], path)
    if spec.fingerprint != value["fingerprint"]:
        raise CorruptObjectError(path, f"its fingerprint is {shorten(value['fingerprint'])}; its spec has {spec.fingerprint!r}")
    tables: Tables = {}
    if spec.codebook is not None:
        codebook_path = _join(prefix, CODEBOOK_NAME)
        tables = load_codebook(store.read(codebook_path), spec.codebook.sha256, codebook_path)
    if spec.weights_sha256:
        weights_path = _join(prefix, WEIGHTS_NAME)
        tables = {**tables, **load_codebook(store.read(weights_path), spec.weights_sha256, weights_path, "weights")}
    return spec, tables, value.get("made_by")


def load_statistics(store: Store, prefix: str = "") -> dict[str, Any]:
    """Return the measurements of the fit; {} where there are none."""
    statistics: dict[str, Any] = _read_json(store, prefix)["statistics"]
    return statistics


def resolve_tokenizer(url: str, storage_options: dict[str, Any] | None = None) -> tuple[Store, str]:
    """Return store and prefix of the tokenizer at `url`, a tokenizer directory or a dataset. TokenizerError where there is none."""
    store = Store(url, storage_options=storage_options)
    for prefix in ("", "tokenizer"):
        if store.info(_join(prefix, JSON_NAME)) is not None:
            return store, prefix
    refuse_split_root(store)
    raise TokenizerError(
        f"{store.url}: no tokenizer here; looked for {JSON_NAME} (a tokenizer directory) and tokenizer/{JSON_NAME} (a dataset). "
        "Give the output of fit-tokenizer or of tokenize"
    )


def open_tokenizer(url: str, *, storage_options: dict[str, Any] | None = None) -> Tokenizer:
    """Return the tokenizer of a tokenizer directory or of a dataset, local or any fsspec URL. TokenizerError where there is none."""
    return load_tokenizer(*resolve_tokenizer(url, storage_options))


def _join(prefix: str, name: str) -> str:
    return f"{prefix.rstrip('/')}/{name}" if prefix else name


def _read_json(store: Store, prefix: str) -> dict[str, Any]:
    path = _join(prefix, JSON_NAME)
    value = unseal(store.read(path), path)
    check_version(str(value.get("format_version", "")), path)
    missing = {"fingerprint", "spec", "statistics"} - value.keys()
    if missing:
        raise CorruptObjectError(path, f"the keys {sorted(missing)} are missing; expected a tokenizer written by tokenshards")
    return value


def _check_tensors(spec: TokenizerSpec, what: str, tensors: Tables, expected: str | None) -> None:
    found = codebook_sha256(tensors) if tensors else None
    if found != expected:
        raise TokenizerError(
            f"{spec.family}: the sha256 of its {what} is {found}; the spec expects {expected}. This tokenizer is inconsistent"
        )
