from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.datasets import ROOT, SilentReporter, call_cli, call_json, content, convert, write_images
from tests.pipeline.interop.releases import (
    CODES,
    GRID,
    SITES,
    decode_loop,
    encode_loop,
    imported,
    npy_gz,
    offsets_of,
    some_codebook,
    some_images,
    write_release,
    write_synonyms,
)
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import ConfigError, PlanError, SourceError, TokenizerError, TooManyBadInputsError
from tokenshards.pipeline.interop.seit.importer import parse_grid
from tokenshards.pipeline.interop.seit.token_files import open_split
from tokenshards.pipeline.ledger.repair import repair_dataset
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.planning.plan import load_plan
from tokenshards.pipeline.planning.retry_plan import plan_retry
from tokenshards.pipeline.reports.inspection import inspect_dataset
from tokenshards.pipeline.reports.previews import preview_dataset
from tokenshards.pipeline.reports.storage_table import dataset_report
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.writer import read_quarantine
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.directory import load_statistics, load_tokenizer

DATA, INDEX, LABELS = (f"imagenet1k-train-{name}" for name in ("token.data.bin.gz", "token.index.npy.gz", "label.txt"))


def test_a_release_becomes_a_dataset_in_its_own_order(tmp_path: Path) -> None:
    images = some_images(50)
    codebook = some_codebook()
    outcome = imported(write_release(tmp_path / "src", images), tmp_path / "out", shard_rows=20)
    assert outcome.images == 50 and not outcome.already_complete
    dataset = open_dataset(str(tmp_path / "out"), verify=True)
    (batch,) = dataset.batches(100)
    assert batch.ids_BLQ[:, :, 0].tolist() == [decode_loop(image) for image in images]
    assert batch.sample_ids == [f"train/{row:08d}" for row in range(50)]
    assert batch.labels_B.tolist() == [row % 3 for row in range(50)]
    assert dataset.classes == (0, 1, 2)
    assert [entry.rows for entry in dataset.shards] == [20, 20, 10]
    assert np.array_equal(dataset.codebook()["level_0"], codebook)
    spec = dataset.spec
    assert (spec.layout.grid, spec.layout.sites, spec.vocabulary, spec.id_dtype) == (GRID, SITES, (CODES,), np.uint16)
    assert spec.codebook is not None and spec.codebook.metric == "cosine" and not spec.codebook.rows_normalised
    policy = spec.preprocess
    assert (policy.size, policy.resize, policy.filter, policy.decode_mode) == (256, "squash", "bicubic", "full")
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


def test_everything_that_looks_at_a_dataset_works_on_it(tmp_path: Path) -> None:
    images = some_images(40)
    imported(write_release(tmp_path / "src", images), tmp_path / "out", card={"licence": "none"})
    store = Store(str(tmp_path / "out"))
    ids = np.array([decode_loop(image) for image in images])
    rows = some_codebook()[ids.reshape(-1)].astype(np.float64)
    embedding = load_statistics(store, "tokenizer")["embedding"]
    assert np.allclose(embedding["mean"], rows.mean(axis=0), rtol=1e-5)
    assert np.allclose(embedding["std"], rows.std(axis=0), rtol=1e-5)
    inspection = inspect_dataset(store)
    assert inspection.tables() and inspection.to_json()["card"]["licence"] == "none"
    assert inspection.histograms[0].tolist() == np.bincount(ids.reshape(-1), minlength=CODES).tolist()
    report = dataset_report(store)
    assert (report.images_committed, report.complete, report.bytes_in) == (40, True, sum(map(len, images)))
    assert report.rows()
    with pytest.raises(TokenizerError, match="without a decoder, so there are no pixels to show"):
        preview_dataset(str(tmp_path / "out"), str(tmp_path / "p.png"), count=2, sample_ids=(), label=None, source_url=None, options={})
    with pytest.raises(TokenizerError, match="without their encoder"):
        load_tokenizer(store, "tokenizer").encode(np.zeros((1, 256, 256, 3), np.uint8))


