"""zstd for small data through pyarrow, which every installation has; only compressed sources need the package zstandard."""

from __future__ import annotations

__all__ = ["compress", "decompress"]

# pyarrow is imported inside the functions: tokenizers import this module through codebook.py and do not need pyarrow.


def compress(data: bytes, level: int) -> bytes:
    """Return a zstd frame whose header states the size of its content."""
    import pyarrow as pa

    packed: bytes = pa.Codec("zstd", compression_level=level).compress(data, asbytes=True)
    return packed


def decompress(data: bytes, limit: int) -> bytes:
    """Return the content of a zstd frame; raises ValueError if it is damaged, truncated, or really longer than `limit` bytes."""
    import pyarrow as pa

    if not data:
        raise ValueError("0 bytes are not a zstd frame")
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            content: bytes = stream.read(limit + 1)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"not a whole zstd frame ({error})") from None
    if len(content) > limit:
        raise ValueError(f"a zstd frame with more than {limit:,} bytes of content; expected at most {limit:,}")
    return content
