"""`plan`: what is timed, what is extrapolated from it, and what is not claimed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.datasets import call_cli, write_images
from tokenshards.pipeline.config import PlanConfig, SourceConfig
from tokenshards.pipeline.conversion import timed_sample
from tokenshards.pipeline.conversion.estimate import Estimate, count_images, estimate_job
from tokenshards.pipeline.conversion.timed_sample import TimedSample, time_sample
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.planning.partition import RowSpool
from tokenshards.pipeline.sources import SourceSummary, open_source
from tokenshards.pipeline.tokenizers.base import Tokenizer
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import PatchKMeans, default_preprocess

FIT = FitConfig(size=16, codes=4, levels=1, iterations=2)


def tokenizer() -> Tokenizer:
    return PatchKMeans([np.random.default_rng(0).random((3, 12), np.float32)], patch=2, preprocess=default_preprocess(8, "test-1"))


def estimated(src: Path | str, **changes: object) -> Estimate:
    options: dict[str, object] = {"tokenizer": None, "workers": 2, "price_per_hour": 3.6, **changes}
    return estimate_job(str(src), SourceConfig(), PlanConfig(shard_rows=10), FIT, **options)  # type: ignore[arg-type]


def write_tar(path: Path, images: list[bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for index, data in enumerate(images):
            info = tarfile.TarInfo(f"{index:05d}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_files_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path, 40, classes=12, bad=2)
    found = estimated(tmp_path)
    assert (found.images, found.images_exact, found.shards, found.requests) == (42, True, 5, 42 + 10 + 8)
    assert found.bytes_in == sum(path.stat().st_size for path in tmp_path.rglob("*.*"))
    assert found.bad_share == pytest.approx(2 / 42)
    assert found.seconds_per_stage.keys() == {"fetch", "decode", "encode", "write"} and found.bottleneck in found.seconds_per_stage
    assert found.images_per_second > 0 and found.money == pytest.approx(3.6 * found.hours, abs=1e-4)
    assert found.bytes_out == pytest.approx(found.bytes_per_image * 42 + found.tables_bytes, abs=42)


def test_bad_inputs_are_shown_with_an_example_and_the_limit(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 40)
    (tmp_path / "src" / "empty.jpg").write_bytes(b"")
    said = dict(estimated(tmp_path / "src").rows())["bad inputs in the sample"]
    limit = "`tokenize` stops where more than 1% are bad, unless --max-bad is above 0.01"
    assert said == f"2.4%, such as empty.jpg (empty). {limit}"
    write_images(tmp_path / "many", 120)
    (tmp_path / "many" / "empty.jpg").write_bytes(b"")
    assert dict(estimated(tmp_path / "many").rows())["bad inputs in the sample"] == "0.8%, such as empty.jpg (empty)"
    write_images(tmp_path / "none", 0, bad=2)
    with pytest.raises(TokenizerError, match=r"none of 2 sampled inputs decodes, such as .*bad_000\d.* \(\w+\); check the source"):
        estimated(tmp_path / "none", tokenizer=tokenizer())


def test_labels_are_named_and_no_fingerprint_that_the_run_will_not_have(tmp_path: Path) -> None:
    write_images(tmp_path, 24, classes=12)
    found = estimated(tmp_path)
    assert found.label_count == 12 and len(found.labels) == 10 and found.labels[:2] == ("class_0", "class_1")
    assert any(line.startswith("classes") and "12: class_0 (2), class_1 (2), class_10 (2), " in line for line in found.matched)
    assert "fingerprint" not in found.tokenizer and found.tokenizer.endswith("the run fits its own")
    given = tokenizer()
    assert given.spec.fingerprint[:12] in estimated(tmp_path, tokenizer=given).tokenizer
    said = "".join(call_cli("plan", str(tmp_path), str(tmp_path.parent / f"{tmp_path.name}.tokens"), "--size", "16", "--codes", "4"))
    assert "class_0 (2), class_1" in said and "fingerprint" not in said


def test_images_of_tars_are_extrapolated_from_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", 10, classes=0)
    images = [path.read_bytes() for path in sorted((tmp_path / "images").glob("*.png"))] * 8
    (tmp_path / "src").mkdir()
    for number in range(3):
        write_tar(tmp_path / "src" / f"{number}.tar", images)
    monkeypatch.setattr(timed_sample, "SAMPLE_IMAGES", 20)
    whole = estimated(tmp_path / "src")
    assert (whole.images, whole.images_exact) == (3 * len(images), True), "planning saw every header on this disk"
    remote = fsspec.filesystem("memory")
    remote.put(f"{tmp_path}/src/", "/estimated/", recursive=True)
    found = estimated("memory://estimated")
    remote.rm("/estimated", recursive=True)
    assert not found.images_exact and found.shards == 3
    assert found.images == pytest.approx(120, rel=0.15), "only half of one tar was read"
    assert ("images", f"about {found.images} ({found.bytes_in / 1e6:,.1f} MB)") in found.rows()


def test_counting_without_a_source(tmp_path: Path) -> None:
    spool = RowSpool(tmp_path, order_seed=0, keep_order=True)
    spool.inputs = 7
    assert count_images(TimedSample(), spool, SourceSummary()) == (7, True)
    spool.tars = 2
    timed = TimedSample(inputs=10, slice_bytes=100)
    assert count_images(timed, spool, SourceSummary(bytes=1000)) == (100, False)
    assert count_images(timed, spool, SourceSummary(bytes=0)) == (10, False), "never fewer than were seen"


def test_the_sample_is_bounded_and_every_input_of_it_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, 30, bad=4)
    monkeypatch.setattr(timed_sample, "SAMPLE_IMAGES", 20)
    source = open_source(str(tmp_path), SourceConfig())
    rows = list(source.list_rows())
    timed = time_sample(source, rows, tokenizer(), PlanConfig())
    assert timed.inputs == 20 and timed.decoded <= 20 and timed.bytes_in > 0 and timed.bytes_out > 0
    assert all(seconds > 0 for seconds in timed.seconds.values())
    several = time_sample(source, rows, tokenizer(), PlanConfig(views="ten-crop"))
    assert several.inputs == 16 and several.bytes_out > timed.bytes_out


def test_a_source_without_an_image(tmp_path: Path) -> None:
    write_images(tmp_path, 0, bad=3)
    with pytest.raises(TokenizerError, match="none of 3 sampled inputs decodes"):
        estimated(tmp_path, tokenizer=tokenizer())
