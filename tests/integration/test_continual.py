"""`continual`: one command shows what is forgotten at each budget of replay; it continues after kills, and repeats nothing that is done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import tokenshards
from tests.datasets import SilentReporter, call_cli, call_json, convert, start_cli, write_images
from tests.inline import InlineRunner
from tests.integration.other_data import refuses_other_data
from tokenshards.pipeline.commands.demo_images import write_digits
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.stem_adaptors.curves.both_sets import BothSets


def command(folder: Path, out: Path, *more: str, replay: str = "0.6kB", steps: int = 3) -> list[str]:
    settings = ["--replay", replay, "--steps", str(steps), "--minutes", "0.01", "--seeds", "1", "--workers", "1", "--out", str(out)]
    return ["continual", str(folder / "train.tokens"), "--val", str(folder / "val.tokens"), *settings, *more]


def kept(out: Path) -> dict[str, tuple[int, bytes]]:
    """All that was chosen and trained."""
    paths = [path for pattern in ("chains/*.json", "steps/*.json") for path in sorted(out.glob(pattern))]
    return {str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of two sources of three classes."""
    root = tmp_path_factory.mktemp("continual")
    write_images(root / "train", 60, seed=1)
    write_images(root / "val", 31, seed=2)
    convert(root / "train", root / "train.tokens", runner=InlineRunner())
    convert(root / "val", root / "val.tokens", tokenizer=str(root / "train.tokens"), shard_rows=7, runner=InlineRunner())
    return root


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[dict[str, Any], str, str]:
    """All sides, at a budget that holds no original files and at one that does: the figures, and what was printed."""
    to = [word for name in ("c.html", "c.md", "c.png", "c.json") for word in ("--to", str(folder / "new" / name))]
    images = ["--images", str(folder / "train"), "--val-images", str(folder / "val"), "--matrix"]
    inline = patch("tokenshards.stem_adaptors.commands.learning_continually.open_runner", lambda *_: InlineRunner())
    with inline, patch("tokenshards.stem_adaptors.comparison.image_sides.CHOSEN_ON", 8):
        out, told = call_cli(*command(folder, folder / "out", *images, *to, replay="0.3kB,9kB", steps=2))
    return json.loads((folder / "out" / "continual.json").read_text()), out, told


def test_every_side_has_its_figures_at_every_budget(folder: Path, made: tuple[dict[str, Any], str, str]) -> None:
    found, out, told = made
    rows = {(row["side"], row["budget"]): row for row in found["rows"]}
    sides = [(side, budget) for budget in (300, 9000) for side in ("tokens", "jpeg", "files")]
    assert list(rows) == [("no memory", None), *sides, ("all kept", None)] and found["measured"] == 31
    mean = open_dataset(str(folder / "train.tokens")).manifest.totals["token_bytes"] / 60
    file_bytes = sum(path.stat().st_size for path in (folder / "train").rglob("*.*")) / 60
    memory = {key: row["memory"][0][1] for key, row in rows.items() if not row["absent"]}
    assert memory["tokens", 300] == int(300 / mean) and memory["no memory", None] == 0
    assert memory["all kept", None] == memory["tokens", 9000] == 40, "all images of both classes of step 1"
    assert memory["files", 9000] == int(9000 / file_bytes) and abs(rows["jpeg", 300]["bytes_per_image"] / mean - 1) < 0.3
    for key, images in memory.items():
        assert key[1] is None or images * rows[key]["bytes_per_image"] <= key[1]
    assert rows["files", 300]["absent"].startswith("room for 0 images of ") and "files, 300 B is missing: room for 0 images" in out
    assert len({json.dumps(rows["tokens", budget]["steps"][0]) for budget in (300, 9000)}) == 1, "the first step is shared"
    assert rows["jpeg", 300]["steps"][0] == rows["files", 9000]["steps"][0], "both learned the same whole images in step 1"
    for key in sides:
        mine, tokens = rows[key]["figures"], rows["tokens", key[1]]["figures"]
        assert (rows[key]["tokens_ahead"] is None) == (key[0] == "tokens" or mine is None)
        if rows[key]["tokens_ahead"] is not None:
            difference = tokens["accuracy"]["value"] - mine["accuracy"]["value"]
            assert rows[key]["tokens_ahead"]["accuracy"]["value"] == pytest.approx(difference, abs=2e-4)
    assert "3 classes in 2 steps, in an order that each seed draws:" in told and "  seed 0: 1: class_" in told
    assert f"tokens, 300 B: {int(300 / mean)} images of {mean:,.1f} bytes; in step 2 of each class seen before " in told
    assert "9 trainings of 0.01 minutes each, 0.09 minutes of one core in all; sides of the same images share step 1" in told


def test_files_of_all_four_kinds_and_the_terminal_say_the_same(folder: Path, made: tuple[dict[str, Any], str, str]) -> None:
    new, (found, out, _) = folder / "new", made
    assert json.loads((new / "c.json").read_text()) == found and (new / "c.png").read_bytes().startswith(b"\x89PNG")
    markdown, page = (new / "c.md").read_text(), (new / "c.html").read_text()
    for row in found["rows"]:
        assert f"| {row['side']}" in markdown and row["side"] in page and row["side"] in out
    assert "data:image/png;base64," in page and f"wrote {new / 'c.html'}" in out and "tokens ahead" in out
    assert "no memory: accuracy on each group after each step, mean over seeds" in out and "group 2" in out


