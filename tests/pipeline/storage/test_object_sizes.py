"""Sizes by path in sorted arrays: what a dict would say, whatever the paths are."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.pipeline.storage.object_sizes import CHUNK_OBJECTS, LONGEST_NAME_BYTES, ObjectSizes, object_sizes
from tokenshards.pipeline.storage.store import ObjectInfo, Store

PATHS = st.one_of(
    st.from_regex(r"shards/[0-9]{8}-[0-9a-f]{12}\.parquet", fullmatch=True),
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.text("aé\0", min_size=1, max_size=4),
    st.integers(LONGEST_NAME_BYTES - 2, LONGEST_NAME_BYTES + 2).map(lambda length: "x" * length),
    st.just("file\udcff"),
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(PATHS, st.integers(-1, 2**62), max_size=30), st.lists(PATHS, max_size=10))
def test_it_says_what_a_dict_says(listed: dict[str, int], asked: list[str]) -> None:
    sizes = ObjectSizes(ObjectInfo(path, size, "", 0.0) for path, size in listed.items())
    assert {path: sizes.get(path) for path in (*listed, *asked)} == {path: listed.get(path) for path in (*listed, *asked)}
    assert len(sizes) == len(listed) and sorted(sizes) == sorted(listed) and dict(sizes) == listed


def test_more_objects_than_one_chunk() -> None:
    count = 2 * CHUNK_OBJECTS + 5
    sizes = ObjectSizes(ObjectInfo(f"shards/{number:08d}" + "-long" * (number % 3), number, "", 0.0) for number in range(count))
    assert len(sizes) == count
    assert all(sizes[f"shards/{number:08d}" + "-long" * (number % 3)] == number for number in range(0, count, 97))
    assert "shards/00000001" not in sizes


def test_only_the_folders_asked_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for path in ("shards/a", "shards/deeper/b", "quarantine/c", "commits/d"):
        store.write(path, path.encode())
    assert dict(object_sizes(store, "shards", "quarantine")) == {"shards/a": 8, "shards/deeper/b": 15, "quarantine/c": 12}
