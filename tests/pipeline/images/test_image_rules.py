"""Rules of decoding that a plan records: sizes, truncated images, 16 bits. Formats, profiles and texts that Pillow alone does not take."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tests.pipeline.sources.zoo import ORANGE, POLICY, TEAL, encoded, flat, noise, png_chunk, raw_png
from tokenshards.pipeline.config import ImageRules
from tokenshards.pipeline.errors import BadInput, Reason
from tokenshards.pipeline.images import extras
from tokenshards.pipeline.images.decode import decode_image, image_extensions, sixteen_bits_used
from tokenshards.pipeline.images.extras import installed_extras, jxl_size
from tokenshards.pipeline.images.remarks import Remark
from tokenshards.pipeline.shards.spec import Preprocess

USUAL = ImageRules()
WHOLE = Preprocess(size=16, resize="squash", filter="nearest")
SCALE, HIGH_BYTE, LENIENT = ImageRules(sixteen_bit="scale"), ImageRules(sixteen_bit="high-byte"), ImageRules(accept_truncated=True)
GREY = np.random.default_rng(3).integers(40, 216, (16, 16)).astype(np.uint16)
COLOUR = np.random.default_rng(4).integers(40, 216, (16, 16, 3)).astype(np.uint16)


def pixels(data: bytes, rules: ImageRules = USUAL, policy: Preprocess = WHOLE) -> Any:
    return decode_image(data, policy, rules).pixels_HWC


def refused(data: bytes, rules: ImageRules = USUAL) -> BadInput:
    with pytest.raises(BadInput) as caught:
        decode_image(data, POLICY, rules)
    return caught.value


# ---- 16 bits ----


def png16(samples: np.ndarray[Any, Any]) -> bytes:
    """Return a 16-bit PNG of 1 to 4 bands; Pillow writes only grey ones."""
    height, width = samples.shape[:2]
    bands = 1 if samples.ndim == 2 else samples.shape[2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return raw_png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], rows)


def tiff16(samples: np.ndarray[Any, Any], order: str = "<") -> bytes:
    """Return an uncompressed 16-bit TIFF of one or three bands in a byte order."""
    height, width = samples.shape[:2]
    bands = 1 if samples.ndim == 2 else samples.shape[2]
    body = samples.astype(f"{order}u2").tobytes()
    bits_at = 8 + 2 + 12 * 8 + 4
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, bands, 16 if bands == 1 else bits_at), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 1 if bands == 1 else 2), (273, 4, 1, bits_at + 2 * bands), (277, 3, 1, bands), (279, 4, 1, len(body))]
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        code = "HH" if kind == 3 and count == 1 else "I"
        directory += struct.pack(f"{order}HHI{code}", tag, kind, count, *([value, 0][: len(code)]))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", 8) + directory + bytes(4) + struct.pack(f"{order}{bands}H", *[16] * bands) + body


def ppm16(samples: np.ndarray[Any, Any]) -> bytes:
    kind = "P5" if samples.ndim == 2 else "P6"
    return f"{kind} {samples.shape[1]} {samples.shape[0]} 65535\n".encode() + samples.astype(">u2").tobytes()


def deflated_tiff(samples: np.ndarray[Any, Any]) -> bytes:
    return encoded(Image.fromarray(samples), "TIFF", compression="tiff_adobe_deflate")


FILES = {
    "grey png": (png16, GREY),
    "grey tiff": (tiff16, GREY),
    "grey tiff, big end first": (lambda samples: tiff16(samples, ">"), GREY),
    "grey tiff, deflated": (deflated_tiff, GREY),
    "grey pgm": (ppm16, GREY),
    "colour png": (png16, COLOUR),
    "colour tiff": (tiff16, COLOUR),
    "colour tiff, big end first": (lambda samples: tiff16(samples, ">"), COLOUR),
    "colour ppm": (ppm16, COLOUR),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_scaled_images_are_as_bright_as_meant_whatever_their_bits(name: str, bits: int) -> None:
    make, eight = FILES[name]
    data = make((eight << (bits - 8)) + (1 if bits > 8 else 0))
    assert sixteen_bits_used(data) == bits
    expected = eight if eight.ndim == 3 else np.repeat(eight[..., None], 3, 2)
    tolerance = 1 if name == "colour ppm" and bits == 16 else 0  # Pillow divides the samples of a PPM by its range
    assert np.abs(pixels(data, SCALE).astype(int) - expected).max() <= tolerance
    found = decode_image(data, WHOLE, HIGH_BYTE)
    assert np.abs(found.pixels_HWC.astype(int) - (expected >> (16 - bits))).max() <= (1 if name == "colour ppm" else 0)
    assert found.remarks == ((Remark.DARK_16_BIT,) if bits <= 14 else ()), "nothing becomes dark without a word"
    assert decode_image(data, WHOLE, SCALE).remarks == ()


@pytest.mark.parametrize("bands", [2, 4])
def test_alpha_has_a_range_of_its_own(bands: int) -> None:
    colour = np.full((16, 16, bands), 100 << 4, np.uint16)
    colour[..., -1] = 0xFFFF
    data = png16(colour)
    assert sixteen_bits_used(data) == 12 and (pixels(data, SCALE) == 100).all()
    colour[..., -1] = 0xFFF
    assert (pixels(png16(colour), SCALE) == 100).all(), "12 bits of alpha are opaque too"
    colour[:8, :, -1] = 0
    half = pixels(png16(colour), SCALE)
    assert (half[:7] == 255).all() and (half[9:] == 100).all()


def test_an_image_of_a_dark_scene_keeps_its_depth() -> None:
    """1,500 of 4,095 is 11 bits; a 12-bit camera made it, and its other images are not half as bright."""
    data = png16(np.full((16, 16), 1500, np.uint16))
    assert sixteen_bits_used(data) == 12 and (pixels(data, SCALE) == 1500 >> 4).all()


def test_black_and_other_depths() -> None:
    black = png16(np.zeros((16, 16), np.uint16))
    assert sixteen_bits_used(black) == 0 and not pixels(black, SCALE).any()
    assert decode_image(black, WHOLE, HIGH_BYTE).remarks == ()
    for data in (encoded(flat(), "PNG"), encoded(flat(), "JPEG"), encoded(flat(), "TIFF"), b"P6 4 4 1023\n" + bytes(96)):
        assert sixteen_bits_used(data) is None
    assert refused(b"nothing").reason == Reason.NOT_AN_IMAGE


def test_auto_in_a_worker_is_the_high_byte() -> None:
    """Plans by rules 1 and 2 have no rule for 16 bits: their images stay as they were."""
    data = png16(COLOUR << 8 | 77)
    for rules in (USUAL, HIGH_BYTE, SCALE):
        assert np.array_equal(pixels(data, rules), COLOUR)


def test_12_bits_packed_in_a_tiff() -> None:
    """A TIFF of 12 bits a sample, two samples in three bytes."""
    samples = np.random.default_rng(1).integers(0, 4096, (16, 16))
    packed = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in samples.reshape(-1, 2).tolist())
    data = bytearray(tiff16(np.zeros((16, 16), np.uint16))[: -16 * 16 * 2] + packed)
    at = data.index(struct.pack("<HHI", 258, 3, 1)) + 8
    data[at] = 12
    data[data.index(struct.pack("<HHI", 279, 4, 1)) + 8 :][:4] = struct.pack("<I", len(packed))
    assert np.array_equal(pixels(bytes(data), SCALE)[..., 0], samples >> 4)


# ---- Truncated images ----


def cut_files() -> dict[str, bytes]:
    grey16 = np.random.default_rng(2).integers(0, 1 << 16, (200, 200)).astype(np.uint16)
    return {
        "jpeg": encoded(noise(), "JPEG", quality=90),
        "progressive jpeg": encoded(noise(), "JPEG", quality=90, progressive=True),
        "png": encoded(noise(), "PNG"),
        "palette png": encoded(noise().quantize(), "PNG"),
        "16-bit png": png16(grey16),
        "16-bit colour png": png16(np.stack([grey16 >> 4] * 3, 2)),
        "gif": encoded(noise().quantize(), "GIF", interlace=0),
        "bmp": encoded(noise(), "BMP"),
    }


@pytest.mark.parametrize("name", cut_files())
def test_an_image_that_ends_too_early_is_taken_as_far_as_it_decodes(name: str) -> None:
    data = cut_files()[name]
    part = data[: len(data) // 2]
    assert refused(part).reason == Reason.TRUNCATED
    rules = ImageRules(accept_truncated=True, sixteen_bit="scale")
    policy = Preprocess(size=32, resize="squash")
    found, whole = decode_image(part, policy, rules), decode_image(data, policy, rules)
    assert found.remarks == (Remark.TRUNCATED,) and whole.remarks == ()
    assert (found.width, found.height) == (whole.width, whole.height)
    first = slice(-8, None) if name == "bmp" else slice(0, 8)  # a BMP begins with its last row
    near = 40 if "progressive" in name else 2
    assert np.abs(found.pixels_HWC[first].astype(int) - whole.pixels_HWC[first]).max() <= near
    assert not np.array_equal(found.pixels_HWC, whole.pixels_HWC)


def test_a_scaled_decode_of_a_truncated_jpeg_has_the_region_of_the_whole() -> None:
    data = encoded(noise((1003, 777)), "JPEG", quality=80)
    whole, part = decode_image(data, POLICY), decode_image(data[:-12], POLICY, LENIENT)
    assert (part.width, part.height) == (1003, 777)
    assert np.array_equal(part.pixels_HWC[:20], whole.pixels_HWC[:20])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_an_image_of_which_no_pixel_decodes_stays_truncated(kind: str) -> None:
    data = encoded(noise(), kind)
    start = {"JPEG": data.find(b"\xff\xda") + 14, "PNG": data.find(b"IDAT") + 6, "BMP": 54}[kind]
    assert refused(data[:start], LENIENT).reason == Reason.TRUNCATED


def test_damage_is_not_truncation() -> None:
    damaged = bytearray(encoded(noise(), "PNG"))
    damaged[5000:5064] = b"\xa5" * 64
    assert refused(bytes(damaged), LENIENT).reason == Reason.CORRUPT
    assert refused(encoded(noise(), "WEBP", quality=90)[:9000], LENIENT).reason == Reason.TRUNCATED, "WebP decodes as a whole or not"


@given(cut=st.integers(1, 2000), kind=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]))
@settings(max_examples=80, deadline=None)
def test_any_cut_gives_an_image_or_a_reason(cut: int, kind: str) -> None:
    data = encoded(noise((48, 40)) if kind != "GIF" else noise((48, 40)).quantize(), kind)
    part = data[: max(1, len(data) - cut)]
    try:
        assert decode_image(part, POLICY, LENIENT).pixels_HWC.shape == (32, 32, 3)
    except BadInput as bad:
        assert bad.reason in (Reason.TRUNCATED, Reason.CORRUPT, Reason.NOT_AN_IMAGE)


def test_threads_with_other_rules_do_not_disturb_each_other() -> None:
    data = encoded(noise(), "PNG")
    part = data[: len(data) // 2]
    wrong: list[object] = []

    def work(rules: ImageRules) -> None:
        for _ in range(25):
            try:
                decode_image(part, POLICY, rules)
                wrong.extend([rules] * (not rules.accept_truncated))
            except BadInput:
                wrong.extend([rules] * rules.accept_truncated)

    threads = [threading.Thread(target=work, args=(rules,)) for rules in (LENIENT, ImageRules(), LENIENT, ImageRules())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and ImageFile.LOAD_TRUNCATED_IMAGES is False


# ---- Sizes, profiles, texts ----


def test_max_pixels_may_be_above_pillows_own_limit() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    big = encoded(Image.new("1", (20_000, 9_000), 1), "PNG")  # 180 megapixels; Pillow itself refuses 179
    assert refused(big).reason == Reason.TOO_MANY_PIXELS
    found = decode_image(big, WHOLE, ImageRules(max_pixels=1 << 28))
    assert (found.width, found.height) == (20_000, 9_000) and (found.pixels_HWC == 255).all()
    assert Image.MAX_IMAGE_PIXELS == limit, "other code of the process keeps Pillow's limit"
    assert "--max-pixels" in refused(encoded(flat(), "PNG"), ImageRules(max_pixels=9)).detail


@pytest.mark.parametrize("place", ["before", "after"])
def test_large_profiles_and_texts_are_left_out(place: str) -> None:
    plain = encoded(flat(), "PNG")
    large = zlib.compress(bytes(3 << 20))
    chunks = png_chunk(b"iCCP", b"name\0\0" + large) + png_chunk(b"zTXt", b"Comment\0\0" + large)
    chunks += png_chunk(b"iTXt", b"Note\0\1\0\0\0" + large)
    at = 33 if place == "before" else len(plain) - 12
    assert np.array_equal(pixels(plain[:at] + chunks + plain[at:]), pixels(plain))


def test_the_orientation_beside_a_large_text_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    packed = "\nexif\n" + f"{len(exif.tobytes()):8}\n" + exif.tobytes().hex() + "\n"
    image = flat(size=(40, 20))
    image.paste(TEAL, (20, 0, 40, 20))
    plain = encoded(image, "PNG")
    text = png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(packed.encode()))
    large = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20)))
    turned = plain[:33] + text + plain[33:]
    expected = decode_image(turned, POLICY)
    assert (expected.width, expected.height) == (20, 40)
    found = decode_image(plain[:33] + large + text + plain[33:], POLICY)
    assert (found.width, found.height) == (20, 40) and np.array_equal(found.pixels_HWC, expected.pixels_HWC)


# ---- What cannot be read is named ----


def many_bands(bands: int, bits: int = 16, sample_format: int = 1) -> bytes:
    """Return a TIFF header of pixels that Pillow has no mode for."""
    values_at = 8 + 2 + 12 * 9 + 4
    per_band = [*[bits] * bands, *[sample_format] * bands]
    both = bands == 2  # two short values fit into the entry itself
    tags = [(256, 4), (257, 4), (258, bits << 16 | bits if both else values_at), (259, 1), (262, 1), (273, values_at + 4 * bands)]
    tags += [(277, bands), (279, 4096), (339, sample_format << 16 | sample_format if both else values_at + 2 * bands)]
    directory = struct.pack("<H", len(tags))
    for tag, value in tags:
        directory += struct.pack("<HHII", tag, 3 if tag in (258, 339) else 4, bands if tag in (258, 339) else 1, value)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + struct.pack(f"<{2 * bands}H", *per_band) + bytes(4096)


@pytest.mark.parametrize(
    "data, seen",
    [
        (many_bands(5), "TIFF of 5 bands of 16 bits, unsigned"),
        (many_bands(13, 8), "TIFF of 13 bands of 8 bits, unsigned"),
        (many_bands(3, 32, 3), "TIFF of 3 bands of 32 bits, float"),
        (many_bands(2, 16, 2), "TIFF of 2 bands of 16 bits, signed"),
        (encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), "mode F (1 band of 32 bits, float)"),
        (encoded(Image.fromarray(np.full((4, 4), -9, np.int32)), "TIFF"), "mode I (1 band of 32 bits, signed)"),
    ],
)
def test_tiffs_without_a_stated_range_are_named_by_what_they_hold(data: bytes, seen: str) -> None:
    bad = refused(data)
    assert bad.reason == Reason.UNSUPPORTED_MODE and seen in bad.detail


def test_a_damaged_tiff_is_not_called_unsupported() -> None:
    assert refused(many_bands(5)[:60]).reason == Reason.CORRUPT


def test_git_lfs_pointers_are_named() -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n".encode()
    bad = refused(pointer)
    assert bad.reason == Reason.NOT_AN_IMAGE and "Git LFS pointer" in bad.detail and "git lfs pull" in bad.detail


HEIC_HEAD, JXL_HEADS = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), (b"\xff\x0a" + bytes(40), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40))


def test_an_image_that_needs_an_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed_extras", frozenset)
    for data, extra in ((HEIC_HEAD, "heif"), (JXL_HEADS[0], "jxl"), (JXL_HEADS[1], "jxl")):
        with pytest.raises(BadInput) as caught:
            raise_as_undecodable(data)
        assert caught.value.reason == Reason.NO_DECODER and f"the extra tokenshards[{extra}]" in caught.value.detail


def raise_as_undecodable(data: bytes) -> None:
    from tokenshards.pipeline.images.failures import decoding

    with decoding(data):
        raise Image.UnidentifiedImageError("cannot identify image file")


def test_a_damaged_file_of_an_installed_extra_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed_extras", lambda: frozenset(["heif", "jxl"]))
    for data in (HEIC_HEAD, *JXL_HEADS):
        with pytest.raises(BadInput) as caught:
            raise_as_undecodable(data)
        assert caught.value.reason != Reason.NO_DECODER


needs_heif = pytest.mark.skipif("heif" not in installed_extras(), reason="the extra heif (pillow-heif) is not installed")
needs_jxl = pytest.mark.skipif("jxl" not in installed_extras(), reason="the extra jxl (pillow-jxl-plugin) is not installed")


@needs_heif
def test_heic() -> None:
    assert {".heic", ".heif"} <= image_extensions()
    image = flat(size=(64, 48))
    image.paste(TEAL, (32, 0, 64, 48))
    exif = Image.Exif()
    exif[0x0112] = 6
    for extra in ({}, {"exif": exif.tobytes()}):
        data = encoded(image, "HEIF", quality=95, **extra)
        found = decode_image(data, POLICY)
        turned = bool(extra)
        assert (found.width, found.height) == ((48, 64) if turned else (64, 48))
        first = found.pixels_HWC[:10] if turned else found.pixels_HWC[:, :10]
        assert np.abs(first.reshape(-1, 3).mean(0) - ORANGE).max() < 6
    assert refused(data[: len(data) // 2]).reason in (Reason.CORRUPT, Reason.TRUNCATED)
    assert refused(data, ImageRules(max_pixels=100)).reason == Reason.TOO_MANY_PIXELS


@needs_jxl
def test_jpeg_xl() -> None:
    assert ".jxl" in image_extensions()
    image = flat(size=(64, 48))
    image.paste(TEAL, (32, 0, 64, 48))
    data = encoded(image, "JXL", quality=95)
    found = decode_image(data, POLICY)
    assert (found.width, found.height) == (64, 48)
    assert np.abs(found.pixels_HWC[:, :10].reshape(-1, 3).mean(0) - ORANGE).max() < 8
    assert refused(data[: len(data) // 2]).reason in (Reason.CORRUPT, Reason.TRUNCATED)
    assert refused(data, ImageRules(max_pixels=100)).reason == Reason.TOO_MANY_PIXELS


@needs_jxl
@given(width=st.integers(1, 600), height=st.integers(1, 600), exif=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_size_of_jpeg_xl_is_known_before_it_is_decoded(width: int, height: int, exif: bool) -> None:
    more = {"exif": Image.Exif().tobytes() + b"\0" * 9} if exif else {}  # with metadata the file is a container of boxes
    assert jxl_size(encoded(Image.new("RGB", (width, height), ORANGE), "JXL", effort=1, **more)) == (width, height)


def test_the_size_of_jpeg_xl_by_hand() -> None:
    bits = "1" + "11100" + "110" + "0" * 7  # small; 8 * (7 + 1) rows; ratio 3, which is 4 : 3; each number with its lowest bit first
    assert jxl_size(b"\xff\x0a" + bytes(int(bits[at : at + 8][::-1], 2) for at in (0, 8))) == (64 * 4 // 3, 64)
    assert jxl_size(b"\xff\xd8") is None and jxl_size(JXL_HEADS[1]) is None


def test_an_open_image_is_not_shared() -> None:
    """Rules decide nothing behind the caller's back: the same bytes give the same pixels before and after another rule."""
    data = png16(COLOUR << 4)
    before = pixels(data, HIGH_BYTE)
    pixels(data, SCALE)
    assert np.array_equal(pixels(data, HIGH_BYTE), before)
    assert Image.open(io.BytesIO(data)).mode == "RGB"
