"""The training reader: exact epochs on any ranks, exact resume, clean ends, every layout."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets import ROOT
from tests.pipeline.shards.samples import LAYOUTS
from tests.pipeline.shards.test_dataset import build
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.mixing import mix
from tokenshards.stem_adaptors.data.prefetch import Prefetcher
from tokenshards.stem_adaptors.data.selection import select
from tokenshards.stem_adaptors.data.windows import Window, WindowStore
from tokenshards.stem_adaptors.frameworks.samples import TokenSamples
from tokenshards.stem_adaptors.frameworks.stream import TokenStream

ORDERS = ("global", "windowed", "sequential")
ROWS = [13, None, 8, 21, 5, 1, 17]
TOTAL = 65


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    root = tmp_path_factory.mktemp("dataset")
    build(root, ROWS, "grid_residual")
    return open_dataset(str(root))


@pytest.fixture(scope="module")
def stored(dataset: TokenDataset) -> tuple[np.ndarray, np.ndarray]:
    batches = list(dataset.batches(TOTAL))
    return batches[0].ids_BLQ, batches[0].labels_B


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tokenshards-prefetch"]


def together(ranks: list[list[Batch]]) -> list[dict[str, list[Any]]]:
    """Join the batches of all ranks, step by step, in the order of positions."""
    assert len({len(batches) for batches in ranks}) == 1
    steps = []
    for parts in zip(*ranks, strict=True):
        place = torch.cat([part.positions_B for part in parts]).argsort()
        steps.append(
            {name: torch.cat([getattr(part, name) for part in parts])[place].tolist() for name in ("positions_B", "rows_B", "weights_B")}
        )
    return steps


def test_a_url_and_a_loop_are_enough(dataset: TokenDataset, stored: tuple[np.ndarray, np.ndarray], cache: str) -> None:
    loader = TokenLoader(open_dataset(dataset.store.location), LoaderConfig(batch_size=16, cache_dir=cache))
    assert len(loader) == 4 and loader.classes == dataset.classes
    seen = []
    for batch in loader:
        rows = batch.rows_B.numpy()
        assert batch.ids_BLQ.shape == (16, 12, 3) and batch.ids_BLQ.dtype == torch.uint8 and batch.mask_BL is None
        np.testing.assert_array_equal(batch.ids_BLQ.numpy(), stored[0][rows])
        np.testing.assert_array_equal(batch.labels_B.numpy(), stored[1][rows])
        assert batch.labels_B.dtype == batch.positions_B.dtype == torch.int64 and batch.weights_B.dtype == torch.float32
        seen += rows.tolist()
    assert len(set(seen)) == 64 and seen != sorted(seen)
    assert [int(row) for batch in loader.epoch(0) for row in batch.rows_B] == seen
    assert [int(row) for batch in loader.epoch(1) for row in batch.rows_B] != seen


@given(
    order=st.sampled_from(ORDERS),
    end=st.sampled_from(["drop", "pad"]),
    size=st.integers(1, TOTAL),
    total=st.integers(4, 30),
    ranks=st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 4), (3, 2), (4, 3)]),
    stop=st.integers(0, 30),
    window=st.integers(1, 4),
    lanes=st.integers(1, 4),
    epoch=st.integers(0, 2),
    depth=st.sampled_from([0, 2]),
)
@settings(max_examples=80, deadline=None)
def test_each_sample_once_on_any_ranks_and_after_any_resume(
    dataset: TokenDataset,
    cache: str,
    order: str,
    end: str,
    size: int,
    total: int,
    ranks: tuple[int, int],
    stop: int,
    window: int,
    lanes: int,
    epoch: int,
    depth: int,
) -> None:
    if end == "drop":
        size = max(size, total)
    data = dataset if size == TOTAL else select(dataset, rows=range(TOTAL - size, TOTAL))
    config = LoaderConfig(
        order=order, end=end, batch_size=total, window_shards=window, lanes=lanes, cache_dir=cache, prefetch_batches=depth, seed=3
    )
    one = together([list(TokenLoader(data, config).epoch(epoch))])
    steps = size // total if end == "drop" else math.ceil(size / total)
    assert len(one) == steps
    rows = [row for step in one for row in step["rows_B"]]
    assert [place for step in one for place in step["positions_B"]] == list(range(steps * total))
    real = min(size, steps * total)
    assert [weight for step in one for weight in step["weights_B"]] == [1.0] * real + [0.0] * (steps * total - real)
    assert len(set(rows[:real])) == real and (end == "drop" or set(rows) == set(range(TOTAL - size, TOTAL)))
    assert rows[size:] == [rows[place % size] for place in range(size, steps * total)]

    stop = min(stop, steps)
    states, first, second = [], [], []
    for rank in range(ranks[0]):
        loader = TokenLoader(data, config, rank=rank, world_size=ranks[0])
        batches = loader.epoch(epoch)
        first.append([next(batches) for _ in range(stop)])
        if stop:
            states.append(loader.state_dict())
        batches.close()
    if stop:
        assert all(state == states[0] for state in states) and states[0]["next_global_index"] == stop * total
        state = json.loads(json.dumps(states[0]))
        for rank in range(ranks[1]):
            loader = TokenLoader(data, config, rank=rank, world_size=ranks[1])
            loader.load_state_dict(state)
            second.append(list(loader))
            assert (loader.state_dict()["epoch"], loader.state_dict()["next_global_index"]) == (epoch + 1, 0)
        assert together(first) + together(second) == one


@pytest.mark.parametrize("order", ["global", "windowed", "sequential"])
def test_after_an_abandoned_pass_the_next_epoch_comes_whole(dataset: TokenDataset, cache: str, order: str) -> None:
    config = LoaderConfig(batch_size=16, order=order, end="pad", cache_dir=cache)
    loader, whole = TokenLoader(dataset, config), TokenLoader(dataset, config)
    first, second, third = ([batch.rows_B.tolist() for batch in whole.epoch(epoch)] for epoch in range(3))
    assert next(iter(loader)).rows_B.tolist() == first[0]  # a look at one batch
    assert loader.state_dict()["next_global_index"] == 16
    iter(loader)  # takes nothing, so it begins no epoch
    for number, batch in enumerate(loader):
        assert batch.rows_B.tolist() == second[number]
        if number == 2:
            break
    place = loader.state_dict()
    assert (place["epoch"], place["next_global_index"]) == (1, 48)
    assert [batch.rows_B.tolist() for batch in loader] == third
    loader.load_state_dict(place)  # only a state that is given is continued in its middle, once
    iter(loader)
    assert next(iter(loader)).rows_B.tolist() == second[3]
    assert [batch.rows_B.tolist() for batch in loader] == third
    loader.load_state_dict(place)
    assert [batch.rows_B.tolist() for _ in range(2) for batch in loader] == second[3:] + third


def test_a_state_at_the_end_of_an_epoch_goes_on_with_the_next(dataset: TokenDataset, cache: str) -> None:
    for end, steps in (("drop", 4), ("pad", 5)):
        config = LoaderConfig(batch_size=16, end=end, cache_dir=cache)
        loader = TokenLoader(dataset, config)
        batches = iter(loader)
        for _ in range(steps):
            next(batches)
        last = loader.state_dict()
        assert (last["epoch"], last["next_global_index"]) == (0, steps * 16)
        assert next(batches, None) is None
        after = loader.state_dict()
        for state, rests in ((last, [0, steps]), (after, [steps, steps])):
            other = TokenLoader(dataset, config)
            other.load_state_dict(state)
            found = [list(other) for _ in rests]
            assert [len(rest) for rest in found] == rests
            assert found[1][0].epoch == other.state_dict()["epoch"] - 1


def test_who_takes_only_as_many_batches_as_there_are_gets_the_next_epoch(dataset: TokenDataset, cache: str) -> None:
    config = LoaderConfig(batch_size=16, cache_dir=cache)
    loader, whole = TokenLoader(dataset, config), TokenLoader(dataset, config)
    for epoch in range(3):
        taken = [batch.rows_B.tolist() for _, batch in zip(range(len(loader)), loader, strict=False)]
        assert taken == [batch.rows_B.tolist() for batch in whole.epoch(epoch)]


def test_labels_are_numbered_by_the_names_of_the_classes_given(
    dataset: TokenDataset, cache: str, stored: tuple[np.ndarray, np.ndarray]
) -> None:
    own, labels = dataset.classes, stored[1]
    config = LoaderConfig(batch_size=TOTAL, order="sequential", cache_dir=cache)
    swapped = ("other", *reversed(own))
    expected = np.array([*(swapped.index(name) for name in own), -1])[labels]
    for data in (dataset, mix([(dataset, 1)])):
        loader = TokenLoader(data, config, classes=swapped)
        assert loader.classes == swapped
        (batch,) = loader
        np.testing.assert_array_equal(batch.labels_B.numpy(), expected)
    with pytest.warns(UserWarning, match="'class_0', 'class_2'. are not among the 1 classes given.*no label") as said:
        (batch,) = TokenLoader(dataset, config, classes=own[1:2])
    assert len(said) == 1 and said[0].filename == __file__
    np.testing.assert_array_equal(batch.labels_B.numpy(), np.where(labels == 1, 0, -1))
    wrong: list[Any] = ["class_0", 3, dataset, [*own, own[0]], [1.5]]
    for classes, words in [(["x"], "unknown"), *((value, "expected the names of classes, each once") for value in wrong)]:
        for read in (partial(TokenLoader, config=config), partial(TokenSamples, cache_dir=cache), TokenStream):
            with pytest.raises(ConfigError, match=words):
                read(dataset, classes=classes)


def test_batches_made_ahead_do_not_count(dataset: TokenDataset, cache: str) -> None:
    loader = TokenLoader(dataset, LoaderConfig(batch_size=8, prefetch_batches=6, cache_dir=cache))
    assert loader.state_dict()["next_global_index"] == 0
    batches = iter(loader)
    next(batches)
    assert loader._batches is not None and loader._batches._line is not None
    for _ in range(1000):
        if len(loader._batches._line.items) == 6:
            break
        threading.Event().wait(0.005)
    assert len(loader._batches._line.items) == 6
    assert loader.state_dict()["next_global_index"] == 8
    batches.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("manifest", ["0" * 64]),
        ("seed", 9),
        ("mode", "global"),
        ("window", 3),
        ("lanes", None),
        ("end", "pad"),
        ("mix_weights", [1]),
        ("subset", ["0" * 64]),
        ("epoch", -1),
        ("next_global_index", "8"),
        ("next_global_index", True),
    ],
)
def test_a_state_that_does_not_fit_names_the_field(dataset: TokenDataset, cache: str, field: str, value: object) -> None:
    loader = TokenLoader(dataset, LoaderConfig(order="windowed", batch_size=8, cache_dir=cache))
    before = loader.state_dict()
    with pytest.raises(ConfigError, match=f"^{field} of the loader state") as caught:
        loader.load_state_dict({**before, field: value})
    assert (
        repr(value)[:20] in str(caught.value) and "this loader has" in str(caught.value) or "expected a whole number" in str(caught.value)
    )
    assert loader.state_dict() == before
    for damaged in ({name: before[name] for name in before if name != field}, {**before, "more": 1}, []):
        with pytest.raises(ConfigError, match="expected an object with the fields"):
            loader.load_state_dict(damaged)  # type: ignore[arg-type]


def test_states_tell_datasets_selections_and_mixes_apart(dataset: TokenDataset, cache: str, tmp_path: Path) -> None:
    build(tmp_path, [40, 25], "grid_residual")
    other = open_dataset(str(tmp_path))
    config = LoaderConfig(batch_size=8, cache_dir=cache)
    state = TokenLoader(dataset, config).state_dict()
    for data, field in (
        (other, "manifest"),
        (select(dataset, fraction=0.5), "subset"),
        (mix([(dataset, 1)]), "mix_weights"),
    ):
        with pytest.raises(ConfigError, match=f"^{field} of"):
            TokenLoader(data, config).load_state_dict(state)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ["global", "windowed"])
def test_every_layout_comes_out_as_stored(layout: str, order: str, cache: str, tmp_path: Path) -> None:
    build(tmp_path, [9, 4, 12, 6], layout)
    data = open_dataset(str(tmp_path))
    kind, pad = data.spec.layout, max(data.spec.vocabulary)
    whole = next(data.batches(100)).tokens
    config = LoaderConfig(batch_size=10, order=order, window_shards=1, lanes=2, end="pad", cache_dir=cache)
    for batch in TokenLoader(data, config):
        rows = batch.rows_B.numpy()
        ids = batch.ids_BLQ.numpy()
        expected = whole.ids_BLQ[rows]
        if not kind.variable:
            np.testing.assert_array_equal(ids, expected)
            assert batch.lengths_B is None and batch.shapes_BD is None
            continue
        lengths = whole.lengths_B[rows] if whole.shapes_BD is None else whole.shapes_BD[rows].prod(axis=1)  # type: ignore[index]
        assert batch.lengths_B is not None and batch.mask_BL is not None and batch.lengths_B.dtype == torch.int64
        assert batch.lengths_B.tolist() == lengths.tolist() and ids.shape[1] == lengths.max()
        mask = batch.mask_BL.numpy()
        np.testing.assert_array_equal(ids[mask], expected[:, : ids.shape[1]][mask])
        assert (ids[~mask] == pad).all() and (ids[mask] < pad).all()
        if whole.shapes_BD is None:
            assert batch.shapes_BD is None
        else:
            assert batch.shapes_BD is not None and batch.shapes_BD.tolist() == whole.shapes_BD[rows].tolist()


@pytest.mark.parametrize(("vocabulary", "dtype"), [(255, torch.uint8), (256, torch.uint16), (65_536, torch.uint32), (1 << 32, torch.int64)])
def test_the_pad_id_has_room_beside_the_ids(vocabulary: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.pipeline.shards import samples, test_dataset

    monkeypatch.setattr(test_dataset, "make_spec", lambda layout, tables=None: samples.make_spec(layout, vocabulary))
    build(tmp_path, [20], "sequence_variable")
    (batch,) = TokenLoader(open_dataset(str(tmp_path)), LoaderConfig(batch_size=20, cache_dir=str(tmp_path / "cache")))
    assert batch.ids_BLQ.dtype == dtype and batch.mask_BL is not None
    ids = batch.ids_BLQ.to(torch.int64)
    assert (ids[~batch.mask_BL] == vocabulary).all() and (ids[batch.mask_BL] < vocabulary).all()


def test_labels_follow_the_class_table_of_a_selection(dataset: TokenDataset, stored: tuple[np.ndarray, np.ndarray], cache: str) -> None:
    for remap, expected in ((False, {1, 2}), (True, {0, 1})):
        part = select(dataset, classes=["class_1", "class_2"], remap=remap)
        loader = TokenLoader(part, LoaderConfig(batch_size=7, end="pad", order="windowed", window_shards=2, cache_dir=cache))
        labels, rows = (np.concatenate([getattr(batch, name) for batch in loader.epoch(0)]) for name in ("labels_B", "rows_B"))
        assert set(labels.tolist()) == expected and {loader.classes[label] for label in set(labels.tolist())} == {"class_1", "class_2"}
        np.testing.assert_array_equal(labels + remap, stored[1][rows])


class WatchedStore:
    """Notes what a loader asks of the window store, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, tuple[int, ...]]] = []
        for name in ("prefetch", "load", "release"):
            self._watch(monkeypatch, name, getattr(WindowStore, name))

    def _watch(self, monkeypatch: pytest.MonkeyPatch, name: str, real: Any) -> None:
        def watched(store: WindowStore, argument: Any) -> Any:
            if sys._getframe(1).f_code.co_name != "load":  # that is the store itself
                self.events.append((name, argument.shards if isinstance(argument, Window) else tuple(argument)))
            return real(store, argument)

        monkeypatch.setattr(WindowStore, name, watched)


