"""The codebook's digest, and its packed form in the footer of a shard."""

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

__all__ = ["FOOTER_LIMIT_BYTES", "Tables", "carries_copies", "codebook_sha256", "load_codebook", "pack_codebook", "unpack_codebook"]

Tables: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""Code vectors [K, D] of each level, named `level_0`, `level_1`, …"""

FOOTER_LIMIT_BYTES = 1 << 20
"""Largest safetensors size that goes into a footer; a larger codebook is only in tokenizer/codebook.safetensors."""

FOOTER_EVERY = 16


def carries_copies(shard: int) -> bool:
    """Return whether shard number `shard` holds copies of the codebook and the codec's model: one in 16 is enough for repair."""
    return shard % FOOTER_EVERY == 0


def codebook_sha256(tables: Tables) -> str:
    """Return a SHA-256 over sorted names, dtypes, shapes and bytes; it does not depend on the file format of the tables."""
    parts = []
    for name in sorted(tables):
        table = np.ascontiguousarray(tables[name])
        little = table.astype(table.dtype.newbyteorder("<"), copy=False)
        parts.append([name, str(table.dtype.name), list(table.shape), sha256_hex(little.tobytes())])
    return sha256_hex(canonical_json(parts))


def pack_codebook(tables: Tables) -> str | None:
    """Return base64 of zstd of the safetensors bytes, or None if those exceed FOOTER_LIMIT_BYTES."""
    data = save({name: np.ascontiguousarray(tables[name]) for name in sorted(tables)})
    if len(data) > FOOTER_LIMIT_BYTES:
        return None
    return base64.b64encode(compress(data, 19)).decode()


def unpack_codebook(text: str | bytes, sha256: str, where: str) -> dict[str, npt.NDArray[Any]]:
    """Return the tables that `pack_codebook` packed; raises CorruptObjectError unless their digest is `sha256`."""
    try:
        data = decompress(base64.b64decode(text, validate=True), FOOTER_LIMIT_BYTES)
    except (binascii.Error, ValueError) as error:
        raise CorruptObjectError(where, f"the packed codebook cannot be decoded ({error})") from None
    return load_codebook(data, sha256, where)


def load_codebook(data: bytes, sha256: str, where: str, what: str = "codebook") -> dict[str, npt.NDArray[Any]]:
    """Return tables from safetensors bytes; raises CorruptObjectError, which calls them `what`, unless their digest is `sha256`."""
    try:
        tables: dict[str, npt.NDArray[Any]] = load(data)
        found = codebook_sha256(tables)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptObjectError(where, f"not a {what} in safetensors format ({error}); {len(data)} bytes") from None
    if found != sha256:
        raise CorruptObjectError(where, f"the sha256 of the {what} is {found}; the tokenizer's spec expects {sha256}")
    return tables