def test_compact_is_fitted_to_images_of_the_whole_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half of a split has other ids than the first, and a fit sees a few rows of both."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.integers(0, 6, (300, SITES)), rng.integers(200, 206, (300, SITES))])
    images = [encode_loop(ids) for ids in rows.tolist()]
    images[7] = b"\xff\xff"
    src, reporter = write_release(tmp_path / "src", images), SilentReporter()
    monkeypatch.setattr("tokenshards.pipeline.conversion.codec_model.MOST_IMAGES", 200)
    imported(src, tmp_path / "out", codec="compact", reporter=reporter)
    fitted = [line for line in reporter.lines if "fitting its model to the tokens of" in line]
    assert len(fitted) == 1 and fitted[0].split()[-3] in ("199", "200"), fitted
    imported(src, tmp_path / "default")
    assert content(tmp_path / "out") == content(tmp_path / "default")
    store = Store(str(tmp_path / "out"))
    assert verify_dataset(store).ok and not dataset_report(store).rows() == []
    found = call_json("inspect", str(tmp_path / "out"))["codec"]
    assert found["name"].startswith("compact:")
    # Half a bit more than six equally frequent ids need; ids that a fit never saw would take more than eight.
    totals = open_dataset(str(tmp_path / "out")).manifest.totals
    assert 8 * totals["token_bytes"] / (599 * SITES) < 5
    plan = load_plan(store)
    assert plan is not None and plan.format_version == "1.2"
    assert imported(src, tmp_path / "out", codec="compact").already_complete and imported(src, tmp_path / "out").already_complete
    with pytest.raises(ConfigError, match=r"--codec compact \(the plan has default\)"):
        imported(src, tmp_path / "default", codec="compact")
    with pytest.raises(ConfigError, match="codec 'small' does not exist"):
        imported(src, tmp_path / "other", codec="small")


def test_a_finished_import_has_nothing_to_do(tmp_path: Path) -> None:
    src = write_release(tmp_path / "src", some_images(30))
    imported(src, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    outcome = imported(src, tmp_path / "out")
    assert outcome.already_complete and outcome.images == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_store_that_is_no_disk(tmp_path: Path) -> None:
    src = write_release(tmp_path / "src", some_images(30))
    for path in src.iterdir():
        Store("memory://seit-import").write(f"src/{path.name}", path.read_bytes())
    imported("memory://seit-import/src", "memory://seit-import/out")
    imported(src, tmp_path / "out")
    assert content("memory://seit-import/out") == content(tmp_path / "out")


def test_splits_are_told_apart_and_found_below_the_folder(tmp_path: Path) -> None:
    write_release(tmp_path / "src", some_images(10), split="train")
    write_release(tmp_path / "src", some_images(4, seed=1), split="val")
    imported(tmp_path, tmp_path / "val", split="val")
    assert len(open_dataset(str(tmp_path / "val"))) == 4
    with pytest.raises(SourceError, match="found imagenet1k-train.*; expected one file such as imagenet1k-test-token.data.bin.gz"):
        imported(tmp_path / "src", tmp_path / "test", split="test")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "IMNET1K-tokens.tar").write_bytes(b"")
    with pytest.raises(SourceError, match="unpack IMNET1K-tokens.tar first"):
        imported(tmp_path / "empty", tmp_path / "x")
    shutil.copytree(tmp_path / "src", tmp_path / "twice" / "again")
    shutil.copytree(tmp_path / "src", tmp_path / "twice", dirs_exist_ok=True)
    with pytest.raises(SourceError, match="found again/imagenet1k-train-token.data.bin.gz, imagenet1k-train"):
        imported(tmp_path / "twice", tmp_path / "x")


