"""`preview --augment`: one row an image, one column an operation; what does not fit together is said."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets import call_cli, call_json, convert, image_size, run_cli, write_images
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.optional_packages import install_hint
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.reports.drawings import GAP, LINE_HEIGHT, image_table
from tokenshards.pipeline.reports.previews import preview_views
from tokenshards.pipeline.shards import TokenDataset
from tokenshards.stem_adaptors.commands.augmented_views import augmented_views

WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)
OPERATIONS = 11


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("previews")
    write_images(folder / "src", 12)
    convert(folder / "src", folder / "out")
    return folder / "out"


def test_a_table_has_headers_above_and_captions_below() -> None:
    red, blue = (np.full((100, 100, 3), colour, np.uint8) for colour in (RED, BLUE))
    image = np.asarray(image_table([[red, blue], [blue, red]], ["one\nline two", "a very long header " * 9], ["first", "second"]))
    head, step_y, step_x = GAP + 2 * LINE_HEIGHT + GAP, 100 + GAP + LINE_HEIGHT, 100 + GAP
    assert image.shape == (head + 2 * step_y, GAP + 2 * step_x, 3)
    centres = [[tuple(image[head + y * step_y + 50, GAP + x * step_x + 50]) for x in (0, 1)] for y in (0, 1)]
    assert centres == [[RED, BLUE], [BLUE, RED]]

    def dark(rows: slice, columns: slice) -> bool:
        return bool((image[rows, columns] < 160).all(2).any())

    for line in (0, 1):
        assert dark(slice(GAP + line * LINE_HEIGHT, GAP + (line + 1) * LINE_HEIGHT), slice(0, step_x))
    for row in (0, 1):
        assert dark(slice(head + row * step_y + 101, head + (row + 1) * step_y), slice(0, step_x))
    assert not dark(slice(0, head), slice(GAP + 2 * step_x - GAP, None)), "a long header is cut"
    for rows, headers, captions in (([], ["x"], []), ([[]], [], ["x"])):
        with pytest.raises(ConfigError, match="expected at least 1"):
            image_table(rows, headers, captions)
    with pytest.raises(ConfigError, match="do not fit"):
        image_table([[red, blue], [red]], ["x", "y"], ["a", "b"])


def test_views_are_columns_of_the_chosen_images(tokenized: Path, tmp_path: Path) -> None:
    seen = []

    def views(dataset: TokenDataset, tokens: TokenBatch) -> list[tuple[str, TokenBatch]]:
        seen.append((len(dataset), tokens.ids_BLQ.shape))
        return [("as stored", tokens), ("all the same", TokenBatch(np.zeros_like(tokens.ids_BLQ)))]

    shown = preview_views(
        str(tokenized), str(tmp_path / "look.png"), views, count=3, sample_ids=("class_0/img_0000.jpg",), label=None, options={}
    )
    assert shown.sample_ids == ["class_0/img_0000.jpg"] and seen == [(12, (1, 16, 2))]
    image = np.asarray(Image.open(tmp_path / "look.png"))
    cell = image[GAP + LINE_HEIGHT + GAP :, GAP + 96 + GAP :][:96, :96]
    assert (cell[:24, :24] == cell[24:48, 24:48]).all(), "one patch all over"
    assert (cell != WHITE).any()


def test_the_command_draws_every_operation(tokenized: Path, tmp_path: Path) -> None:
    image = tmp_path / "look.png"
    shown = call_json("preview", str(tokenized), "--to", str(image), "--augment", "--seed", "5")
    assert len(shown["sample_ids"]) == 6 and shown["psnr_db"] == []
    assert image_size(image)[0] == GAP + OPERATIONS * (96 + GAP)
    for seed in (5, 6):
        again = tmp_path / f"{seed}.png"
        views = functools.partial(augmented_views, seed=seed)
        preview_views(str(tokenized), str(again), views, count=6, sample_ids=(), label=None, options={})
        assert (again.read_bytes() == image.read_bytes()) == (seed == 5)
    _, errors = call_cli("preview", str(tokenized), "--to", str(image), "--augment", "--source", str(tmp_path), expect=2)
    assert "--augment and --source" in errors


def test_without_torch_the_command_names_the_extra(tokenized: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    arguments = ("preview", str(tokenized), "--to", str(tmp_path / "look.png"))
    _, errors = run_cli(*arguments, "--augment", env={"PYTHONPATH": str(tmp_path)}, expect=2)
    assert "torch" in errors and install_hint("train") in errors
    run_cli(*arguments, env={"PYTHONPATH": str(tmp_path)})
