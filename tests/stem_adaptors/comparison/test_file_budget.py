"""The chosen file is the best of all that fit, found without trying all."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.datasets import write_images
from tokenshards.pipeline.quality.fidelity import psnr
from tokenshards.pipeline.tokenizers.pixels.small_file import SmallFile
from tokenshards.stem_adaptors.comparison.file_budget import QUALITIES, SIDES, best_file

SIZE = 16


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 4, side=SIZE)
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.rglob("img_*"))])


@pytest.fixture(scope="module")
def all_files(images: np.ndarray) -> dict[SmallFile, tuple[float, float]]:
    """Mean bytes and mean PSNR of every file there is."""
    found = {}
    for format, sampling in (("jpeg", "4:4:4"), ("jpeg", "4:2:0"), ("webp", "4:2:0")):
        for side in {max(1, round(SIZE * share)) for share in SIDES}:
            for quality in QUALITIES:
                file = SmallFile(format=format, side=side, quality=quality, subsampling=sampling)
                counts = [file.stored(image)[0] for image in images]
                found[file] = float(np.mean(counts)), float(np.mean([psnr(image, file.passed(image)) for image in images]))
    return found


@pytest.mark.parametrize(("format", "budgets"), [("jpeg", (6, 15, 30, 60, 120, 1000)), ("webp", (56, 70, 100, 1000))])
def test_no_file_that_fits_is_better(
    format: str, budgets: tuple[int, ...], images: np.ndarray, all_files: dict[SmallFile, tuple[float, float]]
) -> None:
    chosen = set()
    for budget in budgets:
        found = best_file(format, images, budget)
        assert found is not None, budget
        file, count = found
        assert (count, file.format) == (all_files[file][0], format) and count <= budget
        best = max(fidelity for other, (bytes_, fidelity) in all_files.items() if other.format == format and bytes_ <= budget)
        assert all_files[file][1] == pytest.approx(best, abs=0.05), budget
        chosen.add(file)
    assert len(chosen) > 2


@pytest.mark.parametrize(("format", "budget"), [("jpeg", 0.5), ("webp", 30.0)])
def test_no_file_is_small_enough(format: str, budget: float, images: np.ndarray) -> None:
    assert best_file(format, images, budget) is None


def test_one_image_of_one_pixel() -> None:
    found = best_file("jpeg", np.full((1, 1, 1, 3), 77, np.uint8), 100)
    assert found is not None and found[0].side == 1
