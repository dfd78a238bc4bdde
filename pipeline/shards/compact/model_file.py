"""The model of `compact` as a file in `tokenizer/` and as text in a footer, and where a reader finds the model of a shard."""

from __future__ import annotations

import base64
import binascii
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from tokenshards.pipeline.errors import CorruptObjectError, MissingObjectError
from tokenshards.pipeline.shards.codebook import FOOTER_LIMIT_BYTES, codebook_sha256, load_codebook
from tokenshards.pipeline.shards.compact.contexts import Slot, base_count, slots_of
from tokenshards.pipeline.shards.compact.model import CompactModel, LevelModel
from tokenshards.pipeline.shards.schema import KEY_PREFIX
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.shards.zstd import compress, decompress
from tokenshards.pipeline.storage.object_file import RangeReader
from tokenshards.pipeline.storage.store import Store

__all__ = [
    "COMPACT",
    "Models",
    "load_model",
    "model_bytes",
    "model_of_name",
    "model_path",
    "model_sha256",
    "models_of",
    "packed_model",
    "remember_model",
    "require_fit",
    "unpacked_model",
]

COMPACT = "compact"
Models: TypeAlias = Callable[[str], CompactModel]
"""Returns the model with a digest; raises CorruptObjectError or MissingObjectError."""

PARTS = ("bases", "biases", "paths", "slots", "tables", "weights", "down")
KEPT_MODELS = 16
SEARCHED_SHARDS = 256
"""Shards whose footers are searched for a model that is lost; one of sixteen has a copy."""
MODEL_KEY = f"{KEY_PREFIX}codec.model".encode()
_kept: OrderedDict[str, CompactModel] = OrderedDict()
_guard = threading.Lock()


def model_of_name(name: str) -> str | None:
    """Return the digest in the name of a codec, `compact:SHA256`; None for another name."""
    family, _, sha256 = name.partition(":")
    return sha256 if family == COMPACT and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef") else None


def model_path(sha256: str) -> str:
    """Return the path of a model below the root of its dataset."""
    return f"tokenizer/{COMPACT}-{sha256[:12]}.safetensors"


def _tensors(model: CompactModel) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {}
    for number, level in enumerate(model.levels):
        slots = [[slot.level, *slot.step, slot.parent] for slot in level.slots]
        parts = (
            level.bases_BH,
            level.biases_V8,
            level.paths_K,
            np.array(slots, np.int32).reshape(len(slots), 5),
            level.tables_RH,
            level.weights_V8H,
            np.array([level.down], np.int32),
        )
        found |= {f"level_{number}.{name}": np.ascontiguousarray(part) for name, part in zip(PARTS, parts, strict=True)}
    return found


def model_sha256(model: CompactModel) -> str:
    """Return the digest of the integers of a model, which its file format does not change."""
    return codebook_sha256(_tensors(model))


def model_bytes(model: CompactModel) -> bytes:
    """Return the file of a model, in safetensors format."""
    data: bytes = save(_tensors(model))
    return data


def load_model(data: bytes, sha256: str, where: str) -> CompactModel:
    """Return the model of a file; raises CorruptObjectError unless its digest is `sha256` and all of its integers are allowed."""
    tensors = load_codebook(data, sha256, where, "model of the codec compact")
    try:
        return _model(tensors)
    except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
        raise CorruptObjectError(where, f"not a model of the codec compact ({type(error).__name__}: {error})") from None


def _model(tensors: Mapping[str, npt.NDArray[Any]]) -> CompactModel:
    count = len(tensors) // len(PARTS)
    if set(tensors) != {f"level_{number}.{name}" for number in range(count) for name in PARTS} or not count:
        raise ValueError(f"its tensors are {', '.join(sorted(tensors)[:8])}; expected {', '.join(PARTS)} of each level")
    codes = [len(tensors[f"level_{number}.paths"]) for number in range(count)]
    levels = []
    for number in range(count):
        own = {name: tensors[f"level_{number}.{name}"] for name in PARTS}
        if own["slots"].ndim != 2 or own["slots"].shape[1] != 5 or own["down"].shape != (1,):
            raise ValueError(f"slots and down of level {number} are {own['slots'].shape} and {own['down'].shape}; expected [N, 5] and [1]")
        slots = tuple(Slot(int(row[0]), (int(row[1]), int(row[2]), int(row[3])), bool(row[4])) for row in own["slots"])
        if any(not 0 <= slot.level < count for slot in slots):
            raise ValueError(f"a slot of level {number} is of a level that there is not; expected 0 to {count - 1}")
        sizes = tuple(codes[slot.level] for slot in slots)
        integers = (own["tables"], own["bases"], own["weights"], own["biases"], int(own["down"][0]), own["paths"])
        level = LevelModel(slots, sizes, codes[number], *integers)
        level.check()
        levels.append(level)
    return CompactModel(tuple(levels))


