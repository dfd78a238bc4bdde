"""The registry of codecs. A name says all of a codec but the model of `compact`, which lies in `tokenizer/` and in footers."""

from __future__ import annotations

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.shards.compact.codec import CompactCodec
from tokenshards.pipeline.shards.compact.model_file import COMPACT, Models, model_of_name
from tokenshards.pipeline.shards.list_codec import ListCodec
from tokenshards.pipeline.shards.token_columns import Codec

__all__ = ["check_codec", "codec_names", "get_codec", "needs_model", "same_codec"]


def _zstd(name: str, level: int) -> ListCodec:
    # 256 KiB pages are 1.3 % smaller than 1 MiB ones at level 3, because zstd then chooses its parameters for small inputs.
    return ListCodec(name, level, ("RLE_DICTIONARY",), page_bytes=1 << 18, row_group_rows=2048)


_CODECS: dict[str, Codec] = {
    "default": _zstd("default", 3),
    # The smaller encoding depends on the tokens (5 % either way), so the writer tries both. At level 19 large pages find more matches.
    "publish": ListCodec("publish", 19, ("RLE_DICTIONARY", "BYTE_STREAM_SPLIT"), page_bytes=1 << 24, row_group_rows=8192),
}
ZSTD_LEVELS = range(1, 23)


def codec_names() -> tuple[str, ...]:
    """Return the names that `--codec` takes; `zstd:N` stands for all zstd levels."""
    return (*_CODECS, COMPACT, "zstd:N")


def needs_model(asked: str) -> bool:
    """Whether a name that a user gave stands for a codec whose model is still to be fitted."""
    return asked == COMPACT


def same_codec(asked: str, name: str) -> bool:
    """Whether a name that a user gave is that of a plan, which names the model too."""
    return asked == name or (needs_model(asked) and model_of_name(name) is not None)


def check_codec(asked: str) -> None:
    """Raise ConfigError unless a user may ask for this codec."""
    if not needs_model(asked):
        get_codec(asked)


def get_codec(name: str, models: Models | None = None) -> Codec:
    """Return the codec of a plan or of a shard: one of the registry, `zstd:N`, which is `default` at zstd level N, or `compact:SHA256`.

    Raises ConfigError for any other name, and what `models` raises for a model that cannot be found.
    """
    if name in _CODECS:
        return _CODECS[name]
    family, _, level = name.partition(":")
    if family == "zstd" and level.isascii() and level.isdigit() and int(level) in ZSTD_LEVELS:
        return _zstd(f"zstd:{int(level)}", int(level))
    sha256 = model_of_name(name)
    if sha256 is not None and models is not None:
        return CompactCodec(models(sha256), sha256)
    raise ConfigError(f"codec {shorten(name)} does not exist; expected one of {', '.join(codec_names())} with N from 1 to 22")
