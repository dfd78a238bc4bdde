"""Small files: what counts as their bytes, what comes back, and which settings there are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, features

from tests.contracts.tokenizer_contract import sample_images
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.quality.fidelity import psnr
from tokenshards.pipeline.tokenizers.pixels.small_file import SmallFile, resized, scan_bytes

IMAGE = sample_images(1, 32)[0]


def jpeg_of(image: np.ndarray, **settings: object) -> bytes:
    room = io.BytesIO()
    Image.fromarray(image).save(room, "JPEG", **settings)
    return room.getvalue()


@pytest.mark.parametrize("quality", [1, 50, 95])
def test_jpeg_counts_its_scan_alone(quality: int) -> None:
    """The header of a file, cut off here by searching the marker, is equal for all images of a size and a quality."""
    data, other = (jpeg_of(image, quality=quality, subsampling=2) for image in (IMAGE, sample_images(1, 32, seed=5)[0]))
    start = data.index(b"\xff\xda")
    header = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    assert data[:header] == other[:header] and data[-2:] == b"\xff\xd9"
    assert scan_bytes(data) == len(data) - header - 2
    assert SmallFile(format="jpeg", side=32, quality=quality).stored(IMAGE)[0] == scan_bytes(data)


def test_webp_counts_the_whole_file() -> None:
    room = io.BytesIO()
    Image.fromarray(IMAGE).save(room, "WEBP", quality=40, method=6)
    count, back = SmallFile(format="webp", side=32, quality=40).stored(IMAGE)
    assert count == len(room.getvalue())
    np.testing.assert_array_equal(back, np.asarray(Image.open(room).convert("RGB")))


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("side", [1, 7, 16, 32])
def test_an_image_comes_back_in_its_own_size(format: str, side: int) -> None:
    file = SmallFile(format=format, side=side, quality=80)
    count, back = file.stored(IMAGE)
    assert back.shape == (side, side, 3) and count > 0
    passed = file.passed(IMAGE)
    assert passed.shape == IMAGE.shape and passed.dtype == np.uint8
    np.testing.assert_array_equal(passed, resized(back, 32))


def test_quality_and_colour_resolution_reach_the_file() -> None:
    found = {quality: SmallFile(format="jpeg", side=32, quality=quality) for quality in (5, 50, 95)}
    counts = [file.stored(IMAGE)[0] for file in found.values()]
    fidelity = [psnr(IMAGE, file.passed(IMAGE)) for file in found.values()]
    assert counts == sorted(counts) and fidelity == sorted(fidelity) and counts[0] < counts[-1]
    for name, number in (("4:4:4", 0), ("4:2:0", 2)):
        read = Image.open(io.BytesIO(jpeg_of(IMAGE, quality=50, subsampling=number)))
        assert JpegImagePlugin.get_sampling(read) == number
        wanted = np.asarray(read.convert("RGB"))
        np.testing.assert_array_equal(SmallFile(format="jpeg", side=32, quality=50, subsampling=name).stored(IMAGE)[1], wanted)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"format": "avif"}, "format is 'avif'; expected jpeg or webp"),
        ({"side": 0}, "side is 0; expected at least 1 pixel"),
        ({"quality": 101}, "quality is 101; expected 0 to 100"),
        ({"subsampling": "4:2:2"}, "subsampling is '4:2:2'; expected 4:4:4 or 4:2:0"),
        ({"format": "webp", "subsampling": "4:4:4"}, "subsampling is '4:4:4'; expected 4:2:0"),
    ],
)
def test_settings_that_there_are_not(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SmallFile(**{"format": "jpeg", "side": 8, "quality": 50, **settings})  # type: ignore[arg-type]


def test_a_pillow_without_the_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    SmallFile(format="jpeg", side=8, quality=50)
    with pytest.raises(ConfigError, match="this Pillow cannot write webp; install a Pillow that can, or leave webp out"):
        SmallFile(format="webp", side=8, quality=50)


def test_settings_survive_json() -> None:
    file = SmallFile(format="jpeg", side=8, quality=50, subsampling="4:4:4")
    assert SmallFile.from_json(file.to_json()) == file
