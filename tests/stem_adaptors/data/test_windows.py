"""Windows against the dataset they came from: local and remote stores, bounded disk, faults of the store, neighbours, budgets."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import ROOT
from tests.pipeline.shards.samples import LAYOUTS, assert_same_tokens
from tests.pipeline.shards.test_dataset import build
from tests.stem_adaptors.data.test_decoded import expected_rows, remote_copy, trimmed
from tokenshards.pipeline.config import RetryConfig
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, TransientStorageError
from tokenshards.pipeline.shards import ShardReader, TokenDataset, open_dataset
from tokenshards.pipeline.shards.manifest import ShardEntry
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.cache import copies_folder, decoded_bytes
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.windows import Window, WindowStore

COUNTS = [7, None, 1, 12, 30, 5]
STARTS = [0, 7, 8, 20, 50]


def opened(dataset: TokenDataset, cache: Path, **options: float) -> WindowStore:
    settings: dict[str, float] = {"cache_gb": 1.0, "window_shards": 2, **options}
    return WindowStore(dataset, cache_dir=str(cache), **settings)  # type: ignore[arg-type]


def check(window: Window, dataset: TokenDataset, rows_B: np.ndarray) -> None:
    tokens, labels_N = expected_rows(dataset)
    assert_same_tokens(window.take(rows_B), trimmed(tokens.take(rows_B)))
    np.testing.assert_array_equal(window.labels(rows_B), labels_N[rows_B])


def files_of(dataset: TokenDataset, cache: Path) -> dict[str, int]:
    folder = copies_folder(dataset, str(cache)) / "shards"
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


class CountingStore(Store):
    """A remote store that counts what is read of shards and can spoil it."""

    def __init__(self, url: str, spoil: Callable[[int, bytes], bytes] = lambda count, data: data) -> None:
        super().__init__(url, retry=RetryConfig(attempts=3, first_delay_seconds=0.001))
        assert not self.is_local
        self.reads: list[str] = []
        real = self.fs.cat_file
        guard = threading.Lock()

        def cat_file(path: str, **options: int) -> bytes:
            data: bytes = real(path, **options)
            if "/shards/" not in path:
                return data
            with guard:
                self.reads.append(path)
                count = len(self.reads)
            return spoil(count, data)

        self._remote.fs = type(
            "Spoiled", (), {"cat_file": staticmethod(cat_file), "__getattr__": lambda _, name: getattr(real.__self__, name)}
        )()


def counted(local: Path, **options: Callable[[int, bytes], bytes]) -> tuple[TokenDataset, CountingStore]:
    url = remote_copy(local)
    store = CountingStore(url, **options)
    return TokenDataset(store, open_dataset(url).manifest), store


@pytest.mark.parametrize("remote, shared", [(False, 0), (True, 0), (False, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_a_window_are_those_of_the_dataset(layout: str, remote: bool, shared: int, tmp_path: Path) -> None:
    build(tmp_path / "data", COUNTS, layout)
    dataset = open_dataset(remote_copy(tmp_path / "data") if remote else f"file://{tmp_path / 'data'}")
    with opened(dataset, tmp_path / "cache", shared_windows=shared) as store:
        window = store.load((3, 0))
        if shared:  # as another process maps it
            window = opened(dataset, tmp_path / "cache", shared_windows=shared).load((3, 0))
        assert len(window) == 37
        check(window, dataset, np.array([49, 0, 6, 20, 20, 33]))
        for row in (-1, 7, 19, 50, 54, 10**6):
            with pytest.raises(IndexError, match=rf"row {row} is not in the window of shards \[3, 0\]"):
                window.take(np.array([0, row]))
    assert (tmp_path / "cache").exists() == (remote or shared > 0)


@settings(max_examples=15, deadline=None)
@given(shards=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True), data=st.data())
def test_any_shards_in_any_order(shards: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    build(folder / "data", COUNTS, data.draw(st.sampled_from(["grid_residual", "sequence_variable"])))
    dataset = open_dataset(str(folder / "data"))
    inside = [row for shard in shards for row in range(STARTS[shard], [*STARTS, 55][shard + 1])]
    with opened(dataset, folder, window_shards=len(shards)) as store:
        store.prefetch(shards)
        check(store.load(shards), dataset, np.array(data.draw(st.lists(st.sampled_from(inside), min_size=1, max_size=9))))


def test_a_prefetched_window_is_read_once(tmp_path: Path) -> None:
    build(tmp_path / "data", COUNTS)
    dataset, remote = counted(tmp_path / "data")
    with opened(dataset, tmp_path / "cache") as store:
        for _ in range(3):
            store.prefetch((1, 2))
        window = store.load((1, 2))
        assert len(remote.reads) == 2
        check(window, dataset, np.array([7, 8, 19]))


def test_released_windows_leave_the_disk_and_a_rerun_reuses_the_others(tmp_path: Path) -> None:
    build(tmp_path / "data", [20] * 6)
    dataset, remote = counted(tmp_path / "data")
    sizes = [entry.size for entry in dataset.shards]
    with opened(dataset, tmp_path / "cache") as store:
        window = store.load((0, 1))
        store.load((2, 3))
        assert sum(files_of(dataset, tmp_path / "cache").values()) == sum(sizes[:4])
        store.release(window)
        assert sum(files_of(dataset, tmp_path / "cache").values()) == sum(sizes[2:4])
    remote.reads.clear()
    with opened(dataset, tmp_path / "cache") as store:
        store.load((2, 3))
        assert remote.reads == []
        store.load((4, 1))
        assert len(remote.reads) == 2


def test_what_a_killed_run_left_never_makes_the_disk_grow(tmp_path: Path) -> None:
    build(tmp_path / "data", [20] * 12)
    dataset, _ = counted(tmp_path / "data")
    limit = sum(sorted(entry.size for entry in dataset.shards)[-4:])
    for first in range(0, 12, 2):  # each run dies with one window on the disk
        opened(dataset, tmp_path / "cache").load((first, first + 1))
        assert sum(files_of(dataset, tmp_path / "cache").values()) <= limit


def test_a_damaged_file_of_the_cache_is_downloaded_again(tmp_path: Path) -> None:
    build(tmp_path / "data", COUNTS)
    dataset, remote = counted(tmp_path / "data")
    opened(dataset, tmp_path / "cache").load((0, 3))
    for path in (copies_folder(dataset, str(tmp_path / "cache")) / "shards").glob("*.parquet"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    remote.reads.clear()
    window = opened(dataset, tmp_path / "cache").load((0, 3))
    assert len(remote.reads) == 2
    check(window, dataset, np.arange(7))


def test_an_interrupted_download_is_tried_again(tmp_path: Path) -> None:
    build(tmp_path / "data", COUNTS)

    def spoil(count: int, data: bytes) -> bytes:
        if count == 1:
            raise ConnectionError("the line broke")
        return data[: len(data) // 2] if count == 2 else data

    dataset, remote = counted(tmp_path / "data", spoil=spoil)
    window = opened(dataset, tmp_path / "cache", threads=1).load((3,))
    assert len(remote.reads) == 3
    check(window, dataset, np.arange(20, 50))
    assert list(files_of(dataset, tmp_path / "cache").values()) == [dataset.shards[3].size]


def test_lasting_faults_are_named_errors_and_a_further_load_tries_again(tmp_path: Path) -> None:
    build(tmp_path / "data", COUNTS)
    fault = ["cut"]

    def spoil(count: int, data: bytes) -> bytes:
        if fault == ["gone"]:
            raise ConnectionError("the line broke")
        return data[:-1] if fault == ["cut"] else data

    dataset, _ = counted(tmp_path / "data", spoil=spoil)
    store = opened(dataset, tmp_path / "cache")
    store.prefetch((3, 1))
    with pytest.raises(CorruptObjectError, match="sha256.*dataset rows 20 to 49 are in it") as caught:
        store.load((3, 1))
    assert caught.value.object_path == dataset.shards[3].path
    fault[:] = ["gone"]
    with pytest.raises(TransientStorageError, match="the line broke"):
        store.load((3, 1))
    assert files_of(dataset, tmp_path / "cache") == {}
    fault.clear()
    check(store.load((3, 1)), dataset, np.array([7, 20]))


def test_a_corrupt_local_shard_is_named_with_its_rows(tmp_path: Path) -> None:
    build(tmp_path / "data", [30, 5000, 4])
    dataset = open_dataset(str(tmp_path / "data"))
    path = tmp_path / "data" / str(dataset.shards[1].path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    store = opened(dataset, tmp_path / "cache")
    assert len(store.load((2, 0))) == 34
    with pytest.raises(CorruptObjectError, match="dataset rows 2078 to 4125 are in it"):
        store.load((0, 1))


def test_a_disk_that_takes_no_files_costs_downloads_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "data", COUNTS)
    dataset, _ = counted(tmp_path / "data")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    check(opened(dataset, tmp_path / "cache").load((0, 3)), dataset, np.arange(7))


def test_a_window_survives_the_eviction_of_its_files(tmp_path: Path) -> None:
    build(tmp_path / "data", [3000, 3000])
    dataset, remote = counted(tmp_path / "data")
    first, second = (opened(dataset, tmp_path / "cache", window_shards=1) for _ in range(2))
    first.release(first.load((0,)))
    window = second.load((0,))  # downloaded again
    assert len(remote.reads) == 2
    first.release(first.load((0,)))  # while the second still uses it
    check(window, dataset, np.arange(0, 3000, 7))


def test_a_closed_store_gives_up(tmp_path: Path) -> None:
    build(tmp_path / "data", COUNTS)
    store = opened(open_dataset(str(tmp_path / "data")), tmp_path / "cache")
    store.prefetch((0, 1))
    store.close()
    with pytest.raises(ConfigError, match="closed"):
        store.load((0, 1))


def test_an_abandoned_prefetch_does_not_keep_the_interpreter(tmp_path: Path) -> None:
    build(tmp_path / "data", [5] * 200)
    script = (
        "import sys\nfrom tokenshards.pipeline.shards import TokenDataset, open_dataset\n"
        "from tokenshards.stem_adaptors.data.windows import WindowStore\n"
        "import time\nreal = TokenDataset.open_shard\n"
        "def slow(self, entry):\n    time.sleep(0.2)\n    return real(self, entry)\nTokenDataset.open_shard = slow\n"
        "WindowStore(open_dataset(sys.argv[1]), cache_dir=None, cache_gb=1.0, window_shards=100, threads=1).prefetch(range(100))\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "data")], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < 100 * 0.2  # the whole window would take longer


@pytest.mark.parametrize("lanes", [1, 3])
def test_too_small_a_budget_names_the_gigabytes_and_a_window_that_fits(lanes: int, tmp_path: Path) -> None:
    build(tmp_path / "data", [10] * 24)
    dataset = open_dataset(str(tmp_path / "data"))

    def needed(shards: int) -> float:
        return decoded_bytes(dataset, 2 * lanes * shards * 10) / 1e9

    with pytest.raises(ConfigError, match=rf"{2 * lanes} windows of 4 shards need {needed(4):.3g} GB decoded.*loader.window_shards=3"):
        opened(dataset, tmp_path, cache_gb=needed(3), window_shards=4, lanes=lanes)
    with pytest.raises(ConfigError, match=rf"even windows of one shard need {needed(1):.3g} GB"):
        opened(dataset, tmp_path, cache_gb=needed(1) - 1e-9, window_shards=4, lanes=lanes)
    opened(dataset, tmp_path, cache_gb=needed(3), window_shards=3, lanes=lanes).load((0, 1, 2))


def windows_of(dataset: TokenDataset, cache: Path) -> list[Path]:
    folder = copies_folder(dataset, str(cache)) / "windows"
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


def counting_opens(dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opens: list[str] = []
    real = TokenDataset.open_shard

    def open_shard(self: TokenDataset, entry: ShardEntry) -> ShardReader:
        opens.append(str(entry.path))
        return real(self, entry)

    monkeypatch.setattr(TokenDataset, "open_shard", open_shard)
    return opens


def test_a_shared_window_is_decoded_once_and_survives_its_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "data", COUNTS)
    dataset = open_dataset(str(tmp_path / "data"))
    opens = counting_opens(dataset, monkeypatch)
    stores = [opened(dataset, tmp_path / "cache", shared_windows=2, threads=1) for _ in range(3)]
    windows = [store.load((3, 1)) for store in stores]
    assert len(opens) == 2
    stores[0].release(windows[0])
    assert windows_of(dataset, tmp_path / "cache") == []
    for window in windows:
        check(window, dataset, np.array([20, 49, 7]))
    opens.clear()
    stores[1].load((3, 1))
    assert len(opens) == 2


def test_a_damaged_shared_window_is_decoded_again(tmp_path: Path) -> None:
    build(tmp_path / "data", COUNTS)
    dataset = open_dataset(str(tmp_path / "data"))
    opened(dataset, tmp_path / "cache", shared_windows=2).load((3, 0))
    (place,) = windows_of(dataset, tmp_path / "cache")
    for name, change in (("ids", b"\xff\xff"), ("labels", b"\x07"), ("window.json", b"{"), ("ids", b"")):
        file = place / name
        data = file.read_bytes()
        file.unlink()  # a process may have mapped the old file
        file.write_bytes(change + data[len(change) :] if change else data[:-2])
        check(opened(dataset, tmp_path / "cache", shared_windows=2).load((3, 0)), dataset, np.arange(20, 50))
    assert windows_of(dataset, tmp_path / "cache") == [place]


def test_shared_windows_of_killed_runs_never_make_the_disk_grow(tmp_path: Path) -> None:
    build(tmp_path / "data", [20] * 12)
    dataset = open_dataset(str(tmp_path / "data"))
    for first in range(0, 12, 2):  # each run dies with one window on the disk, and with another half written
        opened(dataset, tmp_path / "cache", shared_windows=2).load((first, first + 1))
        folder = copies_folder(dataset, str(tmp_path / "cache")) / "windows"
        for name in ("part-3", "gone-0"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "ids").write_bytes(b"0")
    opened(dataset, tmp_path / "cache", shared_windows=2)
    assert len(windows_of(dataset, tmp_path / "cache")) == 2


def test_a_disk_that_takes_no_shared_windows_costs_decoding_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "data", COUNTS)
    dataset = open_dataset(str(tmp_path / "data"))
    store = opened(dataset, tmp_path / "cache", shared_windows=2)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(RuntimeWarning, match="could not be kept.*No space left"):
        check(store.load((0, 3)), dataset, np.arange(7))
    assert windows_of(dataset, tmp_path / "cache") == []


def test_an_error_of_a_shared_window_is_named_and_nothing_stays(tmp_path: Path) -> None:
    build(tmp_path / "data", [30, 5000, 4])
    dataset = open_dataset(str(tmp_path / "data"))
    path = tmp_path / "data" / str(dataset.shards[1].path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    store = opened(dataset, tmp_path / "cache", shared_windows=2)
    for _ in range(2):
        with pytest.raises(CorruptObjectError, match="dataset rows 2078 to 4125 are in it"):
            store.load((0, 1))
    assert windows_of(dataset, tmp_path / "cache") == []


@pytest.mark.parametrize("order", ["windowed", "sequential"])
def test_ranks_share_the_decoding_and_read_what_one_rank_reads(order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "data", [40, 30, 50, 20, 60, 10])
    dataset = open_dataset(str(tmp_path / "data"))
    config = LoaderConfig(batch_size=20, order=order, window_shards=2, cache_dir=str(tmp_path / "cache"), prefetch_batches=1)
    loader = TokenLoader(dataset, config)
    alone = [batch.ids_BLQ.numpy() for _ in range(2) for batch in loader]
    opens = counting_opens(dataset, monkeypatch)
    ranks = [TokenLoader(dataset, config, rank=rank, world_size=2) for rank in range(2)]
    found = []
    for _ in range(2):
        for batches in zip(*ranks, strict=True):
            both = np.empty_like(alone[0])
            for rank, batch in enumerate(batches):
                both[rank::2] = batch.ids_BLQ.numpy()
            found.append(both)
    np.testing.assert_array_equal(found, alone)
    # Two epochs. A decoding thread may open a shard once more.
    assert len(opens) < 2 * 2 * len(dataset.shards), opens


@pytest.mark.parametrize("shared", [0, 4])
def test_processes_share_the_downloads(shared: int, tmp_path: Path) -> None:
    build(tmp_path / "data", [40] * 6)
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import numpy as np
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.stem_adaptors.data.windows import WindowStore
dataset = open_dataset(sys.argv[1])
dataset.store.is_local = False
real = dataset.store.read
def read(path, *range):
    with open(sys.argv[3], "a") as log:
        log.write(path + "\\n")
    return real(path, *range)
dataset.store.read = read
store = WindowStore(dataset, cache_dir=sys.argv[2], cache_gb=1.0, window_shards=3, shared_windows={shared})
windows = [store.load((0, 1, 2)), store.load((3, 4, 5))]
print(sum(int(window.take(np.arange(first, first + 120)).ids_BLQ.sum()) for window, first in zip(windows, (0, 120))))
"""
    arguments = [sys.executable, "-c", script, *map(str, (tmp_path / "data", tmp_path / "cache", tmp_path / "log"))]
    runs = [subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in runs]
    dataset = open_dataset(str(tmp_path / "data"))
    expected = f"{int(expected_rows(dataset)[0].ids_BLQ.sum())}\n"
    assert outputs == [(expected, "")] * 2
    assert sorted((tmp_path / "log").read_text().split()) == sorted(str(entry.path) for entry in dataset.shards)