@pytest.mark.parametrize(("ranks", "lanes"), [(1, 1), (1, 3), (2, 2), (2, 1), (3, 3), (2, 4), (4, 2), (8, 8)])
def test_windows_are_loaded_ahead_bounded_and_only_in_lanes_that_a_rank_needs(
    ranks: int, lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, [6] * 24)
    data = open_dataset(str(tmp_path))
    config = LoaderConfig(order="windowed", batch_size=12, window_shards=2, lanes=lanes, cache_dir=str(tmp_path / "cache"))
    store = WatchedStore(monkeypatch)
    lanes_read = lanes // math.gcd(lanes, ranks, config.batch_size)
    for rank in range(ranks):
        store.events.clear()
        loader = TokenLoader(data, config, rank=rank, world_size=ranks)
        for _ in range(2):
            list(loader)
        held: set[tuple[int, ...]] = set()
        loaded: list[int] = []
        waited = 0
        for event, shards in store.events:
            waited += event == "load" and shards not in held
            held = held - {shards} if event == "release" else held | {shards}
            assert len(held) <= 2 * lanes_read
            loaded += shards if event == "load" else ()
        assert waited == lanes_read  # the very first ones; the first of the second epoch were asked for during the first
        share = 24 * lanes_read // lanes
        assert len(loaded) == 2 * share and len(set(loaded[:share])) == share
        loader.close()
        with pytest.raises(ConfigError, match=f"; {2 * lanes_read} windows of 2 shards need"):
            TokenLoader(data, replace(config, cache_gb=1e-9), rank=rank, world_size=ranks)


