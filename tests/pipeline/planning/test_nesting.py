"""OUT = SRC, OUT in SRC and SRC in OUT are refused, links resolved, before anything is written; neighbours are fine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets import call_cli, convert, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.planning.nesting import refuse_nesting
from tokenshards.pipeline.storage.store import Store


def refused(src: str, out: str, **options: str) -> str:
    with pytest.raises(ConfigError) as error:
        refuse_nesting(src, SourceConfig(storage_options=options), Store(out, storage_options=options))
    return str(error.value)


def fine(src: str, out: str) -> None:
    refuse_nesting(src, SourceConfig(), Store(out))


def test_local_places(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "photos", 2)
    src = str(tmp_path / "a" / "photos")
    assert "is SRC itself" in refused(src, src) and f"such as {src}.tokens" in refused(src, src)
    assert "is SRC itself" in refused(f"{src}/", f"file://{src}")
    assert "is inside SRC" in refused(src, f"{src}/tokens") and "is inside SRC" in refused(src, f"{src}/class_0/x/tokens")
    assert "contains SRC" in refused(src, str(tmp_path / "a")) and "contains SRC" in refused(f"{src}/class_0", src)
    for neighbour in (f"{src}.tokens", f"{src}2", str(tmp_path / "a" / "tokens"), str(tmp_path / "b")):
        fine(src, neighbour)


def test_links_are_resolved(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 2)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "inner").symlink_to(tmp_path / "photos" / "class_0")
    assert "is SRC itself" in refused(str(tmp_path / "photos"), str(tmp_path / "link"))
    assert "is inside SRC" in refused(str(tmp_path / "photos"), str(tmp_path / "inner" / "tokens"))
    assert "is inside SRC" in refused(str(tmp_path / "link"), str(tmp_path / "photos" / "tokens"))


def test_files_and_patterns_beside_out_are_fine(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for src in ("train.parquet", "*.tar", "a-{000..123}.tar", "train/**/*.tar", "train/*/*.parquet"):
        fine(f"{folder}/{src}", f"{folder}/tokens")
    for src in ("**/*.parquet", "*/*.parquet", "t*/*/*.parquet", "{train,tokens}/*.parquet", "tok**/*.parquet"):
        assert "is inside SRC" in refused(f"{folder}/{src}", f"{folder}/tokens"), src
    assert "contains SRC" in refused(f"{folder}/train.parquet", folder)


def test_remote_places() -> None:
    assert "is SRC itself" in refused("memory://b/photos", "memory://b/photos/")
    assert "is inside SRC" in refused("memory://b/photos", "memory://b/photos/tokens")
    assert "contains SRC" in refused("memory://b/photos", "memory://b")
    fine("memory://b/photos", "memory://b/photos.tokens")
    fine("memory://b/photos", "/b/photos/tokens")


def test_two_profiles_may_lead_to_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {"reader": "http://one:9000", "writer": "http://one:9000", "elsewhere": "http://two:9000"}
    (tmp_path / "config").write_text("".join(f"[profile {name}]\nendpoint_url = {host}\n" for name, host in hosts.items()))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    photos = SourceConfig(storage_options={"profile": "reader"})
    for out in ({"profile": "writer"}, {"endpoint_url": "http://one:9000"}):
        with pytest.raises(ConfigError, match="is inside SRC"):
            refuse_nesting("s3://bucket/photos", photos, Store("s3://bucket/photos/tokens", storage_options=out))
    for out in ({"profile": "elsewhere"}, {"endpoint_url": "https://s3.eu-west-1.amazonaws.com"}):
        refuse_nesting("s3://bucket/photos", photos, Store("s3://bucket/photos/tokens", storage_options=out))


def test_commands_refuse_before_they_write(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 4)
    before = sorted(tmp_path.rglob("*"))
    for command in ("tokenize", "plan"):
        _, said = call_cli(command, str(tmp_path / "photos"), str(tmp_path / "photos" / "tokens"), expect=2)
        assert "is inside SRC" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_into_out_is_no_input(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 4)
    write_images(out / "earlier", 2)
    (src / "more").symlink_to(out)
    with pytest.raises(ConfigError, match="is a link into OUT"):
        convert(src, out, runner=InlineRunner())
    assert not (out / "plan").exists()