def test_class_names_become_the_labels_and_keep_their_index(tmp_path: Path) -> None:
    src = write_release(tmp_path / "src", some_images(6), [2, 0, 2, 2, 0, 2])
    imported(src, tmp_path / "numbers")
    assert open_dataset(str(tmp_path / "numbers")).classes == (0, 1, 2)
    (tmp_path / "names.txt").write_text("zebra\nyak\nant\nbee\n")
    imported(src, tmp_path / "named", classes=str(tmp_path / "names.txt"))
    dataset = open_dataset(str(tmp_path / "named"))
    assert dataset.classes == ("zebra", "yak", "ant", "bee")
    assert next(dataset.batches(9)).labels_B.tolist() == [2, 0, 2, 2, 0, 2]
    for text, message in (
        ("a\nb\n", "2 names; the labels go up to 2"),
        ("a\nb\na\n", "line 3 is 'a' as line 1"),
        ("a\n\nb\n", "line 2 is empty"),
    ):
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(ConfigError, match=message):
            imported(src, tmp_path / "x", classes=str(tmp_path / "names.txt"))


@pytest.mark.parametrize("name", ["codebook.ckpt", "codebook.safetensors", "other.npy"])
def test_codebooks_of_every_kind_are_one(tmp_path: Path, name: str) -> None:
    src = write_release(tmp_path / "src", some_images(5))
    (src / "codebook.npy").unlink()
    table = some_codebook()
    if name.endswith(".ckpt"):
        torch.save(torch.from_numpy(table), src / name)
    elif name.endswith(".npy"):
        np.save(src / name, table)
    else:
        save_file({"anything": table}, src / name)
    imported(src, tmp_path / "out", codebook=str(src / name) if name.startswith("other") else None)
    assert np.array_equal(open_dataset(str(tmp_path / "out")).codebook()["level_0"], table)


class Attack:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch attacked",)


def test_codebooks_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = write_release(tmp_path / "src", some_images(5))
    monkeypatch.chdir(tmp_path)
    torch.save({"codebook": torch.zeros(391, 5)}, "dict.ckpt")
    torch.save(Attack(), "attack.ckpt")
    torch.save(torch.zeros(391, 5, dtype=torch.int64), "integers.ckpt")
    Path("garbage.ckpt").write_bytes(b"garbage")
    np.save("flat.npy", np.zeros(391, np.float32))
    np.save("large.npy", np.zeros((8192, 32), np.float32))
    np.save("nan.npy", np.where(np.arange(391)[:, None] == 7, np.nan, np.zeros((391, 5), np.float32)))
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    save_file({"a": some_codebook(), "b": some_codebook()}, "two.safetensors")
    for name, message in (
        ("dict.ckpt", "a dict with the keys .'codebook'.; expected a bare tensor"),
        ("attack.ckpt", "weights_only=True. cannot read it"),
        ("integers.ckpt", "a tensor of int64 .391, 5.; expected a codebook of floats"),
        ("garbage.ckpt", "cannot read it"),
        ("flat.npy", r"a tensor of float32 \[391\]; expected a codebook of floats \[codes, width\]"),
        ("large.npy", "8,192 rows; SeiT's byte code holds at most 510 codes"),
        ("nan.npy", "row 7 has values that are not finite"),
        ("pickled.npy", "cannot be read as .npy"),
        ("two.safetensors", "the tensors .'a', 'b'.; expected one"),
    ):
        with pytest.raises(ConfigError, match=message):
            imported(src, "out", codebook=name)
    assert not Path("attacked").exists() and not Path("out").exists()
    (src / "codebook.npy").unlink()
    with pytest.raises(SourceError, match="--codebook"):
        imported(src, "out")


