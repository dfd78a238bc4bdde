"""decode_image: every colour mode and format to known pixels, every kind of damage to its reason, bounded memory."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.pipeline.sources.zoo import (
    IGNORED,
    ORANGE,
    POLICY,
    TEAL,
    ZooCase,
    encoded,
    files,
    flat,
    huge_header,
    noise,
    oriented_jpeg,
    text_bomb,
)
from tokenshards.pipeline.config import ImageRules
from tokenshards.pipeline.errors import BadInput, ConfigError, Reason, Stage
from tokenshards.pipeline.images.decode import DECODER, DecodedImage, decode_image, image_extensions
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.sources.fetch import fetch_file
from tokenshards.pipeline.storage.store import Store

ZOO = files()


def outcome(store: Store, case: ZooCase) -> DecodedImage | Reason:
    info = store.info(case.name)
    size, version = (info.size, info.version) if info is not None else (-1, "")
    row = PlanRow(kind="file", sample_id=case.sample_id, path=case.name, size=size, version=version, inputs=1)
    try:
        return decode_image(fetch_file(store, row), POLICY)
    except BadInput as bad:
        assert bad.detail
        return bad.reason


@pytest.mark.parametrize("name", [name for name, (_, case) in ZOO.items() if case.expected != IGNORED], ids=lambda name: ascii(name)[:40])
def test_zoo(name: str, tmp_path: Path) -> None:
    data, case = ZOO[name]
    (tmp_path / name).write_bytes(data)
    result = outcome(Store(str(tmp_path)), case)
    if isinstance(case.expected, Reason):
        assert result == case.expected
        return
    assert isinstance(result, DecodedImage), result
    pixels = result.pixels_HWC
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert (result.width, result.height) == case.size
    halves = case.expected if isinstance(case.expected[0], tuple) else (case.expected, case.expected)
    for part, colour in zip((pixels[:, :13], pixels[:, 19:]), halves, strict=True):
        assert np.abs(part.reshape(-1, 3).astype(int) - colour).max() <= case.tolerance + 1, part.reshape(-1, 3).mean(0)
        assert np.abs(part.reshape(-1, 3).mean(0) - colour).max() <= case.tolerance


def test_the_zoo_is_large_enough() -> None:
    assert len(ZOO) >= 40
    assert {case.expected for _, case in ZOO.values() if isinstance(case.expected, Reason)} >= {
        Reason.EMPTY,
        Reason.NOT_AN_IMAGE,
        Reason.TRUNCATED,
        Reason.CORRUPT,
        Reason.TOO_MANY_PIXELS,
        Reason.UNSUPPORTED_MODE,
    }


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_agrees_with_pillow_and_can_be_left_alone(orientation: int) -> None:
    data = oriented_jpeg(orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = np.asarray(upright.resize((32, 32), Image.Resampling.BICUBIC), dtype=int)
    turned = decode_image(data, Preprocess(size=32, resize="squash", exif_orientation=True))
    assert np.abs(turned.pixels_HWC - expected).max() <= 2
    stored = decode_image(data, Preprocess(size=32, resize="squash"))
    assert (stored.width, stored.height) == Image.open(io.BytesIO(data)).size
    raw = np.asarray(Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(stored.pixels_HWC, raw)


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_full_decode_is_the_published_recipe(name: str) -> None:
    """Short side to size, then centre crop, for each filter: equal to Pillow's own resize of the centre square."""
    image = noise((200, 120))
    policy = Preprocess(size=60, filter=name, decode_mode="full")  # type: ignore[arg-type]
    expected = image.crop((40, 0, 160, 120)).resize((60, 60), Image.Resampling[name.upper()])
    difference = np.abs(decode_image(encoded(image, "PNG"), policy).pixels_HWC.astype(int) - np.asarray(expected))
    assert difference[4:-4, 4:-4].max() <= 1  # at its edge the crop has no neighbours, the box has


