"""Machine code writes the bytes and reads the ids that numpy does, on every layout, of whole, damaged and random streams."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.datasets import ROOT
from tests.pipeline.shards.compact.models import damaged, random_model
from tests.pipeline.shards.samples import LAYOUTS, make_spec, make_tokens
from tokenshards.pipeline.shards.compact import lockstep
from tokenshards.pipeline.shards.compact.model import CompactModel
from tokenshards.pipeline.shards.compact.processor import PLAIN_KERNELS
from tokenshards.pipeline.shards.compact.rows import decode_batch, encode_batch
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec

pytest.importorskip("numba", reason="the machine code is numba's")


def outcome(model: CompactModel, streams: list[bytes], spec: TokenizerSpec, sizes: np.ndarray | None, *, fast: bool) -> object:
    try:
        return decode_batch(model, streams, spec, sizes, fast=fast).tolist()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("vocabulary", [2, 70, 391])
def test_both_write_the_same_bytes_and_read_the_same_ids(name: str, vocabulary: int) -> None:
    spec = make_spec(name, vocabulary)
    for rows in (1, 16, 37):
        model, tokens = random_model(spec, seed=rows, hidden=8 * (1 + rows % 4)), make_tokens(spec, rows, seed=rows)
        sizes = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD
        streams = encode_batch(model, tokens, spec)
        assert streams == encode_batch(model, tokens, spec, fast=False)
        np.testing.assert_array_equal(decode_batch(model, streams, spec, sizes), tokens.ids_BLQ)


@pytest.mark.parametrize("name", ["grid", "grid_residual", "pyramid", "video_variable"])
def test_both_say_the_same_of_damage(name: str) -> None:
    spec, rng = make_spec(name, 70), np.random.default_rng(1)
    model, tokens = random_model(spec), make_tokens(spec, 20)
    sizes = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD
    streams, told = encode_batch(model, tokens, spec), 0
    for trial in range(60):
        harmed = damaged(streams, rng, trial)
        fast, slow = (outcome(model, harmed, spec, sizes, fast=fast) for fast in (True, False))
        assert fast == slow
        told += isinstance(fast, str)
    assert told > 55


def test_many_codes_and_long_rows() -> None:
    spec = make_spec(Layout(kind="sequence", sites=2000, ordered=True), 5000)
    model, tokens = random_model(spec, hidden=32), make_tokens(spec, 3)
    streams = encode_batch(model, tokens, spec)
    assert streams == encode_batch(model, tokens, spec, fast=False)
    np.testing.assert_array_equal(decode_batch(model, streams, spec), tokens.ids_BLQ)


@pytest.fixture
def not_compiled() -> Iterator[None]:
    lockstep.kernels.cache_clear()
    yield
    lockstep.kernels.cache_clear()


def test_without_numba_numpy_does_all(monkeypatch: pytest.MonkeyPatch, not_compiled: None) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert lockstep.kernels() is None
    spec = make_spec("grid", 70)
    model, tokens = random_model(spec), make_tokens(spec, 3)
    np.testing.assert_array_equal(decode_batch(model, encode_batch(model, tokens, spec), spec), tokens.ids_BLQ)


def test_what_is_compiled_lies_in_a_folder_of_this_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = lockstep._cache_folder()
    own = found.parent
    assert own.parent == tmp_path and stat.S_IMODE(own.stat().st_mode) == 0o700
    assert lockstep._cache_folder() == found
    own.chmod(0o777)
    assert lockstep._cache_folder().parent != own, "what others may write is not run"


def test_what_is_compiled_is_kept_for_the_same_source_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """numba itself looks at one file alone, and these functions are made of several."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folders = {lockstep._cache_folder()}
    for name in lockstep.COMPILED:
        monkeypatch.setattr(lockstep, "COMPILED", tuple(other for other in lockstep.COMPILED if other != name))
        folders.add(lockstep._cache_folder())
        monkeypatch.undo()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(PLAIN_KERNELS, "1")
    folders.add(lockstep._cache_folder())
    assert len(folders) == len(lockstep.COMPILED) + 2
    here = Path(lockstep.__file__).parent
    imports_numba = {path.stem for path in here.glob("*.py") if "import numba" in path.read_text()}
    assert imports_numba - {"lockstep"} == set(lockstep.COMPILED)


def test_a_second_process_compiles_nothing() -> None:
    if lockstep.kernels() is None:
        pytest.skip("numba is not installed")
    code = (
        "from tokenshards.pipeline.shards.compact import lockstep; k = lockstep.kernels(); print(sum(k.decode.stats.cache_hits.values()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "1", done.stdout + done.stderr


def test_a_processor_of_any_kind_does_the_same() -> None:
    """All tests of this file once more, with the loops for processors without AVX2."""
    if os.environ.get(PLAIN_KERNELS):
        pytest.skip("this is that run")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).relative_to(ROOT)), "-k", "both or many"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, PLAIN_KERNELS: "1"}, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
