"""The decoded set against the dataset it came from: every layout, damage, kills, two builders, budgets, remote stores."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import ROOT
from tests.pipeline.shards.samples import LAYOUTS, assert_same_tokens
from tests.pipeline.shards.test_dataset import build
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError
from tokenshards.pipeline.records import TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.data.cache import cache_root, copies_folder, decoded_bytes
from tokenshards.stem_adaptors.data.decoded import DecodedSet


def opened(dataset: TokenDataset, cache: Path, **options: float) -> DecodedSet:
    return DecodedSet.open(dataset, cache_dir=str(cache), **{"cache_gb": 1.0, **options})


def settled(dataset: TokenDataset, cache: Path) -> Path:
    """Open twice: the second waits until the first has sealed the copy; return the copy's folder."""
    opened(dataset, cache)
    opened(dataset, cache)
    folder = copies_folder(dataset, str(cache))
    (place,) = (path for path in folder.iterdir() if path.is_dir())
    assert (folder / "decoded.json").exists()
    return place


def expected_rows(dataset: TokenDataset) -> tuple[TokenBatch, np.ndarray]:
    batches = list(dataset.batches(64))
    return concatenate_tokens([batch.tokens for batch in batches]), np.concatenate([batch.labels_B for batch in batches])


def trimmed(tokens: TokenBatch) -> TokenBatch:
    counts = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD.prod(axis=1)
    return tokens if counts is None else TokenBatch(tokens.ids_BLQ[:, : counts.max()], tokens.lengths_B, tokens.shapes_BD)


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_every_layout_are_those_of_the_dataset(layout: str, tmp_path: Path) -> None:
    build(tmp_path / "data", [7, None, 1, 12, 2100], layout)
    dataset = open_dataset(str(tmp_path / "data"))
    tokens, labels_N = expected_rows(dataset)
    rows_B = np.random.default_rng(0).permutation(len(dataset))[:300]
    for decoded in (opened(dataset, tmp_path / "cache"), opened(dataset, tmp_path / "cache")):  # made, and mapped
        assert len(decoded) == len(dataset)
        np.testing.assert_array_equal(decoded.labels_N, labels_N)
        found = decoded.take(rows_B)
        assert_same_tokens(found, trimmed(tokens.take(rows_B)))
        assert found.ids_BLQ.transpose(0, 2, 1).flags.c_contiguous
        with pytest.raises(IndexError):
            decoded.take(np.array([len(dataset) + 1]))


@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=1, max_size=5), threads=st.integers(1, 4), data=st.data())
def test_any_split_into_shards_and_any_rows(
    counts: list[int | None], threads: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not any(counts):
        counts = [*counts, 1]
    folder = tmp_path_factory.mktemp("any")
    build(folder / "data", counts, data.draw(st.sampled_from(["grid_residual", "sequence_variable", "grid_variable"])))
    dataset = open_dataset(str(folder / "data"))
    tokens, labels_N = expected_rows(dataset)
    rows_B = np.array(data.draw(st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=8)))
    decoded = DecodedSet.open(dataset, cache_dir=str(folder / "cache"), cache_gb=1.0, threads=threads)
    assert_same_tokens(decoded.take(rows_B), trimmed(tokens.take(rows_B)))
    np.testing.assert_array_equal(decoded.labels_N, labels_N)


def test_a_sealed_copy_needs_the_shards_no_more(tmp_path: Path) -> None:
    build(tmp_path / "data", [30, 40])
    dataset = open_dataset(str(tmp_path / "data"))
    tokens, _ = expected_rows(dataset)
    settled(dataset, tmp_path / "cache")
    shutil.rmtree(tmp_path / "data")
    assert_same_tokens(opened(dataset, tmp_path / "cache").take(np.arange(70)), tokens)


def test_another_manifest_gets_a_copy_of_its_own(tmp_path: Path) -> None:
    build(tmp_path / "a", [5])
    build(tmp_path / "b", [6])
    first, second = (opened(open_dataset(str(tmp_path / name)), tmp_path / "cache") for name in "ab")
    assert (len(first), len(second)) == (5, 6)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "seal", "no seal", "format"])
def test_a_damaged_copy_is_made_again_and_old_maps_live_on(damage: str, tmp_path: Path) -> None:
    build(tmp_path / "data", [30, 40])
    dataset = open_dataset(str(tmp_path / "data"))
    tokens, labels_N = expected_rows(dataset)
    place = settled(dataset, tmp_path / "cache")
    mapped = opened(dataset, tmp_path / "cache")
    seal_path = place.parent / "decoded.json"
    if damage == "truncated":
        shutil.copy(place / "ids", place / "copy")  # truncating the mapped file itself would be felt by who maps it
        os.truncate(place / "copy", 100)
        os.replace(place / "copy", place / "ids")
    elif damage == "longer":
        with open(place / "labels", "ab") as handle:
            handle.write(b"\0")
    elif damage == "missing":
        (place / "ids").unlink()
    elif damage == "seal":
        seal_path.write_bytes(seal_path.read_bytes().replace(b"uint", b"uInt").replace(b"u2", b"u1").replace(b"u1", b"i1"))
    elif damage == "no seal":
        seal_path.unlink()
    else:
        seal_path.write_bytes(b"{}")
    for decoded in (opened(dataset, tmp_path / "cache"), mapped):
        assert_same_tokens(decoded.take(np.arange(70)), tokens)
        np.testing.assert_array_equal(decoded.labels_N, labels_N)
    assert settled(dataset, tmp_path / "cache").name != place.name and not place.exists()


