"""A listing is spooled to the local disk: what fails leaves nothing there, even where the process ends without a clean-up."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenshards.pipeline.errors import TransientStorageError
from tokenshards.pipeline.planning.planner import Listing
from tokenshards.pipeline.records import PlanRow


def test_a_listing_that_fails_leaves_no_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def rows() -> Iterator[PlanRow]:
        yield PlanRow(kind="file", sample_id="a", path="a", size=1, version="", inputs=1)
        assert os.listdir(tmp_path), "the spool is here while it is written"
        raise TransientStorageError("an outage")

    listing = Listing(rows(), order_seed=0, keep_order=False, sample=0, sample_seed=0)
    with pytest.raises(TransientStorageError), listing:
        pass
    assert os.listdir(tmp_path) == []
