"""What a run says about its plan: images are called images, tars tars, and numbers are those of images."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.datasets import SilentReporter, convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.tokenizers.config import FitConfig, LayeredFitConfig, OwnFitConfig

FIT = FitConfig(size=16, codes=4, iterations=2, sample=7)
PATCHES, LAYERS = "patch codes, which keep how images look", "ids for recognition, which decode to a blur"


def said(src: Path, out: Path, fit: OwnFitConfig = FIT) -> list[str]:
    reporter = SilentReporter()
    convert(src, out, reporter=reporter, runner=InlineRunner(), fit=fit, shard_rows=4)
    return reporter.lines


def test_a_fit_on_a_table_counts_images_and_not_slices(tmp_path: Path) -> None:
    """It said `fitting one on 1 inputs` for a table of 300 images."""
    write_images(tmp_path / "images", 9, classes=0)
    pq.write_table(pa.table({"image": [path.read_bytes() for path in sorted((tmp_path / "images").iterdir())]}), tmp_path / "t.parquet")
    line = f"no --tokenizer given: fitting {PATCHES}, on 7 images ({LAYERS}: --kind layered-kmeans) …"
    assert line in said(tmp_path / "t.parquet", tmp_path / "out")
    assert any(line.endswith("of about 3 images") for line in said(tmp_path / "images", tmp_path / "out2") if line.startswith("plan "))


def test_the_chosen_kind_and_how_to_get_the_other_are_one_sentence(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 9, classes=0)
    lines = said(tmp_path / "images", tmp_path / "out", LayeredFitConfig(size=32, codes=4, iterations=2, sample=7))
    assert f"no --tokenizer given: fitting {LAYERS}, on 7 images ({PATCHES}: --kind patch-kmeans) …" in lines
    assert any(line.startswith("fitted layered-kmeans, 32 px, 4×4 grid, ") for line in lines)


@pytest.mark.parametrize(("fit", "option"), [(FIT, "--patch"), (LayeredFitConfig(codes=4, iterations=2), "--site")])
def test_ids_larger_than_their_images_are_told_with_the_option_of_the_kind(tmp_path: Path, fit: OwnFitConfig, option: str) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "images" / "small.png")
    Image.new("L", (4, 4), 9).save(tmp_path / "images" / "other.png")
    lines = said(tmp_path / "images", tmp_path / "out", replace(fit, size=128))
    assert [f"use a smaller --size, a larger {option} or --levels 1" in line for line in lines if "before compression" in line] == [True]


def test_shards_of_tars_are_counted_in_tars(tmp_path: Path) -> None:
    """It said `about 256 inputs` for tars of 5,000."""
    write_images(tmp_path / "images", 3, classes=0)
    (tmp_path / "src").mkdir()
    for number in range(2):
        with tarfile.open(tmp_path / "src" / f"{number}.tar", "w") as archive:
            for index, path in enumerate(sorted((tmp_path / "images").iterdir())):
                info = tarfile.TarInfo(f"{index}{path.suffix}")
                info.size = path.stat().st_size
                archive.addfile(info, io.BytesIO(path.read_bytes()))
    lines = said(tmp_path / "src", tmp_path / "out")
    assert f"no --tokenizer given: fitting {PATCHES} ({LAYERS}: --kind layered-kmeans) …" in lines
    assert [line.partition(": ")[2] for line in lines if line.startswith("plan ")] == ["2 shards of 1 tar"]