def test_squash_uses_the_whole_image_and_crop_the_centre() -> None:
    image = flat(size=(90, 30))
    image.paste(TEAL, (30, 0, 60, 30))
    data = encoded(image, "PNG")
    crop = decode_image(data, Preprocess(size=30, resize="crop")).pixels_HWC
    assert np.abs(crop[:, 2:-2].astype(int) - TEAL).max() <= 1
    squash = decode_image(data, Preprocess(size=30, resize="squash", filter="box")).pixels_HWC
    assert np.array_equal(squash[0, 2], ORANGE) and np.array_equal(squash[0, 15], TEAL) and np.array_equal(squash[0, 27], ORANGE)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (97, 64), (256, 256), (61, 300), (1201, 903)])
@pytest.mark.parametrize(("short_side", "size"), [(64, 64), (64, 56), (256, 224)])
def test_short_side_is_resize_and_then_a_cut_of_whole_pixels(width: int, height: int, short_side: int, size: int) -> None:
    """torchvision's Resize and CenterCrop, step by step, with its roundings."""
    image = noise((width // 4, height // 4)).resize((width, height))
    resized = (short_side, int(short_side * height / width)) if width <= height else (int(short_side * width / height), short_side)
    left, top = (int(round((side - size) / 2.0)) for side in resized)
    steps = image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    found = decode_image(encoded(image, "PNG"), Preprocess(size=size, short_side=short_side)).pixels_HWC
    assert np.array_equal(found, np.asarray(steps))


def test_short_side_of_a_very_long_image_makes_no_more_pixels_than_it_keeps() -> None:
    image = noise((400, 4)).resize((8000, 4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = decode_image(encoded(image, "PNG"), Preprocess(size=256, short_side=256)).pixels_HWC.astype(int)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; all of it would take 500,000
    middle = image.crop((3900, 0, 4100, 4)).resize((12_800, 256), Image.Resampling.BICUBIC).crop((6272, 0, 6528, 256))
    assert np.abs(found - np.asarray(middle).astype(int)).max() <= 2


def test_short_side_goes_with_whole_decoding_and_a_cut_alone() -> None:
    for changes in ({"resize": "squash"}, {"decode_mode": "dct_scaled"}, {"short_side": 31}):
        with pytest.raises(ConfigError, match="preprocess.short_side is 3.; expected at least 32, with resize crop and decode mode full"):
            Preprocess(**{"size": 32, "short_side": 36, **changes})  # type: ignore[arg-type]


def test_dct_scaled_is_close_to_full_and_not_the_same() -> None:
    smooth = noise((40, 30)).resize((1200, 900), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=90)
    full = decode_image(data, Preprocess(size=64, decode_mode="full"))
    scaled = decode_image(data, Preprocess(size=64, decode_mode="dct_scaled"))
    assert (scaled.width, scaled.height) == (1200, 900)
    difference = np.abs(full.pixels_HWC.astype(int) - scaled.pixels_HWC)
    assert 0 < difference.mean() < 4


def test_background_shows_through_transparency() -> None:
    data = encoded(flat((255, 0, 0, 0), "RGBA"), "PNG")
    policy = Preprocess(size=8, background=(1, 2, 3))
    assert np.array_equal(decode_image(data, policy).pixels_HWC, np.full((8, 8, 3), (1, 2, 3)))


def test_transparent_colour_does_not_bleed_into_its_neighbours() -> None:
    image = flat((0, 0, 0, 0), "RGBA", (64, 64))
    image.paste((250, 250, 250, 255), (0, 0, 37, 64))
    pixels = decode_image(encoded(image, "PNG"), Preprocess(size=16, background=(250, 250, 250))).pixels_HWC
    assert pixels.min() >= 248


def test_max_pixels_is_the_border() -> None:
    data = encoded(flat(size=(30, 20)), "PNG")
    assert decode_image(data, POLICY, ImageRules(max_pixels=600)).width == 30
    with pytest.raises(BadInput) as caught:
        decode_image(data, POLICY, ImageRules(max_pixels=599))
    assert caught.value.reason == Reason.TOO_MANY_PIXELS and caught.value.stage == Stage.DECODE
    assert "30 x 20" in caught.value.detail and "599" in caught.value.detail


def test_deterministic() -> None:
    data = encoded(noise(), "JPEG")
    assert np.array_equal(decode_image(data, POLICY).pixels_HWC, decode_image(data, POLICY).pixels_HWC)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]), st.data())
def test_damaged_bytes_never_raise_anything_else(kind: str, data: st.DataObject) -> None:
    good = bytearray(encoded(noise((40, 30)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    for sample in (bytes(good), bytes(good[:cut])):
        try:
            assert decode_image(sample, POLICY, ImageRules(max_pixels=1 << 20)).pixels_HWC.shape == (32, 32, 3)
        except BadInput as bad:
            assert bad.stage == Stage.DECODE


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    try:
        decode_image(data, POLICY, ImageRules(max_pixels=1 << 20))
    except BadInput as bad:
        assert bad.reason in set(Reason)


def test_running_out_of_memory_is_not_the_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", exhausted)
    with pytest.raises(MemoryError):
        decode_image(encoded(flat(), "PNG"), POLICY)


def test_warnings_stay_inside_even_in_threads() -> None:
    data = ZOO["broken-exif.jpg"][0]
    large = encoded(flat(size=(10_000, 9_500), mode="L", colour=7), "PNG")  # Pillow warns of so many pixels
    raised: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                decode_image(data, POLICY)
            decode_image(large, POLICY)
        except BaseException as error:
            raised.append(error)

    before = list(warnings.filters)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised
    assert list(warnings.filters) == before


@pytest.mark.parametrize("bomb", ["header", "text", "webp"])
def test_bombs_take_no_memory(bomb: str, tmp_path: Path) -> None:
    """In a fresh process, a bomb must leave the peak near what a small image takes; a text is not unpacked, so its image is read."""
    webp = bytearray(encoded(flat(size=(16, 16)), "WEBP", lossless=True, save_all=True, append_images=[flat(TEAL, size=(16, 16))]))
    at = webp.index(b"VP8X") + 12
    webp[at : at + 6] = (16_382).to_bytes(3, "little") * 2
    (tmp_path / "small").write_bytes(encoded(flat(), "PNG"))
    (tmp_path / "bomb").write_bytes({"header": huge_header(), "text": text_bomb(), "webp": bytes(webp)}[bomb])
    code = """
import pathlib, resource, sys
from tokenshards.pipeline.images.decode import decode_image
from tokenshards.pipeline.errors import BadInput
from tokenshards.pipeline.shards.spec import Preprocess
folder = pathlib.Path(sys.argv[1])
policy = Preprocess(size=32)
decode_image((folder / "small").read_bytes(), policy)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_image((folder / "bomb").read_bytes(), policy)
    print("read")
except BadInput as bad:
    print(bad.reason)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    reason, grown_mib = ran.stdout.split()
    assert reason == ("read" if bomb == "text" else Reason.TOO_MANY_PIXELS)
    assert int(grown_mib) < 40


def test_extensions() -> None:
    extensions = image_extensions()
    assert {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ico", ".ppm", ".tga", ".jp2", ".mpo"} <= extensions
    assert not {".txt", ".json", ".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".wmf", ".csv", ".tar", ".parquet", ""} & extensions
    assert all(extension == extension.lower() and extension.startswith(".") for extension in extensions)


def test_an_external_program_is_never_run() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(BadInput) as caught:
        decode_image(postscript, POLICY)
    assert caught.value.reason == Reason.NOT_AN_IMAGE


def test_decoder_names_library_and_major_version() -> None:
    name, _, major = DECODER.rpartition("-")
    assert name == "pillow" and major.isdigit()
