"""The tokenizer that users get: images in every form that people have them in, ids back to images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenshards
from tests.datasets import convert, write_images
from tokenshards.pipeline.errors import MissingObjectError, SourceError, TokenizerError
from tokenshards.pipeline.images.decode import decode_image
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.config import FitConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tokenshards.ImageTokenizer]:
    folder = tmp_path_factory.mktemp("forms")
    write_images(folder / "photos", 12, side=48)
    convert(folder / "photos", folder / "tokens", fit=FitConfig(size=32, codes=16, iterations=4, levels=2))
    convert(folder / "photos", folder / "single", fit=FitConfig(size=32, codes=16, iterations=4, levels=1))
    return folder, tokenshards.load_tokenizer(folder / "tokens")


def files_of(folder: Path) -> list[Path]:
    return sorted((folder / "photos").rglob("*.*"))


def test_a_file_gives_the_ids_that_are_stored_in_every_form(made: tuple[Path, tokenshards.ImageTokenizer]) -> None:
    folder, tokenizer = made
    dataset = tokenshards.open_dataset(folder / "tokens")
    files = files_of(folder)
    stored = np.stack([dataset.sample(str(file.relative_to(folder / "photos"))).ids_LQ for file in files])
    np.testing.assert_array_equal(tokenizer.encode([str(file) for file in files]).ids_BLQ, stored)
    np.testing.assert_array_equal(tokenizer.encode(files[1]).ids_BLQ, stored[1:2])
    prepared = np.stack([decode_image(file.read_bytes(), tokenizer.spec.preprocess).pixels_HWC for file in files])
    np.testing.assert_array_equal(tokenizer.encode(prepared, prepared=True).ids_BLQ, stored)
    np.testing.assert_array_equal(tokenizer.encode(prepared).ids_BLQ, stored)
    opened = [Image.open(file) for file in files[1::2]]  # PNG: Pillow decodes them as `tokenize` does
    pixels = [np.array(image.convert("RGB")) for image in opened]
    forms: list[Any] = [opened, pixels, np.stack(pixels), (image for image in opened)]
    forms += [torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)]
    forms += [[torch.from_numpy(one).permute(2, 0, 1) for one in pixels], [str(files[1]), *opened[1:3], *pixels[3:]]]
    for form in forms:
        np.testing.assert_array_equal(tokenizer.encode(form).ids_BLQ, stored[1::2])
    for image in opened:
        image.close()


def test_images_of_any_size_and_mode_are_prepared_as_files_are(made: tuple[Path, tokenshards.ImageTokenizer], tmp_path: Path) -> None:
    tokenizer, rng = made[1], np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((32, 32), (20, 90), (64, 33))]
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    names = [tmp_path / f"{number}.png" for number in range(3)]
    np.testing.assert_array_equal(tokenizer.encode(arrays).ids_BLQ, tokenizer.encode(names).ids_BLQ)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(arrays[1]).convert("L").save(tmp_path / "turned.png", exif=turned)
    with Image.open(tmp_path / "turned.png") as image:
        np.testing.assert_array_equal(tokenizer.encode(image).ids_BLQ, tokenizer.encode(tmp_path / "turned.png").ids_BLQ)
    many = np.repeat(arrays[0][None], 130, axis=0)  # more than are encoded at a time
    assert tokenizer.encode(many).ids_BLQ.shape == (130, 64, 2)


def test_ids_come_back_from_every_form(made: tuple[Path, tokenshards.ImageTokenizer]) -> None:
    folder, tokenizer = made
    dataset = tokenshards.open_dataset(folder / "tokens")
    batch = dataset[:3]
    images = tokenizer.decode(batch.tokens)
    assert images.dtype == np.uint8 and images.shape == (3, 32, 32, 3)
    wide = batch.ids_BLQ.astype(np.int64)
    for ids in (batch, batch.ids_BLQ, wide, wide.tolist(), torch.from_numpy(wide)):
        np.testing.assert_array_equal(dataset.decode(ids), images)
    for one in (dataset[1], wide[1], torch.from_numpy(wide[1])):
        np.testing.assert_array_equal(tokenizer.decode(one), images[1:2])
    single = tokenshards.open_dataset(folder / "single")
    np.testing.assert_array_equal(single.decode(single[:2].ids_BLQ[..., 0]), single.decode(single[:2]))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((3, 9, 3), np.uint8), r"encode got \[3, 9, 3\]: the colours may be its first or last axis; say channels"),
        (torch.zeros(2, 3, 9, 3, dtype=torch.uint8), "first or last axis"),
        (np.zeros((9, 9, 3)), r"got float64 \[9, 9, 3\]; expected uint8 pixels.*\(x \* 255\).round\(\).astype"),
        (torch.zeros(3, 9, 9), r"got a tensor of torch.float32 \[3, 9, 9\]; expected uint8.*\(x \* 255\).round\(\).to\(torch.uint8\)"),
        (np.zeros((9, 9), np.uint8), r"\[9, 9\]; expected uint8"),
        (np.zeros((0, 9, 3), np.uint8), r"\[0, 9, 3\]; expected"),
        (np.zeros((0, 9, 9, 3), np.uint8), "no images"),
        ([], "no images"),
        (7, "encode got 7, a int; expected file names"),
        (b"\xff\xd8", "a bytes; expected file names"),
        (Image.new("I;16", (9, 9)), "of no use .an image of mode I;16"),
    ],
)
def test_what_is_no_image_is_a_sentence(images: Any, words: str, made: tuple[Path, tokenshards.ImageTokenizer]) -> None:
    with pytest.raises(TokenizerError, match=words):
        made[1].encode(images)


def test_the_axis_of_colours_can_be_said(made: tuple[Path, tokenshards.ImageTokenizer]) -> None:
    pixels, tokenizer = np.random.default_rng(0).integers(0, 256, (3, 9, 3), np.uint8), made[1]
    last, first = tokenizer.encode(pixels, channels="last").ids_BLQ, tokenizer.encode(pixels, channels="first").ids_BLQ
    assert not np.array_equal(last, first)
    np.testing.assert_array_equal(tokenizer.encode(pixels.transpose(2, 0, 1), channels="first").ids_BLQ, last)
    with pytest.raises(TokenizerError, match="expected 'first' or 'last'"):
        tokenizer.encode(pixels, channels="HWC")  # type: ignore[arg-type]


def test_broken_and_missing_files_are_named(made: tuple[Path, tokenshards.ImageTokenizer], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    with pytest.raises(SourceError, match="bad.jpg"):
        made[1].encode(tmp_path / "bad.jpg")
    with pytest.raises(MissingObjectError, match="nothing.jpg"):
        made[1].encode(str(tmp_path / "nothing.jpg"))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.zeros((1, 64), np.int64), r"\(1, 1, 64\)"),
        (np.zeros((1, 64, 3), np.int64), r"\(1, 64, 3\)"),
        (np.full((1, 64, 2), 16), "id 16 at level 0; expected 0 to 15"),
        (np.full((1, 64, 2), -1), "got the id -1"),
        (np.zeros((1, 64, 2)), "got float64"),
        (TokenBatch(np.zeros((1, 9, 2), np.uint8)), r"\(1, 9, 2\)"),
    ],
)
def test_ids_of_another_tokenizer_are_refused(ids: Any, words: str, made: tuple[Path, tokenshards.ImageTokenizer]) -> None:
    with pytest.raises(TokenizerError, match=words):
        made[1].decode(ids)
