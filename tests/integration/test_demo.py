"""The demo does what it says, and the commands that it proposes run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.datasets import call_cli, image_size
from tokenshards.stem_adaptors.commands import demo_training

EPOCHS = 7
"""Of the twelve of the demo, each of which takes three seconds: enough for the digits to be told apart."""


@pytest.mark.timeout(300)  # 40 CPU seconds of one process; beside the kills of other files the wall clock is three times that
def test_the_demo_and_what_it_proposes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="its digits and photographs are the demo's images")
    monkeypatch.setattr(demo_training, "EPOCHS", EPOCHS)
    out, _ = call_cli("demo", str(tmp_path / "demo"))
    found = re.search(r"top-1 on (\d+) held-out digits: ([\d.]+)%", out)
    assert found is not None and int(found[1]) > 200 and float(found[2]) > 80, out
    for name in ("photos.png", "run/curves.png"):
        assert image_size(tmp_path / "demo" / name) > (200, 200)
    proposed = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("   tokenshards ") and "YOUR_IMAGES" not in line]
    assert {words[0] for words in proposed} == {"evaluate", "predict"}
    for words in proposed:
        call_cli(*words)
    report = json.loads(call_cli("evaluate", str(tmp_path / "demo" / "run"), str(tmp_path / "demo" / "digits_val"), "--json")[0])
    assert report["top1"] == pytest.approx(float(found[2]) / 100, abs=6e-4)
    assert image_size(tmp_path / "demo" / "confusion.png") > (300, 300)
