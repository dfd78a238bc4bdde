"""A zoo of generated inputs, good, odd and bad, each with the outcome that the pipeline promises.

Outcomes hold for the pixels of `decode_image` under POLICY. Colours are of flat images; `halves` is (left, right) of two-coloured ones.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tokenshards.pipeline.errors import Reason
from tokenshards.pipeline.shards.spec import Preprocess

POLICY = Preprocess(size=32, resize="crop", exif_orientation=True, decode_mode="dct_scaled")

Colour = tuple[int, int, int]
ORANGE: Colour = (230, 120, 40)
TEAL: Colour = (20, 130, 150)
WHITE: Colour = (255, 255, 255)
IGNORED = "ignored"


@dataclass(frozen=True)
class ZooCase:
    """One file: `name` is its path as the file system holds it; `expected` a flat colour, two halves, a Reason or "ignored"."""

    name: str
    expected: Colour | tuple[Colour, Colour] | Reason | str
    tolerance: int = 2
    size: tuple[int, int] | None = None
    """(width, height) of the original, upright, where the image decodes."""

    @property
    def sample_id(self) -> str:
        """What the folder source calls it."""
        return os.fsencode(self.name).decode("utf-8", "backslashreplace")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the image as a file of a Pillow format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(colour: Any = ORANGE, mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Return an image of one colour."""
    return Image.new(mode, size, colour)


def noise(size: tuple[int, int] = (256, 192), seed: int = 7) -> Image.Image:
    """Return an image that compresses badly, so that a file cut in the middle lacks pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width: int, height: int, depth: int, colour_type: int, rows: bytes, *extra: bytes) -> bytes:
    """Return a PNG with the given header and (filtered) rows, for kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(extra) + data + png_chunk(b"IEND", b"")


def oriented_jpeg(orientation: int) -> bytes:
    """Return a 64 x 32 upright image, ORANGE left and TEAL right, stored so that its EXIF orientation is needed to turn it upright."""
    upright = Image.new("RGB", (64, 32), ORANGE)
    upright.paste(TEAL, (32, 0, 64, 32))
    stored = upright
    transposes = Image.Transpose
    undo = {
        2: transposes.FLIP_LEFT_RIGHT,
        3: transposes.ROTATE_180,
        4: transposes.FLIP_TOP_BOTTOM,
        5: transposes.TRANSPOSE,
        6: transposes.ROTATE_90,
        7: transposes.TRANSVERSE,
        8: transposes.ROTATE_270,
    }
    if orientation in undo:
        stored = upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, "JPEG", quality=95, exif=exif.tobytes())


