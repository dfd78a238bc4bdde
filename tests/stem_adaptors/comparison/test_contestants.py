"""Who takes part: kinds with options, directories, datasets; anything else is one sentence."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.datasets import convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import RunConfig, SourceConfig
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import save_tokenizer
from tokenshards.pipeline.tokenizers.pixels.pixel_values import PixelValues
from tokenshards.stem_adaptors.comparison.compare_config import CompareRequest
from tokenshards.stem_adaptors.comparison.contestants import Contestant, _values, contestant_of


def read(text: str, sample: int = 100) -> Contestant:
    return contestant_of(text, sample=sample, out=Store(f"memory://out-{uuid.uuid4().hex}"), storage_options={})


def test_options_of_a_kind_have_their_types() -> None:
    found = read("vq-autoencoder:code-width=8, learning_rate=2e-3,levels=1").fit
    assert found is not None and (found.kind, found.sample, found.seed) == ("vq-autoencoder", 100, 0)
    assert (found.code_width, found.learning_rate, found.levels, found.codes) == (8, 2e-3, 1, None)
    assert [_values("", text)["mirrored"] for text in ("mirrored", "mirrored=true", "mirrored=false")] == [True, True, False]
    assert read("patch-kmeans").fit == read("patch-kmeans:").fit


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("patch-kmean", "patch-kmean is no tokenizer (did you mean 'patch-kmeans'"),
        ("no/such.tok", "no/such.tok is no tokenizer; expected a tokenizer directory, a dataset, or a kind to fit: patch-kmeans, "),
        ("patch-kmeans:code=512", "'code=512' is no option of a fit (did you mean 'codes'"),
        ("patch-kmeans:codes", "'codes' is no option of a fit"),
        ("patch-kmeans:seed=3", "'seed=3' is no option of a fit"),
        ("patch-kmeans:codes=many", "'patch-kmeans:codes=many': codes is 'many'; expected a whole number"),
        ("patch-kmeans:codes=", "codes is ''; expected a whole number"),
        ("vq-autoencoder:learning_rate=fast", "learning_rate is 'fast'; expected a number"),
        ("latent-kmeans:mirrored=perhaps", "mirrored is 'perhaps'; expected true or false"),
        ("patch-kmeans:site=16", "--site is 16, which belongs to --kind layered-kmeans; --kind is patch-kmeans"),
        ("patch-kmeans:codes=0", "--codes is 0; expected"),
        ("layered-kmeans:site=9", "--site is 9; expected 8, 16 or 32 pixels"),
        ("latent-kmeans", "--encoder is missing; expected the weights"),
    ],
)
def test_what_is_no_tokenizer(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(text)
    assert says in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_directory_and_the_datasets_made_with_it_are_the_same_tokenizer(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 6)
    convert(tmp_path / "src", tmp_path / "data", runner=InlineRunner())
    dataset, directory = read(str(tmp_path / "data")), read(f"{tmp_path}/data/tokenizer/")
    assert dataset.fit is None and dataset.identity == directory.identity != read("patch-kmeans").identity
    assert dataset.place("digest") != dataset.place("other")
    assert dataset.place("digest").startswith("sides/data-") and directory.place("digest").startswith("sides/tokenizer-")


def test_a_damaged_tokenizer_is_not_taken_for_none(tmp_path: Path) -> None:
    save_tokenizer(PixelValues(Preprocess(size=8)), Store(str(tmp_path)))
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes()[:-20])
    with pytest.raises(CorruptObjectError):
        read(str(tmp_path))


def test_a_place_is_a_plain_name_and_depends_on_what_decides_the_ids() -> None:
    other = read("patch-kmeans:codes=16").place("digest")
    assert other == read("patch-kmeans:codes=16").place("digest") != read("patch-kmeans:codes=16", sample=7).place("digest")
    odd = Contestant(name="s3://bucket/Ünïcode und Lücken/", url="", fit=None, identity="x").place("digest")
    assert odd.isascii() and " " not in odd and odd.startswith("sides/n-code-und-L-cken-")
    assert Contestant(name="…", url="", fit=None, identity="x").place("digest").startswith("sides/tokenizer-")


def test_credentials_of_an_address_are_in_no_name() -> None:
    with pytest.raises(ConfigError) as error:
        read(f"memory://user:hunter2@nothing-{uuid.uuid4().hex}/place")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizers": ()}, "TOK"),
        ({"tokenizers": ("patch-kmeans", "a.tok", "patch-kmeans")}, "patch-kmeans is given twice; expected each tokenizer once"),
        ({"minutes": -1}, "--minutes is -1"),
        ({"minutes": float("inf")}, "--minutes is inf"),
        ({"minutes": float("nan")}, "--minutes is nan"),
        ({"seeds": 0}, "--seeds is 0; expected 1 to 100"),
        ({"stored_images": 0}, "--stored-images is 0; expected at least 1"),
        ({"sample": 0}, "--sample is 0; expected at least 1 image"),
        ({"against": ("png",)}, "--against is 'png'; expected some of jpeg, webp, pixels, or none"),
        ({"device": "mps"}, "--device is 'mps'; expected cpu, cuda, or cuda:NUMBER"),
    ],
)
def test_settings_out_of_range(changes: dict[str, object], says: str) -> None:
    usual = {"tokenizers": ("patch-kmeans",), "images_url": "a", "val_url": "b", "out_url": "c", "run": RunConfig()}
    with pytest.raises(ConfigError, match=says):
        CompareRequest(**{**usual, "images": SourceConfig(), "val": SourceConfig(), **changes})  # type: ignore[arg-type]