def packed_model(model: CompactModel) -> str | None:
    """Return base64 of zstd of the file, or None if the file exceeds FOOTER_LIMIT_BYTES."""
    data = model_bytes(model)
    return base64.b64encode(compress(data, 19)).decode() if len(data) <= FOOTER_LIMIT_BYTES else None


def unpacked_model(text: str, sha256: str, where: str) -> CompactModel:
    """Return the model that `packed_model` packed; raises CorruptObjectError unless its digest is `sha256`."""
    try:
        data = decompress(base64.b64decode(text, validate=True), FOOTER_LIMIT_BYTES)
    except (binascii.Error, ValueError) as error:
        raise CorruptObjectError(where, f"the packed model of the codec compact cannot be decoded ({error})") from None
    return load_model(data, sha256, where)


def require_fit(model: CompactModel, spec: TokenizerSpec) -> None:
    """Raise ValueError unless the model is one for the ids of this tokenizer."""
    codes = tuple(level.codes for level in model.levels)
    if codes != spec.vocabulary:
        raise ValueError(f"the model of the codec compact is for vocabularies {codes}; the tokenizer has {spec.vocabulary}")
    for number, (level, known) in enumerate(zip(model.levels, slots_of(spec.layout), strict=True)):
        if set(level.slots) - set(known) or len(set(level.slots)) != len(level.slots):
            raise ValueError(f"the model of the codec compact has slots of level {number} that the layout {spec.layout.kind} has not")
        if len(level.bases_BH) != base_count(spec.layout):
            raise ValueError(f"the model of the codec compact has {len(level.bases_BH)} biases; the layout has {base_count(spec.layout)}")


def remember_model(sha256: str, model: CompactModel) -> CompactModel:
    """Keep a model for the readers of this process; return the one that was kept first."""
    with _guard:
        found = _kept.setdefault(sha256, model)
        _kept.move_to_end(sha256)
        while len(_kept) > KEPT_MODELS:
            _kept.popitem(last=False)
        return found


def models_of(store: Store) -> Models:
    """Return what finds the models of a dataset. This process reads each model once."""

    def find(sha256: str) -> CompactModel:
        with _guard:
            found = _kept.get(sha256)
        if found is not None:
            return found
        path = model_path(sha256)
        try:
            found = load_model(store.read(path), sha256, path)
        except (MissingObjectError, CorruptObjectError) as error:
            found = _from_footers(store, sha256)
            if found is None and isinstance(error, CorruptObjectError):
                raise
            if found is None:
                raise MissingObjectError(
                    path, "shards are coded with this model; run `tokenshards verify`, then `tokenshards repair`", place=store.place(path)
                ) from None
        return remember_model(sha256, found)

    return find


def _from_footers(store: Store, sha256: str) -> CompactModel | None:
    """Return the copy that a shard of a dataset has of a model which the dataset has lost."""
    for info in islice(store.list("shards"), SEARCHED_SHARDS):
        try:
            if store.is_local:
                source = pa.OSFile(store.join(info.path))
            else:
                source = pa.PythonFile(RangeReader(store, info.path, info.size), mode="r")
            with source:
                copy = (pq.read_metadata(source).metadata or {}).get(MODEL_KEY)
            if copy is not None:
                return unpacked_model(copy.decode(), sha256, info.path)
        except (pa.ArrowException, OSError, ValueError, CorruptObjectError, MissingObjectError):
            continue  # a damaged shard, or one of another model: the next one may have the copy
    return None
