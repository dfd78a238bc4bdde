"""Small pieces of zstd through pyarrow, which every installation has; zstandard is needed for sources that are compressed, alone."""

from __future__ import annotations

__all__ = ["compress", "decompress"]

# pyarrow is imported where it is used: a tokenizer has its tables' digest from the module that packs them, and needs no pyarrow.


def compress(data: bytes, level: int) -> bytes:
    """Return a frame that says how long its content is."""
    import pyarrow as pa

    packed: bytes = pa.Codec("zstd", compression_level=level).compress(data, asbytes=True)
    return packed


def decompress(data: bytes, limit: int) -> bytes:
    """Return the content of a frame; ValueError where it is damaged, cut short or longer than `limit` bytes, whatever its header says."""
    import pyarrow as pa

    if not data:
        raise ValueError("0 bytes are no frame of zstd")
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            content: bytes = stream.read(limit + 1)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"not a whole frame of zstd ({error})") from None
    if len(content) > limit:
        raise ValueError(f"a frame of zstd that holds more than {limit:,} bytes; expected no more than that")
    return content
