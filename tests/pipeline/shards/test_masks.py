"""Masks in shards: packing, the column, and the ways to read them. Shapes: B rows, H and W pixels of a mask."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.shards.samples import make_rows, make_shard, make_spec, make_tokens
from tests.pipeline.shards.test_dataset import build, make_entry, publish
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError
from tokenshards.pipeline.shards import open_dataset, writer
from tokenshards.pipeline.shards.commit import write_object
from tokenshards.pipeline.shards.joined import JoinedDataset
from tokenshards.pipeline.shards.masks import MASK, MaskFormat, MaskTotals, PackedMask, count_mask_pixels, mask_array, masks_of, pack_mask
from tokenshards.pipeline.shards.reader import ShardReader
from tokenshards.pipeline.shards.writer import EncodedShard
from tokenshards.pipeline.storage.store import Store

SIZE = 32


def make_masks(count: int, mask: MaskFormat, seed: int = 0) -> np.ndarray:
    """Masks of a few blobs each."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 20, (count, 4, 4)) * (1 if mask.dtype == "uint8" else 1000)
    masks = coarse.repeat(-(-mask.height // 4), 1).repeat(-(-mask.width // 4), 2)[:, : mask.height, : mask.width].astype(mask.dtype)
    masks[:, 0] = mask.ignore
    return masks


def masked_shard(count: int, mask: MaskFormat, without: tuple[int, ...] = (), codec: str = "default") -> tuple[EncodedShard, np.ndarray]:
    spec = make_spec("grid")
    masks = make_masks(count, mask)
    packed = [None if row in without else pack_mask(one) for row, one in enumerate(masks)]
    masks[list(without)] = mask.ignore
    return make_shard(spec, make_tokens(spec, count), rows=replace(make_rows(count), mask=packed), mask=mask, codec=codec), masks


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_masks_come_back_from_any_chunks(data: st.DataObject) -> None:
    mask = MaskFormat(dtype=(dtype := data.draw(st.sampled_from(["uint8", "uint16"]))), height=data.draw(st.integers(1, 5)),
                      width=data.draw(st.integers(1, 5)), ignore=np.iinfo(dtype).max)  # fmt: skip
    rows = data.draw(st.lists(st.none() | st.lists(st.integers(0, mask.ignore), min_size=mask.pixels, max_size=mask.pixels), max_size=6))
    expected = np.full((len(rows), mask.height, mask.width), mask.ignore, dtype)
    packed: list[PackedMask] = []
    for row, values in enumerate(rows):
        if values is not None:
            expected[row] = np.array(values, dtype).reshape(mask.height, mask.width)
        packed.append(None if values is None else pack_mask(expected[row]))
    column = mask_array(packed, mask)
    cut = data.draw(st.integers(0, len(rows)))
    for found in (masks_of(column, mask), masks_of(pa.chunked_array([column[:cut], column[cut:]]), mask)):
        assert found.dtype == np.dtype(dtype) and found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
    counted = {value: int((expected[[one is not None for one in packed]] == value).sum()) for value, _ in count_mask_pixels(packed, mask)}
    assert list(counted.items()) == [tuple(pair) for pair in count_mask_pixels(packed, mask)]
    assert sum(counted.values()) == mask.pixels * sum(one is not None for one in packed)


@pytest.mark.parametrize("codec", ["default", "publish", "zstd:1"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_column_stands_after_the_tokens_and_says_its_format(dtype: str, codec: str) -> None:
    mask = MaskFormat.of_size(SIZE, dtype)
    shard, masks = masked_shard(7, mask, without=(2, 6), codec=codec)
    reader = ShardReader.open(shard.data)
    names = reader.schema.names
    assert names[names.index("tokens") + 1] == MASK and reader.schema.field(MASK).nullable and MASK in reader.row_columns
    assert reader.metadata["format_version"] == "1.3" and reader.mask == mask
    assert reader.metadata["mask"] == f'{{"dtype":"{dtype}","height":32,"ignore":{mask.ignore},"width":32}}'
    column = reader.read_columns([MASK]).column(MASK)
    assert [value is None for value in column.to_pylist()] == [row in (2, 6) for row in range(7)]
    np.testing.assert_array_equal(masks_of(column, mask), masks)
    values, counts = np.unique(masks[[0, 1, 3, 4, 5]], return_counts=True)
    assert shard.mask_pixels == [list(pair) for pair in zip(values.tolist(), counts.tolist(), strict=True)]
    chunk = pq.read_metadata(pa.BufferReader(shard.data)).row_group(0).column(names.index(MASK))
    assert chunk.path_in_schema == "mask.list.element" and chunk.compression == "ZSTD" and "RLE_DICTIONARY" in chunk.encodings


def test_large_masks_make_small_row_groups_with_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = MaskFormat.of_size(SIZE, "uint8")
    monkeypatch.setattr(writer, "MASK_GROUP_BYTES", 3 * SIZE * SIZE)
    shard, masks = masked_shard(8, mask, without=(3, 4, 5))
    reader = ShardReader.open(shard.data)
    assert [reader.row_group_rows(group) for group in range(reader.num_row_groups)] == [3, 3, 2]
    np.testing.assert_array_equal(masks_of(reader.read([MASK]).table.column(MASK), mask), masks)
    assert reader.read().table.column("sample_id").to_pylist() == make_rows(8).sample_id


def test_a_shard_without_masks_has_the_bytes_of_before() -> None:
    spec = make_spec("grid")
    reader = ShardReader.open(make_shard(spec, make_tokens(spec, 3)).data)
    assert reader.metadata["format_version"] == "1.0" and reader.mask is None and "mask" not in reader.metadata
    assert MASK not in reader.schema.names


def test_masks_that_do_not_fit_their_format_are_refused() -> None:
    spec, mask = make_spec("grid"), MaskFormat.of_size(SIZE, "uint8")
    tokens, small = make_tokens(spec, 2), pack_mask(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"a mask of 16 values; expected 32 x 32 of uint8"):
        make_shard(spec, tokens, rows=replace(make_rows(2), mask=[small, None]), mask=mask)
    for masks, stated in (([None], mask), (None, mask), ([None, None], None)):
        with pytest.raises(ValueError, match="expected (2 )?masks? and their format|masks and their format"):
            make_shard(spec, tokens, rows=replace(make_rows(2), mask=masks), mask=stated)
    with pytest.raises(ConfigError, match=r"mask.dtype is 'int64'; expected one of uint8, uint16"):
        MaskFormat.of_size(8, "int64")
    with pytest.raises(ValueError, match="expected fixed_size_list"):
        masks_of(pa.array([1, 2]), mask)


def test_a_footer_that_contradicts_the_column_is_damage() -> None:
    shard, _ = masked_shard(3, MaskFormat.of_size(SIZE, "uint8"))
    table = pq.read_table(pa.BufferReader(shard.data))
    footer = {key: value for key, value in (pq.read_metadata(pa.BufferReader(shard.data)).metadata or {}).items() if key != b"ARROW:schema"}
    for text, words in ((b'{"dtype":"uint16","height":32,"ignore":65535,"width":32}', "the footer states"), (b"{}", "cannot be read")):
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({**footer, b"tokenshards.mask": text}), sink)
        with pytest.raises(CorruptObjectError, match=words):
            ShardReader.open(bytes(sink.getvalue()))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_the_masks_is_found(place: float) -> None:
    rng = np.random.default_rng(0)
    spec, mask = make_spec("grid"), MaskFormat.of_size(SIZE, "uint8")
    packed: list[PackedMask] = [pack_mask(one) for one in rng.integers(0, 250, (4, SIZE, SIZE)).astype(np.uint8)]
    data = bytearray(make_shard(spec, make_tokens(spec, 4), rows=replace(make_rows(4), mask=packed), mask=mask).data)
    group = pq.read_metadata(pa.BufferReader(data)).row_group(0)
    chunk = group.column(group.num_columns - 4)
    assert chunk.path_in_schema == "mask.list.element"
    data[chunk.dictionary_page_offset + int(place * chunk.total_compressed_size)] ^= 4
    with pytest.raises(CorruptObjectError):
        ShardReader.open(bytes(data)).read_columns([MASK])


def test_totals_are_merged_and_written_as_plain_json() -> None:
    mask = MaskFormat.of_size(4, "uint8")
    totals = MaskTotals(format=mask).with_counts(1, [[0, 10], [255, 6]]).with_counts(2, [[7, 30], [0, 2]])
    assert totals.to_json() == {
        "dtype": "uint8",
        "height": 4,
        "width": 4,
        "ignore": 255,
        "classes": [[0, 12], [7, 30], [255, 6]],
        "images": 3,
    }
    assert MaskTotals.from_json(totals.to_json()) == totals and totals.classes == 8
    assert MaskTotals(format=mask).classes == 0


def masked_dataset(root: Path, counts: tuple[int, ...], mask: MaskFormat, without: tuple[int, ...] = ()) -> np.ndarray:
    """Publish shards of masked rows; in each, the rows `without` have no mask. Return all masks [B, H, W]."""
    store, spec, entries, masks, totals, first = Store(str(root)), make_spec("grid"), [], [], MaskTotals(format=mask), 0
    for number, count in enumerate(counts):
        found = make_masks(count, mask, seed=number)
        packed = [None if row in without else pack_mask(one) for row, one in enumerate(found)]
        found[list(without)] = mask.ignore
        shard = make_shard(spec, make_tokens(spec, count), rows=replace(make_rows(count, first=first), mask=packed), mask=mask)
        totals = totals.with_counts(sum(one is not None for one in packed), shard.mask_pixels)
        entries.append(make_entry(number, write_object(store, "shards", number, shard.data), count))
        masks.append(found)
        first += count
    publish(store, spec, entries, mask=totals)
    return np.concatenate(masks)


def test_every_way_to_read_gives_the_masks(tmp_path: Path) -> None:
    mask = MaskFormat.of_size(SIZE, "uint8")
    masks = masked_dataset(tmp_path, (7, 4, 6), mask, without=(2,))
    dataset = open_dataset(str(tmp_path))
    assert dataset.mask == mask and dataset.mask_classes == int(masks[masks != 255].max()) + 1
    assert dataset.manifest.mask is not None and dataset.manifest.mask.images == 14
    assert sum(dataset.manifest.mask.pixels.values()) == 14 * mask.pixels
    for size in (3, 17):
        batches = list(dataset.batches(size, columns=["view"], masks=True))
        found = [batch.masks_BHW for batch in batches if batch.masks_BHW is not None]
        np.testing.assert_array_equal(np.concatenate(found), masks)
        assert batches[0].table.column_names == ["view"]
        columns = pa.concat_tables([batch.table for batch in dataset.batches(size, columns=[MASK])]).column(MASK)
        np.testing.assert_array_equal(masks_of(columns, mask), masks)
    assert next(dataset.batches(4)).masks_BHW is None
    for row in (0, 2, 8, -1):
        sample = dataset[row]
        if row == 2:
            assert sample.mask_HW is None
        else:
            np.testing.assert_array_equal(sample.mask_HW, masks[row])
        assert sample == dataset[row] and MASK not in sample.row and sample.row["sample_id"] == sample.sample_id
    part = dataset[5:13:2]
    np.testing.assert_array_equal(part.masks_BHW, masks[5:13:2])
    assert json.loads((tmp_path / "manifest.json").read_bytes())["format_version"] == "1.3"


def test_datasets_with_masks_are_joined_where_the_masks_are_alike(tmp_path: Path) -> None:
    eight, sixteen = MaskFormat.of_size(SIZE, "uint8"), MaskFormat.of_size(SIZE, "uint16")
    parts = [masked_dataset(tmp_path / name, counts, eight) for name, counts in (("a", (3,)), ("b", (2, 2)))]
    masked_dataset(tmp_path / "c", (2,), sixteen)
    build(tmp_path / "d", [2])
    a, b, c = (open_dataset(str(tmp_path / name)) for name in "abc")
    joined = JoinedDataset([a, b])
    masks_BHW = next(joined.batches(7, masks=True)).masks_BHW
    np.testing.assert_array_equal(masks_BHW, np.concatenate(parts))
    assert joined.mask == eight and joined.mask_classes == max(a.mask_classes, b.mask_classes)
    assert joined.manifest.mask is not None and joined.manifest.mask.images == 7
    with pytest.raises(ConfigError, match=r"masks of 32 x 32 pixels in uint16, .* has masks of 32 x 32 pixels in uint8; expected the same"):
        JoinedDataset([a, c])
    without = open_dataset(str(tmp_path / "d"))
    with pytest.raises(ConfigError, match=r"has no masks; tokenize its images with --masks or --mask-column"):
        next(without.batches(2, masks=True))
    assert without.mask is None and without.mask_classes == 0 and without[0].mask_HW is None and without[0:2].masks_BHW is None


def test_a_manifest_of_other_masks_than_its_shards_is_damage(tmp_path: Path) -> None:
    mask = MaskFormat.of_size(SIZE, "uint8")
    masked_dataset(tmp_path, (3,), mask)
    dataset = open_dataset(str(tmp_path))
    publish(dataset.store, dataset.spec, list(dataset.shards))
    with pytest.raises(CorruptObjectError, match="the manifest says 3 rows, masks: None"):
        open_dataset(str(tmp_path))[0]
