"""Damage: every flipped bit, cut and loss is found and named; `repair --apply` and `tokenize` give back an equal dataset or refuse."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.datasets import call_cli, call_json, content, convert, keep_result, quarantine_of, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.errors import TokenshardsError
from tokenshards.pipeline.ledger.repair import repair_dataset
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.reports.inspection import inspect_dataset
from tokenshards.pipeline.reports.storage_table import dataset_report
from tokenshards.pipeline.storage.store import Store

FLIPS_PER_KIND = 20
PATTERNS = {
    "data page": "shards/*",
    "footer": "shards/*",
    "commit": "commits/*/*",
    "manifest": "manifest-*",
    "shard table": "shards-*",
    "pointer": "manifest.json",
    "plan part": "plan/*/part-*",
    "plan.json": "plan/*/plan.json",
    "plan copy": "plan/*/plan.copy.json",
    "current.json": "plan/current.json",
    "quarantine": "quarantine/*",
    "tokenizer.json": "tokenizer/tokenizer.json",
    "codebook": "tokenizer/codebook.safetensors",
}
SHARD_KINDS = {"data page", "footer", "commit", "quarantine"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source of 108 good and 18 bad images, and its dataset of 18 or more shards and two plan parts."""
    folder = tmp_path_factory.mktemp("finished")
    write_images(folder / "src", 108, bad=18)
    tokenize(folder / "src", folder / "out")
    assert len(list(folder.glob("out/plan/*/part-*"))) == 2
    return folder / "src", folder / "out"


