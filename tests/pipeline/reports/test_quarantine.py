"""`quarantine` lists what stands: each input once with its reason, and after a retry only what failed again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.datasets import SilentReporter, call_cli, convert, quarantine_of, write_images
from tests.inline import InlineRunner
from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.conversion.tokenize import retry_failed
from tokenshards.pipeline.errors import ConfigError, MissingObjectError
from tokenshards.pipeline.reports.quarantine import quarantined_inputs
from tokenshards.pipeline.storage.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_images(folder / "src", 9, bad=2)
    (folder / "src" / "empty.jpg").write_bytes(b"")
    convert(folder / "src", folder / "out", shard_rows=4, runner=InlineRunner())
    return folder


def test_every_failed_input_with_its_reason(made: Path) -> None:
    out = made / "out"
    listed = json.loads(call_cli("quarantine", str(out), "--json")[0])
    assert {row["sample_id"]: row["reason"] for row in listed["inputs"]} == quarantine_of(out)
    assert listed["quarantined"] == 3 and listed["reasons"]["empty"] == 1
    assert all("data" not in row for row in listed["inputs"]), "bytes of images do not belong on a terminal"
    said, _ = call_cli("quarantine", str(out), "--reason", "empty")
    assert "1 inputs in quarantine (1 empty)" in said and "empty.jpg" in said and "bad_" not in said
    assert f"tokenshards retry-failed {out}" in said
    assert f"tokenshards quarantine {out}" in call_cli("status", str(out))[0]


def test_a_reason_that_does_not_exist(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'torn'; expected one of .*truncated"):
        list(quarantined_inputs(Store(str(made / "out")), "torn"))
    with pytest.raises(MissingObjectError, match="no dataset is here"):
        list(quarantined_inputs(Store(str(tmp_path))))


def test_after_a_retry_only_what_failed_again(made: Path) -> None:
    out = made / "out"
    (made / "src" / "empty.jpg").write_bytes(next((made / "src").rglob("img_*.jpg")).read_bytes())
    assert retry_failed(str(out), None, RunConfig(workers=1, max_bad=1.0), {}, SilentReporter(), InlineRunner()) is not None
    found = list(quarantined_inputs(Store(str(out))))
    assert len(found) == 2 and all("bad_" in row["sample_id"] for row in found)
    (out / "manifest.json").unlink()
    assert len(list(quarantined_inputs(Store(str(out))))) == 2
