"""The on-disk format, specified in SPEC.md. Readers start with `from tokenshards.pipeline.shards import open_dataset`.

Each name loads on first use, so importing this package, or `tokenshards.pipeline.shards.spec`, does not load Arrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenshards.pipeline.shards.codecs import codec_names, get_codec
    from tokenshards.pipeline.shards.dataset import Batch, Sample, TokenDataset, open_dataset
    from tokenshards.pipeline.shards.masks import MaskFormat, masks_of
    from tokenshards.pipeline.shards.reader import ShardReader
    from tokenshards.pipeline.shards.rows import ShardData
    from tokenshards.pipeline.shards.spec import CodebookInfo, Layout, Preprocess, TokenizerSpec
    from tokenshards.pipeline.shards.version import FORMAT_VERSION
    from tokenshards.pipeline.shards.writer import EncodedShard, ShardRows, encode_shard

__all__ = [
    "FORMAT_VERSION",
    "Batch",
    "CodebookInfo",
    "EncodedShard",
    "Layout",
    "MaskFormat",
    "Preprocess",
    "Sample",
    "ShardData",
    "ShardReader",
    "ShardRows",
    "TokenDataset",
    "TokenizerSpec",
    "codec_names",
    "encode_shard",
    "get_codec",
    "masks_of",
    "open_dataset",
]

_MODULES = ("spec", "version", "codecs", "masks", "rows", "reader", "dataset", "writer")
"""Where the names are: first the modules that do not load Arrow."""


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        home = import_module(f"{__name__}.{module}")
        if hasattr(home, name):
            return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
