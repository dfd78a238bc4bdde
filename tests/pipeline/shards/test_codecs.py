from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.shards.samples import LAYOUTS, assert_same_tokens, make_shard, make_spec, make_tokens
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.codecs import codec_names, get_codec
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.spec import Layout
from tokenshards.pipeline.shards.token_columns import check_tokens


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    kind = draw(st.sampled_from(["grid", "pyramid", "sequence", "video"]))
    side = st.integers(1, 6)
    levels = draw(st.integers(1, 3))
    combine = "single" if levels == 1 else draw(st.sampled_from(["sum", "concat"]))
    variable = kind != "pyramid" and draw(st.booleans())
    common = {"kind": kind, "ids_per_site": levels, "combine": combine, "variable": variable}
    if kind == "pyramid":
        scales = tuple(draw(st.lists(st.tuples(side, side), min_size=1, max_size=4)))
        return Layout(scales=scales, sites=sum(h * w for h, w in scales), **common)
    if kind == "sequence":
        sites = draw(st.integers(1, 40))
        flags = {"ordered": draw(st.booleans()), "prefix_decodable": draw(st.booleans())}
        return Layout(sites=sites, min_sites=draw(st.integers(1, sites)), **flags, **common)
    grid = tuple(draw(st.lists(side, min_size=2, max_size=2) if kind == "grid" else st.lists(side, min_size=3, max_size=3)))
    return Layout(grid=grid, sites=int(np.prod(grid)), **common)


@settings(max_examples=150, deadline=None)
@given(
    layout=layouts(),
    size=st.sampled_from([1, 2, 255, 256, 257, 391, 65_535, 65_536, 65_537, 1 << 20, 1 << 32]),
    rows=st.integers(1, 12),
    codec=st.sampled_from(["default", "publish", "zstd:1"]),
    seed=st.integers(0, 1 << 30),
)
def test_what_goes_in_comes_out(layout: Layout, size: int, rows: int, codec: str, seed: int) -> None:
    spec = make_spec(layout, size)
    tokens = make_tokens(spec, rows, seed)
    shard = make_shard(spec, tokens, codec=codec)
    reader = ShardReader.open(shard.data)
    assert_same_tokens(reader.read().tokens, tokens)
    assert reader.spec == spec and reader.metadata["codec"] == codec
    counts = layout.sites * rows
    if tokens.lengths_B is not None:
        counts = tokens.lengths_B.sum()
    if tokens.shapes_BD is not None:
        counts = tokens.shapes_BD.prod(axis=1).sum()
    assert shard.id_count == counts * layout.ids_per_site


