"""Tars that cannot be read to their end: what is lost with them counts against `--max-bad`, is said, and is the same after a resume."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.datasets import SilentReporter, call_cli, content, convert, quarantine_of, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.conversion.tokenize import retry_failed
from tokenshards.pipeline.errors import TooManyBadInputsError
from tokenshards.pipeline.ledger.public_copy import publish_dataset
from tokenshards.pipeline.ledger.repair import repair_dataset
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.shards.manifest import load_manifest, read_sealed
from tokenshards.pipeline.storage.store import Store

TARS, IMAGES, WHOLE = 4, 25, 4
"""The fifth image of the damaged tar may lack a part that is behind the damage, so the quarantine row begins there."""
LOST = IMAGES - WHOLE - 1


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Four tars of 25 images; from the header of its sixth image on, the second cannot be read."""
    write_images(tmp_path / "images", TARS * IMAGES, classes=0)
    paths = sorted((tmp_path / "images").iterdir())
    (tmp_path / "tars").mkdir()
    for number in range(TARS):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path in paths[number::TARS]:
                archive.add(path, path.name)
        with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as archive:
            header = archive.getmembers()[WHOLE + 1].offset
        data = bytearray(buffer.getvalue().rstrip(b"\0") + bytes(1024))
        if number == 1:
            data[header] ^= 1
        (tmp_path / "tars" / f"{number}.tar").write_bytes(data)
    return tmp_path / "tars"


def lost_of(out: Path) -> int:
    return int(load_manifest(Store(str(out))).totals.get("images_lost_about", 0))


def test_the_images_that_are_lost_with_a_damaged_tar_count_against_the_limit(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(TooManyBadInputsError, match=r"inputs failed permanently \(about \d+ of them are lost with damaged tars\)"):
        convert(tars, out, max_bad=0.1, runner=InlineRunner())
    assert not (out / "manifest.json").exists()
    reporter = SilentReporter()
    convert(tars, out, max_bad=0.3, runner=InlineRunner(), reporter=reporter)
    (failed,) = quarantine_of(out)
    assert len(content(out)) == 3 * IMAGES + WHOLE and failed.startswith("1.tar#")
    # The estimate is by bytes, and the images differ in size; one of them is the quarantine row.
    lost = lost_of(out)
    assert 0.6 * LOST < lost < 1.4 * LOST
    totals = load_manifest(Store(str(out))).totals
    assert totals["images_planned"] == 3 * IMAGES + WHOLE + 1 and totals["lost_example"] == failed
    assert any(f"about {lost} further images are lost with damaged tars, such as {failed}" in line for line in reporter.lines)
    assert f"about {lost} in damaged tars" in call_cli("status", str(out))[0] and verify_dataset(Store(str(out))).ok


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "zip"])
def test_a_cut_archive_loses_an_unknown_number(tars: Path, tmp_path: Path, ending: str) -> None:
    """Nothing says how much lay behind the cut: it was said at which byte the tar ends, and not that images are lost."""
    whole = (tars / "0.tar").read_bytes()
    if ending == "zip":
        buffer = io.BytesIO()
        with tarfile.open(tars / "0.tar") as archive, zipfile.ZipFile(buffer, "w") as packed:
            for member in archive.getmembers():
                packed.writestr(member.name, archive.extractfile(member).read())  # type: ignore[union-attr]
        whole = buffer.getvalue()
    elif ending == "tar.gz":
        whole = gzip.compress(whole)
    src, out, reporter = tmp_path / "src", tmp_path / "out", SilentReporter()
    src.mkdir()
    (src / "a.tar").write_bytes((tars / "2.tar").read_bytes())
    (src / f"b.{ending}").write_bytes(whole[: 6 * len(whole) // 10 + 100])
    said = "1 archive was cut{}: an unknown number of images behind the cut is lost, and no count holds them; get a whole copy of it"
    assert said.format("") in " ".join(call_cli("plan", str(src), str(out))[1].split())
    convert(src, out, runner=InlineRunner(), reporter=reporter)
    assert f"note: {said.format(f', such as {src}/b.{ending}')}, then run `tokenshards retry-failed {out}`" in reporter.lines
    (src / f"b.{ending}").write_bytes(whole)
    again = SilentReporter()
    retry_failed(str(out), None, RunConfig(workers=1), {}, again, InlineRunner())
    assert len(content(out)) == 2 * IMAGES and not any("was cut" in line for line in again.lines)


def test_work_that_goes_on_and_a_retry_lose_the_same(tars: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    convert(tars, whole, runner=InlineRunner())
    convert(tars, out, runner=InlineRunner())
    store = Store(str(out))
    commit = next(path for path in sorted(out.glob("commits/*/*.json")) if b'"lost"' in path.read_bytes())
    assert read_sealed(store, str(commit.relative_to(out)))["format_version"] == "1.1"
    commit.unlink()
    repair_dataset(store, apply=True)
    convert(tars, out, runner=InlineRunner())
    assert lost_of(out) == lost_of(whole) and verify_dataset(store).ok
    retry_failed(str(out), None, RunConfig(workers=1), {}, SilentReporter(), InlineRunner())
    again = load_manifest(store)
    assert again.generation == 2 and again.totals["images_lost_about"] == lost_of(whole), "the same damage is found again, once"
    assert (call_cli("status", str(out))[0].count("damaged tars"), verify_dataset(store).ok) == (1, True)


def test_a_public_copy_says_nothing_of_it(tars: Path, tmp_path: Path) -> None:
    convert(tars, tmp_path / "out", runner=InlineRunner())
    publish_dataset(Store(str(tmp_path / "out")), Store(str(tmp_path / "copy")))
    assert lost_of(tmp_path / "copy") == 0 and "lost" not in (tmp_path / "copy" / "README.md").read_text()
