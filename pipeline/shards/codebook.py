"""The codebook as it travels: its digest, and its packed form for a shard's footer."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tokenshards.pipeline.canonical import canonical_json, sha256_hex
from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.pipeline.shards.zstd import compress, decompress

__all__ = ["FOOTER_LIMIT_BYTES", "Tables", "carries_codebook", "codebook_sha256", "load_codebook", "pack_codebook", "unpack_codebook"]

Tables: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""Code vectors [K, D] of each level, named `level_0`, `level_1`, …"""

FOOTER_LIMIT_BYTES = 1 << 20
"""Codebooks whose safetensors form is larger stay in tokenizer/codebook.safetensors alone."""

FOOTER_EVERY = 16


def carries_codebook(shard: int) -> bool:
    """Whether shard number `shard` holds a copy of the codebook: one in 16, enough to repair from and nearly free."""
    return shard % FOOTER_EVERY == 0


def codebook_sha256(tables: Tables) -> str:
    """Return a SHA-256 over sorted names, dtypes, shapes and bytes, so the file that holds the tables does not matter."""
    parts = []
    for name in sorted(tables):
        table = np.ascontiguousarray(tables[name])
        little = table.astype(table.dtype.newbyteorder("<"), copy=False)
        parts.append([name, str(table.dtype.name), list(table.shape), sha256_hex(little.tobytes())])
    return sha256_hex(canonical_json(parts))


def pack_codebook(tables: Tables) -> str | None:
    """Return base64 of zstd of the safetensors bytes, or None when those exceed FOOTER_LIMIT_BYTES."""
    data = save({name: np.ascontiguousarray(tables[name]) for name in sorted(tables)})
    if len(data) > FOOTER_LIMIT_BYTES:
        return None
    return base64.b64encode(compress(data, 19)).decode()


def unpack_codebook(text: str | bytes, sha256: str, where: str) -> dict[str, npt.NDArray[Any]]:
    """Return the tables of `pack_codebook`; CorruptObjectError unless their digest is `sha256`."""
    try:
        data = decompress(base64.b64decode(text, validate=True), FOOTER_LIMIT_BYTES)
    except (binascii.Error, ValueError) as error:
        raise CorruptObjectError(where, f"the packed codebook cannot be decoded ({error})") from None
    return load_codebook(data, sha256, where)


def load_codebook(data: bytes, sha256: str, where: str, what: str = "codebook") -> dict[str, npt.NDArray[Any]]:
    """Return the tables of safetensors bytes; CorruptObjectError unless their digest is `sha256`. `what` they are is for the message."""
    try:
        tables: dict[str, npt.NDArray[Any]] = load(data)
        found = codebook_sha256(tables)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptObjectError(where, f"no {what} in safetensors ({error}); {len(data)} bytes") from None
    if found != sha256:
        raise CorruptObjectError(where, f"the sha256 of the {what} is {found}; the tokenizer's spec expects {sha256}")
    return tables
