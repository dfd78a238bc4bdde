"""SeiT releases made by hand, from the words of the format and a loop over bytes: nothing of the package writes them."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.datasets import SilentReporter
from tokenshards.pipeline.config import PlanConfig
from tokenshards.pipeline.conversion.request import Outcome
from tokenshards.pipeline.interop.seit.importer import SeitImportRequest, import_seit

GRID = (3, 4)
SITES = 12
CODES = 391


def encode_loop(ids: Sequence[int]) -> bytes:
    out = bytearray()
    for code in ids:
        out += bytes([code]) if code < 255 else bytes([255, code - 255])
    return bytes(out)


def decode_loop(image: bytes) -> list[int] | None:
    """Ids as SeiT's reader takes them; None where it would lose or merge something: FF FF, or FF at the end."""
    ids, carry = [], 0
    for byte in image:
        if byte == 255:
            if carry:
                return None
            carry = 255
        else:
            ids.append(carry + byte)
            carry = 0
    return None if carry else ids


def some_images(count: int, *, codes: int = CODES, sites: int = SITES, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [encode_loop(ids) for ids in rng.integers(0, codes, (count, sites)).tolist()]


def some_codebook(codes: int = CODES, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, (codes, width)).astype(np.float32)


def npy_gz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return gzip.compress(buffer.getvalue())


def offsets_of(images: Sequence[bytes]) -> np.ndarray:
    return np.cumsum([0, *map(len, images)])


def write_release(
    folder: Path, images: Sequence[bytes], labels: Sequence[int] | None = None, *, codebook: np.ndarray | None = None, split: str = "train"
) -> Path:
    """Write a whole release; labels default to 0, 1, 2, 0, …"""
    folder.mkdir(parents=True, exist_ok=True)
    labels = [index % 3 for index in range(len(images))] if labels is None else labels
    (folder / f"imagenet1k-{split}-token.data.bin.gz").write_bytes(gzip.compress(b"".join(images)))
    (folder / f"imagenet1k-{split}-token.index.npy.gz").write_bytes(npy_gz(offsets_of(images)))
    (folder / f"imagenet1k-{split}-label.txt").write_text("".join(f"{label}\n" for label in labels))
    np.save(folder / "codebook.npy", some_codebook() if codebook is None else codebook)
    return folder


def write_synonyms(folder: Path, codes: int = CODES) -> bytes:
    data = json.dumps({str(code): [(code + step) % codes for step in (1, 2, 3)] for code in range(codes)}).encode()
    (folder / "synonyms.json").write_bytes(data)
    return data


def imported(src: Path | str, out: Path | str, **changes: Any) -> Outcome:
    reporter = changes.pop("reporter", None) or SilentReporter()
    plan = PlanConfig(shard_rows=changes.pop("shard_rows", None), codec=changes.pop("codec", "default"))
    request = SeitImportRequest(source_url=str(src), out_url=str(out), **{"grid": GRID, "plan": plan, **changes})
    return import_seit(request, reporter)
