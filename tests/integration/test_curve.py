"""`curve`: one command gives accuracy for each budget of bytes; it continues after kills, and repeats nothing that is done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import tokenshards
from tests.datasets import call_cli, call_json, convert, start_cli, write_images
from tests.inline import InlineRunner
from tests.integration.other_data import refuses_other_data
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import open_dataset

BUDGETS = "0.6kB,20kB,1MB"
"""For some tokens and no file, for all tokens and some files, for everything."""


def command(folder: Path, out: Path, *more: str, budgets: str = BUDGETS) -> list[str]:
    settings = ["--bytes", budgets, "--minutes", "0.01", "--seeds", "2", "--workers", "1", "--out", str(out)]
    return ["curve", str(folder / "train.tokens"), "--val", str(folder / "val.tokens"), *settings, *more]


def beside_images(folder: Path) -> list[str]:
    return ["--images", str(folder / "train"), "--val-images", str(folder / "val")]


def kept(out: Path) -> dict[str, tuple[int, bytes]]:
    """All that was converted, chosen and trained."""
    patterns = ("runs/*.json", "sides/*/*.json", "sides/*/*/shards/*", "sides/*/*/manifest*")
    paths = [path for pattern in patterns for path in sorted(out.glob(pattern))]
    return {str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of three classes, and tokens of both; the tokens lack one image to measure on, and shuffle the others otherwise."""
    root = tmp_path_factory.mktemp("curve")
    write_images(root / "train", 60, seed=1)
    write_images(root / "val", 31, seed=2)
    convert(root / "train", root / "train.tokens", runner=InlineRunner())
    left_out = root / "val" / "class_0" / "img_0030.jpg"
    data = left_out.read_bytes()
    left_out.unlink()
    convert(root / "val", root / "val.tokens", tokenizer=str(root / "train.tokens"), shard_rows=7, runner=InlineRunner())
    left_out.write_bytes(data)
    return root


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[dict[str, Any], str, str]:
    """A whole curve with images: its figures, and what was printed."""
    to = [word for name in ("c.html", "c.md", "c.png", "c.json") for word in ("--to", str(folder / "new" / name))]
    inline = patch("tokenshards.stem_adaptors.commands.curving.open_runner", lambda *_: InlineRunner())
    with inline, patch("tokenshards.stem_adaptors.comparison.image_sides.CHOSEN_ON", 8):
        out, told = call_cli(*command(folder, folder / "out", *beside_images(folder), *to))
    return json.loads((folder / "out" / "curve.json").read_text()), out, told


def test_every_side_has_its_figures_at_every_budget(folder: Path, made: tuple[dict[str, Any], str, str]) -> None:
    found, out, told = made
    rows = {(row["side"], row["budget"]): row for row in found["rows"]}
    assert list(rows) == [(side, budget) for budget in (600, 20_000, 1_000_000) for side in ("tokens", "fewer images", "jpeg")]
    data = open_dataset(str(folder / "train.tokens"))
    mean = data.manifest.totals["token_bytes"] / 60
    files = [path.stat().st_size for path in (folder / "train").rglob("*.*")]
    assert rows["tokens", 600]["images"] == int(600 / mean) and rows["tokens", 20_000]["images"] == 60
    assert rows["fewer images", 20_000]["images"] == 20_000 * 60 // sum(files) and rows["fewer images", 1_000_000]["images"] == 60
    assert rows["tokens", 600]["bytes_per_image"] == round(mean, 2)
    assert rows["fewer images", 20_000]["bytes_per_image"] == round(sum(files) / 60, 2)
    assert rows["fewer images", 600]["absent"].startswith("room for 0 files of ") and "fewer images at 600 B is missing: room" in out
    assert rows["fewer images", 600]["top1"] is None and f"fewer images at 600 B: left out: {rows['fewer images', 600]['absent']}" in told
    for (side, budget), row in rows.items():
        if row["absent"]:
            continue
        assert row["images"] * row["bytes_per_image"] <= budget * 1.1 and len(row["per_seed"]) == 2 and row["epochs"] > 0
        assert row["top1"]["low"] <= row["top1"]["value"] <= row["top1"]["high"]
        assert (row["over_images"] is not None) == (side == "tokens")
    assert [rows["jpeg", budget]["images"] for budget in (600, 20_000)] == [60, 60] and "px, quality" in rows["jpeg", 600]["detail"]
    assert rows["tokens", 600]["best_images"] == "jpeg" and rows["tokens", 20_000]["per_seed"] == rows["tokens", 1_000_000]["per_seed"]
    assert "note: 20 kB is cut: all 60 labelled images of DATA take" in told
    assert found["measured"] == 30 and "note: 30 of 31 images are measured, those that VAL and --val-images both have" in told
    codebook = (folder / "train.tokens" / "tokenizer" / "codebook.safetensors").stat().st_size
    assert codebook < found["tokenizer_bytes"] < codebook + 10_000


def test_the_subset_is_that_of_the_seed(folder: Path, made: tuple[dict[str, Any], str, str]) -> None:
    """Six trainings of tokens: two budgets of other images, for the largest budget those of the second."""
    results = [json.loads(path.read_text()) for path in (folder / "out" / "runs").iterdir()]
    tokens = [result for result in results if result["side"] == "tokens"]
    assert len(tokens) == 4 and {result["seed"] for result in tokens} == {0, 1}
    assert all(result["images"] == 30 for result in tokens), "in its own validation set"
    assert all(result["images"] == 31 for result in results if result["side"] != "tokens")


