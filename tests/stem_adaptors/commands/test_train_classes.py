"""`train --classes`: some of the classes, by what is said, what the run holds, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenshards
from tests.datasets import call_cli, call_json
from tests.stem_adaptors.training.small_runs import tokenize_pair
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.data.class_choice import class_part, left_out_words, named_classes, whole_images
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.selection import Selection
from tokenshards.stem_adaptors.training.defaults import training_data
from tokenshards.stem_adaptors.training.run_directory import load_run


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tokenize_pair(tmp_path_factory.mktemp("pair"))


def options_in(folder: Path) -> dict[str, Any]:
    return {"device": "cpu", "cache_dir": folder / "cache", "epochs": 1, "set": {"model.width": 8, "model.depth": 1, "model.heads": 2}}


def counts_of(place: Path) -> dict[int | str, int]:
    manifest = open_dataset(str(place)).manifest
    return dict(zip(manifest.classes, manifest.class_counts, strict=True))


def test_a_run_learns_and_measures_the_classes_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    train, val = counts_of(pair[0]), counts_of(pair[1])
    options = options_in(tmp_path)
    report = tokenshards.train(pair[0], tmp_path / "run", val=pair[1], classes=["class_2", "class_0"], **options)
    kept, measured = train["class_0"] + train["class_2"], val["class_0"] + val["class_2"]
    line = f"data          {kept} images of 2 classes (left out: {train['class_1']} images of 'class_1'), 4 x 4 sites with 2 ids; "
    assert line + f"measured on {measured} of {sum(val.values())} images" in report.said
    assert report.record["val_images"] == measured
    run = load_run(Store(str(tmp_path / "run")))
    assert run.classes == ("class_0", "class_2")
    found = call_json("evaluate", str(tmp_path / "run"), str(pair[1]), "--device=cpu", "--weights=last")
    assert found["images"] == measured and found["left_out"] == val["class_1"]
    assert found["top1"] == pytest.approx(report.record["val_top1"]) and found["loss"] == pytest.approx(report.record["val_loss"])
    again = tokenshards.train(pair[0], tmp_path / "run", val=pair[1], classes="class_0,class_2", resume=True, **options)
    assert again.record == report.record
    for other in (["class_0"], None, ["class_0", "class_1"]):
        with pytest.raises(
            ConfigError, match="--resume: the classes are .*; this run was started with .*'class_0', 'class_2'.*Give the same --cl"
        ):
            tokenshards.train(pair[0], tmp_path / "run", val=pair[1], classes=other, resume=True, **options)


def test_names_come_from_a_file_too(pair: tuple[Path, Path], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\ufeffclass_1\r\n\r\nclass_0\r\n")
    report = tokenshards.train(pair[0], tmp_path / "run", classes=f"file:{names}", **options_in(tmp_path))
    assert load_run(Store(report.run)).classes == ("class_0", "class_1")
    names.write_text("\n\n")
    for given, message in ((names, "the file is empty; expected the name of a class on each line"), (tmp_path / "none.txt", "none.txt")):
        _, error = call_cli("train", str(pair[0]), "--out", str(tmp_path / "new"), "--classes", f"file:{given}", expect=2)
        assert message in error
    assert not (tmp_path / "new").exists()


def test_a_name_that_is_none_is_an_error_with_names_spelt_alike(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, error = call_cli("train", str(pair[0]), "--out", str(tmp_path / "run"), "--classes", "class_0,clas_2", expect=2)
    assert "--classes has 'clas_2', which is no class of the dataset (did you mean 'class_2' or " in error
    assert "it has ['class_0', 'class_1', 'class_2']" in error and not (tmp_path / "run").exists()
    assert (
        "names no class; expected some of" in call_cli("train", str(pair[0]), "--out", str(tmp_path / "run"), "--classes", ",", expect=2)[1]
    )


def test_names_with_commas_and_numbers_are_found() -> None:
    assert named_classes(["tench, Tinca tinca", "cat, dog"], ["cat", "dog", "cow", "tench, Tinca tinca"]) == {
        "cat",
        "dog",
        "tench, Tinca tinca",
    }
    assert named_classes(["7,12", "3"], [3, 7, 12, 40]) == {"3", "7", "12"}


def test_a_part_is_renumbered_and_a_share_is_of_the_same_images(pair: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = open_dataset(str(pair[0]))
    part, share = (training_data(str(pair[0]), classes=["class_1,class_2"], fraction=fraction) for fraction in (1.0, 0.5))
    assert isinstance(part, Selection) and isinstance(share, Selection)
    assert whole_images(share) == whole_images(part) == len(part) == sum(dataset.manifest.class_counts[1:]) > len(share)
    every = training_data(str(pair[0]), fraction=0.5)
    assert isinstance(every, Selection) and set(share.rows_n) <= set(every.rows_n)
    batch = next(iter(TokenLoader(part, batch_size=len(part), order="sequential", cache_dir=str(tmp_path / "cache"))))
    stored = np.concatenate([one.labels_B for one in dataset.batches(64)])[batch.rows_B.numpy()]
    assert set(batch.labels_B.tolist()) == {0, 1} and (batch.labels_B.numpy() == stored - 1).all()
    assert training_data(str(pair[0]), classes=["class_0", "class_1", "class_2"]).digest == dataset.digest  # all of them: no choice


def test_a_mix_holds_the_classes_of_all_its_datasets(pair: tuple[Path, Path]) -> None:
    data = training_data(str(pair[0]), classes=["class_0"], mix_with=(f"{pair[1]}=0.5",))
    assert isinstance(data, Mix) and data.classes == ("class_0",)
    left = sum(count for place in pair for name, count in counts_of(place).items() if name != "class_0")
    assert left_out_words(data.parts) == f" (left out: {left} images of 'class_1', 'class_2')"
    assert left_out_words([open_dataset(str(pair[0]))]) == ""
    with pytest.raises(ConfigError, match=r"val has none of the classes \['cow'\] of --classes; it has \['class_0'"):
        class_part(open_dataset(str(pair[1])), ["cow"])
