"""A handful of images become the very tokens that a dataset holds; each one that cannot be read is named and costs only itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.datasets import convert, write_images
from tokenshards.pipeline.conversion.encode_files import EncodedImages, tokenize_images
from tokenshards.pipeline.errors import SourceError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.directory import load_tokenizer


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "src", 13, bad=1)
    convert(folder / "src", folder / "out")
    return folder / "src", folder / "out"


def encoded(tokenizer: Tokenizer, *where: Path | str, batch_size: int = 5) -> list[EncodedImages]:
    return list(tokenize_images([str(place) for place in where], tokenizer, batch_size=batch_size))


def test_the_tokens_are_those_of_the_dataset(places: tuple[Path, Path]) -> None:
    src, out = places
    found = encoded(load_tokenizer(Store(str(out)), "tokenizer"), src)
    expected = {}
    for batch in open_dataset(str(out)).batches(64):
        expected.update(zip(batch.sample_ids, batch.ids_BLQ, strict=True))
    seen = {}
    for part in found:
        assert part.tokens is not None and len(part.names) == len(part.tokens.ids_BLQ)
        seen.update(zip(part.names, part.tokens.ids_BLQ, strict=True))
    assert seen.keys() == {f"{src}/{name}" for name in expected}
    assert all(np.array_equal(seen[f"{src}/{name}"], ids_LQ) for name, ids_LQ in expected.items())
    [(name, reason)] = [failure for part in found for failure in part.failed]
    assert name.endswith("bad_0013.jpg") and reason


def test_files_and_folders_in_the_order_given(places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src, out = places
    tokenizer = load_tokenizer(Store(str(out)), "tokenizer")
    late, early = src / "class_2" / "img_0002.jpg", src / "class_0" / "img_0000.jpg"
    [part] = encoded(tokenizer, late, "file://" + str(early), tmp_path / "gone.png", batch_size=9)
    assert part.names == [str(late), f"file://{early}"] and [name for name, _ in part.failed] == [str(tmp_path / "gone.png")]
    monkeypatch.chdir(early.parent)
    [alone] = encoded(tokenizer, early.name)
    assert alone.names == [early.name] and alone.tokens is not None and part.tokens is not None
    assert np.array_equal(alone.tokens.ids_BLQ[0], part.tokens.ids_BLQ[1])
    [none] = encoded(tokenizer, tmp_path / "gone.png")
    assert none.tokens is None and none.names == []


def test_what_holds_no_images_is_named(places: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = places
    tokenizer = load_tokenizer(Store(str(out)), "tokenizer")
    (tmp_path / "table.csv").write_text("uri,label\na.jpg,1\n")
    with pytest.raises(SourceError, match=r"table\.csv: this is a table source; expected images or folders"):
        encoded(tokenizer, tmp_path / "table.csv")
    with pytest.raises(SourceError, match="nowhere"):
        encoded(tokenizer, tmp_path / "nowhere")
