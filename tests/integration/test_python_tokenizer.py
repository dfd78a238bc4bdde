"""A tokenizer that a user wrote, as pipeline/README.md shows it: its code and its commands, then what goes wrong, then a cluster."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets import ROOT, content, image_size, run_cli, run_json, write_images
from tests.ray_clusters import RayCluster
from tokenshards.pipeline.shards import open_dataset

ALLOW = "TOKENSHARDS_ALLOW_PYTHON"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "pipeline" / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guide's module, photos, and what its commands made of them."""
    home = tmp_path_factory.mktemp("home")
    write_images(home / "photos", 20, side=64)
    (module,) = blocks("py")
    assert len(module.splitlines()) <= 32
    (home / "my_tokenizers.py").write_text(module)
    (commands,) = blocks("sh")
    exported, *lines = commands.splitlines()
    pairs = dict(word.split("=") for word in shlex.split(exported)[1:])
    assert pairs == {"PYTHONPATH": "$PWD", ALLOW: "my_tokenizers:build"}
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "tokenshards"
        run_cli(*arguments, env={**pairs, "PYTHONPATH": str(home)}, cwd=home)
    return home


def test_the_example_of_the_guide_runs(home: Path) -> None:
    dataset = open_dataset(str(home / "mine.tokens"))
    assert (dataset.spec.family, dataset.spec.layout.grid, dataset.spec.vocabulary) == ("python", (16, 16), (512,))
    assert dataset.spec.config["settings"] == {"cell": 4} and dataset.spec.codebook is not None
    assert image_size(home / "mine.png")[0] > 64
    image = Image.open(home / "photos" / "class_1" / "img_0001.png")
    cells = np.asarray(image).reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)) // 32
    ids = np.frombuffer(content(home / "mine.tokens")["class_1/img_0001.png"][1], np.uint16).reshape(16, 16)
    assert np.array_equal(ids, cells @ [64, 8, 1])


def test_without_leave_nothing_of_it_runs_and_reports_do(home: Path, tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(home), ALLOW: ""}
    for words in (
        ("tokenize", str(home / "photos"), str(tmp_path / "out"), "--tokenizer", str(home / "mine.tok")),
        ("preview", str(home / "mine.tokens"), "--to", str(tmp_path / "look.png")),
    ):
        _, err = run_cli(*words, env=env, expect=2)
        assert f"my_tokenizers:build, and {ALLOW} is not set" in err and err.count("error:") == 1
    away = {"PYTHONPATH": "", ALLOW: ""}
    assert "512" in run_cli("inspect", str(home / "mine.tok"), env=away)[0]
    assert "ok" in run_cli("verify", str(home / "mine.tokens"), env=away)[0]


def test_a_file_that_changed_and_code_that_fails_are_one_sentence(home: Path, tmp_path: Path) -> None:
    code = (home / "my_tokenizers.py").read_text()
    (tmp_path / "my_tokenizers.py").write_text(code.replace("/ 32", "/ 33"))
    env = {"PYTHONPATH": str(tmp_path), ALLOW: "my_tokenizers"}
    words = ("tokenize", str(home / "photos"), str(tmp_path / "out"), "--workers", "1", "--tokenizer")
    _, err = run_cli(*words, str(home / "mine.tok"), env=env, expect=2)
    assert "the file of its module has the sha256" in err and err.count("error:") == 1
    (tmp_path / "odd.py").write_text("def build(settings):\n    raise OSError('no weights\\nat all')\n")
    _, err = run_cli("import", "tokenizer", str(tmp_path / "t2"), "--kind", "python:odd:build", env=env, expect=2)
    assert "python:odd:build: build raised OSError: 'no weights\\nat all', at odd.py:2" in err and not (tmp_path / "t2").exists()


def test_images_that_its_code_cannot_take_end_the_job_with_a_sentence(home: Path, tmp_path: Path) -> None:
    code = (home / "my_tokenizers.py").read_text()
    picky = "if images.min(axis=(1, 2, 3)).max() == 255: raise ValueError('too white')\n        return red"
    (tmp_path / "picky.py").write_text(code.replace("return red", picky))
    env = {"PYTHONPATH": str(tmp_path), ALLOW: "picky"}
    run_cli("import", "tokenizer", str(tmp_path / "tok"), "--kind", "python:picky:build", env=env)
    write_images(tmp_path / "src", 4, classes=0)
    Image.new("RGB", (64, 64), (255, 255, 255)).save(tmp_path / "src" / "white.png")
    words = ("tokenize", str(tmp_path / "src"), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tok"), "--workers", "1")
    _, err = run_cli(*words, env=env, expect=3)
    assert "python:picky:build: encode raised ValueError: 'too white', at picky.py:" in err


@pytest.mark.timeout(300)
def test_actors_on_a_cluster_get_the_leave_of_the_driver(home: Path, tmp_path: Path) -> None:
    module = tmp_path / "on_nodes"
    module.mkdir()
    shutil.copy(home / "my_tokenizers.py", module)
    env = {"PYTHONPATH": os.pathsep.join([str(module)])}
    with RayCluster(cpus=1, env=env) as cluster:
        words = ("tokenize", str(home / "photos"), str(tmp_path / "out"), "--tokenizer", str(home / "mine.tok"), "--runner", "ray")
        leave = {**cluster.client_env, **env, ALLOW: "my_tokenizers:build"}
        assert run_json(*words, "--address", cluster.address, "--json", env=leave)["complete"]
    assert content(tmp_path / "out") == content(home / "mine.tokens")
