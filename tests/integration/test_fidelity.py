"""What `preview` shows looks like the originals: photographs through the default tokenizer and real shards, compared pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets import convert
from tests.inline import InlineRunner
from tokenshards.pipeline.commands.demo_images import write_photo_tiles
from tokenshards.pipeline.reports.previews import preview_dataset
from tokenshards.pipeline.tokenizers.config import FitConfig


@pytest.mark.parametrize(("levels", "mean_db", "worst_db"), [(1, 22.0, 18.0), (2, 25.0, 22.0)], ids=["one level", "the default"])
def test_reconstructions_of_photographs(tmp_path: Path, levels: int, mean_db: float, worst_db: float) -> None:
    pytest.importorskip("sklearn", reason="its two photographs are the images of this test")
    count = write_photo_tiles(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "out", fit=FitConfig(levels=levels), runner=InlineRunner())
    shown = preview_dataset(
        str(tmp_path / "out"),
        str(tmp_path / "look.png"),
        count=count,
        sample_ids=(),
        label=None,
        source_url=str(tmp_path / "src"),
        options={},
    )
    assert len(shown.psnr_db) == count == 90
    assert sum(shown.psnr_db) / count >= mean_db
    assert min(shown.psnr_db) >= worst_db
