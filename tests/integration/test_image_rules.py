"""Rules of decoding through whole runs: planning settles them, the plan keeps them, every worker follows, and what they did is counted."""

from __future__ import annotations

import io
import tarfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.datasets import SilentReporter, call_cli, call_json, content, convert, quarantine_of, write_images
from tests.inline import InlineRunner
from tests.pipeline.images.test_image_rules import png16
from tests.pipeline.sources.zoo import encoded, noise
from tokenshards.pipeline.canonical import unseal
from tokenshards.pipeline.config import ImageRules, PlanConfig, SourceConfig
from tokenshards.pipeline.conversion.estimate import estimate_job
from tokenshards.pipeline.errors import ConfigError, Reason, SourceError
from tokenshards.pipeline.images import extras
from tokenshards.pipeline.images.headers import HEAD_BYTES
from tokenshards.pipeline.job.batches import DecodedBatch
from tokenshards.pipeline.ledger.reencode import ReencodingConfig, reencode_sample
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_plan
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.shards.manifest import load_manifest
from tokenshards.pipeline.sources import open_source, pixel_depth, sample
from tokenshards.pipeline.sources.pixel_depth import settle_sixteen_bit
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig

EIGHT = [np.random.default_rng(index).integers(40, 216, (32, 32)).astype(np.uint16) for index in range(6)]
CUT = [encoded(noise((64, 64), seed=index), "JPEG", quality=80)[:-300] for index in range(3)]