def test_real_digits_are_forgotten_without_a_memory_and_kept_with_one(tmp_path: Path) -> None:
    """Handwritten digits in two steps of five classes, as 16 sites of two ids."""
    write_digits(tmp_path)
    fit = FitConfig(size=32, patch=8, codes=64, iterations=4)
    convert(tmp_path / "train", tmp_path / "train.tokens", fit=fit, runner=InlineRunner())
    convert(tmp_path / "val", tmp_path / "val.tokens", tokenizer=str(tmp_path / "train.tokens"), runner=InlineRunner())
    rows = call_json(*command(tmp_path, tmp_path / "out", "--minutes", "0.06", replay="4kB", steps=2))["rows"]
    none, tokens, everything = (row["figures"] for row in rows)
    assert none["forgetting"]["value"] > 0.5 and tokens["forgetting"]["value"] < none["forgetting"]["value"] - 0.2
    assert min(tokens["accuracy"]["value"], everything["accuracy"]["value"]) > none["accuracy"]["value"] + 0.1
    assert rows[1]["memory"][0][1] * rows[1]["bytes_per_image"] <= 4000


def test_a_killed_run_continues_with_its_memory_and_then_repeats_nothing(folder: Path, tmp_path: Path) -> None:
    arguments = command(folder, tmp_path, "--no-references")
    process = start_cli(*arguments)
    while len([path for path in tmp_path.glob("steps/*.json") if "memory" not in path.name]) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    before = kept(tmp_path)
    assert 3 <= len(before) < 6, "the kill came among the steps: two results and a memory, or one more of each"
    found, told = call_cli(*arguments, "--json")
    after = kept(tmp_path)
    assert {name: after[name] for name in before} == before, "the memory and the results of finished steps"
    assert len(before) > 4 or "1 step of unfinished chains kept from before" in told
    rows = json.loads(found)["rows"]
    assert [row["side"] for row in rows] == ["tokens"] and len(rows[0]["steps"]) == 3, "one side of three steps"
    assert len(list(tmp_path.glob("steps/*.safetensors"))) == 1, "weights of the first step alone"
    assert call_json(*arguments)["rows"] == rows and kept(tmp_path) == after


def test_the_function_returns_the_result(folder: Path, tmp_path: Path) -> None:
    data, settings = open_dataset(str(folder / "train.tokens")), {"minutes": 0.01, "seeds": 1, "steps": 2, "references": False}
    found = tokenshards.continual(
        data, val=folder / "val.tokens", replay=[600], choice="random", out=tmp_path, to=tmp_path / "c.md", **settings
    )
    assert found.rows[0].images == 600 * 60 // data.manifest.totals["token_bytes"] and "| tokens |" in (tmp_path / "c.md").read_text()
    with pytest.raises(ConfigError, match="--replay has 'much'"):
        tokenshards.continual(data, val=folder / "val.tokens", replay="much", out=tmp_path)


def test_a_validation_set_that_is_the_training_set_is_told(folder: Path, tmp_path: Path) -> None:
    train, val = str(folder / "train.tokens"), str(folder / "val.tokens")
    for other, told in ((train, 1), (val, 0)):
        reporter = SilentReporter()
        BothSets.opened(train, other, Store(str(tmp_path)), reporter)  # type: ignore[arg-type]
        assert (
            sum("is the training set, so the accuracy is that of images that were learned from" in line for line in reporter.lines) == told
        )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--to", "curve.pdf"], "error: --to is curve.pdf; expected a file that ends in .html, .md, .png, .json"),
        (["--replay", "600,much"], "error: --replay has 'much'; expected sizes of at least a byte"),
        (["--replay", "40"], "error: --replay has 40 bytes, room for "),
        (["--steps", "4"], "error: --steps is 4; expected at most 3, a class of DATA for each step"),
        (["--steps", "1"], "error: --steps is 1; expected at least 2"),
        (["--choice", "first"], "error: --choice is 'first'; expected herding or random"),
        (["--minutes", "0"], "error: --minutes is 0.0; expected more than 0"),
        (["--images", "photos"], "error: --images was given without --val-images; expected both, or neither for tokens alone"),
        (["--device", "cuda"], "error: --device is 'cuda', which this machine or this build of torch does not have"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_work(folder: Path, more: list[str], says: str, tmp_path: Path) -> None:
    arguments = command(folder, tmp_path / "out")
    if more[0] == "--replay":
        del arguments[arguments.index("--replay") : arguments.index("--replay") + 2]
    told = call_cli(*arguments, *more, expect=2)[1]
    assert told.startswith(says) and len(told.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_data_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    arguments = command(folder, tmp_path / "out")
    refuses_other_data(arguments, folder, tmp_path)
    told = call_cli("continual", str(tmp_path / "plain.tokens"), *arguments[2:], expect=2)[1]
    assert "none of the 6 images has a label" in told and not (tmp_path / "out").exists()


def test_images_that_lack_a_class_are_refused(folder: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "two", 12, classes=2, seed=1)
    given = ["--images", str(tmp_path / "two"), "--val-images", str(folder / "val")]
    with patch("tokenshards.stem_adaptors.commands.learning_continually.open_runner", lambda *_: InlineRunner()):
        told = call_cli(*command(folder, tmp_path / "out", *given), expect=2)[1]
    assert "note: --images has 12 labelled images, DATA has 60; expected the same images on every side" in told
    assert told.splitlines()[-1].startswith(
        "error: --images has no image of 1 class of DATA: ['class_2']; expected the images that DATA was"
    )
