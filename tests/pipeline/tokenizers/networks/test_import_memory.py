"""How much memory an import takes: the checkpoint is mapped, and tensors are converted one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.datasets import ROOT
from tests.pipeline.tokenizers.published import test_vit_vqgan

TIMES = 400
"""The hidden layers are so many times as wide as in the other tests: a file of 110 MB."""
IMPORT = """
import sys
from pathlib import Path
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.conversion.import_checkpoint import open_published
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import save_tokenizer

def peak(name):
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) << 10

open_published("vit-vqgan", sys.argv[1], ImportConfig())  # what is imported and allocated once
before, anonymous = peak("VmHWM"), peak("RssAnon")
tokenizer = open_published("vit-vqgan", sys.argv[2], ImportConfig())
print(peak("RssAnon") - anonymous)
save_tokenizer(tokenizer, Store(sys.argv[3]))
print(peak("VmHWM") - before)
"""


def wide() -> dict[str, torch.Tensor]:
    state = dict(test_vit_vqgan.checkpoint())
    for key, value in state.items():
        if key.endswith(("fn.net.0.weight", "fn.net.0.bias")):
            state[key] = value.repeat(TIMES, *[1] * (value.ndim - 1))
        elif key.endswith("fn.net.2.weight"):
            state[key] = value.repeat(1, TIMES)
    return state


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak of a process")
def test_an_import_takes_little_more_than_the_pages_of_two_files(tmp_path: Path) -> None:
    small = test_vit_vqgan.write(tmp_path / "small.ckpt")
    torch.save({"state_dict": wide()}, tmp_path / "large.ckpt")
    size = (tmp_path / "large.ckpt").stat().st_size
    assert size > 100 << 20
    words = [sys.executable, "-W", "ignore", "-c", IMPORT, small, str(tmp_path / "large.ckpt"), str(tmp_path / "tok")]
    ran = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True)
    held, most = (int(line) / size for line in ran.stdout.split())
    assert held < 0.2, f"{held:.2f} of the file in memory of its own after it was opened; expected it mapped"
    assert most < 2.4, f"{most:.2f} times the file at most; expected 2, the pages of what is read and of what is written"
    (tmp_path / "large.ckpt").unlink()
