"""Bad input end to end: every file of the zoo ends as a token row of the right colour, as a quarantine row with its reason, or ignored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import ROOT, call_cli, content, quarantine_of, write_images
from tests.pipeline.sources.zoo import IGNORED, ZooCase, make_zoo
from tokenshards.pipeline.errors import Reason
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import load_tokenizer

PEAK_MEGABYTES = 900
CONVERT = """
import resource, sys
from tokenshards.pipeline.tokenizers.config import FitConfig
from tests.datasets import convert
convert(sys.argv[1], sys.argv[2], fit=FitConfig(size=32, codes=256), batch_rows=8, shard_rows=20)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[ZooCase], Path]:
    folder = tmp_path_factory.mktemp("zoo")
    cases = make_zoo(folder / "src")
    # In a process of its own, whose only children are the workers: their largest peak of memory is on its record.
    result = subprocess.run([sys.executable, "-c", CONVERT, folder / "src", folder / "out"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (folder / "peak").write_text(result.stdout)
    return cases, folder / "out"


def test_every_file_has_its_outcome(zoo: tuple[list[ZooCase], Path]) -> None:
    cases, out = zoo
    assert len(cases) >= 40
    rows, quarantined = content(out), quarantine_of(out)
    for case in cases:
        outcomes = (case.sample_id in rows, quarantined.get(case.sample_id))
        if case.expected == IGNORED:
            assert outcomes == (False, None), case.name
        elif isinstance(case.expected, Reason):
            assert outcomes == (False, str(case.expected)), case.name
        else:
            assert outcomes == (True, None), case.name
    assert len(rows) + len(quarantined) == sum(case.expected != IGNORED for case in cases)
    assert verify_dataset(Store(str(out))).ok


def test_the_colours_survive_tokenization(zoo: tuple[list[ZooCase], Path]) -> None:
    cases, out = zoo
    dataset = open_dataset(str(out))
    tokenizer = load_tokenizer(dataset.store, "tokenizer")
    checked = 0
    for case in cases:
        if case.expected == IGNORED or isinstance(case.expected, Reason) or not isinstance(case.expected[0], int):
            continue  # images of two colours are compared pixel by pixel in test_decode
        pixels = tokenizer.decode(dataset.sample(case.sample_id).tokens)[0].reshape(-1, 3).astype(int)
        worst = np.abs(pixels.mean(axis=0) - np.array(case.expected)).max()
        assert worst <= 6 + case.tolerance, f"{case.name}: {pixels.mean(axis=0)} for {case.expected}"
        checked += 1
    assert checked >= 30


def test_too_many_bad_inputs_stop_the_job_and_can_be_accepted(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 40, bad=10)
    arguments = ("tokenize", str(tmp_path / "src"), str(tmp_path / "out"), "--size", "16", "--codes", "16", "--workers", "1")
    _, errors = call_cli(*arguments, expect=5)
    assert "--max-bad 0.01" in errors and "50" in errors
    assert not (tmp_path / "out" / "manifest.json").exists()
    call_cli(*arguments, "--max-bad", "0.2")
    assert len(content(tmp_path / "out")) == 40
    assert set(quarantine_of(tmp_path / "out").values()) == {"truncated"} or len(quarantine_of(tmp_path / "out")) == 10


def test_memory_of_workers_stays_bounded(zoo: tuple[list[ZooCase], Path]) -> None:
    _, out = zoo  # a decoded bomb would be gigabytes
    assert 10 < float((out.parent / "peak").read_text()) / 1024 < PEAK_MEGABYTES
