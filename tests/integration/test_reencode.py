"""`verify --re-encode`: rows made again from folders, tars and tables; what is gone, what changed, and what another tokenizer made."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests import inline
from tests.datasets import SilentReporter, call_cli, convert, write_images
from tests.inline import InlineRunner
from tests.pipeline.tokenizers.toys import VariableSequenceToy
from tokenshards.pipeline.config import RunConfig, SourceConfig
from tokenshards.pipeline.conversion.tokenize import retry_failed
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.job.context import open_context
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.runners.base import RunListener
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, save_tokenizer
from tokenshards.pipeline.tokenizers.registry import temporary_family

ROWS, IDS = 40, 32
FIT = FitConfig(size=16, codes=16, iterations=2)


def verified(*arguments: object, expect: int = 0) -> dict[str, Any]:
    """Return the JSON of `verify`."""
    found: dict[str, Any] = json.loads(call_cli("verify", *map(str, arguments), "--json", expect=expect)[0])
    return found


@pytest.fixture
def dataset(tmp_path: Path) -> tuple[Path, Path]:
    """40 images in shards of 8 inputs."""
    write_images(tmp_path / "src", ROWS, bad=1)
    convert(tmp_path / "src", tmp_path / "out", runner=InlineRunner(), shard_rows=8)
    return tmp_path / "src", tmp_path / "out"


class Impostor:
    """Says that it is one tokenizer, and gives the ids that `spoil` makes of its own."""

    def __init__(self, tokenizer: Any, spoil: Any) -> None:
        self._tokenizer, self._spoil = tokenizer, spoil
        self.spec, self.codebook = tokenizer.spec, tokenizer.codebook

    def encode(self, images_BHWC: np.ndarray) -> TokenBatch:
        return self._spoil(images_BHWC, self._tokenizer.encode(images_BHWC))


class ImpostorRunner(InlineRunner):
    """A job whose worker has other weights than the plan says."""

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self._spoil = spoil

    def run(self, job: JobSpec, shards: Sequence[int], listener: RunListener) -> dict[int, str]:
        def opened(job: JobSpec) -> Any:
            context = open_context(job)
            return dataclasses.replace(context, tokenizer=Impostor(context.tokenizer, self._spoil))

        with patch.object(inline, "open_context", opened):
            return super().run(job, shards, listener)


def test_every_row_of_an_honest_dataset_agrees(dataset: tuple[Path, Path]) -> None:
    src, out = dataset
    found = verified(out, "--re-encode", 100_000, "--source", src)
    again = found["re_encoded"]
    assert found["ok"] and again["ok"] and again["agreement"] == 1.0 and again["left_out"] == {} and again["examples"] == []
    assert (again["rows_drawn"], again["rows_encoded"], again["rows_different"]) == (ROWS, ROWS, 0)
    assert again["ids"] == again["ids_equal"] == ROWS * IDS
    assert again["device"].startswith("cpu") and again["dtype"] == "float32"
    assert "re_encoded" not in verified(out)
    text, _ = call_cli("verify", str(out), "--re-encode", "5", "--seed", "7")  # the plan knows where the source is
    assert "re-encoded 5 of 5 rows (--seed 7) on cpu" in text and "100.0000% of 160 ids agree, 0 rows differ" in text
    assert "images were decoded by" not in text
    with patch("tokenshards.pipeline.ledger.reencode.DECODER", "pillow-0"):
        text, _ = call_cli("verify", str(out), "--re-encode", "5")
    assert f"images were decoded by {DECODER} when the rows were made, and by pillow-0 now" in text


def test_the_seed_decides_the_rows(dataset: tuple[Path, Path]) -> None:
    src, out = dataset
    for path in src.iterdir():
        shutil.rmtree(path)
    (src / "note.txt").touch()  # else the disk would count as not mounted
    seen = [verified(out, "--re-encode", 5, "--seed", seed, expect=1)["re_encoded"]["examples"] for seed in (1, 1, 2)]
    assert seen[0] == seen[1] != seen[2]
    names = [name for batch in open_dataset(str(out)).batches(64) for name in batch.sample_ids]
    drawn = sorted(np.random.default_rng(1).choice(ROWS, 5, replace=False))
    assert [example.partition(":")[0] for example in seen[0]] == [names[row] for row in drawn]
    first, second = (verified(out, "--re-encode", 5, expect=1)["re_encoded"] for _ in range(2))
    assert first["seed"] != second["seed"]


def test_sources_that_are_gone_or_changed_are_counted_and_are_no_difference(dataset: tuple[Path, Path]) -> None:
    src, out = dataset
    gone, longer, touched = src / "class_0/img_0000.jpg", src / "class_1/img_0001.png", src / "class_2/img_0002.jpg"
    gone.unlink()
    longer.write_bytes(longer.read_bytes() + b"more")
    os.utime(touched, ns=(0, 0))
    again = verified(out, "--re-encode", ROWS)["re_encoded"]
    assert again["left_out"] == {"changed_since_plan": 2, "missing": 1}
    assert again["rows_encoded"] == ROWS - 3 and again["agreement"] == 1.0 and again["ok"]
    assert {example.partition(":")[0] for example in again["examples"]} == {
        "class_0/img_0000.jpg",
        "class_1/img_0001.png",
        "class_2/img_0002.jpg",
    }
    text, _ = call_cli("verify", str(out), "--re-encode", str(ROWS))
    assert "left out, because the source has changed since tokenization: 2 changed_since_plan, 1 missing" in text


def test_a_source_that_moved(dataset: tuple[Path, Path], tmp_path: Path) -> None:
    src, out = dataset
    src.rename(tmp_path / "elsewhere")
    assert "error: " in call_cli("verify", str(out), "--re-encode", "3", expect=3)[1]
    assert verified(out, "--re-encode", 3, "--source", tmp_path / "elsewhere")["re_encoded"]["agreement"] == 1.0
    (tmp_path / "nothing").mkdir()
    empty = call_cli("verify", str(out), "--re-encode", "3", "--source", str(tmp_path / "nothing"), expect=3)[1]
    assert "this folder is empty" in empty and "mount it" in empty
    (tmp_path / "nothing" / "other.txt").touch()
    text, _ = call_cli("verify", str(out), "--re-encode", "3", "--source", str(tmp_path / "nothing"), expect=1)
    assert "re-encoded 0 of 3 rows" in text and "3 missing" in text and "--source" in text


def test_the_ids_of_another_tokenizer_hardly_agree(tmp_path: Path) -> None:
    write_images(tmp_path / "src", ROWS)
    write_images(tmp_path / "others", ROWS, seed=5)
    convert(tmp_path / "others", tmp_path / "other", runner=InlineRunner(), fit=FIT)
    other = load_tokenizer(Store(str(tmp_path / "other")), "tokenizer")
    convert(tmp_path / "src", tmp_path / "out", runner=ImpostorRunner(lambda images, _: other.encode(images)))
    text, _ = call_cli("verify", str(tmp_path / "out"), expect=0)
    assert "ok" in text  # its bytes are as they were written
    again = verified(tmp_path / "out", "--re-encode", ROWS, expect=1)["re_encoded"]
    assert not again["ok"] and again["agreement"] < 0.5 and again["rows_different"] == ROWS and len(again["examples"]) == 5
    text, _ = call_cli("verify", str(tmp_path / "out"), "--re-encode", "10", expect=1)
    assert "differ between devices, dtypes" in text and "another tokenizer" in text and "--min-agreement" in text
    assert verified(tmp_path / "out", "--re-encode", ROWS, "--min-agreement", 0)["ok"]


def test_a_flipped_id_is_counted_and_allowed(tmp_path: Path) -> None:
    write_images(tmp_path / "src", ROWS)

    def flip(images_BHWC: np.ndarray, tokens: TokenBatch) -> TokenBatch:
        ids_BLQ = tokens.ids_BLQ.copy()
        ids_BLQ[0, 3, 1] = (ids_BLQ[0, 3, 1] + 1) % 16
        return TokenBatch(ids_BLQ)

    convert(tmp_path / "src", tmp_path / "out", runner=ImpostorRunner(flip), batch_rows=64)  # one batch: one row
    again = verified(tmp_path / "out", "--re-encode", ROWS)["re_encoded"]
    assert (again["ids"], again["ids_equal"], again["rows_different"]) == (ROWS * IDS, ROWS * IDS - 1, 1) and again["ok"]
    assert again["agreement"] == (ROWS * IDS - 1) / (ROWS * IDS) and "1 of 32 ids differ" in again["examples"][0]
    strict = verified(tmp_path / "out", "--re-encode", ROWS, "--min-agreement", 1, expect=1)
    assert not strict["ok"] and strict["problems"] == []


def test_rows_of_different_length(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for index in range(20):
        image = np.full((16, 16, 3), 40, np.uint8)
        image[8:] += np.uint8(9 * index)
        Image.fromarray(image).save(tmp_path / "src" / f"{index:02d}.png")

    def cut(images_BHWC: np.ndarray, tokens: TokenBatch) -> TokenBatch:
        assert tokens.lengths_B is not None
        return TokenBatch(tokens.ids_BLQ, np.maximum(1, tokens.lengths_B - 2))

    with temporary_family("toy-variable", "tests.pipeline.tokenizers.toys:VariableSequenceToy"):
        save_tokenizer(VariableSequenceToy(), Store(str(tmp_path / "tok")))
        for name, runner in (("out", InlineRunner()), ("cut", ImpostorRunner(cut))):
            convert(tmp_path / "src", tmp_path / name, tokenizer=str(tmp_path / "tok"), runner=runner)
        lengths = np.concatenate([batch.tokens.lengths_B for batch in open_dataset(str(tmp_path / "out")).batches(64)])
        assert set(lengths) == {1, 3, 7}
        again = verified(tmp_path / "out", "--re-encode", 20)["re_encoded"]
        assert again["ids"] == again["ids_equal"] == lengths.sum()
        again = verified(tmp_path / "cut", "--re-encode", 20, expect=1)["re_encoded"]
        assert again["ids"] == lengths.sum() and again["ids_equal"] == np.maximum(1, lengths - 2).sum()
        assert again["rows_different"] == np.count_nonzero(lengths > 1)


def write_tar(path: Path, files: list[Path]) -> None:
    with tarfile.open(path, "w") as archive:
        for file in files:
            archive.add(file, file.name)
        bad = tarfile.TarInfo("zz_bad.jpg")
        bad.size = 8
        archive.addfile(bad, io.BytesIO(b"\xff\xd8\xff\xe0bad!"))


def test_tars(tmp_path: Path) -> None:
    write_images(tmp_path / "src", ROWS, classes=0)
    (tmp_path / "tars").mkdir()
    files = sorted((tmp_path / "src").iterdir())
    for number in range(4):
        write_tar(tmp_path / "tars" / f"{number}.tar", files[number::4])
    convert(str(tmp_path / "tars" / "*.tar"), tmp_path / "out", runner=InlineRunner())
    source = ("--source", tmp_path / "tars" / "*.tar")
    again = verified(tmp_path / "out", "--re-encode", 11, *source)["re_encoded"]
    assert (again["rows_encoded"], again["agreement"], again["left_out"]) == (11, 1.0, {})
    (tmp_path / "tars" / "0.tar").unlink()
    write_tar(tmp_path / "tars" / "1.tar", files[:3])
    again = verified(tmp_path / "out", "--re-encode", ROWS, *source)["re_encoded"]
    assert (again["rows_encoded"], again["agreement"], again["left_out"]) == (20, 1.0, {"changed_since_plan": 10, "missing": 10})


@pytest.mark.parametrize("id_column", [None, "name"])
def test_tables(id_column: str | None, tmp_path: Path) -> None:
    write_images(tmp_path / "src", ROWS, classes=0)
    files = sorted((tmp_path / "src").iterdir())
    columns = {"image": [file.read_bytes() for file in files], "name": [file.stem for file in files]}
    columns["image"][7] = b"no image"
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=9)
    config = SourceConfig(image_column="image", id_column=id_column)
    convert(tmp_path / "t.parquet", tmp_path / "out", runner=InlineRunner(), source=config)
    again = verified(tmp_path / "out", "--re-encode", 12, "--seed", 1)["re_encoded"]
    assert (again["rows_encoded"], again["agreement"], again["left_out"]) == (12, 1.0, {})
    os.utime(tmp_path / "t.parquet", ns=(0, 0))
    again = verified(tmp_path / "out", "--re-encode", 12, expect=1)["re_encoded"]
    assert again["left_out"] == {"changed_since_plan": 12} and again["agreement"] is None


@pytest.mark.parametrize("policy", ["flip", "ten-crop", "4"])
def test_each_view_is_compared_with_itself(policy: str, tmp_path: Path) -> None:
    write_images(tmp_path / "src", 12, side=48)
    (tmp_path / "src" / "class_1" / "bad.jpg").write_bytes(b"no image")
    convert(tmp_path / "src", tmp_path / "out", runner=InlineRunner(), shard_rows=40, views=policy)
    every = verified(tmp_path / "out", "--re-encode", 1000, "--seed", 0)["re_encoded"]
    assert every["rows_encoded"] == every["rows_drawn"] == 12 * {"flip": 2, "ten-crop": 10, "4": 4}[policy]
    assert every["agreement"] > 0.99
    some = verified(tmp_path / "out", "--re-encode", 9, "--seed", 3)["re_encoded"]
    assert some["rows_encoded"] == 9 and some["agreement"] > 0.98
    next((tmp_path / "src" / "class_0").iterdir()).unlink()
    fewer = verified(tmp_path / "out", "--re-encode", 1000, "--seed", 0)["re_encoded"]
    assert fewer["left_out"] == {"missing": every["rows_drawn"] // 12} and fewer["rows_encoded"] == every["rows_drawn"] * 11 // 12


def test_rows_that_a_later_generation_added(dataset: tuple[Path, Path]) -> None:
    src, out = dataset
    Image.new("RGB", (32, 32), (9, 99, 199)).save(src / "class_1/bad_0040.jpg")
    assert retry_failed(str(out), None, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner()) is not None
    again = verified(out, "--re-encode", 100)["re_encoded"]
    assert (again["rows_drawn"], again["rows_encoded"], again["agreement"]) == (ROWS + 1, ROWS + 1, 1.0)


def test_a_damaged_dataset_is_not_encoded_again(dataset: tuple[Path, Path]) -> None:
    _, out = dataset
    shard = next((out / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-9])
    found = verified(out, "--re-encode", 5, expect=1)
    assert not found["ok"] and found["problems"] and "re_encoded" not in found
    assert "No row was encoded again" in call_cli("verify", str(out), "--re-encode", "5", expect=1)[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--re-encode", "0"], "1 to 100000"),
        (["--re-encode", "100001"], "1 to 100000"),
        (["--re-encode", "5", "--min-agreement", "99"], "from 0 to 1"),
        (["--re-encode", "5", "--seed", "-1"], "0 or more"),
        (["--source", "somewhere"], "without --re-encode"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], says: str, tmp_path: Path) -> None:
    shown, errors = call_cli("verify", str(tmp_path), *arguments, expect=2)
    assert errors.startswith("error: ") and says in errors and shown == ""
