"""`--codec compact` from images to training: the ids of any other codec, exactly once, and a model that is found, kept and repaired."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import tokenshards
from tests.datasets import SilentReporter, call_cli, call_json, content, convert, kill_three_times, quarantine_of, write_images
from tests.inline import InlineRunner
from tests.pipeline.shards.compact import test_codec
from tokenshards.pipeline.conversion.codec_model import fit_codec, too_few_note
from tokenshards.pipeline.errors import ConfigError, MissingObjectError
from tokenshards.pipeline.ledger.repair import repair_dataset
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_plan
from tokenshards.pipeline.shards.compact.model_file import model_of_name, model_path
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import load_tokenizer
from tokenshards.stem_adaptors.config import LoaderConfig

pytest.importorskip("torch")
no_models_kept = test_codec.no_models_kept


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Images, their dataset with the codec `default`, and that with `compact`: three shards of one tokenizer."""
    folder = tmp_path_factory.mktemp("pair")
    write_images(folder / "src", 70, bad=2)
    convert(folder / "src", folder / "default", shard_rows=24, runner=InlineRunner())
    call_cli(*command(folder / "src", folder / "compact", folder / "default"))
    return folder / "src", folder / "default", folder / "compact"


@pytest.fixture
def copy(pair: tuple[Path, Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(pair[2], tmp_path / "copy")
    return tmp_path / "copy"


def command(src: Path, out: Path, tokenizer: Path) -> list[str]:
    fit = ["--tokenizer", str(tokenizer / "tokenizer"), "--codec", "compact"]
    return ["tokenize", str(src), str(out), *fit, "--shard-rows", "24", "--max-bad", "1", "--workers", "1", "-q"]


def name_of(out: Path) -> str:
    plan = load_plan(Store(str(out)))
    assert plan is not None and plan.format_version == "1.2"
    return plan.codec


def model_of(out: Path) -> Path:
    return out / model_path(str(model_of_name(name_of(out))))


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "shards").iterdir()}


def test_the_ids_are_those_of_the_default_codec(pair: tuple[Path, Path, Path]) -> None:
    _, default, compact = pair
    assert content(compact) == content(default) and quarantine_of(compact) == quarantine_of(default) != {}
    assert verify_dataset(Store(str(compact))).ok
    dataset = tokenshards.open_dataset(str(compact))
    assert dataset.sample(dataset[60].sample_id) == dataset[60]
    found = call_json("inspect", str(compact))
    assert found["codec"]["name"] == name_of(compact) and found["codec"]["model_bytes"] == model_of(compact).stat().st_size
    assert 0 < found["codec"]["expected_bits_per_token"] < found["bits_per_token"]
    assert call_json("inspect", str(default))["codec"] == {"name": "default"}
    cards = [(out / "README.md").read_text() for out in (compact, default)]
    assert ["coded as one stream of bytes a row, which tokenshards reads (codec compact" in card for card in cards] == [True, False]