def test_tails_of_uneven_lanes_stay_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, [5, 19, 2, 30, 7, 11, 3, 24, 1, 9])
    data = open_dataset(str(tmp_path))
    config = LoaderConfig(order="windowed", batch_size=6, window_shards=1, lanes=3, cache_dir=str(tmp_path / "cache"))
    store = WatchedStore(monkeypatch)
    for rank in range(3):
        store.events.clear()
        loader = TokenLoader(data, config, rank=rank, world_size=3)
        for _ in range(3):
            list(loader)
        held: set[tuple[int, ...]] = set()
        for event, shards in store.events:
            held = held - {shards} if event == "release" else held | {shards}
            assert len(held) <= 4  # two of its own lane, two of a lane whose tail is being read
        loader.close()


def test_going_back_and_forth_keeps_no_window_too_many(dataset: TokenDataset, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoaderConfig(order="windowed", batch_size=5, window_shards=1, cache_dir=cache)
    store = WatchedStore(monkeypatch)
    loader = TokenLoader(dataset, config)
    for epoch in (0, 3, 1, 1, 7, 0):
        batches = loader.epoch(epoch)
        next(batches)
        batches.close()
    held: set[tuple[int, ...]] = set()
    for event, shards in store.events:
        held = held - {shards} if event == "release" else held | {shards}
    assert len(held) <= 2
    assert [batch.rows_B.tolist() for batch in loader.epoch(2)] == [
        batch.rows_B.tolist() for batch in TokenLoader(dataset, config).epoch(2)
    ]


def test_a_corrupt_shard_is_named_with_its_rows(tmp_path: Path, cache: str) -> None:
    build(tmp_path, [10, 10, 10])
    data = open_dataset(str(tmp_path))
    path = tmp_path / str(data.shards[1].path)
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 3] ^= 0xFF
    blob[200:260] = bytes(60)
    path.write_bytes(blob)
    for order in ORDERS:
        config = LoaderConfig(order=order, batch_size=5, window_shards=1, cache_dir=cache)
        with pytest.raises(CorruptObjectError, match="rows 10 to 19") as caught:
            list(TokenLoader(data, config))
        assert caught.value.object_path == data.shards[1].path
    assert not prefetch_threads()


