"""`export webdataset`: what the webdataset package reads is what the dataset holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from safetensors.numpy import load_file

from tests.datasets import call_cli, convert, write_images
from tests.inline import InlineRunner
from tests.pipeline.interop.seit.test_exporter import files_of
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.interop.webdataset_export import WebdatasetExport, export_webdataset
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards import open_dataset

ROWS = 25

# The webdataset package leaves the tars that it reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*tar:ResourceWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with labels, and two views of each."""
    folder = tmp_path_factory.mktemp("export")
    write_images(folder / "src", ROWS)
    convert(folder / "src", folder / "data", runner=InlineRunner(), shard_rows=7, views="flip")
    return folder / "data"


def read(written: WebdatasetExport) -> list[dict[str, Any]]:
    return list(webdataset.WebDataset(written.pattern, shardshuffle=False).decode())


def test_webdataset_reads_every_row_in_order(data: Path, tmp_path: Path) -> None:
    written = export_webdataset(str(data), str(tmp_path / "out"), rows_per_tar=20)
    assert (written.rows, written.tars, written.unlabelled) == (2 * ROWS, 3, 0)
    assert written.pattern.endswith("/{00000..00002}.tar") and "50" in dict(written.table())["rows"]
    dataset = open_dataset(str(data))
    batch = next(dataset.batches(2 * ROWS, columns=["view"]))
    samples = read(written)
    assert [sample["__key__"] for sample in samples] == [f"{row:08d}" for row in range(2 * ROWS)]
    for row, sample in enumerate(samples):
        assert np.array_equal(sample["tokens.npy"], batch.ids_BLQ[row]) and sample["tokens.npy"].dtype == batch.ids_BLQ.dtype
        assert sample["cls"] == batch.labels_B[row]
        assert sample["json"]["sample_id"] == batch.sample_ids[row] and sample["json"]["view"] == row % 2
        assert sample["json"]["label"] == dataset.classes[batch.labels_B[row]]
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["classes"] == list(dataset.classes) and about["fingerprint"] == dataset.spec.fingerprint and about["views"] == 2
    tables = load_file(tmp_path / "out" / "codebook.safetensors")
    assert all(np.array_equal(tables[name], table) for name, table in dataset.codebook().items()) and tables


def test_again_gives_the_same_bytes_and_another_export_is_refused(data: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    export_webdataset(str(data), out)
    before = files_of(tmp_path / "out")
    assert set(before) == {"00000.tar", "codebook.safetensors", "dataset.json"}
    export_webdataset(str(data), out)
    assert files_of(tmp_path / "out") == before
    with pytest.raises(ConfigError, match="from another export; choose another output"):
        export_webdataset(str(data), out, rows_per_tar=7)
    assert files_of(tmp_path / "out") == before
    with pytest.raises(ConfigError, match="--rows-per-tar is 0; expected 1 to"):
        export_webdataset(str(data), out, rows_per_tar=0)


def test_rows_without_labels_have_no_cls(data: Path, tmp_path: Path) -> None:
    source = SourceConfig(no_labels=True)
    convert(data.parent / "src", tmp_path / "data", tokenizer=f"{data}/tokenizer", source=source, runner=InlineRunner())
    out, _ = call_cli("export", "webdataset", str(tmp_path / "data"), str(tmp_path / "out"))
    assert "25, 25 of them without a label" in out and "webdataset.WebDataset(" in out
    report = json.loads(call_cli("export", "webdataset", str(tmp_path / "data"), str(tmp_path / "out"), "--json")[0])
    samples = read(WebdatasetExport(**report))
    assert len(samples) == ROWS and not any("cls" in sample for sample in samples) and samples[0]["json"]["label"] is None


def test_rows_of_different_length_and_shape_are_cut() -> None:
    from tokenshards.pipeline.interop.webdataset_export import _rows
    from tokenshards.pipeline.shards.dataset import Batch

    ids_BLQ = np.arange(12, dtype=np.uint16).reshape(2, 6, 1)
    labels_B = np.array([3, -1])
    for tokens, shapes in (
        (TokenBatch(ids_BLQ, np.array([6, 2], np.int32)), [None, None]),
        (TokenBatch(ids_BLQ, None, np.array([[2, 3], [1, 2]], np.int32)), [[2, 3], [1, 2]]),
    ):
        ids, labels, found = _rows(Batch(tokens, labels_B, ["a", "b"], None))
        assert [row.tolist() for row in ids] == [ids_BLQ[0].tolist(), ids_BLQ[1, :2].tolist()]
        assert labels == [3, -1] and found == shapes