def test_too_small_a_budget_names_the_gigabytes_and_the_other_order(tmp_path: Path) -> None:
    build(tmp_path / "data", [30, 40])
    dataset = open_dataset(str(tmp_path / "data"))
    needed = decoded_bytes(dataset, len(dataset))
    assert needed == 70 * (12 + 8) + 8
    with pytest.raises(ConfigError, match=rf"needs {needed / 1e9:.3g} GB.*--order windowed"):
        opened(dataset, tmp_path / "cache", cache_gb=(needed - 1) / 1e9)
    assert not (tmp_path / "cache").exists()
    opened(dataset, tmp_path / "cache", cache_gb=needed / 1e9)


def test_a_full_disk_is_refused_and_the_folder_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "data", [30])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(ConfigError, match=rf"1e-08 GB are free.*{tmp_path / 'cache'}"):
        opened(open_dataset(str(tmp_path / "data")), tmp_path / "cache")


def test_the_cache_folder_comes_from_argument_environment_or_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENSHARDS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root(None) == tmp_path / ".cache" / "tokenshards"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root(None) == tmp_path / "xdg" / "tokenshards"
    monkeypatch.setenv("TOKENSHARDS_CACHE", str(tmp_path / "own"))
    assert cache_root(None) == tmp_path / "own"
    assert cache_root(str(tmp_path / "given")) == tmp_path / "given"
    with pytest.raises(ConfigError, match="a folder on this machine"):
        cache_root("s3://bucket/cache")
    (tmp_path / "file").write_text("")
    build(tmp_path / "data", [3])
    with pytest.raises(ConfigError, match="cannot be made"):
        opened(open_dataset(str(tmp_path / "data")), tmp_path / "file")


def test_a_corrupt_shard_is_named_with_its_rows_and_nothing_is_kept(tmp_path: Path) -> None:
    build(tmp_path / "data", [30, 5000, 4])
    dataset = open_dataset(str(tmp_path / "data"))
    path = tmp_path / "data" / str(dataset.shards[1].path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(CorruptObjectError, match=r"dataset rows 2078 to 4125 are in it") as caught:
        opened(dataset, tmp_path / "cache")
    assert caught.value.object_path == dataset.shards[1].path
    assert [path.name for path in copies_folder(dataset, str(tmp_path / "cache")).iterdir() if not path.name.endswith(".lock")] == []


def remote_copy(local: Path) -> str:
    """Copy a dataset into fsspec's memory store, which is read like a bucket."""
    url = f"memory://{uuid.uuid4().hex}"
    source, target = Store(str(local)), Store(url)
    for item in source.list():
        target.write(item.path, source.read(item.path))
    return url


def test_a_remote_dataset_is_checked_on_its_way(tmp_path: Path) -> None:
    build(tmp_path / "data", [30, 40])
    url = remote_copy(tmp_path / "data")
    dataset = open_dataset(url)
    assert_same_tokens(opened(dataset, tmp_path / "cache").take(np.arange(70)), expected_rows(dataset)[0])
    shard = Store(url).join(str(dataset.shards[1].path))
    data = bytearray(fsspec.filesystem("memory").cat_file(shard))
    data[4] ^= 1  # no page checksum covers the header of a page
    fsspec.filesystem("memory").pipe_file(shard, bytes(data))
    with pytest.raises(CorruptObjectError, match=r"sha256.*dataset rows 30 to 69 are in it"):
        opened(open_dataset(url), tmp_path / "other")


COUNTING_BUILDER = """
import os, sys, time
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.stem_adaptors.data.decoded import DecodedSet
_, data, cache, log, die = sys.argv
opening = TokenDataset.open_shard
def counted(self, entry):
    with open(log, "a") as handle:
        handle.write("x")
    time.sleep(0.05)
    if os.path.getsize(log) >= int(die):
        os.kill(os.getpid(), 9)
    return opening(self, entry)
TokenDataset.open_shard = counted
decoded = DecodedSet.open(open_dataset(data), cache_dir=cache, cache_gb=1.0, threads=1)
print(int(decoded.labels_N.sum()), len(decoded))
"""


def test_two_processes_build_once(tmp_path: Path) -> None:
    build(tmp_path / "data", [5] * 8)
    log = tmp_path / "log"
    builders = [run(COUNTING_BUILDER, tmp_path / "data", tmp_path / "cache", log, 10**6) for _ in range(2)]
    outputs = [builder.communicate(timeout=60) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] == f"{sum(n % 3 for n in range(1, 40)) - 1} 40\n"
    assert log.read_text() == "x" * 8


def test_a_killed_builder_leaves_nothing_that_counts(tmp_path: Path) -> None:
    build(tmp_path / "data", [5] * 8)
    dataset = open_dataset(str(tmp_path / "data"))
    killed = run(COUNTING_BUILDER, tmp_path / "data", tmp_path / "cache", tmp_path / "log", 5)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    folder = copies_folder(dataset, str(tmp_path / "cache"))
    (stale,) = folder.glob("decoded-*")
    assert_same_tokens(opened(dataset, tmp_path / "cache").take(np.arange(40)), expected_rows(dataset)[0])
    assert settled(dataset, tmp_path / "cache").name != stale.name and not stale.exists()


def test_a_builder_killed_before_the_seal_leaves_nothing_that_counts(tmp_path: Path) -> None:
    build(tmp_path / "data", [5] * 8)
    dataset = open_dataset(str(tmp_path / "data"))
    script = COUNTING_BUILDER.replace(
        "_, data", "from tokenshards.stem_adaptors.data import decoded\ndecoded.seal = lambda v: os.kill(os.getpid(), 9)\n_, data"
    )
    killed = run(script, tmp_path / "data", tmp_path / "cache", tmp_path / "log", 10**6)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert_same_tokens(opened(dataset, tmp_path / "cache").take(np.arange(40)), expected_rows(dataset)[0])
    settled(dataset, tmp_path / "cache")
