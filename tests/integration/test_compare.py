"""`compare`: one command gives every side and its figures; it continues after kills, and repeats nothing that is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import tokenshards
from tests.datasets import ROOT, call_cli, call_json, start_cli, write_images
from tests.inline import InlineRunner
from tests.ray_clusters import RayCluster
from tokenshards.pipeline.errors import ConfigError

PATCHES, LAYERS = "patch-kmeans:codes=16,size=16", "layered-kmeans:codes=8,size=16"
SIDES = [PATCHES, LAYERS]


def command(folder: Path, out: Path, *more: str, tokenizers: list[str] | None = None) -> list[str]:
    given = SIDES if tokenizers is None else tokenizers
    places = ["--images", str(folder / "train"), "--val", str(folder / "val"), "--out", str(out)]
    return ["compare", *given, *places, "--minutes", "0.01", "--seeds", "2", "--workers", "1", *more]


def small(folder: Path, out: Path, *more: str, tokenizer: str = PATCHES) -> list[str]:
    """A comparison of one tokenizer with nothing, without trainings."""
    return command(folder, out, "--minutes", "0", "--against", "none", *more, tokenizers=[tokenizer])


def files_of(out: Path, pattern: str) -> dict[str, tuple[int, bytes]]:
    return {str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(out.glob(pattern))}


def kept(out: Path) -> dict[str, tuple[int, bytes]]:
    """All that was fitted, converted, measured and trained."""
    patterns = ("runs/*.json", "sides/*/*.json", "sides/*/tokenizer/*", "sides/*/*/shards/*", "sides/*/*/manifest*")
    return {name: state for pattern in patterns for name, state in files_of(out, pattern).items()}


def figures(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What does not depend on the clock: the sides, their bytes, fidelity and probe."""
    rows = [(row["side"], row["probe"]) for row in found["rows"]]
    return [
        (side["name"], side["place"], side["stored_bytes"], side["absent"], side["facts"].get("psnr_db"), probe) for side, probe in rows
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of three classes, one broken image in each, a tokenizer, and a dataset of it."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 60, bad=1, seed=1)
    write_images(folder / "val", 30, bad=1, seed=2)
    call_cli("fit-tokenizer", str(folder / "train"), str(folder / "own.tok"), "--codes", "16", "--size", "16", "--seed", "5")
    to = [str(folder / "val"), str(folder / "tokens"), "--tokenizer", str(folder / "own.tok"), "--workers", "1", "--max-bad", "1", "-q"]
    call_cli("tokenize", *to)
    return folder


@pytest.fixture(scope="module")
def made(images: Path) -> tuple[Path, dict[str, Any]]:
    """A whole comparison, and its figures."""
    to = [word for name in ("t.html", "t.md", "t.png", "t.json") for word in ("--to", str(images / "new" / name))]
    given = [*SIDES, str(images / "own.tok"), str(images / "tokens")]
    inline = patch("tokenshards.stem_adaptors.commands.comparing.open_runner", lambda *_: InlineRunner())  # 22 conversions in one process
    few = patch("tokenshards.stem_adaptors.comparison.image_sides.CHOSEN_ON", 8)
    with inline, few:
        out, told = call_cli(*command(images, images / "out", *to, "--to", str(images / "T.JSON"), tokenizers=given))
    assert f"wrote {images / 'new' / 't.html'}" in out and "over file" in out
    assert all(f"note: {side}: 1 input without tokens, left out on every side" in told for side in ("--images", "--val"))
    return images / "out", json.loads((images / "out" / "comparison.json").read_text())


def test_every_side_has_its_figures(images: Path, made: tuple[Path, dict[str, Any]]) -> None:
    out, found = made
    names = [row["side"]["name"] for row in found["rows"]]
    assert names[:4] == [*SIDES, str(images / "own.tok"), str(images / "tokens")] and names[-1] == "pixels"
    assert {name.partition(":")[0] for name in names[4:-1]} == {"jpeg", "webp"}
    assert (found["measured"], found["seeds"], found["minutes"]) == (30, 2, 0.01), "the broken image is left out"
    for row in found["rows"]:
        side = row["side"]
        if side["absent"]:
            assert row["probe"] is None and row["top1"] is None and "no resolution gets files down to" in side["absent"]
            continue
        assert 0 <= row["probe"] <= 1 and len(row["per_seed"]) == 2 and row["epochs"] > 0
        assert row["top1"]["low"] <= row["top1"]["value"] <= row["top1"]["high"]
        assert (row["over_files"] is not None) == (side["kind"] == "tokens")
        if side["budget"] is not None:
            assert side["stored_bytes"] <= side["budget"] * 1.1
    facts = found["rows"][0]["side"]["facts"]
    assert facts["bytes"] == round(facts["compact"] + (facts["table_bytes"] + facts["model_bytes"]) / 100_000, 2)
    assert facts["fit_cpu_seconds"] > 0 and found["rows"][2]["side"]["facts"]["fit_cpu_seconds"] is None
    assert len(list((out / "runs").iterdir())) == 2 * len({row["side"]["place"] for row in found["rows"] if row["side"]["place"]})


def test_files_of_all_four_kinds_say_the_same(images: Path, made: tuple[Path, dict[str, Any]]) -> None:
    new, found = images / "new", made[1]
    assert json.loads((new / "t.json").read_text()) == json.loads((images / "T.JSON").read_text()) == found
    assert (new / "t.png").read_bytes().startswith(b"\x89PNG")
    markdown, page = (new / "t.md").read_text(), (new / "t.html").read_text()
    for row in found["rows"]:
        assert row["side"]["name"] in markdown and row["side"]["name"] in page
    assert "data:image/png;base64," in page


def test_again_repeats_nothing_and_says_the_same(images: Path, made: tuple[Path, dict[str, Any]]) -> None:
    out, found = made
    before = kept(out)
    assert len(before) > 60
    again = call_json(*command(images, out, tokenizers=[*SIDES, str(images / "own.tok"), str(images / "tokens")]))
    assert again == found and kept(out) == before


def test_another_comparison_takes_over_what_it_shares(images: Path, made: tuple[Path, dict[str, Any]]) -> None:
    """One tokenizer fewer, one more, more seeds: only what is new is made."""
    out, found = made
    before = kept(out)
    other = "patch-kmeans:codes=4,size=16"
    again = call_json(*command(images, out, "--seeds", "3", "--against", "pixels", tokenizers=[LAYERS, other]))
    after = kept(out)
    assert {name: after[name] for name in before} == before
    new = {name for name in after if name not in before}
    assert {name.split("/")[1].rpartition("-")[0] for name in new if name.startswith("sides")} == {"patch-kmeans-codes-4-size-16"}
    assert len([name for name in new if name.startswith("runs")]) == 1 + 3 + 1, "a third seed of two sides, three of the new one"
    rows = {row["side"]["name"]: row for row in again["rows"]}
    assert list(rows) == [LAYERS, other, "pixels"] and rows[LAYERS]["per_seed"][:2] == found["rows"][1]["per_seed"]
    assert rows[LAYERS]["side"]["facts"] == found["rows"][1]["side"]["facts"] and rows[LAYERS]["over_files"] is None


def test_kills_at_each_stage_cost_only_what_was_under_way(images: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """In a fit, in a plan, in a conversion, in a training; what was trained before is not trained again."""
    out, arguments = tmp_path / "out", command(images, tmp_path / "out", "--against", "none")
    process = start_cli(*arguments)
    for line in process.stderr or ():
        if line.startswith(f"{LAYERS}: fitting"):
            break
    process.kill()
    process.communicate()
    assert len(list(out.glob("sides/*/tokenizer/tokenizer.json"))) == 1
    for point, victim, skip in (("after-listing", "self", 2), ("after-data-put", "driver", 1)):
        log = tmp_path / point
        env = {"TOKENSHARDS_FAULT": f"point={point},times=1,victim={victim},skip={skip},log={log}"}
        process = start_cli(*arguments, env=env)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == -signal.SIGKILL and "killed" in log.read_text(), errors
    process = start_cli(*arguments)
    while not list(out.glob("runs/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    before = kept(out)
    assert 0 < len([name for name in before if name.startswith("runs")]) < 4, "the last kill came among the trainings"
    found = call_json(*arguments)
    after = kept(out)
    assert {name: after[name] for name in before} == before
    whole = {row[0]: row for row in figures(made[1])}
    assert [row for row in figures(found) if row[0] in SIDES] == [whole[name] for name in SIDES]
    assert len(list((out / "runs").iterdir())) == 2 * len({row["side"]["place"] for row in found["rows"] if row["side"]["place"]})


def test_ctrl_c_in_a_training_stops_at_once_and_the_command_continues(images: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = command(images, tmp_path / "out", "--minutes", "5", "--seeds", "1", "--against", "none", tokenizers=[PATCHES])
    env = {"TOKENSHARDS_FAULT": f"point=after-training-step,times=0,log={log}"}
    process = start_cli(*arguments, env=env)
    for line in process.stderr or ():
        if "training of 5 minutes" in line:
            break
    while not log.exists():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "stopped. Run the same command again" in errors, errors
    assert "Traceback" not in errors and "leaked" not in errors, errors
    assert len(list((tmp_path / "out").glob("sides/*/probe-*.json"))) == 1 and not list((tmp_path / "out").glob("runs/*.json"))


def test_changed_images_give_no_stale_result(images: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "train", 12, seed=3)
    write_images(tmp_path / "val", 9, seed=4)
    first = call_json(*small(tmp_path, tmp_path / "out"))
    write_images(tmp_path / "val", 15, seed=5)
    second = call_json(*small(tmp_path, tmp_path / "out"))
    assert (first["measured"], second["measured"]) == (9, 15)
    write_images(tmp_path / "train", 12, seed=6)
    third = call_json(*small(tmp_path, tmp_path / "out"))
    assert len({found["rows"][0]["side"]["place"] for found in (first, second, third)}) == 3
    assert len({found["rows"][0]["side"]["data"] for found in (first, second, third)}) == 3


def test_labels_that_are_read_otherwise_give_no_stale_result(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "a", 12, seed=3)
    write_images(tmp_path / "train" / "b", 12, seed=4)
    write_images(tmp_path / "val" / "a", 6, seed=5)
    write_images(tmp_path / "val" / "b", 6, seed=6)
    first = call_json(*small(tmp_path, tmp_path / "out"))
    second = call_json(*small(tmp_path, tmp_path / "out", "--label-from", "parent"))
    assert first["rows"][0]["side"]["place"] != second["rows"][0]["side"]["place"]
    assert first["rows"][0]["probe"] != second["rows"][0]["probe"]


@pytest.mark.parametrize("part", ["train", "val"])
def test_images_without_labels_are_refused_before_any_work(images: Path, part: str, tmp_path: Path) -> None:
    other = {"train": "val", "val": "train"}[part]
    write_images(tmp_path / part, 6, classes=0)
    write_images(tmp_path / other, 6)
    told = call_cli(*small(tmp_path, tmp_path / "out"), expect=2)[1].splitlines()
    option = {"train": "--images", "val": "--val"}[part]
    assert told[-1].startswith(f"error: {option} {tmp_path / part}: no image has a label, so accuracy cannot be compared; expected labels")
    assert not (tmp_path / "out" / "sides").exists()


def test_classes_that_the_other_source_lacks(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 24, classes=4, seed=1)
    write_images(tmp_path / "val", 12, classes=3, seed=2)
    (tmp_path / "val" / "class_2").rename(tmp_path / "val" / "others")
    out, said = call_cli(*small(tmp_path, tmp_path / "out"))
    assert said.count("note: --val has 4 images of classes that --images has not, which count as wrong on every side") == 1
    (tmp_path / "val" / "class_0").rename(tmp_path / "val" / "more")
    (tmp_path / "val" / "class_1").rename(tmp_path / "val" / "most")
    told = call_cli(*small(tmp_path, tmp_path / "out"), expect=2)[1].splitlines()[-1]
    assert told.startswith(f"error: --val {tmp_path / 'val'}: no image has a class that --images has, so accuracy cannot be compared")


def test_a_split_of_each_source(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for split, count in (("train", 12), ("test", 6)):
            write_images(tmp_path / part / split, count, seed=count)
    found = call_json(*small(tmp_path, tmp_path / "out", "--split", "test"))
    assert found["measured"] == 6
    told = call_cli(*small(tmp_path, tmp_path / "other", "--split", "nothing"), expect=2)[1].splitlines()[-1]
    assert told.startswith("error: ") and "nothing" in told


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--to", "table.pdf"], "error: --to is table.pdf; expected a file that ends in .html, .md, .png, .json"),
        (["--device", "cuda"], "error: --device is 'cuda', which this machine or this build of torch does not have"),
        (["--runner", "slurm"], "error: --runner is 'slurm'; expected local or ray"),
        (["--against", "none", "--against", "jpeg"], "error: --against is none, jpeg; expected none alone, or some of jpeg, webp, pixels"),
        (["--seeds", "0"], "error: --seeds is 0; expected 1 to 100"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_work(images: Path, more: list[str], says: str, tmp_path: Path) -> None:
    told = call_cli(*command(images, tmp_path / "out", *more), expect=2)[1]
    assert told.startswith(says) and len(told.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_an_out_inside_the_images_is_refused(images: Path) -> None:
    told = call_cli(*small(images, images / "train" / "out"), expect=2)[1].splitlines()[-1]
    assert "is inside SRC" in told and not (images / "train" / "out").exists()


def test_the_function_returns_the_comparison(images: Path, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, found = made
    rows = tokenshards.compare(
        SIDES, images=images / "train", val=str(images / "val"), out=out, minutes=0.01, seeds=2, against=["pixels"], to=tmp_path / "t.md"
    ).rows
    assert [row.side.name for row in rows] == [*SIDES, "pixels"] and rows[0].per_seed == tuple(found["rows"][0]["per_seed"])
    assert (tmp_path / "t.md").read_text().count("\n| ") == 1 + 3
    with pytest.raises(ConfigError, match="patch-kmean is no tokenizer"):
        tokenshards.compare("patch-kmean", images=images / "train", val=images / "val", out=tmp_path / "out")


def test_a_script_needs_no_guard_around_its_call(images: Path, tmp_path: Path) -> None:
    """The processes of trainings do not run it again."""
    places = f"images={str(images / 'train')!r}, val={str(images / 'val')!r}, out={str(tmp_path / 'out')!r}"
    settings = "minutes=0.01, seeds=1, against='none', workers=1"
    (tmp_path / "script.py").write_text(
        f"import tokenshards\nprint('begun')\nprint(tokenshards.compare({PATCHES!r}, {places}, {settings}).rows[0].top1)\n"
    )
    path = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    result = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env={**os.environ, **path})
    assert result.returncode == 0 and result.stdout.count("begun") == 1 and "Score(value=" in result.stdout, result.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(cpus=1) as cluster:
        cluster.add_node()
        yield cluster


def test_a_cluster_gives_the_same_sides(images: Path, made: tuple[Path, dict[str, Any]], cluster: RayCluster, tmp_path: Path) -> None:
    arguments = command(images, tmp_path / "out", "--runner", "ray", "--address", cluster.address, "--against", "none", "--json")
    process = start_cli(*arguments, env=cluster.client_env)
    text, errors = process.communicate(timeout=110)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    whole = {row[0]: row for row in figures(made[1])}
    found = json.loads(text)
    assert figures(found) == [whole[name] for name in SIDES]
    results = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").iterdir()]
    assert len(results) == 4 and len({result["process"] for result in results}) > 1 and all(row["top1"] for row in found["rows"])
