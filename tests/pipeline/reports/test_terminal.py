"""What people see of a run, here or in a job elsewhere: one message, as a line or as a bar."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tokenshards.pipeline.ledger.progress import RunProgress
from tokenshards.pipeline.reports.terminal import TerminalReporter

PROGRESS = RunProgress(
    images_planned=5000,
    images_before=400,
    images_seen=2000,
    bytes_in=12_000_000,
    images_quarantined=3,
    work_seconds=10.0,
    workers={"waiting_for_store": 2},
    longest={"stage": "waiting_for_store", "input": "s3://b/x.jpg", "seconds": 31.2, "retries_left": 4},
)


def test_the_progress_of_a_run_elsewhere_is_a_line_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TerminalReporter()
    reporter.advance(PROGRESS)
    told = "2,400 of 5,000 images  200 images/s  1.2 MB/s  3 quarantined  ETA 13 s  waiting for store s3://b/x.jpg for 31 s\n"
    assert capsys.readouterr().err == told
    reporter.advance(PROGRESS)
    assert capsys.readouterr().err == "", "the next line is due in 30 s"


def test_the_progress_of_a_run_elsewhere_is_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    reporter = TerminalReporter()
    reporter.advance(PROGRESS)
    reporter.end()
    shown = capsys.readouterr().err
    assert "2400/5000" in shown and "200 images/s  1.2 MB/s  3 quarantined  waiting for store" in shown


@pytest.mark.parametrize("columns", [80, 100, 120, 160, 200])
@pytest.mark.parametrize("seen", [2000, 1_000_000])
def test_a_narrow_terminal_shows_the_counts_and_the_times_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, seen: int
) -> None:
    """The total and the elapsed time were cut, because the rate took their room."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    reporter = TerminalReporter()
    reporter.advance(replace(PROGRESS, images_planned=1_281_167, images_seen=seen))
    reporter.end()
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err).replace("\n", "\r").rstrip("\r ").split("\r")[-1]
    assert f"{seen + 400}/1281167 " in last and "images/s" in last and "0:00:00 ETA" in last and "…" not in last
    assert len(last) <= columns and ("waiting for store" in last) == (columns >= 160)


def test_a_quiet_terminal_shows_nothing_of_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    TerminalReporter(quiet=True).advance(PROGRESS)
    assert capsys.readouterr().err == ""


def test_what_another_version_says_besides_is_left_out() -> None:
    assert RunProgress.from_json({**PROGRESS.to_json(), "colour": "blue"}) == PROGRESS
    assert RunProgress.from_json({}).left_seconds is None