def test_files_of_all_four_kinds_say_the_same(folder: Path, made: tuple[dict[str, Any], str, str]) -> None:
    new, (found, out, _) = folder / "new", made
    assert json.loads((new / "c.json").read_text()) == found and (new / "c.png").read_bytes().startswith(b"\x89PNG")
    markdown, page = (new / "c.md").read_text(), (new / "c.html").read_text()
    for row in found["rows"]:
        assert f"| {row['side']}" in markdown and row["side"] in page
    assert "data:image/png;base64," in page and f"wrote {new / 'c.html'}" in out and "over images" in out


def test_again_repeats_nothing_and_another_budget_trains_only_itself(folder: Path, made: tuple[dict[str, Any], str, str]) -> None:
    found, before = made[0], kept(folder / "out")
    assert call_json(*command(folder, folder / "out", *beside_images(folder))) == found and kept(folder / "out") == before
    rows = call_json(*command(folder, folder / "out", budgets="600,0.8kB"))["rows"]
    after = kept(folder / "out")
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 2
    # Without images, the image that tokens lack is in no side anyway: the same images are measured.
    assert rows[0]["per_seed"] == found["rows"][0]["per_seed"] and rows[0]["over_images"] is None
    moved = folder / "moved.tokens"
    (folder / "train.tokens").rename(moved)
    try:
        arguments = command(folder, folder / "out", budgets="600")
        call_json("curve", str(moved), *arguments[2:])
    finally:
        moved.rename(folder / "train.tokens")
    assert kept(folder / "out") == after, "the same data at another place"


def test_a_killed_curve_continues(folder: Path, made: tuple[dict[str, Any], str, str], tmp_path: Path) -> None:
    arguments = command(folder, tmp_path, budgets="600,0.8kB")
    process = start_cli(*arguments)
    while not list(tmp_path.glob("runs/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    before = kept(tmp_path)
    assert 0 < len(before) < 4, "the kill came among the trainings"
    rows, after = call_json(*arguments)["rows"], kept(tmp_path)
    assert {name: after[name] for name in before} == before and len(after) == 4
    assert [len(row["per_seed"]) for row in rows] == [2, 2]


def test_the_function_returns_the_curve(folder: Path, made: tuple[dict[str, Any], str, str], tmp_path: Path) -> None:
    found = tokenshards.curve(
        open_dataset(str(folder / "train.tokens")),
        val=folder / "val.tokens",
        bytes=[600],
        minutes=0.01,
        seeds=2,
        out=folder / "out",
        to=tmp_path / "c.md",
    )
    assert found.rows[0].per_seed == tuple(made[0]["rows"][0]["per_seed"]) and (tmp_path / "c.md").read_text().count("\n| ") == 2
    with pytest.raises(ConfigError, match="--bytes has 'much'"):
        tokenshards.curve(folder / "train.tokens", val=folder / "val.tokens", bytes="much", out=tmp_path / "out")


def test_one_image_is_enough_for_a_random_choice(folder: Path, tmp_path: Path) -> None:
    (row,) = call_json(*command(folder, tmp_path, "--choice", "random", "--seeds", "1", budgets="50"))["rows"]
    assert row["images"] >= 1 and row["top1"]["value"] >= 0
    told = call_cli(*command(folder, tmp_path / "new", "--choice", "random", budgets="5"), expect=2)[1]
    assert "room for 0 images of" in told and "expected room for an image. Give at least" in told


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--to", "curve.pdf"], "error: --to is curve.pdf; expected a file that ends in .html, .md, .png, .json"),
        (["--bytes", "600,much"], "error: --bytes has 'much'; expected sizes of at least a byte"),
        (["--bytes", "3"], "error: --bytes has 3 bytes, room for 0 images of "),
        (["--choice", "first"], "error: --choice is 'first'; expected stratified or random"),
        (["--minutes", "0"], "error: --minutes is 0.0; expected more than 0"),
        (["--images", "photos"], "error: --images was given without --val-images; expected both, or neither for tokens alone"),
        (["--device", "cuda"], "error: --device is 'cuda', which this machine or this build of torch does not have"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_work(folder: Path, more: list[str], says: str, tmp_path: Path) -> None:
    arguments = command(folder, tmp_path / "out")
    if more[0] == "--bytes":
        del arguments[arguments.index("--bytes") : arguments.index("--bytes") + 2]
    told = call_cli(*arguments, *more, expect=2)[1]
    assert told.startswith(says) and len(told.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_data_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    refuses_other_data(command(folder, tmp_path / "out"), folder, tmp_path)
    told = call_cli(*command(folder, folder / "val.tokens" / "out"), expect=2)[1]
    assert "are the same place, or one contains the other" in told and not (tmp_path / "out").exists()


def test_other_images_than_those_of_the_tokens_are_told(folder: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "few", 12, seed=1)
    (tmp_path / "val").mkdir()
    (folder / "val").rename(tmp_path / "val" / "inner")
    try:
        given = ["--images", str(tmp_path / "few"), "--val-images", str(tmp_path / "val"), "--label-from", "parent"]
        inline = patch("tokenshards.stem_adaptors.commands.curving.open_runner", lambda *_: InlineRunner())
        with inline, patch("tokenshards.stem_adaptors.comparison.image_sides.CHOSEN_ON", 2):
            told = call_cli(*command(folder, tmp_path / "out", *given, budgets="600"), expect=2)[1]
    finally:
        (tmp_path / "val" / "inner").rename(folder / "val")
    assert "note: --images has 12 labelled images, DATA has 60; expected the same images on every side" in told
    assert told.splitlines()[-1].startswith("error: VAL and --val-images have no image of one name: VAL has 'class_")
    assert not list((tmp_path / "out").glob("runs/*.json"))