def test_three_kills_change_no_byte(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Also those between the model and the plan: the next run fits the same model again."""
    src, default, compact = pair
    arguments = command(src, tmp_path / "out", default)
    kill_three_times(arguments, tmp_path)
    call_cli(*arguments)
    assert name_of(tmp_path / "out") == name_of(compact) and shards_of(tmp_path / "out") == shards_of(compact)
    assert len(list((tmp_path / "out" / "tokenizer").glob("compact-*"))) == 1
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


def test_a_lost_model_is_named_and_restored_from_a_footer(pair: tuple[Path, Path, Path], copy: Path) -> None:
    model = model_of(copy)
    whole = model.read_bytes()
    for damage in (model.unlink, lambda: model.write_bytes(whole[:-1])):
        damage()
        test_codec.model_file._kept.clear()
        assert [problem.object for problem in verify_dataset(Store(str(copy))).problems] == [str(model.relative_to(copy))]
        test_codec.model_file._kept.clear()
        assert content(copy) == content(pair[1]), "a shard has a copy, with which all can be read"
        repaired = repair_dataset(Store(str(copy)), apply=True)
        assert not repaired.refused and model.read_bytes() == whole


def test_a_model_that_is_lost_with_its_copies_is_named(copy: Path) -> None:
    first = min((copy / "shards").iterdir())
    for path in (model_of(copy), first):
        path.unlink()
    test_codec.model_file._kept.clear()
    with pytest.raises(MissingObjectError, match="run `tokenshards verify`, then `tokenshards repair`"):
        tokenshards.open_dataset(str(copy))[60]
    problems = {problem.object for problem in verify_dataset(Store(str(copy))).problems}
    assert {str(path.relative_to(copy)) for path in (model_of(copy), *(copy / "shards").iterdir(), first)} <= problems


@pytest.mark.parametrize("order", ["global", "windowed", "sequential"])
def test_a_loader_reads_the_same_batches(pair: tuple[Path, Path, Path], tmp_path: Path, order: str) -> None:
    config = LoaderConfig(batch_size=16, order=order, seed=3, cache_dir=str(tmp_path / "cache"))
    found, expected = (list(tokenshards.TokenLoader(tokenshards.open_dataset(str(out)), config)) for out in (pair[2], pair[1]))
    assert len(found) == len(expected) > 3
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.ids_BLQ, other.ids_BLQ)
        np.testing.assert_array_equal(one.labels_B, other.labels_B)


def test_a_published_copy_has_the_model(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    call_cli("publish", str(pair[2]), str(tmp_path / "copy"))
    assert content(tmp_path / "copy") == content(pair[1])
    assert verify_dataset(Store(str(tmp_path / "copy"))).ok


def test_rows_are_made_again(pair: tuple[Path, Path, Path]) -> None:
    out, _ = call_cli("verify", str(pair[2]), "--re-encode", "20")
    assert "20" in out


def test_a_later_generation_keeps_the_model(pair: tuple[Path, Path, Path], copy: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    shutil.copytree(pair[0], src)
    plan = load_plan(Store(str(copy)))
    assert plan is not None
    before, bad = name_of(copy), sorted(src.glob("*/bad*"))
    write_images(tmp_path / "good", 2, classes=0, seed=9)
    for path, good in zip(bad, sorted((tmp_path / "good").iterdir()), strict=True):
        path.write_bytes(good.read_bytes())
    call_cli("retry-failed", str(copy), "--source", str(src), "-q")
    assert name_of(copy) == before and len(content(copy)) == 72
    assert verify_dataset(Store(str(copy))).ok


def test_other_codecs_contradict_the_plan(pair: tuple[Path, Path, Path]) -> None:
    src, default, compact = pair
    with pytest.raises(ConfigError, match=r"--codec publish \(the plan has compact:"):
        convert(src, compact, codec="publish")
    with pytest.raises(ConfigError, match=r"--codec compact \(the plan has default\)"):
        convert(src, default, codec="compact")


def test_a_plan_is_estimated_on_images_that_the_model_has_not_seen(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    arguments = ["plan", str(pair[0]), str(tmp_path / "out"), "--tokenizer", str(pair[1] / "tokenizer")]
    compact, default = (call_json(*arguments, "--codec", codec) for codec in ("compact", "default"))
    assert compact["images"] == default["images"] and not (tmp_path / "out").exists()
    taken = model_of(pair[2]).stat().st_size
    assert 1.2 * taken < compact["tables_bytes"] - default["tables_bytes"] < 2.4 * taken, "the file and one copy that zstd made smaller"
    assert compact["bytes_out"] == pytest.approx(compact["images"] * compact["bytes_per_image"] + compact["tables_bytes"], abs=100)
    # Ids of noise: a model that has learned them by heart takes fewer bytes than one that has not seen them.
    totals = tokenshards.open_dataset(str(pair[2])).manifest.totals
    assert compact["bytes_per_image"] > totals["token_bytes"] / len(content(pair[2]))


def test_too_few_images_for_a_model_are_told_and_enough_are_not(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    reporter = SilentReporter()
    convert(pair[0], tmp_path / "out", codec="compact", runner=InlineRunner(), reporter=reporter)
    said = [line for line in reporter.lines if "do not pay for the model" in line]
    assert len(said) == 1 and "--codec publish would be smaller" in said[0]
    tokens = next(tokenshards.open_dataset(str(tmp_path / "out")).batches(100)).tokens
    tokenizer = load_tokenizer(Store(str(tmp_path / "out")), "tokenizer")
    alike = tokens.take(np.arange(8192) % 4)
    codec = fit_codec(alike, tokenizer)
    assert too_few_note(codec, alike, tokenizer, 70) is not None
    assert too_few_note(codec, alike, tokenizer, 10**7) is None
