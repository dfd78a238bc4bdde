"""The public door, on datasets of a few shards with a real manifest."""

from __future__ import annotations

import os
import pickle
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
from tokenshards.pipeline.shards import open_dataset, random_access
from tokenshards.pipeline.shards.commit import ObjectRef, write_object
from tokenshards.pipeline.shards.manifest import Manifest, ShardEntry, publish_manifest
from tokenshards.pipeline.shards.reader import ShardReader
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


def publish(store: Store, spec: TokenizerSpec, entries: list[ShardEntry], classes: tuple[str, ...] = CLASSES, **more: Any) -> None:
    publish_manifest(
        store,
        Manifest(
            generation=0, parent=None, plan_ids=("p",), spec=spec, classes=classes, class_counts=(0,) * len(classes),
            totals={}, statistics={}, card={}, tokenizer_objects={}, label_type="string", shards=entries, **more,
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
    for row in (-4006, 4005):
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


def test_rows_by_place_from_either_end_and_in_slices(tmp_path: Path) -> None:
    ids = np.concatenate(build(tmp_path, [3, None, 4000, 2]))
    dataset = open_dataset(str(tmp_path))
    names = make_rows(4005).sample_id
    for row in (-1, -2, -4005, np.int64(7)):
        np.testing.assert_array_equal(dataset[int(row)].ids_LQ, ids[row])
        assert dataset[row].row["sample_id"] == names[row]
    for part in (slice(4), slice(-3, None), slice(1, 3000, 700), slice(4004, 1, -999), slice(2, 2000)):
        batch = dataset[part]
        np.testing.assert_array_equal(batch.ids_BLQ, ids[part])
        assert batch.sample_ids == names[part] and batch.table.column("orig_width").to_pylist() == [100 + row for row in range(4005)[part]]
    assert len(dataset[5:5]) == 0 and [sample.label for sample in dataset][:3] == [None, "class_1", "class_2"]
    for row in (4005, -4006):
        with pytest.raises(IndexError, match="of a dataset of 4005 rows"):
            _ = dataset[row]
    with pytest.raises(ConfigError, match=r"By its id: dataset.sample\(id\)"):
        _ = dataset["class_1"]  # type: ignore[call-overload]


@pytest.mark.parametrize("layout", ["sequence_variable", "grid_variable"])
def test_slices_of_rows_that_vary(layout: str, tmp_path: Path) -> None:
    build(tmp_path, [5, 3], layout)
    dataset = open_dataset(str(tmp_path))
    for row, sample in enumerate(dataset[2:7].tokens.take(np.array([one])) for one in range(5)):
        single = dataset[row + 2].tokens
        np.testing.assert_array_equal(sample.ids_BLQ[:, : single.ids_BLQ.shape[1]], single.ids_BLQ)


def test_rows_near_each_other_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, [40, 40])
    reads, real = [], ShardReader.read_row_group
    monkeypatch.setattr(ShardReader, "read_row_group", lambda self, *given: reads.append(given) or real(self, *given))
    dataset = open_dataset(str(tmp_path))
    for row in (*range(80), *range(79, -1, -1)):
        _ = dataset[row]
    assert len(reads) == 2
    expected = [sample.ids_LQ for sample in dataset]
    monkeypatch.setattr(random_access, "CACHED_BYTES", 1)
    other = pickle.loads(pickle.dumps(dataset))  # a worker process reads for itself
    for row in (0, 1, 79, 0):
        np.testing.assert_array_equal(other[row].ids_LQ, expected[row])
    assert len(reads) == 5, "with room for one row group, each change of group is a read"


def test_a_forked_process_reads_with_files_of_its_own(tmp_path: Path) -> None:
    build(tmp_path, [40])
    dataset = open_dataset(str(tmp_path))
    expected = dataset[3].ids_LQ
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(dataset[3].ids_LQ, expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_datasets_of_one_tokenizer_are_joined_by_the_names_of_their_classes(tmp_path: Path) -> None:
    first, second = (build(tmp_path / name, rows) for name, rows in (("a", [3, 2]), ("b", [4])))
    store = Store(str(tmp_path / "b"))
    entries = list(open_dataset(store.url).shards)
    publish(store, open_dataset(store.url).spec, entries, classes=("class_2", "class_1", "class_0", "new"))
    both = tokenshards.open_dataset([tmp_path / "a", tmp_path / "b"])
    assert isinstance(both, tokenshards.TokenDataset) and len(both) == 9 and both.classes == (*CLASSES, "new")
    np.testing.assert_array_equal(both[:].ids_BLQ, np.concatenate([*first, *second]))
    assert [sample.label for sample in both] == [both.classes[label] if label >= 0 else None for label in both[:].labels_B]
    assert [len(batch) for batch in both.batches(4)] == [4, 4, 1] and both[-1].ids_LQ.tolist() == second[0][-1].tolist()
    assert both.digest not in (part.digest for part in both.parts)
    with pytest.raises(ConfigError, match="one dataset twice"):
        tokenshards.open_dataset([tmp_path / "a", str(tmp_path / "a")])
    with pytest.raises(ConfigError, match="an empty list"):
        tokenshards.open_dataset([])


def test_datasets_of_two_tokenizers_are_not_joined(tmp_path: Path) -> None:
    build(tmp_path / "a", [3])
    build(tmp_path / "b", [3], "grid_residual")
    with pytest.raises(FingerprintMismatchError, match="cannot be joined; tokenize both with one: .* --tokenizer"):
        tokenshards.open_dataset([tmp_path / "a", tmp_path / "b"])


def test_a_dataset_opened_for_training_alone_cannot_decode(tmp_path: Path) -> None:
    build(tmp_path, [3])
    with pytest.raises(ConfigError, match=r"expected `tokenshards.open_dataset`"):
        open_dataset(str(tmp_path)).decode(np.zeros((1, 12, 1), np.int64))