def test_ranks_and_batch_sizes_that_do_not_fit_are_refused(dataset: TokenDataset, cache: str) -> None:
    for ranks, options, message in (
        ((0, 3), {"batch_size": 2}, "at least 1 sample for each of the 3 ranks"),
        ((3, 3), {"batch_size": 9}, "rank is 3"),
        ((0, 1), {"batch_size": 66}, "no batch"),
    ):
        with pytest.raises(ConfigError, match=message):
            TokenLoader(dataset, LoaderConfig(cache_dir=cache, **options), rank=ranks[0], world_size=ranks[1])
    assert len(TokenLoader(dataset, LoaderConfig(batch_size=66, end="pad", cache_dir=cache))) == 1


def test_an_abandoned_or_replaced_iterator_ends_its_thread(dataset: TokenDataset, cache: str) -> None:
    loader = TokenLoader(dataset, LoaderConfig(batch_size=4, cache_dir=cache))
    for _ in loader:
        break
    older = iter(loader)
    next(older)
    newer = iter(loader)
    next(newer)
    assert len(prefetch_threads()) <= 1
    with pytest.raises(ConfigError, match="one iterator at a time"):
        next(older)
    state = loader.state_dict()
    assert (state["epoch"], state["next_global_index"]) == (2, 4)
    del older, newer
    assert not prefetch_threads()
    assert loader.state_dict() == state