def five_bands() -> bytes:
    """Return a TIFF of five bands of 8 bits, as satellites send them: no colours have so many."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 200), (277, 5), (279, 320), (338, 0)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(200, b"\0") + bytes(320)


def text_bomb() -> bytes:
    """Return a small valid PNG whose zTXt chunk inflates to 100 MB."""
    body = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    return raw_png(8, 8, 8, 2, (b"\0" + bytes(ORANGE) * 8) * 8, png_chunk(b"zTXt", body))


def huge_header(width: int = 50_000, height: int = 50_000) -> bytes:
    """Return a PNG of a few bytes whose header claims a huge image."""
    return raw_png(width, height, 8, 2, b"\0" * 64)


def adobe_cmyk_jpeg(inverted: bool) -> bytes:
    """Return a CMYK JPEG of cyan 0, magenta 120, yellow 200, black 20, as Photoshop (inverted, with its marker) or plainly stored."""
    ink = (0, 120, 200, 20)
    data = encoded(Image.new("CMYK", (48, 40), ink), "JPEG", quality=95)  # Pillow writes the Adobe marker and inverts
    if inverted:
        return data
    plain = encoded(Image.new("CMYK", (48, 40), tuple(255 - value for value in ink)), "JPEG", quality=95)
    start = plain.index(b"\xff\xee")
    length = int.from_bytes(plain[start + 2 : start + 4], "big")
    return plain[:start] + plain[start + 2 + length :]


def ycck_jpeg() -> bytes:
    """Return the inks of `adobe_cmyk_jpeg` marked as YCCK: (Y 255, Cb 135, Cr 55, K 235) is cyan 153, magenta and yellow 255, black 20."""
    data = bytearray(adobe_cmyk_jpeg(inverted=True))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


CMYK_AS_RGB: Colour = tuple(round((255 - value) * (255 - 20) / 255) for value in (0, 120, 200))  # type: ignore[assignment]


def files() -> dict[str, tuple[bytes, ZooCase]]:
    """Return the zoo's regular files by name."""
    zoo: dict[str, tuple[bytes, ZooCase]] = {}

    def add(name: str, data: bytes, expected: Any, tolerance: int = 2, size: tuple[int, int] | None = None) -> None:
        zoo[name] = (data, ZooCase(name, expected, tolerance, size))

    usual = (48, 40)
    grey = (90, 90, 90)
    half = tuple(round(0.5 * value + 0.5 * 255) for value in ORANGE)
    # Formats
    add("plain.jpg", encoded(flat(), "JPEG", quality=95), ORANGE, 3, usual)
    add("progressive.jpg", encoded(flat(size=(300, 200)), "JPEG", quality=95, progressive=True), ORANGE, 3, (300, 200))
    add("large.jpg", encoded(flat(size=(2000, 1500)), "JPEG", quality=90), ORANGE, 3, (2000, 1500))
    add("UPPER.JPEG", encoded(flat(TEAL), "JPEG", quality=95), TEAL, 3, usual)
    add("trailing-garbage.jpg", encoded(flat(), "JPEG", quality=95) + b"garbage \xff\xd8 behind" * 50, ORANGE, 3, usual)
    add("broken-exif.jpg", encoded(flat(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1"), ORANGE, 3, usual)
    add("plain.png", encoded(flat(), "PNG"), ORANGE, 0, usual)
    add("plain.bmp", encoded(flat(), "BMP"), ORANGE, 0, usual)
    add("plain.ppm", encoded(flat(), "PPM"), ORANGE, 0, usual)
    add("plain.tga", encoded(flat(), "TGA"), ORANGE, 0, usual)
    add("rle.tga", encoded(flat(), "TGA", compression="tga_rle"), ORANGE, 0, usual)
    add("icon.ico", encoded(flat(size=(32, 32)).convert("RGBA"), "ICO"), ORANGE, 0, (32, 32))
    add("deflate.tiff", encoded(flat(), "TIFF", compression="tiff_adobe_deflate"), ORANGE, 0, usual)
    add("pages.tif", encoded(flat(), "TIFF", save_all=True, append_images=[flat(TEAL), flat(TEAL)]), ORANGE, 0, usual)
    add("lossless.webp", encoded(flat(), "WEBP", lossless=True), ORANGE, 0, usual)
    add("lossy.webp", encoded(flat(), "WEBP", quality=95), ORANGE, 4, usual)
    add("plain.jp2", encoded(flat(size=(64, 64)), "JPEG2000"), ORANGE, 2, (64, 64))
    add("plain.avif", encoded(flat(size=(64, 64)), "AVIF", quality=95), ORANGE, 4, (64, 64))
    add("plain.gif", encoded(flat().quantize(), "GIF"), ORANGE, 0, usual)
    add("plain.qoi", encoded(flat(), "QOI"), ORANGE, 0, usual)
    # Modes
    add("grey.jpg", encoded(flat(90, "L"), "JPEG", quality=95), grey, 2, usual)
    add("grey.png", encoded(flat(90, "L"), "PNG"), grey, 0, usual)
    add("grey16.png", encoded(Image.fromarray(np.full((40, 48), 90 << 8 | 33, np.uint16)), "PNG"), grey, 0, usual)
    add("grey16.tiff", encoded(Image.fromarray(np.full((40, 48), 90 << 8 | 33, np.uint16)), "TIFF"), grey, 0, usual)
    add("grey16.pgm", b"P5 48 40 65535\n" + np.full((40, 48), 90 << 8 | 33, ">u2").tobytes(), grey, 0, usual)
    deep = np.full((40, 48, 3), [value << 8 | 77 for value in ORANGE], ">u2")
    add("rgb16.png", raw_png(48, 40, 16, 2, b"".join(b"\0" + row.tobytes() for row in deep)), ORANGE, 0, usual)
    add("one-bit.png", encoded(flat(1, "1"), "PNG"), WHITE, 0, usual)
    add("palette.png", encoded(flat().quantize(), "PNG"), ORANGE, 0, usual)
    clear = flat().quantize()
    add("palette-transparent.png", encoded(clear, "PNG", transparency=clear.getpixel((0, 0))), WHITE, 0, usual)
    add("rgb-transparent.png", encoded(flat(), "PNG", transparency=ORANGE), WHITE, 0, usual)
    add("alpha-half.png", encoded(flat((*ORANGE, 128), "RGBA"), "PNG"), half, 2, usual)
    add("alpha-none.png", encoded(flat((*ORANGE, 0), "RGBA"), "PNG"), WHITE, 0, usual)
    add("alpha-half.webp", encoded(flat((*ORANGE, 128), "RGBA"), "WEBP", lossless=True), half, 2, usual)
    add("grey-alpha.png", encoded(flat((90, 128), "LA"), "PNG"), (172, 172, 172), 2, usual)
    add("cmyk-adobe.jpg", adobe_cmyk_jpeg(inverted=True), CMYK_AS_RGB, 4, usual)
    add("cmyk-plain.jpg", adobe_cmyk_jpeg(inverted=False), CMYK_AS_RGB, 4, usual)
    add("ycck.jpg", ycck_jpeg(), (94, 0, 0), 4, usual)
    add("cmyk.tiff", encoded(flat((0, 120, 200, 20), "CMYK"), "TIFF"), CMYK_AS_RGB, 2, usual)
    add("ycbcr.tiff", encoded(flat().convert("YCbCr"), "TIFF"), ORANGE, 3, usual)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(flat(), to_lab)
    add("lab.tiff", encoded(lab, "TIFF"), ORANGE, 4, usual)  # type: ignore[arg-type]
    add("float.tiff", encoded(Image.fromarray(np.full((40, 48), 0.5, np.float32)), "TIFF"), Reason.UNSUPPORTED_MODE)
    add("int32.tiff", encoded(Image.fromarray(np.full((40, 48), 70_000, np.int32)), "TIFF"), Reason.UNSUPPORTED_MODE)
    add("bands.tiff", five_bands(), Reason.UNSUPPORTED_MODE)
    interlaced = raw_interlaced_png(ORANGE)
    add("interlaced.png", interlaced, ORANGE, 0, (8, 8))
    add("large-profile.png", encoded(flat(), "PNG", icc_profile=bytes(2 << 20)), ORANGE, 0, usual)
    # Several frames: the first counts
    frames = {"save_all": True, "append_images": [flat(TEAL), flat(TEAL)], "duration": 50}
    add("moving.gif", encoded(flat(), "GIF", **frames), ORANGE, 0, usual)
    add("moving.webp", encoded(flat(), "WEBP", lossless=True, **frames), ORANGE, 0, usual)
    add("moving.apng", encoded(flat(), "PNG", **frames), ORANGE, 0, usual)
    # Shapes
    add("1x1.png", encoded(flat(size=(1, 1)), "PNG"), ORANGE, 0, (1, 1))
    add("1x5000.png", encoded(flat(size=(1, 5000)), "PNG"), ORANGE, 0, (1, 5000))
    add("5000x1.jpg", encoded(flat(size=(5000, 1)), "JPEG", quality=95), ORANGE, 3, (5000, 1))
    add("1x65000.jpg", encoded(flat(size=(1, 65_000)), "JPEG", quality=95), ORANGE, 3, (1, 65_000))
    for orientation in range(1, 9):
        add(f"orientation-{orientation}.jpg", oriented_jpeg(orientation), (ORANGE, TEAL), 8, (64, 32))
    # Names
    add("ünï-çødé-日本語-🖼.png", encoded(flat(), "PNG"), ORANGE, 0, usual)
    add("n" * 246 + ".png", encoded(flat(), "PNG"), ORANGE, 0, usual)
    add("line\nbreak 'and' \"quotes\" #1?.png", encoded(flat(), "PNG"), ORANGE, 0, usual)
    add(os.fsdecode(b"not-utf8-\xff\xfe.png"), encoded(flat(), "PNG"), ORANGE, 0, usual)
    # Broken
    add("empty.jpg", b"", Reason.EMPTY)
    add("text.jpg", b"This is not a image, whatever its name says.\n" * 20, Reason.NOT_AN_IMAGE)
    add("page.png", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", Reason.NOT_AN_IMAGE)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    add("git-lfs.jpg", pointer.encode(), Reason.NOT_AN_IMAGE)
    add("zeros.png", bytes(4096), Reason.NOT_AN_IMAGE)
    cut = encoded(noise(), "JPEG", quality=90)
    add("truncated.jpg", cut[: len(cut) // 2], Reason.TRUNCATED)
    add("truncated-by-a-few-bytes.jpg", cut[:-12], Reason.TRUNCATED)
    cut = encoded(noise(), "JPEG", quality=90, progressive=True)
    add("truncated-progressive.jpg", cut[: len(cut) // 2], Reason.TRUNCATED)
    add("truncated-header.jpg", cut[:40], Reason.TRUNCATED)
    cut = encoded(noise(), "PNG")
    add("truncated.png", cut[: len(cut) // 2], Reason.TRUNCATED)
    cut = encoded(noise().quantize(), "GIF")
    add("truncated.gif", cut[: len(cut) // 2], Reason.TRUNCATED)
    cut = encoded(noise(), "WEBP", quality=90)
    add("truncated.webp", cut[: len(cut) // 2], Reason.TRUNCATED)
    cut = encoded(noise(), "BMP")
    add("truncated.bmp", cut[: len(cut) // 2], Reason.TRUNCATED)
    damaged = bytearray(encoded(noise(), "PNG"))
    at = damaged.index(b"IDAT") + 4 + 5000
    damaged[at : at + 64] = b"\xa5" * 64
    add("bad-crc.png", bytes(damaged), Reason.CORRUPT)
    add("huge-header.png", huge_header(), Reason.TOO_MANY_PIXELS)
    add("wide-header.png", huge_header(2**31 - 1, 1), Reason.TOO_MANY_PIXELS)
    add("tall-strip.png", huge_header(1, 2_000_000), Reason.TOO_MANY_PIXELS)
    add("text-bomb.png", text_bomb(), ORANGE, 0, (8, 8))  # its text decides no pixel and is not unpacked
    # Not inputs
    add("notes.txt", b"label,file\n", IGNORED)
    add("Thumbs.db", b"\xd0\xcf\x11\xe0", IGNORED)
    add("desktop.ini", b"[.ShellClassInfo]", IGNORED)
    add("._plain.jpg", b"\0\5\x16\7", IGNORED)
    add(".hidden.jpg", encoded(flat(), "JPEG"), IGNORED)
    add("no-extension", encoded(flat(), "PNG"), IGNORED)
    return zoo


def raw_interlaced_png(colour: Colour) -> bytes:
    """Return an 8 x 8 Adam7 PNG, which Pillow reads and does not write."""
    passes = ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))
    rows = b"".join((b"\0" + bytes(colour) * width) * height for width, height in passes)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)
    parts = (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def make_zoo(folder: Path) -> list[ZooCase]:
    """Write the zoo into a new `folder` and return what to expect of each of its entries."""
    folder.mkdir(parents=True)
    cases = []
    for name, (data, case) in files().items():
        (folder / name).write_bytes(data)
        cases.append(case)
    special: list[tuple[str, Callable[[Path], Any], Reason | str]] = [
        ("directory.jpg", Path.mkdir, IGNORED),
        ("empty-folder", Path.mkdir, IGNORED),
        ("broken-link.jpg", lambda path: path.symlink_to("nowhere.jpg"), Reason.MISSING),
        ("link-to-itself.jpg", lambda path: path.symlink_to("link-to-itself.jpg"), Reason.MISSING),
        ("pipe.jpg", os.mkfifo, Reason.NOT_A_FILE),
    ]
    for name, make, expected in special:
        make(folder / name)
        cases.append(ZooCase(name, expected))
    return cases
