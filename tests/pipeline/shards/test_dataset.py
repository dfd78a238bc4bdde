"""The public door, on datasets of a few shards with a real manifest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

import tokenshards.pipeline.shards
from tests.pipeline.shards.samples import LAYOUTS, codebook, make_rows, make_shard, make_spec, make_tokens
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, FingerprintMismatchError, IncompleteError, MissingObjectError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.commit import ObjectRef, write_object
from tokenshards.pipeline.shards.manifest import Manifest, ShardEntry, publish_manifest
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store

TABLES = codebook((200,))
CLASSES = ("class_0", "class_1", "class_2")


def build(root: Path, rows: list[int | None], layout: str = "grid", *, alien: int | None = None, **options: Any) -> list[np.ndarray]:
    """Publish one shard per entry of `rows` (None: all its inputs failed); return the ids of each shard."""
    store, spec = Store(str(root)), make_spec(layout, tables=TABLES if LAYOUTS[layout].ids_per_site == 1 else None)
    entries, ids, first = [], [], 0
    for number, count in enumerate(rows):
        reference = ObjectRef(path="", sha256="", size=0)
        if count is not None:
            tokens = make_tokens(spec, count, seed=number)
            members = make_rows(count, first=first)
            members = make_rows(count, first=first, labels=[name.split("/")[0] for name in members.sample_id])
            if first == 0:
                members.label[0] = None
            written = make_spec(layout, 199) if number == alien else spec
            ids_BLQ = tokens.ids_BLQ if number != alien else np.minimum(tokens.ids_BLQ, 198)
            shard = make_shard(
                written, type(tokens)(ids_BLQ, tokens.lengths_B, tokens.shapes_BD), rows=members, label_type="string", **options
            )
            reference = write_object(store, "shards", number, shard.data)
            ids.append(tokens.ids_BLQ)
            first += count
        entries.append(make_entry(number, reference, count))
    store.write("tokenizer/codebook.safetensors", save(TABLES))
    publish(store, spec, entries)
    return ids


def make_entry(number: int, reference: ObjectRef, count: int | None) -> ShardEntry:
    return ShardEntry(
        shard=number, path=reference.path or None, sha256=reference.sha256 or None, size=reference.size, rows=count or 0,
        quarantine_path=None, quarantine_sha256=None, quarantine_size=0, quarantined=0, inputs_seen=count or 0,
        plan_id="p", commit_sha256="c",
    )  # fmt: skip


def publish(store: Store, spec: TokenizerSpec, entries: list[ShardEntry], classes: tuple[str, ...] = CLASSES) -> None:
    publish_manifest(
        store,
        Manifest(
            generation=0, parent=None, plan_ids=("p",), spec=spec, classes=classes, class_counts=(0,) * len(classes),
            totals={}, statistics={}, card={}, tokenizer_objects={}, label_type="string", shards=entries,
        ),
    )  # fmt: skip


def test_rows_come_in_shard_order_whatever_the_batch_size(tmp_path: Path) -> None:
    ids = np.concatenate(build(tmp_path, [7, None, 1, 12]))
    dataset = open_dataset(str(tmp_path))
    assert len(dataset) == 20 and len(dataset.shards) == 3 and dataset.classes == CLASSES
    expected = make_rows(20)
    for size in (1, 3, 5, 7, 20, 64):
        batches = list(dataset.batches(size))
        assert [len(batch) for batch in batches] == [size] * (20 // size) + [20 % size] * (20 % size > 0)
        np.testing.assert_array_equal(np.concatenate([batch.ids_BLQ for batch in batches]), ids)
        assert [name for batch in batches for name in batch.sample_ids] == expected.sample_id
        labels = np.concatenate([batch.labels_B for batch in batches])
        assert labels.dtype == np.int64 and labels.tolist() == [-1] + [n % 3 for n in range(1, 20)]


def test_extra_columns_ride_along(tmp_path: Path) -> None:
    build(tmp_path, [4, 4])
    batch = next(open_dataset(str(tmp_path)).batches(6, columns=["orig_width", "view"]))
    assert batch.table.to_pydict() == {"orig_width": list(range(100, 106)), "view": [0] * 6}
    with pytest.raises(ConfigError, match="no columns"):
        next(open_dataset(str(tmp_path)).batches(6, columns=["meta.nothing"]))
    with pytest.raises(ConfigError, match="batch_size is 0"):
        next(open_dataset(str(tmp_path)).batches(0))


@pytest.mark.parametrize("layout", ["sequence_variable", "grid_variable", "video_variable"])
def test_variable_rows_of_several_shards_share_batches(layout: str, tmp_path: Path) -> None:
    build(tmp_path, [5, 3, 6], layout)
    dataset = open_dataset(str(tmp_path))
    singles = [dataset[row].tokens for row in range(14)]
    for size in (1, 4, 14):
        start = 0
        for batch in dataset.batches(size):
            tokens = batch.tokens
            counts = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD.prod(axis=1)
            assert counts is not None and tokens.ids_BLQ.shape[1] == counts.max()
            for row, count in enumerate(counts):
                single = singles[start + row]
                assert single.ids_BLQ.shape[1] == count
                np.testing.assert_array_equal(tokens.ids_BLQ[row, :count], single.ids_BLQ[0])
                assert not tokens.ids_BLQ[row, count:].any()
            start += len(batch)


def test_one_sample_by_id_and_by_row(tmp_path: Path) -> None:
    ids = np.concatenate(build(tmp_path, [3, None, 4000, 2]))
    dataset = open_dataset(str(tmp_path))
    names = make_rows(4005).sample_id
    for row in (0, 2, 3, 2500, 4002, 4004):
        for sample in (dataset[row], dataset.sample(names[row])):
            np.testing.assert_array_equal(sample.tokens.ids_BLQ[0], ids[row])
            assert sample.row["sample_id"] == names[row] and sample.row["orig_width"] == 100 + row
            assert sample.label == (None if row == 0 else f"class_{row % 3}")
    for missing in (lambda: dataset.sample("nobody.jpg"), lambda: dataset.sample(names[0], view=1)):
        with pytest.raises(MissingObjectError, match="no row has this sample_id"):
            missing()
    for row in (-1, 4005):
        with pytest.raises(IndexError):
            dataset[row]


def test_codebook_is_checked_against_the_spec(tmp_path: Path) -> None:
    build(tmp_path, [3])
    np.testing.assert_array_equal(open_dataset(str(tmp_path)).codebook()["level_0"], TABLES["level_0"])
    Store(str(tmp_path)).write("tokenizer/codebook.safetensors", save({"level_0": TABLES["level_0"] + 1}))
    with pytest.raises(CorruptObjectError, match="codebook"):
        open_dataset(str(tmp_path)).codebook()


def test_a_tokenizer_without_vectors_has_an_empty_codebook(tmp_path: Path) -> None:
    build(tmp_path, [3], "grid_residual")
    assert open_dataset(str(tmp_path)).codebook() == {}


def test_no_dataset_and_an_unfinished_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingObjectError, match="no dataset here"):
        open_dataset(str(tmp_path))
    Store(str(tmp_path)).write("plan/current.json", b"{}")
    with pytest.raises(IncompleteError, match="tokenshards tokenize.*tokenshards status"):
        open_dataset(str(tmp_path))


def test_a_shard_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    build(tmp_path, [3, 3], alien=1)
    dataset = open_dataset(str(tmp_path))
    with pytest.raises(FingerprintMismatchError, match="cannot be mixed"):
        list(dataset.batches(2))
    with pytest.raises(FingerprintMismatchError):
        dataset.sample("class_0/image_00000.jpg")


def test_size_is_always_checked_and_content_when_asked(tmp_path: Path) -> None:
    build(tmp_path, [3, 300])
    path = tmp_path / str(open_dataset(str(tmp_path)).shards[0].path)
    data = path.read_bytes()
    path.write_bytes(data + b"x")
    with pytest.raises(CorruptObjectError, match=f"{len(data) + 1} bytes; the manifest says {len(data)}"):
        next(open_dataset(str(tmp_path)).batches(1))
    damaged = bytearray(data)
    damaged[4] ^= 1  # the header of the first page, which no page checksum covers
    path.write_bytes(damaged)
    with pytest.raises(CorruptObjectError, match="sha256"):
        next(open_dataset(str(tmp_path), verify=True).batches(1))
    path.unlink()
    with pytest.raises(MissingObjectError, match="tokenshards verify"):
        next(open_dataset(str(tmp_path)).batches(1))


def test_a_label_that_the_class_table_lacks_is_corrupt(tmp_path: Path) -> None:
    build(tmp_path, [6])
    store, dataset = Store(str(tmp_path)), open_dataset(str(tmp_path))
    publish(store, dataset.spec, list(dataset.shards), classes=("class_0", "class_1"))
    with pytest.raises(CorruptObjectError, match="has the label 'class_2', which is not in the class table"):
        list(open_dataset(str(tmp_path)).batches(6))


def test_integer_classes_map_to_their_position(tmp_path: Path) -> None:
    store, spec = Store(str(tmp_path)), make_spec("grid")
    rows = make_rows(4, labels=[30, 10, None, 20])
    reference = write_object(store, "shards", 0, make_shard(spec, make_tokens(spec, 4), rows=rows, label_type="int64").data)
    publish(store, spec, [make_entry(0, reference, 4)], classes=(10, 20, 30))
    assert next(open_dataset(str(tmp_path)).batches(4)).labels_B.tolist() == [2, 0, -1, 1]


def test_a_copied_dataset_stays_valid(tmp_path: Path) -> None:
    build(tmp_path / "a", [3, 4])
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(open_dataset(str(tmp_path / "b"))) == 7


def test_memory_store(tmp_path: Path) -> None:
    build(tmp_path, [3, 4])
    remote = Store("memory://open-dataset")
    for item in Store(str(tmp_path)).list():
        remote.write(item.path, (tmp_path / item.path).read_bytes())
    assert sum(len(batch) for batch in open_dataset("memory://open-dataset", verify=True).batches(2)) == 7


def test_every_exported_name_exists_and_the_package_stays_light() -> None:
    for name in tokenshards.pipeline.shards.__all__:
        assert getattr(tokenshards.pipeline.shards, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = tokenshards.pipeline.shards.nothing
    code = "import sys; from tokenshards.pipeline.shards import FORMAT_VERSION, TokenizerSpec; print(*sys.modules); "
    code += "from tokenshards.pipeline.shards import open_dataset; print(*sys.modules)"
    light, full = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "pyarrow" not in light.split() and "torch" not in full.split()


def test_a_dataset_whose_inputs_all_failed(tmp_path: Path) -> None:
    build(tmp_path, [None, None])
    dataset = open_dataset(str(tmp_path))
    assert len(dataset) == 0 and list(dataset.batches(4)) == []
    with pytest.raises(MissingObjectError, match="among 0 rows"):
        dataset.sample("x")
