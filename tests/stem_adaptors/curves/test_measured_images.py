"""The measured images of a dataset, in the order of its results."""

from __future__ import annotations

from pathlib import Path

from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.shards import open_dataset
from tokenshards.stem_adaptors.curves.both_sets import labelled_images
from tokenshards.stem_adaptors.curves.measured_images import labelled_ids
from tokenshards.stem_adaptors.curves.points import least_images


def test_an_image_of_several_views_is_one_and_those_without_a_label_are_none(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 8, classes=2)
    write_images(tmp_path / "src", 3, classes=0)  # in no folder of a class
    convert(tmp_path / "src", tmp_path / "tokens", views="flip", shard_rows=3, runner=InlineRunner())
    dataset = open_dataset(str(tmp_path / "tokens"))
    ids = labelled_ids(dataset)
    rows = [(name, label) for batch in dataset.batches(50) for name, label in zip(batch.sample_ids, batch.labels_B.tolist(), strict=True)]
    assert len(rows) == 22 and ids == [name for name, label in rows[::2] if label >= 0] and len(set(ids)) == 8
    assert labelled_images(dataset) == 8
    assert least_images("stratified", dataset) == (2, "one of each of 2 classes") and least_images("random", dataset) == (1, "an image")