def write_pngs(folder: Path, bits: int) -> Path:
    """Write six grey images, as 8-bit files for 0 bits, else with so many of 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, eight in enumerate(EIGHT):
        data = png16(eight << (bits - 8)) if bits else encoded(Image.fromarray(eight.astype(np.uint8)), "PNG")
        (folder / f"{index}.png").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    convert(write_pngs(folder / "src", 0), folder / "out", runner=InlineRunner())
    return folder / "out"


def made(src: Path, out: Path, tokenizer: Path | None, rules: ImageRules = ImageRules(), **more: Any) -> tuple[dict[str, Any], list[str]]:  # noqa: B008
    reporter = SilentReporter()
    given = {} if tokenizer is None else {"tokenizer": str(tokenizer / "tokenizer")}
    convert(src, out, reporter=reporter, runner=InlineRunner(), source=SourceConfig(image_rules=rules), **given, **more)
    return content(out), reporter.lines


@pytest.mark.parametrize("bits", [8, 12, 14])
def test_images_of_few_bits_in_16_are_scaled_by_default_and_said(bits: int, tokenizer: Path, tmp_path: Path) -> None:
    found, lines = made(write_pngs(tmp_path / "src", bits), tmp_path / "out", tokenizer)
    assert found == content(tokenizer), "as bright as the same images in 8 bits"
    assert any(f"uses {bits} of its bits" in line and "--sixteen-bit" in line for line in lines)
    plan = load_plan(Store(str(tmp_path / "out")))
    assert plan is not None and plan.format_version == "1.1"
    assert plan.source_config(SourceConfig()).image_rules.sixteen_bit == "scale"


def test_images_of_16_bits_keep_the_high_byte_and_format_1_0(tokenizer: Path, tmp_path: Path) -> None:
    found, lines = made(write_pngs(tmp_path / "src", 16), tmp_path / "out", tokenizer)
    assert found == content(tokenizer) and any("use all their bits" in line for line in lines)
    plan = load_plan(Store(str(tmp_path / "out")))
    assert plan is not None and plan.format_version == "1.0"
    assert plan.source_config(SourceConfig()).image_rules.sixteen_bit == "high-byte"


def test_a_fitted_tokenizer_sees_the_images_as_the_workers_do(tokenizer: Path, tmp_path: Path) -> None:
    found, _ = made(write_pngs(tmp_path / "src", 12), tmp_path / "out", None)
    assert found == content(tokenizer)


def test_a_given_rule_is_kept_and_dark_images_are_counted(tokenizer: Path, tmp_path: Path) -> None:
    found, lines = made(write_pngs(tmp_path / "src", 12), tmp_path / "out", tokenizer, ImageRules(sixteen_bit="high-byte"))
    assert found != content(tokenizer)
    assert load_manifest(Store(str(tmp_path / "out"))).totals["image_remarks"] == {"dark_16_bit": 6}
    assert any(line.startswith("note: 6 16-bit images") and "--sixteen-bit scale" in line for line in lines)


@pytest.mark.parametrize("kind", ["tar", "table"])
def test_members_of_tars_and_cells_of_tables_are_looked_at_too(kind: str, tokenizer: Path, tmp_path: Path) -> None:
    images = [png16(eight << 4) for eight in EIGHT]
    (tmp_path / "src").mkdir()
    if kind == "table":
        pq.write_table(pa.table({"image": images}), tmp_path / "src" / "t.parquet", row_group_size=2)
    else:
        with tarfile.open(tmp_path / "src" / "t.tar", "w") as archive:
            for index, data in enumerate(images):
                member = tarfile.TarInfo(f"{index}.png")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    found, lines = made(tmp_path / "src", tmp_path / "out", tokenizer)
    assert sorted(found.values()) == sorted(content(tokenizer).values())
    assert any("uses 12 of its bits" in line for line in lines)


def test_jpegs_cost_no_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, 4)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    source = open_source(str(tmp_path), SourceConfig())
    rows = list(source.list_rows())
    chosen: list[PlanRow] = []
    monkeypatch.setattr(pixel_depth, "look_at_sample", lambda source, rows, limit, look: chosen.extend(rows) or ())
    settle_sixteen_bit(source, rows)
    assert source.config.image_rules == ImageRules() and rows and not chosen
    settle_sixteen_bit(open_source(str(write_pngs(tmp_path / "pngs", 16)), SourceConfig()), [*rows, replace(rows[0], path="a.png")])
    assert [row.path for row in chosen] == ["a.png"]


def test_a_plan_that_saw_no_16_bit_image_contradicts_no_answer(tokenizer: Path, tmp_path: Path) -> None:
    """`scale` then changes nothing, which is said; where planning saw such images, another answer is another plan."""
    eight, twelve = write_pngs(tmp_path / "eight", 0), write_pngs(tmp_path / "twelve", 12)
    made(eight, tmp_path / "out", tokenizer)
    for answer, notes in (("auto", 0), ("high-byte", 0), ("scale", 1)):
        found, lines = made(eight, tmp_path / "out", tokenizer, ImageRules(sixteen_bit=answer))
        assert found == content(tokenizer)
        assert sum("planning saw no 16-bit image, so --sixteen-bit scale changes nothing" in line for line in lines) == notes
    made(twelve, tmp_path / "scaled", tokenizer)
    with pytest.raises(ConfigError, match=r"--sixteen-bit high-byte \(the plan has scale\)"):
        made(twelve, tmp_path / "scaled", tokenizer, ImageRules(sixteen_bit="high-byte"))
    convert(eight, tmp_path / "older", runner=InlineRunner(), source=SourceConfig(rules=2))
    convert(eight, tmp_path / "older", runner=InlineRunner(), source=SourceConfig(image_rules=ImageRules(sixteen_bit="high-byte")))
    with pytest.raises(ConfigError, match=r"--sixteen-bit scale \(the plan has high-byte\)"):
        convert(eight, tmp_path / "older", runner=InlineRunner(), source=SourceConfig(image_rules=ImageRules(sixteen_bit="scale")))


def test_only_16_bit_images_are_read_whole_and_no_more_than_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8-bit files the header alone is read, also of a TIFF whose tags stand at its end."""
    write_pngs(tmp_path / "src", 0)
    for index, big in enumerate((noise((300, 300), seed=1), noise((90, 90), seed=2))):
        (tmp_path / "src" / f"z{index}.tif").write_bytes(encoded(big, "TIFF", compression="tiff_lzw"))
    whole: list[str] = []
    ranges: list[tuple[int, int]] = []
    fetch, read = sample.fetch_file, Store.read

    def ranged(store: Store, path: str, start: int | None = None, end: int | None = None) -> bytes:
        ranges.append((start or 0, end or 0))
        return read(store, path, start, end)

    monkeypatch.setattr(
        sample, "fetch_file", lambda store, row, *more, **named: whole.append(row.path) or fetch(store, row, *more, **named)
    )
    monkeypatch.setattr(Store, "read", ranged)
    source = open_source(str(tmp_path / "src"), SourceConfig())
    rows = list(source.list_rows())
    settle_sixteen_bit(source, rows)
    assert not whole and source.config.image_rules == ImageRules()
    assert len(ranges) >= 8 and all(stop - start <= HEAD_BYTES for start, stop in ranges)
    for index in range(20):
        (tmp_path / "src" / f"deep{index:02}.png").write_bytes(png16(EIGHT[0] << 4))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    source = open_source(str(tmp_path / "src"), SourceConfig())
    settle_sixteen_bit(source, list(source.list_rows()))
    assert source.config.image_rules.sixteen_bit == "scale" and 1 <= len(whole) < 12
    assert all(name.startswith("deep") for name in whole)


