"""Data that a comparison of tokens must refuse: of another tokenizer, and without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.datasets import call_cli, convert, write_images
from tests.inline import InlineRunner


def refuses_other_data(arguments: Sequence[str], folder: Path, tmp_path: Path) -> None:
    """Give the command validation sets that do not fit `folder`/train.tokens, and look at what it says."""
    convert(folder / "val", tmp_path / "other.tokens", runner=InlineRunner())
    told = call_cli(*arguments, "--val", str(tmp_path / "other.tokens"), expect=2)[1]
    assert "so its ids mean something else. Tokenize both sets with one tokenizer" in told and len(told.splitlines()) == 1
    write_images(tmp_path / "plain", 6, classes=0)
    convert(tmp_path / "plain", tmp_path / "plain.tokens", tokenizer=str(folder / "train.tokens"), runner=InlineRunner())
    told = call_cli(*arguments, "--val", str(tmp_path / "plain.tokens"), expect=2)[1]
    assert "none of the 6 images has a label" in told and len(told.splitlines()) == 1
