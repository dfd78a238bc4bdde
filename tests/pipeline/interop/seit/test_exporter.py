from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tests.pipeline.interop.releases import (
    CODES,
    encode_loop,
    imported,
    offsets_of,
    some_codebook,
    some_images,
    write_release,
    write_synonyms,
)
from tests.pipeline.tokenizers.toys import FixedSequenceToy
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.interop.seit.exporter import export_seit
from tokenshards.pipeline.interop.seit.tables import nearest_codes
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.registry import temporary_family


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_release(folder: Path, split: str = "train") -> tuple[bytes, np.ndarray, list[int]]:
    with gzip.open(folder / f"{split}-token.index.npy.gz") as file:
        offsets = np.load(file, allow_pickle=False)
    labels = [int(line) for line in (folder / f"{split}-label.txt").read_text().split()]
    return gzip.decompress((folder / f"{split}-token.data.bin.gz").read_bytes()), offsets, labels


@given(st.data())
@settings(max_examples=7, deadline=None)
def test_a_release_comes_back_byte_for_byte(data: st.DataObject) -> None:
    grid = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    codes = data.draw(st.sampled_from([1, 2, 255, 256, 257, 391, 510]))
    rows = data.draw(
        st.lists(st.lists(st.integers(0, codes - 1), min_size=grid[0] * grid[1], max_size=grid[0] * grid[1]), min_size=1, max_size=9)
    )
    labels = data.draw(st.lists(st.integers(0, 5), min_size=len(rows), max_size=len(rows)))
    images = [encode_loop(row) for row in rows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_release(folder / "src", images, labels, codebook=some_codebook(codes))
        imported(folder / "src", folder / "data", grid=grid, shard_rows=data.draw(st.integers(1, 9)))
        export_seit(str(folder / "data"), str(folder / "out"), split="train")
        stream, offsets, written = read_release(folder / "out")
        assert stream == b"".join(images)
        assert offsets.dtype == np.int64 and offsets.tolist() == offsets_of(images).tolist()
        assert written == labels
        again = imported(folder / "out", folder / "again", grid=grid)
        assert again.manifest.fingerprint == open_dataset(str(folder / "data")).spec.fingerprint


def test_what_lies_beside_the_tokens(tmp_path: Path) -> None:
    write_release(tmp_path / "src", some_images(20))
    imported(tmp_path / "src", tmp_path / "data")
    report = export_seit(str(tmp_path / "data"), str(tmp_path / "out"), split="imagenet1k-train")
    codebook = some_codebook()
    table = torch.load(tmp_path / "out" / "codebook.ckpt", weights_only=True)
    assert type(table) is torch.Tensor and table.dtype == torch.float32 and np.array_equal(table.numpy(), codebook)
    assert np.array_equal(load_file(tmp_path / "out" / "codebook.safetensors")["codebook"], codebook)
    assert (tmp_path / "out" / "classes.txt").read_text() == "0\n1\n2\n"
    synonyms = json.loads((tmp_path / "out" / "synonyms.json").read_text())
    assert list(synonyms) == [str(code) for code in range(CODES)]
    unit = codebook.astype(float) / np.linalg.norm(codebook.astype(float), axis=1, keepdims=True)
    for code in (0, 17, 390):
        others = [other for other in range(CODES) if other != code]
        assert synonyms[str(code)] == sorted(others, key=lambda other: -float(unit[code] @ unit[other]))
    names = files_of(tmp_path / "out")
    assert {name: len(data) for name, data in names.items()} == report.files
    assert (report.images, report.classes, report.token_bytes) == (20, 3, sum(map(len, some_images(20))))
    assert "SeiT's own reader takes only 32x32" in report.notes[0] and report.rows() and json.dumps(report.to_json())


def test_nearest_codes_break_ties_upwards_and_bear_a_zero_row() -> None:
    table = np.array([[1, 0], [2, 0], [0, 1], [3, 0], [0, 0]], np.float32)
    assert nearest_codes(table).tolist() == [[1, 3, 2, 4], [0, 3, 2, 4], [0, 1, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3]]


def test_equal_datasets_give_equal_bytes(tmp_path: Path) -> None:
    write_release(tmp_path / "src", some_images(20))
    for name, shard_rows in (("a", 3), ("b", 7)):
        imported(tmp_path / "src", tmp_path / name, shard_rows=shard_rows)
        export_seit(str(tmp_path / name), str(tmp_path / f"out-{name}"), split="train")
    assert files_of(tmp_path / "out-a") == files_of(tmp_path / "out-b")
    export_seit(str(tmp_path / "a"), str(tmp_path / "out-b"), split="train")
    assert files_of(tmp_path / "out-a") == files_of(tmp_path / "out-b")


def test_an_imported_synonym_table_comes_back_as_it_was(tmp_path: Path) -> None:
    src = write_release(tmp_path / "src", some_images(20))
    data = write_synonyms(src)
    imported(src, tmp_path / "data")
    export_seit(str(tmp_path / "data"), str(tmp_path / "out"), split="train")
    assert (tmp_path / "out" / "synonyms.json").read_bytes() == data


def test_splits_share_a_folder_only_where_their_tables_agree(tmp_path: Path) -> None:
    src = write_release(tmp_path / "src", some_images(20))
    write_release(src, some_images(9, seed=1), split="val")
    for split in ("train", "val"):
        imported(src, tmp_path / split, split=split)
        export_seit(str(tmp_path / split), str(tmp_path / "out"), split=split)
    assert read_release(tmp_path / "out", "val")[0] == b"".join(some_images(9, seed=1))
    before = files_of(tmp_path / "out")
    write_release(tmp_path / "other", some_images(9), codebook=some_codebook(seed=1))
    imported(tmp_path / "other", tmp_path / "other-data")
    with pytest.raises(ConfigError, match="codebook.ckpt exists with other content.*Choose another output"):
        export_seit(str(tmp_path / "other-data"), str(tmp_path / "out"), split="test")
    write_release(tmp_path / "more", some_images(9), [7] * 9)
    imported(tmp_path / "more", tmp_path / "more-data")
    with pytest.raises(ConfigError, match="classes.txt exists with other content"):
        export_seit(str(tmp_path / "more-data"), str(tmp_path / "out"), split="test")
    assert files_of(tmp_path / "out") == before


def test_a_dataset_of_our_own_and_a_store_that_is_no_disk(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 30)
    convert(tmp_path / "images", tmp_path / "data", fit=FitConfig(size=16, codes=16, levels=1))
    export_seit(str(tmp_path / "data"), "memory://seit-export/out", split="train")
    (tmp_path / "out").mkdir()
    for info in Store("memory://seit-export/out").list():
        (tmp_path / "out" / info.path).write_bytes(Store("memory://seit-export/out").read(info.path))
    assert (tmp_path / "out" / "classes.txt").read_text() == "class_0\nclass_1\nclass_2\n"
    imported(tmp_path / "out", tmp_path / "again", grid=(4, 4), classes=str(tmp_path / "out" / "classes.txt"))

    def rows(url: Path) -> tuple[Any, ...]:
        dataset = open_dataset(str(url))
        (batch,) = dataset.batches(100)
        return dataset.classes, batch.ids_BLQ.tolist(), batch.labels_B.tolist(), dataset.codebook()["level_0"].tolist()

    assert rows(tmp_path / "again") == rows(tmp_path / "data")


def test_what_the_format_cannot_hold_is_refused_with_every_reason(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 20)
    convert(tmp_path / "images", tmp_path / "residual")
    with pytest.raises(ConfigError, match="levels 2; SeiT's format holds one id per site"):
        export_seit(str(tmp_path / "residual"), str(tmp_path / "out"), split="train")
    write_images(tmp_path / "flat", 20, classes=0)
    convert(tmp_path / "flat", tmp_path / "unlabelled", fit=FitConfig(size=16, codes=16, levels=1))
    with pytest.raises(ConfigError, match="20 rows without a label"):
        export_seit(str(tmp_path / "unlabelled"), str(tmp_path / "out"), split="train")
    with temporary_family("toy-sequence", "tests.pipeline.tokenizers.toys:FixedSequenceToy"):
        save_tokenizer(FixedSequenceToy(), Store(str(tmp_path / "toy")))
        convert(tmp_path / "images", tmp_path / "sequence", tokenizer=str(tmp_path / "toy"), runner=InlineRunner())
    with pytest.raises(ConfigError, match=r"layout sequence; .* vocabulary 262,144; SeiT's format holds at most 510 codes\. no codebook"):
        export_seit(str(tmp_path / "sequence"), str(tmp_path / "out"), split="train")
    with pytest.raises(ConfigError, match="--split is '../x'"):
        export_seit(str(tmp_path / "residual"), str(tmp_path / "out"), split="../x")
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_leaves_no_token_file(tmp_path: Path) -> None:
    imported(write_release(tmp_path / "src", some_images(20)), tmp_path / "data")
    (shard,) = (tmp_path / "data" / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Exception, match="sha256"):
        export_seit(str(tmp_path / "data"), str(tmp_path / "out"), split="train")
    assert not (tmp_path / "out").exists()