@pytest.mark.parametrize("size, dtype", [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_largest_id_of_each_dtype_survives(size: int, dtype: type) -> None:
    spec = make_spec("grid", size)
    tokens = TokenBatch(np.full((2, 12, 1), size - 1, dtype))
    assert_same_tokens(ShardReader.open(make_shard(spec, tokens).data).read().tokens, tokens)


def test_levels_may_differ_in_size() -> None:
    spec = make_spec("grid_residual", (3, 300, 7))
    tokens = make_tokens(spec, 5)
    assert_same_tokens(ShardReader.open(make_shard(spec, tokens, codec="publish").data).read().tokens, tokens)


def test_ids_are_level_major_within_a_row() -> None:
    spec = make_spec("grid_concat")
    ids_BLQ = np.array([[[1, 11], [2, 12], [3, 13], [4, 14]]], np.uint8)
    columns = get_codec("default").encode(TokenBatch(ids_BLQ), spec)
    assert columns["tokens"].to_pylist() == [[1, 2, 3, 4, 11, 12, 13, 14]]


def test_variable_rows_are_level_major_and_unpadded() -> None:
    spec = make_spec("grid_variable")
    ids_BLQ = np.array([[[1, 11], [2, 12], [0, 0]], [[5, 15], [6, 16], [7, 17]]], np.uint8)
    columns = get_codec("default").encode(TokenBatch(ids_BLQ, None, np.array([[1, 2], [3, 1]], np.int32)), spec)
    assert columns["tokens"].to_pylist() == [[1, 2, 11, 12], [5, 6, 7, 15, 16, 17]]
    assert columns["shape"].to_pylist() == [[1, 2], [3, 1]]


def test_padding_of_variable_rows_is_ignored() -> None:
    spec = make_spec("sequence_variable")
    lengths_B = np.array([2, 3], np.int32)
    padded = TokenBatch(np.array([[[1], [2], [99]], [[3], [4], [5]]], np.uint8), lengths_B)
    found = ShardReader.open(make_shard(spec, padded).data).read().tokens
    assert found.ids_BLQ[:, :, 0].tolist() == [[1, 2, 0], [3, 4, 5]]


def test_wider_integers_are_stored_in_the_dtype_of_the_spec() -> None:
    spec = make_spec("grid", 200)
    tokens = TokenBatch(np.full((1, 12, 1), 199, np.uint32))
    assert ShardReader.open(make_shard(spec, tokens).data).read_tokens(0).ids_BLQ.dtype == np.uint8


def ids(value: int = 0, shape: tuple[int, ...] = (2, 12, 1), dtype: type = np.uint8) -> np.ndarray:
    return np.full(shape, value, dtype)


@pytest.mark.parametrize(
    "layout, tokens, message",
    [
        ("grid", TokenBatch(ids(200)), "level 0 go from 0 to 200; its vocabulary has 200"),
        ("grid", TokenBatch(ids(-1, dtype=np.int32)), "from -1 to 0"),
        ("grid", TokenBatch(ids(shape=(2, 11, 1))), "11 sites; the spec has 12"),
        ("grid", TokenBatch(ids(shape=(2, 12, 2))), r"expected unsigned integers \[B, L, 1\]"),
        ("grid", TokenBatch(ids(dtype=np.float32)), "float32"),
        ("grid", TokenBatch(ids(), np.full(2, 12, np.int32)), "expected None"),
        ("sequence_variable", TokenBatch(ids()), "need .2. lengths"),
        ("sequence_variable", TokenBatch(ids(), np.array([1, 12], np.int32)), "1 to 12 sites; expected 2 to 12"),
        ("sequence_variable", TokenBatch(ids(), np.array([2, 13], np.int32)), "2 to 13 sites; expected 2 to 12"),
        ("grid_variable", TokenBatch(ids(shape=(2, 12, 2))), "shapes_BD is None"),
        (
            "grid_variable",
            TokenBatch(ids(shape=(2, 12, 2)), None, np.array([[1, 2], [2, 5]], np.int32)),
            r"grid \[2, 5\]; expected 1 to \[5, 4\]",
        ),
    ],
)
def test_tokens_that_contradict_the_spec_are_refused(layout: str, tokens: TokenBatch, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tokens(tokens, make_spec(layout))


@pytest.mark.parametrize("layout", ["sequence_variable", "video_variable", "grid_variable"])
def test_decode_refuses_a_length_that_its_ids_do_not_have(layout: str) -> None:
    spec, codec = make_spec(layout), get_codec("default")
    columns = codec.encode(make_tokens(spec, 4), spec)
    shifted = pa.table({name: array.take(pa.array([1, 2, 3, 0])) if name == "tokens" else array for name, array in columns.items()})
    with pytest.raises(ValueError, match="row . holds"):
        codec.decode(shifted, spec)


def test_decode_refuses_ids_outside_the_vocabulary() -> None:
    wide, narrow = make_spec("grid", 250), make_spec("grid", 200)
    columns = pa.table(get_codec("default").encode(TokenBatch(ids(249)), wide))
    with pytest.raises(ValueError, match="level 0 is 249; its vocabulary has 200"):
        get_codec("default").decode(columns, narrow)


def test_publish_is_never_larger_than_zstd_19_alone() -> None:
    rng = np.random.default_rng(0)
    spec = make_spec(Layout(kind="grid", grid=(16, 16), sites=256), 1024)
    walk = np.cumsum(rng.integers(-3, 4, (300, 256)), axis=1) % 1024
    tokens = TokenBatch(walk[:, :, None].astype(np.uint16))
    sizes = {name: make_shard(spec, tokens, codec=name).token_bytes for name in ("default", "zstd:19", "publish")}
    assert sizes["publish"] <= sizes["zstd:19"] < sizes["default"]


def test_unknown_codec_says_what_exists() -> None:
    for name in ("tree8", "zstd:0", "zstd:23", "zstd:", "zstd:x", "default:3"):
        with pytest.raises(ConfigError, match="default, publish, compact, zstd:N"):
            get_codec(name)
    assert codec_names()[:2] == ("default", "publish")


@pytest.mark.parametrize("name", ["default", "publish", "zstd:7"])
def test_a_codec_is_found_by_the_name_it_writes(name: str) -> None:
    assert get_codec(name).name == name


def test_every_layout_kind_is_covered() -> None:
    assert {layout.kind for layout in LAYOUTS.values()} == {"grid", "pyramid", "sequence", "video"}
