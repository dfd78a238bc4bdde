from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests.datasets import ROOT

SCRIPT = """
import resource, sys
import numpy as np
from tokenshards.pipeline.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def batch():
    return [np.full(size << 20, 1, np.uint8) for size in (5, 5, 10, 80)]  # the last is more than glibc's largest threshold for mmap
batch()
before = faults()
for _ in range(10):
    batch()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has mallopt")
def test_freed_blocks_are_used_again_without_fresh_pages() -> None:
    found = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "leave")
    }
    pages_of_a_batch = 100 * (1 << 20) // resource.getpagesize()
    assert found["keep"] < pages_of_a_batch
    assert found["keep"] < found["leave"] / 2


def test_workers_of_the_local_runner_keep_it() -> None:
    script = "from tokenshards.pipeline.runners import local_worker as worker\n"
    script += "worker.keep_freed_memory = lambda: print('kept', flush=True); worker.main()"
    command = [sys.executable, "-c", script, "1", "1", "60"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert "kept" in done.stdout + done.stderr
