"""Versions, column names and Arrow schemas of the shard format. SPEC.md says what each column means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import pyarrow as pa

from tokenshards.pipeline.shards.version import FORMAT_VERSION, NEWEST_VERSION, PUBLISHED_VERSION, check_version, version_numbers

__all__ = [
    "FORMAT_VERSION",
    "KEY_PREFIX",
    "META_PREFIX",
    "NEWEST_VERSION",
    "PUBLISHED_VERSION",
    "VIEW_NAMES",
    "LabelType",
    "MetaTypes",
    "check_version",
    "label_arrow_type",
    "quarantine_schema",
    "row_schema",
    "version_numbers",
]

KEY_PREFIX = "tokenshards."
"""Prefix of our keys in the key-value metadata of a Parquet footer."""

META_PREFIX = "meta."

VIEW_NAMES = ("crop", "flip")
"""Columns that exist only in shards with several views per image."""

LabelType: TypeAlias = Literal["int64", "string"] | None
MetaTypes: TypeAlias = Mapping[str, Literal["string", "int64", "float64", "bool"]]

_META_ARROW = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}


def label_arrow_type(label_type: LabelType) -> pa.DataType:
    """Return the Arrow type of the label column; without labels the column has type string and holds nulls."""
    return pa.int64() if label_type == "int64" else pa.dictionary(pa.int32(), pa.string())


def row_schema(label_type: LabelType, meta_types: MetaTypes, *, several_views: bool = False) -> pa.Schema:
    """Return all columns except the token columns, in file order; the token columns stand before `orig_width`."""
    crop = pa.list_(pa.field("element", pa.float32(), nullable=False), 4)
    views = [pa.field("crop", crop, nullable=False), pa.field("flip", pa.bool_(), nullable=False)]
    return pa.schema(
        [
            pa.field("sample_id", pa.string(), nullable=False),
            pa.field("view", pa.int16(), nullable=False),
            pa.field("label", label_arrow_type(label_type)),
            *(pa.field(META_PREFIX + name, _META_ARROW[meta_types[name]]) for name in sorted(meta_types)),
            pa.field("orig_width", pa.int32(), nullable=False),
            pa.field("orig_height", pa.int32(), nullable=False),
            pa.field("orig_bytes", pa.int64(), nullable=False),
            *(views if several_views else ()),
        ]
    )


def quarantine_schema() -> pa.Schema:
    """Return the columns of a quarantine file: one row per input that failed permanently."""
    return pa.schema(
        [
            *(pa.field(name, pa.string(), nullable=False) for name in ("sample_id", "uri", "stage", "reason", "detail")),
            pa.field("label", pa.string()),
            pa.field("data", pa.binary()),
        ]
    )