def test_errors_of_the_thread_reach_the_consumer_in_their_place() -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise ValueError("the fourth")

    for depth in (0, 1, 5):
        items = Prefetcher(source(), depth)
        assert [next(items) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="the fourth"):
            next(items)
        with pytest.raises(StopIteration):
            next(items)
        items.close()
    assert not prefetch_threads()


def test_the_thread_is_never_more_than_its_depth_ahead() -> None:
    made = []

    def source() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    items = Prefetcher(source(), 3)
    for taken in range(20):
        assert next(items) == taken
        threading.Event().wait(0.002)
        assert len(made) <= taken + 1 + 3 + 1
    items.close()
    assert not prefetch_threads()


@pytest.mark.parametrize("order", ["global", "windowed"])
def test_the_interpreter_can_end_in_the_middle_of_an_epoch(order: str, dataset: TokenDataset, cache: str) -> None:
    script = (
        "import sys\n"
        "from tokenshards.pipeline.shards import open_dataset\n"
        "from tokenshards.stem_adaptors.config import LoaderConfig\n"
        "from tokenshards.stem_adaptors.data.loader import TokenLoader\n"
        "config = LoaderConfig(batch_size=4, order=sys.argv[2], window_shards=1, cache_dir=sys.argv[3])\n"
        "batches = iter(TokenLoader(open_dataset(sys.argv[1]), config))\n"
        "print(len(next(batches)))\n"
    )
    command = [sys.executable, "-c", script, dataset.store.location, order, cache]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "4\n", "")


def test_batches_go_to_the_device_asked_for(dataset: TokenDataset, cache: str) -> None:
    batch = next(iter(TokenLoader(dataset, LoaderConfig(batch_size=4, cache_dir=cache), device="meta")))
    assert batch.ids_BLQ.device.type == batch.labels_B.device.type == "meta"
