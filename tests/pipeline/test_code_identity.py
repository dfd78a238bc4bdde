"""The digest of the code: the same for the same sources wherever they lie, another after every edit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tokenshards import pipeline
from tokenshards.pipeline.code_identity import code_digest, sources_digest


def package(folder: Path) -> Path:
    (folder / "pack" / "inner").mkdir(parents=True)
    (folder / "pack" / "a.py").write_text("A = 1\n")
    (folder / "pack" / "inner" / "b.py").write_text("B = 2\n")
    return folder / "pack"


def test_the_place_does_not_matter_and_every_edit_does(tmp_path: Path) -> None:
    first = package(tmp_path / "one")
    digest = sources_digest(first)
    assert re.fullmatch("[0-9a-f]{12}", digest) and sources_digest(package(tmp_path / "two")) == digest
    seen = {digest}
    (first / "inner" / "b.py").write_text("B = 3\n")
    seen.add(sources_digest(first))
    (first / "inner" / "b.py").rename(first / "inner" / "c.py")
    seen.add(sources_digest(first))
    (first / "new.py").write_text("")
    seen.add(sources_digest(first))
    (first / "new.py").unlink()
    (first / "inner" / "c.py").unlink()
    seen.add(sources_digest(first))
    assert len(seen) == 5


def test_what_is_no_source_does_not_count(tmp_path: Path) -> None:
    folder = package(tmp_path)
    digest = sources_digest(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"compiled")
    (folder / "notes.txt").write_text("text")
    assert sources_digest(folder) == digest


def test_two_packages_are_one_digest_in_whatever_order(tmp_path: Path) -> None:
    first, second = package(tmp_path / "one"), tmp_path / "other"
    second.mkdir()
    (second / "a.py").write_text("A = 1\n")
    assert sources_digest(first, second) == sources_digest(second, first)
    assert len({sources_digest(first, second), sources_digest(first), sources_digest(second)}) == 3


def test_a_copy_of_this_code_has_its_digest_until_it_is_edited(tmp_path: Path) -> None:
    copy = tmp_path / "pipeline"
    shutil.copytree(Path(pipeline.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert sources_digest(copy) == code_digest()
    with (copy / "job.py").open("a") as source:
        source.write("\n")
    assert sources_digest(copy) != code_digest()
