"""OUT/README.md: its header means exactly the shards to `load_dataset`; it tells nothing private; no file of others is lost."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from tests.datasets import SilentReporter, call_cli, content, convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import RunConfig, SourceConfig
from tokenshards.pipeline.conversion.tokenize import retry_failed
from tokenshards.pipeline.ledger.dataset_card import CARD_PATH, is_own_card, public_source, write_card
from tokenshards.pipeline.reports.inspection import inspect_dataset
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.storage.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "private_src", 12, bad=2)
    convert(folder / "private_src", folder / "out", shard_rows=5, runner=InlineRunner())
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


def header(out: Path) -> dict[str, Any]:
    text = (out / CARD_PATH).read_text()
    assert text.startswith("---\n")
    value: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return value


def data_files(out: Path) -> list[str]:
    """Resolve `configs` as `datasets` does: patterns relative to the folder of the card."""
    (config,) = header(out)["configs"]
    (split,) = config["data_files"]
    assert (config["config_name"], split["split"]) == ("default", "train")
    patterns = split["path"] if isinstance(split["path"], list) else [split["path"]]
    return sorted(path.relative_to(out).as_posix() for pattern in patterns for path in out.glob(pattern))


def shards_of(out: Path) -> list[str]:
    return sorted(str(entry.path) for entry in open_dataset(str(out)).shards)


def test_its_header_means_the_shards_and_nothing_else(out: Path) -> None:
    assert data_files(out) == shards_of(out) and len(shards_of(out)) > 1
    assert header(out)["license"] == "other" or header(out)["license"] == "unknown"
    assert header(out)["task_categories"] == ["image-classification"] and header(out)["size_categories"] == ["n<1K"]
    files = [str(out / name) for name in data_files(out)]
    assert duckdb.sql(f"select count(*) from read_parquet({files})").fetchall() == [(12,)]


def test_it_says_what_is_inside(out: Path) -> None:
    text = (out / CARD_PATH).read_text()
    for told in ("| images | 12 |", "| left out | 2 inputs", "| classes | 3 |", "patch-kmeans", "level-major", "| `orig_bytes` | int64 |"):
        assert told in text, told
    assert open_dataset(str(out)).spec.fingerprint in text
    for way in ("DuckDB", "pyarrow.dataset", "load_dataset(", "tokenshards.open_dataset("):
        assert way in text, way


def test_it_tells_nothing_private(made: Path, out: Path) -> None:
    text = (out / CARD_PATH).read_text()
    assert str(made) not in text and socket.gethostname() not in text.replace("tokenshards", "") and "`private_src`, on a disk" in text
    assert public_source("s3://bucket/photos/train") == "s3://bucket/photos/train"
    assert public_source("s3://key:secret@bucket/photos") == "s3://bucket/photos"
    assert public_source("https://inner.host:8080/x/photos?token=1") == "https: photos"


def test_it_is_the_same_for_the_same_manifest_and_anew_with_each_generation(made: Path, out: Path) -> None:
    store, before = Store(str(out)), (out / CARD_PATH).read_bytes()
    assert write_card(store, load_manifest(store)) and (out / CARD_PATH).read_bytes() == before
    shutil.copytree(made / "private_src", out.parent / "src")
    (bad, _) = sorted((out.parent / "src").rglob("bad_*"))
    bad.write_bytes(next((out.parent / "src").rglob("img_*.png")).read_bytes())
    assert retry_failed(str(out), str(out.parent / "src"), RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner())
    assert "| images | 13 |" in (out / CARD_PATH).read_text() and data_files(out) == shards_of(out)


@pytest.mark.parametrize("text", ["# Mine\n", "", "edited"])
def test_another_readme_is_never_overwritten(made: Path, out: Path, text: str) -> None:
    """Neither one that was there before, nor a card that somebody edited."""
    path, reporter = out / CARD_PATH, SilentReporter()
    theirs = path.read_bytes().replace(b"# Images as", b"# My images as") if text == "edited" else text.encode()
    path.write_bytes(theirs)
    assert not is_own_card(theirs) and is_own_card((made / "out" / CARD_PATH).read_bytes())
    (out / "manifest.json").unlink()
    convert(made / "private_src", out, runner=InlineRunner(), reporter=reporter)
    assert path.read_bytes() == theirs
    assert any("README.md is not a card written by tokenshards, so it is kept" in line for line in reporter.lines)


def test_files_that_a_glob_would_mix_in_are_left_out(out: Path) -> None:
    stale = out / "shards" / "00000000-000000000000.parquet"
    shutil.copy(out / shards_of(out)[0], stale)
    store = Store(str(out))
    assert write_card(store, load_manifest(store))
    assert data_files(out) == shards_of(out) and "also holds files that are not part of the data set" in (out / CARD_PATH).read_text()
    stale.unlink()
    assert write_card(store, load_manifest(store))
    assert header(out)["configs"][0]["data_files"][0]["path"] == "shards/*.parquet"


def test_a_card_costs_no_run_its_end(out: Path) -> None:
    """A damaged shard is for `verify` to tell."""
    store, manifest = Store(str(out)), load_manifest(Store(str(out)))
    (out / shards_of(out)[0]).write_bytes(b"damaged")
    assert write_card(store, manifest) and "## Columns" not in (out / CARD_PATH).read_text()


def test_nothing_but_bad_inputs(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 3, bad=3)
    convert(tmp_path / "src", tmp_path / "first", runner=InlineRunner())
    for path in (tmp_path / "src").rglob("img_*"):
        path.unlink()
    convert(tmp_path / "src", tmp_path / "out", tokenizer=str(tmp_path / "first" / "tokenizer"), runner=InlineRunner())
    assert content(tmp_path / "out") == {} and "configs" not in header(tmp_path / "out")


def test_labels_and_licences_are_quoted(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 4)
    (tmp_path / "src" / "class_0").rename(tmp_path / "src" / "a|b<i>: #")
    out = tmp_path / "out"
    call_cli("tokenize", str(tmp_path / "src"), str(out), "--license", 'Mine: "all" #1', "--size", "16", "--codes", "4", "--workers", "1")
    assert (header(out)["license"], header(out)["license_name"]) == ("other", 'Mine: "all" #1')
    assert "| a\\|b&lt;i>: # |" in (out / CARD_PATH).read_text()
    out = tmp_path / "known"
    call_cli("tokenize", str(tmp_path / "src"), str(out), "--license", "CC-BY-4.0", "--size", "16", "--codes", "4", "--workers", "1")
    assert header(out)["license"] == "cc-by-4.0" and "license_name" not in header(out)


def test_inspect_lists_the_columns(out: Path) -> None:
    columns = inspect_dataset(Store(str(out))).columns
    assert [(column.name, column.type) for column in columns][:4] == [
        ("sample_id", "string"),
        ("view", "int16"),
        ("label", "string"),
        ("tokens", "uint8[32]"),
    ]
    said, _ = call_cli("inspect", str(out))
    assert "orig_bytes" in said and "level-major" in said


def test_meta_columns_are_told(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3, classes=0)
    lines = ["file_name,caption"] + [f"images/{path.name},c" for path in sorted((tmp_path / "images").iterdir())]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    convert(tmp_path / "t.csv", tmp_path / "out", source=SourceConfig(image_column="file_name", meta=("caption",)), runner=InlineRunner())
    assert "| `meta.caption` | string | `caption` of the source |" in (tmp_path / "out" / CARD_PATH).read_text()
