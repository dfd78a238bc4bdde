"""`tokenize --kind layered-kmeans`: the tokenizer of `fit-tokenizer` in one command, exactly once, and never mixed with patch codes."""

from __future__ import annotations

from pathlib import Path

import pytest

import tokenshards
from tests.datasets import call_cli, call_json, content, convert, kill_three_times, quarantine_of, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store

LAYERS = ("--kind", "layered-kmeans")


def command(src: Path, out: Path, *more: str) -> list[str]:
    return ["tokenize", str(src), str(out), "--shard-rows", "24", "--max-bad", "1", "-q", *more]


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "shards").iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Images, their ids for recognition in three shards of one worker, and their patch codes."""
    folder = tmp_path_factory.mktemp("layers")
    write_images(folder / "src", 60, bad=2)
    call_cli(*command(folder / "src", folder / "layers", *LAYERS, "--workers", "1"))
    convert(folder / "src", folder / "patches", runner=InlineRunner())
    return folder / "src", folder / "layers", folder / "patches"


def test_one_command_does_what_fit_tokenizer_and_tokenize_do(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    src, layers, _ = made
    fitted = call_json("fit-tokenizer", str(src), str(tmp_path / "kinds.tok"), *LAYERS)
    spec = open_dataset(str(layers)).spec
    assert (spec.family, spec.config["site"], spec.layout.grid, spec.layout.ids_per_site) == ("layered-kmeans", 8, (4, 4), 1)
    assert spec.fingerprint == fitted["fingerprint"]
    call_cli(*command(src, tmp_path / "out", "--tokenizer", str(tmp_path / "kinds.tok"), "--workers", "1"))
    assert content(tmp_path / "out") == content(layers) and quarantine_of(tmp_path / "out") == quarantine_of(layers) != {}
    assert len(content(layers)) == 60 and verify_dataset(Store(str(layers))).ok


def test_options_of_the_kind_reach_the_fit(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    given = ("--site", "16", "--size", "48", "--levels", "2", "--codes", "9", "--seed", "5")
    call_cli(*command(made[0], tmp_path / "out", *LAYERS, *given, "--workers", "1"))
    spec = open_dataset(str(tmp_path / "out")).spec
    assert (spec.config["site"], spec.layout.grid, spec.vocabulary, spec.preprocess.size) == (16, (3, 3), (9, 9), 48)
    told = call_cli(*command(made[0], tmp_path / "out", "--seed", "0", "--codes", "256"), expect=2)[1]
    assert "--codes 256 (the plan has 9); --seed 0 (the plan has 5)" in told, "a default that was given is told from one that was not"


def test_two_workers_write_the_same_bytes(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    call_cli(*command(made[0], tmp_path / "out", *LAYERS, "--workers", "2"))
    assert shards_of(tmp_path / "out") == shards_of(made[1]) and len(shards_of(made[1])) == 3


def test_three_kills_change_no_byte(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Also one between the fit and the plan: the next run fits the same tokenizer again."""
    src, layers, _ = made
    arguments = command(src, tmp_path / "out", *LAYERS, "--workers", "1")
    kill_three_times(arguments, tmp_path)
    call_cli(*arguments)
    assert shards_of(tmp_path / "out") == shards_of(layers) and quarantine_of(tmp_path / "out") == quarantine_of(layers)
    assert verify_dataset(Store(str(tmp_path / "out"))).ok


def test_a_dataset_is_continued_without_its_options_and_with_them(made: tuple[Path, Path, Path]) -> None:
    src, layers, patches = made
    for given in ((), LAYERS, (*LAYERS, "--site", "8", "--levels", "1", "--codes", "256", "--seed", "0", "--size", "32")):
        assert "already complete" in call_cli("tokenize", str(src), str(layers), *given)[0]
    for given in ((), ("--kind", "patch-kmeans"), ("--patch", "4", "--levels", "2", "--beam", "1", "--size", "16")):
        assert "already complete" in call_cli("tokenize", str(src), str(patches), *given)[0]


@pytest.mark.parametrize(
    ("place", "given", "says"),
    [
        ("layers", ["--kind", "patch-kmeans"], "--kind patch-kmeans (the plan has layered-kmeans)."),
        ("layers", [*LAYERS, "--site", "16"], "--site 16 (the plan has 8)."),
        ("layers", [*LAYERS, "--levels", "2"], "--levels 2 (the plan has 1)."),
        ("layers", ["--levels", "2"], "--levels 2 (the plan has 1)."),
        ("layers", ["--patch", "4"], "--patch 4 (the plan has --kind layered-kmeans)."),
        ("patches", [*LAYERS], "--kind layered-kmeans (the plan has patch-kmeans)."),
        ("patches", [*LAYERS, "--site", "8"], "layered-kmeans (the plan has patch-kmeans); --site 8 (the plan has --kind patch-kmeans)."),
        ("patches", ["--patch", "8"], "--patch 8 (the plan has 4)."),
        ("patches", ["--beam", "2"], "--beam 2 (the plan has 1)."),
    ],
)
def test_what_contradicts_a_plan_is_named(made: tuple[Path, Path, Path], place: str, given: list[str], says: str) -> None:
    out = made[0].parent / place
    told = call_cli("tokenize", str(made[0]), str(out), *given, expect=2)[1]
    assert "already holds a plan made with other options: --" in told and says in told and len(told.splitlines()) == 1


