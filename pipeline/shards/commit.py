"""Commit records. A shard is done if and only if its commit is intact and names existing files of the right size."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.canonical import known_fields, seal, sha256_hex, unseal
from tokenshards.pipeline.errors import CorruptObjectError
from tokenshards.pipeline.records import Untaken
from tokenshards.pipeline.shards.version import ACCOUNTS_VERSION, FORMAT_VERSION, MASK_VERSION, check_version
from tokenshards.pipeline.shards.zstd import compress, decompress
from tokenshards.pipeline.storage.store import Store

__all__ = [
    "Commit",
    "ObjectRef",
    "commit_path",
    "merge_labels",
    "object_path",
    "pack_counts",
    "read_commit",
    "sort_labels",
    "unpack_counts",
    "write_object",
]

MAX_COMMIT_VOCABULARY = 1 << 20
_ACCOUNTS_OF_1_1 = ("absent", "absent_example", "left_out", "left_out_examples", "lost", "lost_example")
_MASKS_OF_1_3 = ("masked_rows", "mask_pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """A content-named object: path below OUT, sha256 and size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The result of one shard. The last put of a commit wins; every put commits a correct result."""

    plan_id: str
    shard: int
    data: ObjectRef | None
    """None if every input of the shard failed."""
    quarantine: ObjectRef | None
    """None if no input failed."""
    rows: int
    quarantined: int
    reasons: dict[str, int]
    """Reason -> number of quarantined inputs."""
    inputs_seen: int
    bytes_in: int
    """Bytes of the encoded images of the committed rows."""
    token_bytes: int
    """Compressed bytes of the token columns."""
    id_count: int
    labels: list[list[Any]]
    """[label, rows] pairs in the order of `sort_labels`."""
    histogram: list[str]
    """Id counts per level, see `pack_counts`; empty for vocabularies above 2**20."""
    attempt: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)
    absent: int = 0
    """Inputs that the source itself says are not there."""
    absent_example: str = ""
    """Sample id of the first of them."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rule -> number of files of containers that the rule left out."""
    left_out_examples: dict[str, str] = field(default_factory=dict)
    """Rule -> the first of these files."""
    lost: int = 0
    """Further inputs of damaged containers, estimated by bytes."""
    lost_example: str = ""
    """Sample id of the first damage."""
    masked_rows: int = 0
    """Rows with a mask."""
    mask_pixels: list[list[int]] = field(default_factory=list)
    """[value, pixels] pairs over their masks, in ascending order of the value."""

    @property
    def untaken(self) -> Untaken:
        """What became neither a row nor a quarantine row."""
        return Untaken(**{name: getattr(self, name) for name in _ACCOUNTS_OF_1_1})

    @property
    def left_out_count(self) -> int:
        """Files of containers that any rule left out."""
        return self.untaken.left_out_count

    def to_bytes(self) -> bytes:
        """Return the sealed canonical JSON of this commit; it is of format 1.0 unless it counts what later versions count."""
        value = asdict(self)
        empty = [name for name in (*_ACCOUNTS_OF_1_1, *_MASKS_OF_1_3) if not value[name]]
        accounts = ACCOUNTS_VERSION if any(value[name] for name in _ACCOUNTS_OF_1_1) else FORMAT_VERSION
        version = MASK_VERSION if self.masked_rows else accounts
        return seal({"format_version": version, **{name: part for name, part in value.items() if name not in empty}})

    @classmethod
    def from_bytes(cls, data: bytes, path: str) -> Commit:
        """Parse and check a commit; raises CorruptObjectError or FormatVersionError."""
        value = unseal(data, path)
        check_version(str(value.pop("format_version", "")), path)
        try:
            refs = {
                name: None if value[name] is None else ObjectRef(**known_fields(ObjectRef, value[name])) for name in ("data", "quarantine")
            }
            return cls(**{**known_fields(cls, value), **refs})
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptObjectError(path, f"not a commit record ({type(error).__name__}: {error})") from None


def commit_path(plan_id: str, shard: int) -> str:
    """Return the path of a shard's commit."""
    return f"commits/{plan_id}/{shard:08d}.json"


def object_path(folder: str, shard: int, sha256: str) -> str:
    """Return the content name of a data or quarantine object."""
    return f"{folder}/{shard:08d}-{sha256[:12]}.parquet"


def write_object(store: Store, folder: str, shard: int, data: bytes) -> ObjectRef:
    """Publish `data` under its content name and return the reference to it."""
    digest = sha256_hex(data)
    reference = ObjectRef(path=object_path(folder, shard, digest), sha256=digest, size=len(data))
    store.write(reference.path, data)
    return reference


def read_commit(store: Store, plan_id: str, shard: int) -> tuple[Commit, str]:
    """Return the commit of a shard and the sha256 of its bytes; raises CorruptObjectError, also if it names another shard."""
    path = commit_path(plan_id, shard)
    data = store.read(path)
    commit = Commit.from_bytes(data, path)
    if (commit.plan_id, commit.shard) != (plan_id, shard):
        raise CorruptObjectError(path, f"names shard {commit.shard} of plan {commit.plan_id[:12]}; expected {shard} of {plan_id[:12]}")
    return commit, sha256_hex(data)


def pack_counts(counts_V: npt.NDArray[np.integer[Any]]) -> str:
    """Return id counts as base64 of zstd-compressed little-endian uint64: a few hundred bytes for a few hundred ids."""
    return base64.b64encode(compress(counts_V.astype("<u8").tobytes(), 9)).decode()


def unpack_counts(text: str, size: int) -> npt.NDArray[np.int64]:
    """Return the `size` counts of one level from the output of `pack_counts`."""
    counts = np.frombuffer(decompress(base64.b64decode(text), 8 * size), "<u8").astype(np.int64)
    if counts.shape != (size,):
        raise ValueError(f"the histogram has {counts.size} counts; expected {size}")
    return counts


def merge_labels(into: dict[Any, int], labels: list[list[Any]]) -> None:
    """Add [label, rows] pairs to the counts in `into`."""
    for label, rows in labels:
        into[label] = into.get(label, 0) + rows


def sort_labels(counts: Mapping[Any, int]) -> list[list[Any]]:
    """Return [label, rows] pairs, integers before strings, each ascending."""
    return [[label, counts[label]] for label in sorted(counts, key=lambda label: (isinstance(label, str), label))]