@pytest.fixture
def damaged(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Source, reference dataset and a copy of it to damage."""
    shutil.copytree(finished[1], tmp_path / "out")
    return *finished, tmp_path / "out"


def tokenize(src: Path, out: Path) -> None:
    convert(src, out, shard_rows=7, runner=InlineRunner())


def objects(out: Path, kind: str) -> list[Path]:
    found = sorted(out.glob(PATTERNS[kind]))
    assert found, kind
    return found


def span(kind: str, data: bytes) -> range:
    """Where a kind lies in the bytes of its object."""
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little") if kind in ("data page", "footer") else 0
    return range(footer) if kind == "data page" else range(footer, len(data))


def flips(out: Path, kind: str, rng: random.Random) -> Iterator[Path]:
    """Flip one bit of an object of a kind at a time; the object is whole again afterwards."""
    for _ in range(FLIPS_PER_KIND):
        path = rng.choice(objects(out, kind))
        whole = path.read_bytes()
        at = rng.choice(span(kind, whole))
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        yield path
        if path.exists():
            path.write_bytes(whole)


def named(out: Path) -> set[str]:
    found = verify_dataset(Store(str(out)))
    assert not found.ok
    assert all(problem.detail for problem in found.problems)
    return {problem.object for problem in found.problems}


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, cut, delete)


def check_equal(out: Path, reference: Path) -> None:
    found = verify_dataset(Store(str(out)))
    assert found.ok, found.problems
    assert content(out) == content(reference)
    assert quarantine_of(out) == quarantine_of(reference)


def repaired(src: Path, out: Path, reference: Path) -> None:
    """A dry run says what is done, changes nothing, and is done; then the dataset is equal to the undamaged one."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    dry = repair_dataset(Store(str(out)), apply=False)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    done = repair_dataset(Store(str(out)), apply=True)
    assert dry.steps == done.steps and dry.steps and not done.refused
    assert dry.tokenize_needed == done.tokenize_needed
    if done.tokenize_needed:
        tokenize(src, out)
    check_equal(out, reference)


def clean(out: Path) -> None:
    """Delete the manifests that repairs replaced, so that the next damage hits an object in use."""
    steps = repair_dataset(Store(str(out)), apply=True, min_age_seconds=0).steps
    assert all(step.action == "delete" and step.object.startswith(("manifest-", "shards-")) for step in steps)
    assert verify_dataset(Store(str(out))).ok


@pytest.mark.parametrize("kind", PATTERNS)
def test_every_flipped_bit_is_found_and_named(damaged: tuple[Path, Path, Path], kind: str) -> None:
    *_, out = damaged
    rng = random.Random(kind)
    for path in flips(out, kind, rng):
        assert named(out) == {path.relative_to(out).as_posix()}
    assert verify_dataset(Store(str(out))).ok


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", PATTERNS)
def test_damage_is_repaired(damaged: tuple[Path, Path, Path], kind: str, damage: Callable[[Path, random.Random], None]) -> None:
    src, reference, out = damaged
    rng = random.Random(f"{kind} {damage.__name__}")
    for _ in range(2):
        path = rng.choice(objects(out, kind))
        damage(path, rng)
        assert named(out) == {path.relative_to(out).as_posix()}
        repaired(src, out, reference)


@pytest.mark.soak
def test_repair_after_every_flip(damaged: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    src, reference, out = damaged
    seed = int(os.environ.get("SOAK_SEED", "0"))
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    for kind in PATTERNS:
        for _ in range(FLIPS_PER_KIND):
            path = next(flips(out, kind, rng))
            assert named(out) == {path.relative_to(out).as_posix()}, (seed, kind)
            repaired(src, out, reference)
            clean(out)
            counts[kind] += 1
        for damage in DAMAGES[1:]:
            damage(rng.choice(objects(out, kind)), rng)
            repaired(src, out, reference)
            clean(out)
    with capsys.disabled():
        keep_result(
            "soak_damage", seed=seed, flips=counts.total(), found=counts.total(), repaired_equal=counts.total(), per_kind=dict(counts)
        )


def test_from_the_command_line(damaged: tuple[Path, Path, Path]) -> None:
    src, reference, out = damaged
    rng = random.Random(5)
    victims = {rng.choice(objects(out, kind)) for kind in ("data page", "commit", "shard table", "current.json", "codebook")}
    for path in victims:
        flip(path, rng)
    report = call_json("verify", str(out), expect=1)
    assert not report["ok"] and report["shards_checked"] >= 18
    assert {problem["object"] for problem in report["problems"]} == {path.relative_to(out).as_posix() for path in victims}
    assert set(report["problems"][0]) == {"object", "kind", "detail"}
    text, _ = call_cli("verify", str(out), expect=1)
    assert all(path.name[:12] in text for path in victims)
    _, errors = call_cli("tokenize", str(src), str(out), expect=1)
    assert errors.startswith("error: ") and "repair OUT" in errors
    call_cli("repair", str(out), "--apply")
    call_cli("tokenize", str(src), str(out), "--max-bad", "1", "--workers", "1", "-q")
    call_cli("verify", str(out))
    check_equal(out, reference)


@pytest.mark.parametrize("seed", range(6))
def test_several_damages_at_once(damaged: tuple[Path, Path, Path], seed: int) -> None:
    """Whatever is damaged together: repair ends in an equal dataset, or names what it refuses."""
    src, reference, out = damaged
    rng = random.Random(seed)
    kinds = rng.sample(sorted(PATTERNS), 4)
    victims = {rng.choice(objects(out, kind)) for kind in kinds}
    for path in victims:
        rng.choice(DAMAGES)(path, rng)
    names = {path.relative_to(out).as_posix() for path in victims}
    assert named(out) <= names | {"manifest.json"}
    repair = repair_dataset(Store(str(out)), apply=True)
    if repair.refused:
        assert {"plan.json", "plan copy"} <= set(kinds), repair.refused
        return
    if repair.tokenize_needed:
        tokenize(src, out)
    check_equal(out, reference)


@pytest.mark.parametrize("kind", PATTERNS)
def test_no_foreign_error_escapes(damaged: tuple[Path, Path, Path], kind: str) -> None:
    src, _, out = damaged
    rng = random.Random(kind)
    for damage in DAMAGES:
        spoiled = out.with_name(f"{damage.__name__}")
        shutil.copytree(out, spoiled)
        damage(rng.choice(objects(spoiled, kind)), rng)
        store = Store(str(spoiled))
        commands = (
            lambda store=store: repair_dataset(store, apply=False),
            lambda store=store: dataset_report(store),
            lambda store=store: inspect_dataset(store).tables(),
            lambda spoiled=spoiled: content(spoiled),
            lambda spoiled=spoiled: tokenize(src, spoiled),
        )
        for command in commands:
            try:
                command()
            except TokenshardsError as error:
                assert len(str(error)) > 20
        assert not verify_dataset(store).ok or kind in ("pointer",)  # a lost pointer is what `tokenize` writes last


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["data page", "commit", "quarantine"])
def test_tokenize_redoes_a_damaged_shard_of_an_unfinished_dataset(
    damaged: tuple[Path, Path, Path], kind: str, damage: Callable[[Path, random.Random], None]
) -> None:
    src, reference, out = damaged
    (out / "manifest.json").unlink()
    path = random.Random(1).choice(objects(out, kind))
    damage(path, random.Random(1))
    assert named(out) <= {path.relative_to(out).as_posix(), "manifest.json"}
    if damage is flip and kind != "commit":  # only `verify` reads every byte; the size is right
        repair_dataset(Store(str(out)), apply=True)
    tokenize(src, out)
    check_equal(out, reference)