@pytest.mark.parametrize("name", ["tokenize", "plan"])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            ["--kind", "vqvae"],
            "--kind is 'vqvae'; expected one of patch-kmeans, layered-kmeans. The other kinds are fitted with",
        ),
        (["--kind", "vq-autoencoder"], "--kind is 'vq-autoencoder'; expected one of patch-kmeans, layered-kmeans. The other kinds"),
        (["--kind", "layered-kmeans:codes=16"], "layered-kmeans, and its options on their own, such as --codes 512"),
        (["--kind", "latent-kmeans"], "given with --tokenizer"),
        ([*LAYERS, "--patch", "8"], "--patch is 8, which belongs to --kind patch-kmeans; --kind is layered-kmeans. Leave one out"),
        ([*LAYERS, "--beam", "8"], "--beam is 8, which belongs to --kind patch-kmeans; --kind is layered-kmeans. Leave one out"),
        (["--kind", "patch-kmeans", "--site", "8"], "which belongs to --kind layered-kmeans; --kind is patch-kmeans. Leave one out"),
        (["--site", "8"], "belongs to --kind layered-kmeans; without --kind it is patch-kmeans. Give the kind, or leave --site out"),
        ([*LAYERS, "--site", "9"], "--site is 9; expected 8, 16 or 32 pixels"),
        ([*LAYERS, "--size", "8"], "--size is 8; expected 16 to 1024 pixels, a multiple of --site 8"),
    ],
)
def test_what_does_not_go_together_is_one_sentence_before_any_work(tmp_path: Path, name: str, given: list[str], says: str) -> None:
    told = call_cli(name, str(tmp_path / "nothing"), str(tmp_path / "out"), *given, expect=2)[1]
    assert says in told and len(told.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_kind_is_refused_before_a_plan_is_made(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    src, layers, patches = made
    for name in ("tokenize", "plan"):
        arguments = [name, str(src), str(tmp_path / "out"), "--tokenizer", f"{patches}/tokenizer", *LAYERS]
        told = call_cli(*arguments, expect=2)[1]
        assert f"--tokenizer {patches}/tokenizer was made with other options: --kind layered-kmeans (it has patch-kmeans)." in told
        assert not (tmp_path / "out" / "plan").exists() and not (tmp_path / "out" / "tokenizer").exists()
    call_cli(*command(src, tmp_path / "out", "--tokenizer", f"{layers}/tokenizer", *LAYERS, "--site", "8", "--workers", "1"))
    assert content(tmp_path / "out") == content(layers)


def test_a_plan_is_estimated_with_the_kind(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    found = {kind: call_json("plan", str(made[0]), str(tmp_path / "out"), "--kind", kind) for kind in ("patch-kmeans", "layered-kmeans")}
    assert not (tmp_path / "out").exists()
    assert all(estimate["tokenizer"].startswith(kind) for kind, estimate in found.items()), found
    layers, patches = found["layered-kmeans"], found["patch-kmeans"]
    assert "4×4 grid" in layers["tokenizer"] and layers["bytes_per_image"] < patches["bytes_per_image"] / 2


def test_splits_share_the_kind_and_continue(tmp_path: Path) -> None:
    for split, count in (("train", 24), ("val", 6)):
        write_images(tmp_path / "src" / split, count, seed=count)
    arguments = ["tokenize", str(tmp_path / "src"), str(tmp_path / "out"), "--splits", *LAYERS, "--workers", "1"]
    said = call_cli(*arguments)[1]
    assert said.count("no --tokenizer given: fitting ids for recognition") == 1, "the other split has the tokenizer of the first"
    train, val = (open_dataset(str(tmp_path / "out" / split)) for split in ("train", "val"))
    assert train.spec.family == "layered-kmeans" and train.spec == val.spec and (len(train), len(val)) == (24, 6)
    for lost in ("manifest.json", "manifest.copy.json"):
        (tmp_path / "out" / "val" / lost).unlink(missing_ok=True)
    call_cli(*arguments[:4], "--workers", "1")
    assert len(open_dataset(str(tmp_path / "out" / "val"))) == 6
    assert "--kind patch-kmeans (the plan has layered-kmeans)" in call_cli(*arguments[:4], "--kind", "patch-kmeans", expect=2)[1]


def test_the_function_takes_the_kind(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    report = tokenshards.tokenize(made[0], tmp_path / "out", kind="layered-kmeans", site=8, shard_rows=24, max_bad=1.0, workers=1)
    assert report.images == 60 and shards_of(tmp_path / "out") == shards_of(made[1])
    assert any(line.startswith("no --tokenizer given: fitting ids for recognition") for line in report.said)
    with pytest.raises(ConfigError, match="--kind is 'vq-autoencoder'; expected one of patch-kmeans, layered-kmeans"):
        tokenshards.tokenize(made[0], tmp_path / "other", kind="vq-autoencoder")
    with pytest.raises(ConfigError, match=r"--kind patch-kmeans \(the plan has layered-kmeans\)"):
        tokenshards.tokenize(made[0], tmp_path / "out", kind="patch-kmeans")
