from __future__ import annotations

import numpy as np
import pytest
import zstandard

from tokenshards.pipeline.shards.zstd import compress, decompress

SOME = {"empty": b"", "equal": bytes(5000), "mixed": np.random.default_rng(0).integers(0, 5, 20_000).astype("u1").tobytes()}


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("level", [3, 9, 19])
def test_frames_go_both_ways_between_here_and_zstandard(name: str, level: int) -> None:
    data = SOME[name]
    assert zstandard.decompress(compress(data, level)) == data
    assert decompress(compress(data, level), len(data)) == decompress(zstandard.compress(data, level), len(data)) == data
    stream = zstandard.ZstdCompressor(level).compressobj()  # its header does not say how long the content is
    assert decompress(stream.compress(data) + stream.flush(), len(data)) == data


def test_damage_and_too_much_are_value_errors() -> None:
    frame = compress(SOME["mixed"], 9)
    for damaged in (frame[:-3], b"nonsense", frame[:10] + b"xx" + frame[12:]):
        with pytest.raises(ValueError, match="not a whole zstd frame"):
            decompress(damaged, 1 << 20)
    with pytest.raises(ValueError, match="more than 19,999 bytes"):
        decompress(frame, 19_999)
    with pytest.raises(ValueError, match="0 bytes are not a zstd frame"):
        decompress(b"", 10)