@pytest.mark.parametrize("config", [SourceConfig(rules=2), SourceConfig(frozen=True)])
def test_a_frozen_plan_settles_nothing(config: SourceConfig, tmp_path: Path) -> None:
    source = open_source(str(write_pngs(tmp_path / "src", 12)), config)
    settle_sixteen_bit(source, list(source.list_rows()))
    assert source.config == config and not [note for note in source.summary.notes if "16-bit" in note]


@pytest.mark.parametrize("views", ["one", "flip"])
def test_truncated_images_are_taken_if_asked_and_counted_once_each(views: str, tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_images(src, 12, classes=0)
    for index, data in enumerate(CUT):
        (src / f"cut{index}.jpg").write_bytes(data)
    _, lines = made(src, tmp_path / "no", None, views=views) if views == "one" else ({}, [])
    if views == "one":
        assert quarantine_of(tmp_path / "no") == {f"cut{index}.jpg": "truncated" for index in range(3)}
        assert not [line for line in lines if "end too early" in line]
    out, rules = tmp_path / "out", SourceConfig(image_rules=ImageRules(accept_truncated=True))
    reporter = SilentReporter()
    convert(src, out, reporter=reporter, runner=InlineRunner(), source=rules, views=views, shard_rows=6)
    store = Store(str(out))
    assert load_manifest(store).totals["image_remarks"] == {"truncated": 3}
    assert load_manifest(store).totals["images_committed"] == 15 and quarantine_of(out) == {}
    commits = [unseal(path.read_bytes(), path.name)["made_by"] for path in out.glob("commits/*/*.json")]
    assert sum(made_by.get("image_remarks", {}).get("truncated", 0) for made_by in commits) == 3
    assert any(line.startswith("note: 3 images end too early") for line in reporter.lines)
    plan = load_plan(store)
    assert plan is not None and plan.format_version == "1.1"
    table, _ = call_cli("inspect", str(out))
    assert "truncated but taken" in table and call_json("status", str(out))["image_remarks"] == {"truncated": 3}


def test_a_later_generation_adds_its_own(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    write_images(src, 8, classes=0)
    (src / "cut.jpg").write_bytes(CUT[0])
    (src / "late.jpg").write_bytes(b"\xff\xd8\xff\xe0 damaged")
    made(src, out, None, ImageRules(accept_truncated=True))
    assert load_manifest(Store(str(out))).totals["image_remarks"] == {"truncated": 1}
    (src / "late.jpg").write_bytes(CUT[1])
    call_cli("retry-failed", str(out))
    assert load_manifest(Store(str(out))).totals["image_remarks"] == {"truncated": 2} and quarantine_of(out) == {}


def test_a_split_is_scaled_like_the_first(tokenizer: Path, tmp_path: Path) -> None:
    """The one image of val that uses all bits says nothing about its dark ones; the first split has shown what the camera does."""
    write_pngs(tmp_path / "src" / "train", 12)
    write_pngs(tmp_path / "src" / "val", 16)
    options = ("--splits", "--tokenizer", str(tokenizer / "tokenizer"), "--workers", "1")
    call_cli("tokenize", str(tmp_path / "src"), str(tmp_path / "out"), *options)
    for split in ("train", "val"):
        plan = load_plan(Store(str(tmp_path / "out" / split)))
        assert plan is not None and plan.source_config(SourceConfig()).image_rules.sixteen_bit == "scale"


def test_encoding_again_follows_the_rules_of_the_plan(tmp_path: Path) -> None:
    src, out = write_pngs(tmp_path / "src", 12), tmp_path / "out"
    (src / "cut.jpg").write_bytes(CUT[0])
    made(src, out, None, ImageRules(accept_truncated=True))
    state = verify_dataset(Store(str(out)))
    found = reencode_sample(Store(str(out)), state.state, ReencodingConfig(rows=7, seed=0), SourceConfig())
    assert found.rows_encoded == 7 and found.agreement == 1.0


def test_an_estimate_follows_the_rules(tmp_path: Path) -> None:
    src = write_pngs(tmp_path / "src", 12)
    for index, data in enumerate(CUT):
        (src / f"cut{index}.jpg").write_bytes(data)
    lines: list[str] = []
    fit = FitConfig(size=16, codes=16, iterations=4)
    for lenient, bad in ((False, 3 / 9), (True, 0.0)):
        config = SourceConfig(image_rules=ImageRules(accept_truncated=lenient))
        found = estimate_job(str(src), config, PlanConfig(), fit, tokenizer=None, workers=1, price_per_hour=None, say=lines.append)
        assert found.bad_share == pytest.approx(bad)
    assert any("uses 12 of its bits" in line for line in lines)


@pytest.mark.skipif(bool(extras.installed_extras()), reason="an extra is installed, and Pillow knows its format in this process")
def test_images_that_need_an_extra_are_named_at_planning(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_images(src, 6)
    for index in range(3):
        (src / "class_0" / f"{index}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    _, lines = made(src, tmp_path / "out", None)
    assert any("3 images are left out" in line and "tokenshards[heif]" in line and "pip install" in line for line in lines)
    only = tmp_path / "only"
    only.mkdir()
    (only / "1.jxl").write_bytes(b"\xff\x0a")
    with pytest.raises(SourceError, match=r"1 \.jxl.*tokenshards\[jxl\]") as caught:
        open_source(str(only), SourceConfig())
    assert "--all-files" not in str(caught.value)
    assert made(src, tmp_path / "all", None, max_bad=1.0)[0]
    convert(src, tmp_path / "every", runner=InlineRunner(), source=SourceConfig(all_files=True))
    assert set(quarantine_of(tmp_path / "every").values()) == {Reason.NO_DECODER}


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_pointers_of_git_lfs_in_place_of_tars_and_tables(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 123456789\n")
    with pytest.raises(SourceError, match="Git LFS pointer.*git lfs pull"):
        open_source(str(tmp_path), SourceConfig())


def test_pointers_of_git_lfs_in_place_of_images(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_images(src, 6, classes=0)
    (src / "pointer.jpg").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 123456789\n")
    _, lines = made(src, tmp_path / "out", None)
    assert any("pointer.jpg is a Git LFS pointer" in line and "git lfs pull" in line for line in lines)
    assert quarantine_of(tmp_path / "out") == {"pointer.jpg": "not_an_image"}


def test_previews_and_evaluations_follow_the_rules(tokenizer: Path, tmp_path: Path) -> None:
    eight, twelve = write_pngs(tmp_path / "eight", 0), write_pngs(tmp_path / "twelve", 12)
    lossless = [call_json("evaluate-tokenizer", str(tokenizer), str(src))["psnr_db"] for src in (eight, twelve)]
    assert lossless[0] == lossless[1]
    dark = call_json("evaluate-tokenizer", str(tokenizer), str(twelve), "--sixteen-bit", "high-byte")["psnr_db"]
    assert dark != lossless[0]
    made(twelve, tmp_path / "out", tokenizer)
    drawn = [
        call_json("preview", str(out), "--to", str(tmp_path / "p.png"), "--source", str(src))["psnr_db"]
        for out, src in ((tokenizer, tokenizer.parent / "src"), (tmp_path / "out", twelve))
    ]
    assert sorted(drawn[0]) == sorted(drawn[1])


def test_remote_decoding_brings_every_field_of_a_batch() -> None:
    pytest.importorskip("ray")
    from tokenshards.pipeline.runners.ray_decode import _FIELDS

    assert {*_FIELDS, "images_BHWC", "rows"} == {part.name for part in fields(DecodedBatch)}


def test_predict_takes_16_bits_as_training_did(tokenizer: Path, tmp_path: Path) -> None:
    from tokenshards.pipeline.conversion.encode_files import tokenize_images
    from tokenshards.pipeline.tokenizers.directory import load_tokenizer

    loaded = load_tokenizer(Store(str(tokenizer)), "tokenizer")
    (expected,) = tokenize_images([str(write_pngs(tmp_path / "eight", 0))], loaded)
    (found,) = tokenize_images([str(write_pngs(tmp_path / "twelve", 12))], loaded)
    high_byte = SourceConfig(image_rules=ImageRules(sixteen_bit="high-byte"))
    (dark,) = tokenize_images([str(tmp_path / "twelve")], loaded, config=high_byte)
    assert expected.tokens is not None and found.tokens is not None and dark.tokens is not None
    assert np.array_equal(found.tokens.ids_BLQ, expected.tokens.ids_BLQ) and not np.array_equal(
        dark.tokens.ids_BLQ, expected.tokens.ids_BLQ
    )


def test_the_options_reach_the_plan(tmp_path: Path) -> None:
    src = write_pngs(tmp_path / "src", 12)
    options = ("--max-pixels", "2000", "--accept-truncated", "--sixteen-bit", "high-byte", "--size", "16", "--workers", "1")
    call_cli("tokenize", str(src), str(tmp_path / "out"), *options)
    plan = load_plan(Store(str(tmp_path / "out")))
    assert plan is not None
    assert plan.source_config(SourceConfig()).image_rules == ImageRules(max_pixels=2000, accept_truncated=True, sixteen_bit="high-byte")
