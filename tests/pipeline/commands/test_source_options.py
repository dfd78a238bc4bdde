"""The table of source options: their values arrive in the config, and an existing plan is compared with them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.datasets import call_cli, write_images
from tokenshards.pipeline.commands.options import StorageOptions
from tokenshards.pipeline.commands.source_options import LABELLING, takes_source
from tokenshards.pipeline.config import ImageRules, SourceConfig, UrlLimits
from tokenshards.pipeline.mask_rules import MaskRules

GIVEN = {
    "all_files": ["--all-files"],
    "split": ["--split", "val"],
    "image_column": ["--image-column", "i"],
    "id_column": ["--id-column", "k"],
    "image_root": ["--image-root", "s3://b/c"],
    "path_template": ["--path-template", "a/{id}.jpg"],
    "tar_key": ["--key", "last-dot"],
    "image_member": ["--image-member", "left.jpg"],
    "tars_per_shard": ["--tars-per-shard", "3"],
    "yes": ["--yes"],
    "label": ["--label", "breed"],
    "label_from": ["--label-from", "file:t.csv"],
    "key_column": ["--key-column", "id"],
    "label_first": ["--label-first"],
    "as_text": ["--as-text"],
    "meta": ["--meta", "a", "--meta", "b"],
    "image_rules": ["--max-pixels", "9", "--accept-truncated", "--sixteen-bit", "high-byte"],
    "masks": ["--masks", "s3://b/masks"],
    "mask_rules": ["--mask-suffix", "_m", "--mask-ignore", "7,9", "--mask-map", "255=1", "--mask-ignore", "8", "--mask-bits", "16"],
    "urls": ["--url-attempts", "4", "--url-timeout", "5", "--url-time", "6", "--url-concurrency", "7"],
    "allow_private_hosts": ["--allow-private-hosts"],
    "unreadable": ["--unreadable", "quarantine"],
    "storage_options": ["--src-option", "anon=true"],
}
WANTED: dict[str, Any] = {
    "all_files": True,
    "split": "val",
    "image_column": "i",
    "id_column": "k",
    "image_root": "s3://b/c",
    "path_template": "a/{id}.jpg",
    "tar_key": "last-dot",
    "image_member": "left.jpg",
    "tars_per_shard": 3,
    "yes": True,
    "label": "breed",
    "label_from": "file:t.csv",
    "key_column": "id",
    "label_first": True,
    "as_text": True,
    "meta": ("a", "b"),
    "allow_private_hosts": True,
    "unreadable": "quarantine",
    "image_rules": ImageRules(max_pixels=9, accept_truncated=True, sixteen_bit="high-byte"),
    "masks": "s3://b/masks",
    "mask_rules": MaskRules(mask_suffix="_m", mask_ignore=(7, 8, 9), mask_map=((255, 1),), mask_bits=16),
    "urls": UrlLimits(attempts=4, timeout_seconds=5, total_seconds=6, per_host=7),
    "storage_options": {"anon": True},
}


def read_with(arguments: list[str], **which: Any) -> SourceConfig:
    """Run a command that has the table, and return the config it made."""
    app, found = typer.Typer(), []

    @app.command()
    @takes_source(**which)
    def command(src: str, reading: Any = None, storage_option: StorageOptions = None) -> None:
        found.append(reading(src))

    result = CliRunner().invoke(app, ["s3://bucket/images", *arguments])
    assert result.exit_code == 0, result.output
    return found[0]


def test_every_field_of_the_config_has_an_option_whose_value_arrives() -> None:
    of_no_option = {"rules", "frozen", "label_table", "no_labels"}  # --no-labels excludes --label
    assert GIVEN.keys() == WANTED.keys() == {part.name for part in fields(SourceConfig)} - of_no_option
    config = read_with([word for words in GIVEN.values() for word in words])
    assert {name: getattr(config, name) for name in WANTED} == WANTED
    assert read_with(["--mask-column", "seg.png"]).mask_rules.mask_column == "seg.png"
    assert read_with(["--no-labels"]).no_labels and read_with([]) == SourceConfig()
    assert read_with(["--storage-option", "anon=true"]).storage_options == {"anon": True}


def test_a_command_may_leave_options_out() -> None:
    assert read_with(["--split", "val"], without=LABELLING) == SourceConfig(split="val")
    with pytest.raises(AssertionError, match="No such option"):
        read_with(["--label", "x"], without=LABELLING)


@pytest.mark.parametrize(
    "words",
    [
        ("--split", "vall"),
        ("--label", "foo"),
        ("--meta", "caption"),
        ("--label-from", "file:nolabels.csv"),
        ("--tokenizer", "nothere.tok"),
        ("--image-column", "fle"),
        ("--id-column", "keyy"),
        ("--image-root", "nowhere"),
        ("--key", "last-dot"),
        ("--path-template", "{nothing}.png"),
        ("--workers", "0"),
    ],
    ids=" ".join,
)
def test_a_value_that_does_not_fit_is_exit_code_2(listed: str, tmp_path: Path, words: tuple[str, str]) -> None:
    """Some of them ended with 1, as damage does, and others with 2."""
    _, errors = call_cli("plan", listed, str(tmp_path / "out"), *words, expect=2)
    assert errors.startswith("error: ") or "\nerror: " in errors
    assert words[1].removeprefix("file:").strip("{}").removesuffix("}.png") in errors


def test_a_rule_is_quoted_as_a_shell_reads_it(tmp_path: Path) -> None:
    """It was `file:'nolabels.csv'`."""
    write_images(tmp_path / "src", 2)
    src = str(tmp_path / "src")
    for rule in ("file:nolabels.csv", "regex:("):
        assert f"--label-from '{rule}'" in call_cli("plan", src, str(tmp_path / "out"), "--label-from", rule, expect=2)[1]


@pytest.mark.parametrize(
    "words", [("plan", "nosuch", "out"), ("status", "nosuch"), ("verify", "nosuch"), ("inspect", "nosuch"), ("retry-failed", "nosuch")]
)
def test_what_is_not_there_is_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nosuch" in call_cli(*words, expect=2)[1]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("listed")
    write_images(folder, 4, classes=0)
    rows = "".join(f"{path.name},{path.stem},train\n" for path in sorted(folder.iterdir()))
    (folder / "list.csv").write_text(f"file,key,split\n{rows}")
    return str(folder / "list.csv")


def test_options_that_contradict_a_plan_are_named(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 6)
    src, out = str(tmp_path / "src"), str(tmp_path / "out")
    call_cli("tokenize", src, out, "--size", "16", "--codes", "16", "--workers", "1", "--label-from", "parent")
    for words, said in (
        (["--label-from", "none"], "--label-from none (the plan has parent)"),
        (["--max-pixels", "99"], "--max-pixels 99 (the plan has 134217728)"),
        (["--key", "last-dot"], "--key last-dot (the plan has auto)"),
        (["--meta", "x"], "--meta ('x',) (the plan has ())"),
    ):
        assert said in call_cli("tokenize", src, out, *words, expect=2)[1]
    call_cli("tokenize", src, out, "--label-from", "parent", "--yes", "--url-attempts", "9")
