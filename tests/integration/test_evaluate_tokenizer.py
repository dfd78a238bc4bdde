"""`evaluate-tokenizer` through the command line, against figures that other commands reach in other ways."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.datasets import call_cli, convert, write_images
from tests.inline import InlineRunner
from tests.pipeline.tokenizers.colour_families import PatchMeans, patch_means_state, saved_with, trained
from tests.pipeline.tokenizers.toys import FixedSequenceToy, VariableSequenceToy
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, save_tokenizer
from tokenshards.pipeline.tokenizers.registry import temporary_family

IMAGES, BAD = 70, 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """70 images, more than one batch, and two broken ones, in the codes of their own tokenizer of two levels."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_images(folder / "src", IMAGES, bad=BAD)
    convert(folder / "src", folder / "out", runner=InlineRunner(), fit=FitConfig(size=16, codes=32, iterations=4))
    return folder / "src", folder / "out"


def evaluate(*arguments: object) -> tuple[dict[str, Any], str]:
    out, errors = call_cli("evaluate-tokenizer", *map(str, arguments), "--json")
    found: dict[str, Any] = json.loads(out)
    return found, errors


def told(*arguments: object) -> dict[str, Any]:
    return json.loads(call_cli(*map(str, arguments), "--json")[0])


def test_its_figures_are_those_of_the_dataset(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    src, out = dataset
    found, errors = evaluate(out, src)
    assert errors == "" and found["warnings"] == []
    assert (found["images"], found["images_failed"], found["failed_reasons"]) == (IMAGES, BAD, {"truncated": BAD})
    assert len(found["failed_examples"]) == BAD and "bad_0070.jpg: truncated" in " ".join(found["failed_examples"])
    inspected = told("inspect", out)
    assert found["code_usage"] == inspected["code_usage"] and len(found["code_usage"]) == 2
    assert found["bits_per_token"] == inspected["order0_bits_per_token"] < found["vocabulary_bits_per_token"]
    assert found["vocabulary_bits_per_token"] == round(np.log2(inspected["spec"]["vocabulary"]).mean(), 4)
    assert found["tokens_per_image"] == 2 * 16 and found["bits_per_image"] == pytest.approx(32 * found["bits_per_token"], abs=0.06)
    preview = told("preview", out, "--to", tmp_path / "look.png", "-n", IMAGES, "--source", src)["psnr_db"]
    assert len(preview) == IMAGES
    assert found["psnr_db"] == pytest.approx(np.mean(preview), abs=0.002) and found["psnr_db_worst"] == pytest.approx(
        min(preview), abs=0.001
    )
    error = np.mean([255**2 / 10 ** (decibel / 10) for decibel in preview])
    assert found["psnr_db_all_pixels"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.002)
    assert 0.5 < found["ssim_worst"] < found["ssim"] < 1
    assert found["encode_images_per_second"] > 0 and found["decode_images_per_second"] > 0 and found["device"].startswith("cpu")
    text, _ = call_cli("evaluate-tokenizer", str(out), str(src))
    for name in ("PSNR", "SSIM", "bits per token", "perplexity", "dead", "images per second", "truncated", "fixed by the family"):
        assert name in text


def test_tars_a_sample_and_a_tokenizer_directory(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    src, out = dataset
    files = sorted(path for path in src.rglob("*") if path.is_file())
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for index, path in enumerate(files[number::2]):
                archive.add(path, f"{index:04d}{path.suffix}")
    whole, _ = evaluate(out / "tokenizer", tmp_path / "*.tar")
    loose, _ = evaluate(out, src)
    for key in ("images", "images_failed", "code_usage"):
        assert whole[key] == loose[key], key
    for key in ("psnr_db", "psnr_db_all_pixels", "ssim"):
        assert whole[key] == pytest.approx(loose[key], abs=1e-3), key
    some, _ = evaluate(out, src, "--sample", 20, "--seed", 1)
    again, _ = evaluate(out, src, "--sample", 20, "--seed", 1)
    other, _ = evaluate(out, src, "--sample", 20, "--seed", 2)
    assert 17 <= some["images"] <= 20 and some["psnr_db"] == again["psnr_db"] != other["psnr_db"]
    few, _ = evaluate(out, tmp_path / "*.tar", "--sample", 3)
    assert few["images"] == 3


def test_without_a_way_back_and_with_rows_of_different_length(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    src, _ = dataset
    toys = "tests.pipeline.tokenizers.toys"
    with (
        temporary_family("toy-sequence", f"{toys}:FixedSequenceToy"),
        temporary_family("toy-variable", f"{toys}:VariableSequenceToy"),
    ):
        save_tokenizer(FixedSequenceToy(), Store(str(tmp_path / "fixed")))
        save_tokenizer(VariableSequenceToy(), Store(str(tmp_path / "variable")))
        found, _ = evaluate(tmp_path / "fixed", src)
        assert found["psnr_db"] is found["ssim"] is found["decode_images_per_second"] is None
        assert "no decoder" in found["no_psnr_because"] and found["no_psnr_because"] == found["no_ssim_because"]
        assert found["tokens_per_image"] == 8 and found["code_usage"][0]["codes"] == 1 << 18
        assert "toy-sequence: there is no decoder" in call_cli("evaluate-tokenizer", str(tmp_path / "fixed"), str(src))[0]
        for value in (0, 1):  # flat and of two greys: one site, and seven
            for index in range(3):
                image = np.full((16, 16, 3), 60, np.uint8)
                image[8:] += 100 * value
                (tmp_path / "images").mkdir(exist_ok=True)
                Image.fromarray(image).save(tmp_path / "images" / f"{value}{index}.png")
        found, _ = evaluate(tmp_path / "variable", tmp_path / "images")
        assert found["tokens_per_image"] == 4  # (3 x 1 + 3 x 7) / 6, padding left out
        usage = found["code_usage"][0]
        assert usage["used_codes"] == 3 and found["bits_per_token"] == round(usage["entropy_bits"], 4)
        counts = np.array([3 + 3 + 6, 3, 3 + 6])  # the greys 60, 110 (the mean of the two) and 160
        share = counts / counts.sum()
        assert usage["entropy_bits"] == pytest.approx(-(share * np.log2(share)).sum(), rel=1e-5)


@pytest.mark.parametrize("saved", [(-1.0, 1.0), (0.0, 1.0)], ids=["right", "wrong"])
def test_a_wrong_normalisation_is_one_warning(saved: tuple[float, float], dataset: tuple[Path, Path], tmp_path: Path) -> None:
    src, _ = dataset
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(src.rglob("img_*"))])
    tokenizer = saved_with(trained(PatchMeans, patch_means_state(), images, (-1.0, 1.0)), saved)
    with temporary_family("patch-means", "tests.pipeline.tokenizers.colour_families:PatchMeans"):
        save_tokenizer(tokenizer, Store(str(tmp_path / "tok")))
        found, errors = evaluate(tmp_path / "tok", src)
        assert load_tokenizer(Store(str(tmp_path / "tok"))).spec.preprocess.colour_range == saved
    wrong = saved == (0.0, 1.0)
    assert errors.count("warning: ") == len(found["warnings"]) == wrong
    assert ("maps pixels to 0 to 1 (preprocess.colour_range), but -1 to 1 gives" in errors) == wrong
    assert len(found["normalisation"]["others"]) == 2


def test_usage_far_below_what_was_measured_at_the_fit_is_a_warning(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = dataset
    (tmp_path / "flat").mkdir()
    for grey in range(0, 256, 8):
        Image.new("RGB", (32, 32), (grey, grey, grey)).save(tmp_path / "flat" / f"{grey}.png")
    found, errors = evaluate(out, tmp_path / "flat")
    assert "warning: level 0 has" in errors and "when the tokenizer was made" in found["warnings"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{out}", "{src}", "--sample", "0"], 2, "--sample is 0; expected at least 1"),
        (["{src}", "{src}"], 2, "tokenizer.json"),
        (["{out}", "{empty}"], 2, "nothing to tokenize"),
        (["{out}", "{bad}"], 2, "none of 2 sampled inputs holds an image that decodes"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], code: int, says: str, dataset: tuple[Path, Path], tmp_path: Path) -> None:
    src, out = dataset
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "bad", 0, bad=2)
    places = {"src": src, "out": out, "empty": tmp_path / "empty", "bad": tmp_path / "bad"}
    shown, errors = call_cli("evaluate-tokenizer", *(word.format(**places) for word in arguments), expect=code)
    assert errors.startswith("error: ") and says in errors and shown == ""
