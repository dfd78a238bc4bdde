"""Images whose colours are functions of the class, with their masks."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.pixels.pixel_values import PixelValues

COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
"""Colour of each class."""


def drawn_mask(number: int, width: int = 48, height: int = 36) -> np.ndarray:
    """Return a mask [H, W] of two rectangles of the classes 1 to 3 on class 0."""
    rng = np.random.default_rng(number)
    mask = np.zeros((height, width), np.uint8)
    for kind in (1 + number % 3, 1 + (number + 1) % 3):
        left, top = rng.integers(0, width // 2), rng.integers(0, height // 2)
        mask[top : top + rng.integers(6, height // 2), left : left + rng.integers(6, width // 2)] = kind
    return mask


def png(pixels: np.ndarray) -> bytes:
    """Return pixels as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_masked(root: Path, count: int, *, suffix: str = "", images: str = "images", masks: str = "masks") -> list[np.ndarray]:
    """Write images into `images/class_N/` and their masks into `masks/class_N/`; return the masks."""
    found = []
    for number in range(count):
        mask = drawn_mask(number)
        name = f"class_{number % 2}/{number:03d}"
        for path, pixels in ((root / images / f"{name}.png", COLOURS[mask]), (root / masks / f"{name}{suffix}.png", mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels))
        found.append(mask)
    return found


def write_table(path: Path, count: int, without: tuple[int, ...] = (), form: str = "bytes") -> None:
    """Write a Parquet table with the columns image, mask and label; `form` is that of the cells: `bytes` or `struct`."""
    images, masks = [], []
    for number in range(count):
        mask = drawn_mask(number)
        cells = [png(COLOURS[mask]), None if number in without else png(mask)]
        images.append(cells[0] if form == "bytes" else {"bytes": cells[0], "path": f"{number}.png"})
        masks.append(cells[1] if form == "bytes" or cells[1] is None else {"bytes": cells[1], "path": f"{number}_mask.png"})
    pq.write_table(pa.table({"image": images, "mask": masks, "label": [number % 2 for number in range(count)]}), path, row_group_size=4)


def write_tar(path: Path, count: int, without: tuple[int, ...] = (), suffix: str = "seg.png") -> None:
    """Write a tar of webdataset with a mask beside each image."""
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            mask = drawn_mask(number)
            members: dict[str, bytes] = {"cls": str(number % 2).encode(), "png": png(COLOURS[mask])}
            if number not in without:
                members[suffix] = png(mask)
            for name, data in members.items():
                info = tarfile.TarInfo(f"{number:04d}.{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def pixel_tokenizer(folder: Path, size: int = 24, **preprocess: Any) -> str:
    """Write a tokenizer whose ids are the colours of the view, by the nearest pixel; return its place."""
    settings = {"resize": "crop", "filter": "nearest", "decode_mode": "full", **preprocess}
    save_tokenizer(PixelValues(Preprocess(size=size, **settings)), Store(str(folder)), "", {})
    return str(folder)


def agreement(out: Path | str, without: set[str] = frozenset()) -> int:  # type: ignore[assignment]
    """Check that the mask of every row is the class of its colours, and null where it should be; return the number of masks.

    The tokenizer must be `pixel_tokenizer`, so that the ids of a row are the colours of its view.
    """
    dataset, seen = open_dataset(str(out)), 0
    for row in dataset:
        if row.sample_id in without:
            assert row.mask_HW is None, row.sample_id
            continue
        assert row.mask_HW is not None, row.sample_id
        side = dataset.spec.preprocess.size
        colours = row.ids_LQ.reshape(side, side, 3)
        np.testing.assert_array_equal(COLOURS[row.mask_HW], colours, err_msg=row.sample_id)
        seen += 1
    return seen


def json_lines(rows: list[dict[str, Any]]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)