def test_without_torch_a_checkpoint_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = write_release(tmp_path / "src", some_images(5))
    (src / "codebook.npy").rename(src / "codebook.ckpt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="needs torch, which cannot be imported"):
        imported(src, tmp_path / "out")


def test_synonyms_travel_with_the_tokenizer(tmp_path: Path) -> None:
    src = write_release(tmp_path / "src", some_images(5))
    data = write_synonyms(src)
    imported(src, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer" / "synonyms.json").read_bytes() == data
    (tmp_path / "out" / "tokenizer" / "synonyms.json").write_bytes(data[:-1] + b" ")
    assert [problem.object for problem in verify_dataset(Store(str(tmp_path / "out"))).problems] == ["tokenizer/synonyms.json"]
    table = json.loads(data)
    for bad, message in (
        ({**table, "391": [1]}, "keys are not the ids 0 to 390"),
        ({**table, "5": [391]}, "entry of id 5 is .391.; expected a list of ids"),
        ([1], "keys are not the ids"),
    ):
        (src / "synonyms.json").write_text(json.dumps(bad))
        with pytest.raises(ConfigError, match=message):
            imported(src, tmp_path / "x")


BAD = {
    3: (b"\xff\xff" + bytes(SITES - 1), "bytes 0 and 1 are FF FF"),
    7: (bytes(SITES) + b"\xff", "last byte is FF"),
    8: (bytes(SITES - 1) + b"\xff\x88", "id 391 at site 11; expected 0 to 390"),
    9: (bytes(SITES - 1), f"{SITES - 1} ids in {SITES - 1} bytes; expected {SITES}"),
    29: (b"", "0 ids in 0 bytes"),
}


def test_a_single_damaged_image_is_quarantined_and_the_others_are_kept(tmp_path: Path) -> None:
    images = some_images(30)
    for row, (image, _) in BAD.items():
        images[row] = image
    src = write_release(tmp_path / "src", images)
    with pytest.raises(TooManyBadInputsError, match=r"image 3: bytes 0 and 1 are FF FF.*and 2 more") as refused:
        imported(src, tmp_path / "out")
    expected = f"5 of 30 images do not decode to {SITES} ids below {CODES}, which is more than --max-bad 0.01: "
    assert expected in str(refused.value) and str(refused.value).endswith("Check --grid and --codebook; nothing was written")
    assert load_plan(Store(str(tmp_path / "out"))) is None
    reporter = SilentReporter()
    outcome = imported(src, tmp_path / "out", max_bad=0.2, shard_rows=10, reporter=reporter)
    where = f"{src}/imagenet1k-train-token.data.bin.gz"
    assert reporter.lines[0].startswith(f"30 images of split train in {where} (") and reporter.lines[0].endswith(" MB), 3 classes")
    assert reporter.lines[1].startswith(f"seit-vit-vqgan, 256 px, {GRID[0]}×{GRID[1]} grid, {CODES} codes, fingerprint ")
    assert reporter.lines[2].startswith(f"note: 5 images of {where} are damaged and will be quarantined: image 3: bytes 0 and 1 are FF FF")
    assert reporter.lines[3].endswith(": 3 shards of 10 images")
    totals = outcome.manifest.totals
    assert (totals["images_committed"], totals["images_quarantined"], totals["quarantine_reasons"]) == (25, 5, {"corrupt": 5})
    dataset = open_dataset(str(tmp_path / "out"), verify=True)
    (batch,) = dataset.batches(100)
    kept = [row for row in range(30) if row not in BAD]
    assert batch.sample_ids == [f"train/{row:08d}" for row in kept]
    assert batch.ids_BLQ[:, :, 0].tolist() == [decode_loop(images[row]) for row in kept]
    assert batch.labels_B.tolist() == [row % 3 for row in kept]
    store = Store(str(tmp_path / "out"))
    failed = [
        row for entry in outcome.manifest.shards if entry.quarantine_path for row in read_quarantine(store.read(entry.quarantine_path))
    ]
    assert [row["sample_id"] for row in failed] == [f"train/{row:08d}" for row in BAD]
    for row, (number, (image, words)) in zip(failed, BAD.items(), strict=True):
        assert row["data"] == image and row["label"] == str(number % 3) and row["uri"].endswith(f"{DATA}#{number}")
        assert f"image {number}: " in row["detail"] and words in row["detail"]
    assert verify_dataset(store).ok


def test_a_shard_of_damaged_images_alone(tmp_path: Path) -> None:
    images = some_images(30)
    images[10:20] = [b"\xff"] * 10
    imported(write_release(tmp_path / "src", images), tmp_path / "out", max_bad=0.5, shard_rows=10)
    assert len(open_dataset(str(tmp_path / "out"), verify=True)) == 20
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


def test_a_wrong_grid_or_codebook_is_found_before_anything_is_written(tmp_path: Path) -> None:
    src = write_release(tmp_path / "src", some_images(30))
    with pytest.raises(TooManyBadInputsError, match=f"30 of 30 images.*image 0: {SITES} ids in .* bytes; expected 16.*Check --grid"):
        imported(src, tmp_path / "out", grid=(4, 4))
    np.save(src / "codebook.npy", some_codebook(100))
    with pytest.raises(TooManyBadInputsError, match="expected 0 to 99, as the codebook has 100 rows.*Check --grid and --codebook"):
        imported(src, tmp_path / "out", max_bad=1.0)
    assert not list((tmp_path / "out").glob("tokenizer/*")) and not list((tmp_path / "out").glob("plan/*"))


def _flipped(data: bytes) -> bytes:
    return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]


DAMAGE: dict[str, tuple[str, Callable[[Path, list[bytes]], None], str]] = {
    "truncated stream": (DATA, lambda p, i: void(p.write_bytes(p.read_bytes()[:-20])), "cannot be decompressed near image .*EOFError"),
    "wrong checksum": (DATA, lambda p, i: void(p.write_bytes(_flipped(p.read_bytes()))), "cannot be decompressed.*CRC check failed"),
    "no gzip": (DATA, lambda p, i: void(p.write_bytes(b"".join(i))), "cannot be decompressed near image 0, after byte 0.*BadGzipFile"),
    "longer stream": (DATA, lambda p, i: void(p.write_bytes(gzip.compress(b"".join(i) + b"\0"))), "goes on after byte .*30 images"),
    "shorter stream": (
        DATA,
        lambda p, i: void(p.write_bytes(gzip.compress(b"".join(i)[:-1]))),
        "stream ends after .* in image 29; the offsets",
    ),
    "floats": (INDEX, lambda p, i: void(p.write_bytes(npy_gz(offsets_of(i).astype(float)))), r"float64 \(31,\); expected integers"),
    "matrix": (INDEX, lambda p, i: void(p.write_bytes(npy_gz(offsets_of(i)[None]))), r"int64 \(1, 31\); expected integers"),
    "objects": (INDEX, lambda p, i: void(p.write_bytes(npy_gz(offsets_of(i).astype(object)))), "not a gzip of a .npy"),
    "no npy": (INDEX, lambda p, i: void(p.write_bytes(gzip.compress(b"offsets"))), "not a gzip of a .npy"),
    "index cut": (INDEX, lambda p, i: void(p.write_bytes(p.read_bytes()[:-9])), "not a gzip of a .npy"),
    "empty index": (INDEX, lambda p, i: void(p.write_bytes(npy_gz(np.array([0])))), "1 offsets; expected at least 2"),
    "first offset": (INDEX, lambda p, i: void(p.write_bytes(npy_gz(offsets_of(i) + 1))), "the first offset is 1; expected 0"),
    "falling": (INDEX, lambda p, i: void(p.write_bytes(npy_gz(swapped(offsets_of(i))))), "image 4 goes from offset .* to .*ascending"),
    "huge image": (
        INDEX,
        lambda p, i: void(p.write_bytes(npy_gz(np.append(offsets_of(i)[:-1], 1 << 40)))),
        "image 29 goes .*at most 1,048,576",
    ),
    "too large": (INDEX, lambda p, i: void(p.write_bytes(npy_gz(np.array([0, 1 << 63], np.uint64)))), "an offset is 9223372036854775808"),
    "fewer images": (INDEX, lambda p, i: void(p.write_bytes(npy_gz(offsets_of(i)[:-1]))), "30 labels; expected 29, one for each image of"),
    "fewer labels": (LABELS, lambda p, i: void(p.write_text("1\n" * 29)), "29 labels; expected 30"),
    "text label": (
        LABELS,
        lambda p, i: void(p.write_text("1\n" * 4 + "dog\n" + "1\n" * 25)),
        r"line 5 \(image 4\) is 'dog'; expected a class index",
    ),
    "negative label": (LABELS, lambda p, i: void(p.write_text("-1\n" * 30)), r"line 1 \(image 0\) is '-1'"),
    "gap": (LABELS, lambda p, i: void(p.write_text("1\n" * 4 + "\n" + "1\n" * 25)), r"line 5 \(image 4\) is ''"),
    "no index": (INDEX, lambda p, i: p.unlink(), "its index .*token.index.npy.gz does not"),
    "no labels": (LABELS, lambda p, i: p.unlink(), "the labels of imagenet1k-train-token.data.bin.gz: found none such as .*--labels"),
}


def void(_: object) -> None:
    return None


def swapped(offsets: np.ndarray) -> np.ndarray:
    offsets[5] = offsets[4] - 1
    return offsets


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named_and_nothing_is_written(tmp_path: Path, damage: str) -> None:
    name, spoil, message = DAMAGE[damage]
    images = some_images(30)
    src = write_release(tmp_path / "src", images)
    spoil(src / name, images)
    with pytest.raises(SourceError, match=message) as caught:
        imported(src, tmp_path / "out")
    assert name in str(caught.value) or "no " in damage
    assert not any((tmp_path / "out" / folder).exists() for folder in ("tokenizer", "plan", "shards", "commits", "manifest.json"))


def test_a_grid_is_two_numbers() -> None:
    assert parse_grid("32x48") == (32, 48)
    for text in ("32", "0x4", "4x", "4x4x4", "-1x4", "a"):
        with pytest.raises(ConfigError, match=f"--grid is '{text}'; expected rows and columns"):
            parse_grid(text)


def test_labels_of_another_name(tmp_path: Path) -> None:
    src = write_release(tmp_path / "src", some_images(6))
    (src / LABELS).rename(tmp_path / "classes-of-train.txt")
    imported(src, tmp_path / "out", labels=str(tmp_path / "classes-of-train.txt"))
    assert len(open_dataset(str(tmp_path / "out"))) == 6


def test_the_stream_is_never_held_whole(tmp_path: Path) -> None:
    images = [bytes(1024)] * 40_000
    src = write_release(tmp_path / "src", images)
    split = open_split(Store(str(src)), "train")
    total = 0
    tracemalloc.start()
    with split.images() as stream:
        for block in stream.blocks(0, len(split)):
            total += len(block.data)
        stream.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 40_960_000
    assert peak < 12_000_000  # 8 MiB of them buffer the compressed file


KILLED_AT = (
    "after-plan-part",
    "after-plan-json",
    "after-data-put",
    "after-quarantine-put",
    "after-commit-put",
    "between-manifest-and-pointer",
)
SCRIPT = """
import sys
from tests.pipeline.interop.releases import imported
imported(sys.argv[1], sys.argv[2], shard_rows=6, max_bad=0.5, codec=sys.argv[3])
"""


@pytest.mark.parametrize("codec", ["default", "compact"])
def test_kills_in_the_middle_and_a_rerun_end_in_the_undisturbed_dataset(tmp_path: Path, codec: str) -> None:
    images = some_images(30)
    images[1] = images[20] = b"\xff\xff"
    src = write_release(tmp_path / "src", images)
    imported(src, tmp_path / "undisturbed", shard_rows=6, max_bad=0.5, codec=codec)
    for number, point in enumerate(KILLED_AT):
        log = tmp_path / f"fault-{number}.log"
        env = {**os.environ, "TOKENSHARDS_FAULT": f"point={point},log={log}", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SCRIPT, str(src), str(tmp_path / "out"), codec]
        killed = subprocess.run(command, env=env, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, (point, killed.stderr)
        assert " killed " in log.read_text()
        assert not (tmp_path / "out" / "manifest.json").exists()
    reporter = SilentReporter()
    imported(src, tmp_path / "out", shard_rows=6, max_bad=0.5, codec=codec, reporter=reporter)
    assert any("continuing plan" in line for line in reporter.lines)
    for folder in ("shards", "quarantine"):
        names = [sorted(path.name for path in (tmp_path / out / folder).iterdir()) for out in ("out", "undisturbed")]
        assert names[0] == names[1]  # content-named: equal names are equal bytes
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


def test_a_lost_shard_is_made_again(tmp_path: Path) -> None:
    src = write_release(tmp_path / "src", some_images(30))
    imported(src, tmp_path / "out", shard_rows=6)
    before = content(tmp_path / "out")
    sorted((tmp_path / "out" / "shards").iterdir())[2].unlink()
    store = Store(str(tmp_path / "out"))
    assert not verify_dataset(store).ok
    repair = repair_dataset(store, apply=True)
    assert repair.tokenize_needed and not repair.refused
    with pytest.raises(PlanError, match="`tokenshards import seit`"):  # `tokenize` must not take the token file for an image
        convert(src, tmp_path / "out", fit=FitConfig())
    assert imported(src, tmp_path / "out").images == 6
    assert content(tmp_path / "out") == before
    assert verify_dataset(store).ok


def test_another_import_into_the_same_place_is_refused(tmp_path: Path) -> None:
    src = write_release(tmp_path / "src", some_images(30))
    write_release(src, some_images(30, seed=1), split="val")
    imported(src, tmp_path / "out", shard_rows=6)
    np.save(tmp_path / "other.npy", some_codebook(seed=1))
    for changes, message in (
        ({"split": "val"}, r"--split val \(the plan has train\)"),
        ({"grid": (4, 3)}, r"--grid \(4, 3\) \(the plan has \(3, 4\)\)"),
        ({"codebook": str(tmp_path / "other.npy")}, r"codebook \w+ \(the plan has"),
        ({"shard_rows": 7}, r"--shard-rows 7 \(the plan has 6\)"),
        ({"codec": "publish"}, r"--codec publish \(the plan has default\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            imported(src, tmp_path / "out", **changes)
    (src / LABELS).write_text("1\n" * 30)
    with pytest.raises(ConfigError, match="tokens, index, labels, classes or synonyms of version"):
        imported(src, tmp_path / "out")
    write_images(tmp_path / "images", 8)
    convert(tmp_path / "images", tmp_path / "tokens")
    with pytest.raises(ConfigError, match="was made by `tokenize`"):
        imported(src, tmp_path / "tokens")


def test_images_and_imports_are_not_continued_by_each_other(tmp_path: Path) -> None:
    images = some_images(30)
    images[3] = b"\xff\xff"
    imported(write_release(tmp_path / "src", images), tmp_path / "out", shard_rows=6, max_bad=0.5)
    write_images(tmp_path / "images", 8)
    with pytest.raises(PlanError, match=r"holds tokens imported from .*src; .*Continue it with `tokenshards import seit`"):
        convert(tmp_path / "images", tmp_path / "out")
    with pytest.raises(PlanError, match="holds tokens imported from .*src: the same bytes would fail again"):
        plan_retry(Store(str(tmp_path / "out")), Store(str(tmp_path / "src")), SourceConfig())


def test_the_commands_round_trip_a_release(tmp_path: Path) -> None:
    images = some_images(20)
    src, out, back = write_release(tmp_path / "src", images), str(tmp_path / "out"), tmp_path / "back"
    shared = ("--split", "imagenet1k-train")
    report = call_json("import", "seit", str(src), out, "--grid", "3x4", *shared)
    assert report["complete"] and report["images_committed"] == 20
    assert call_json("import", "seit", str(src), out, "--grid", "3x4", *shared)["images_committed"] == 20
    written = call_json("export", "seit", out, str(back), *shared)
    assert written["images"] == 20
    assert gzip.decompress((back / DATA).read_bytes()) == b"".join(images)
    _, message = call_cli("import", "seit", str(src), out, "--split", "imagenet1k-train", "--grid", "12", expect=2)
    assert "--grid is '12'; expected rows and columns of the sites, such as 32x32" in message and "Traceback" not in message
