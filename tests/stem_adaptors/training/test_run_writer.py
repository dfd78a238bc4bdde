"""What a killed writer leaves in the run directory is removed by the next one; a cluster's mark stays."""

from __future__ import annotations

from pathlib import Path

from tokenshards.pipeline.storage.store import TEMPORARY_PREFIX, Store
from tokenshards.stem_adaptors.cluster.run_mark import marked, require_mark
from tokenshards.stem_adaptors.training.metrics_log import MetricsLog
from tokenshards.stem_adaptors.training.run_writer import RunWriter


def test_unfinished_files_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    for unfinished in (f"{TEMPORARY_PREFIX}1", f"tokenizer/{TEMPORARY_PREFIX}2"):
        (tmp_path / unfinished).write_bytes(b"half of a checkpoint")
    for kept in ("checkpoint.safetensors", ".tokenshards-notes", "tokenizer/tokenizer.json"):
        (tmp_path / kept).write_bytes(b"whole")
    out = Store(str(tmp_path))
    with marked(out) as mark:
        assert mark is not None
        RunWriter(out, first_epoch=1).close(MetricsLog())
        require_mark(out, mark)  # workers that start again look for it
        found = (str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
        names = {name for name in found if not name.startswith("tensorboard")}
        assert names == {mark, "checkpoint.safetensors", ".tokenshards-notes", "tokenizer/tokenizer.json"}


def test_a_run_in_memory_has_nothing_to_remove() -> None:
    out = Store("memory://run-writer")
    out.write("checkpoint.safetensors", b"whole")
    RunWriter(out, first_epoch=1).close(MetricsLog())
    assert out.info("checkpoint.safetensors") is not None
