"""What a run says about its plan: images are called images, tars tars, and numbers are those of images."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.datasets import SilentReporter, convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.tokenizers.config import FitConfig

FIT = FitConfig(size=16, codes=4, iterations=2, sample=7)


def said(src: Path, out: Path) -> list[str]:
    reporter = SilentReporter()
    convert(src, out, reporter=reporter, runner=InlineRunner(), fit=FIT, shard_rows=4)
    return reporter.lines


def test_a_fit_on_a_table_counts_images_and_not_slices(tmp_path: Path) -> None:
    """It said `fitting one on 1 inputs` for a table of 300 images."""
    write_images(tmp_path / "images", 9, classes=0)
    pq.write_table(pa.table({"image": [path.read_bytes() for path in sorted((tmp_path / "images").iterdir())]}), tmp_path / "t.parquet")
    assert "no --tokenizer given: fitting one on 7 images …" in said(tmp_path / "t.parquet", tmp_path / "out")
    assert any(line.endswith("of about 3 images") for line in said(tmp_path / "images", tmp_path / "out2") if line.startswith("plan "))


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
    assert "no --tokenizer given: fitting one …" in lines
    assert [line.partition(": ")[2] for line in lines if line.startswith("plan ")] == ["2 shards of 1 tar"]
