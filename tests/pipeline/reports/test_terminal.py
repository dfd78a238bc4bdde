"""What people see of a run, here or in a job elsewhere."""

from __future__ import annotations

import pytest

from tokenshards.pipeline.reports.terminal import LINE_SECONDS_VARIABLE, TerminalReporter

LOG = """Ray cluster: 2 nodes, 2 CPUs; up to 2 actors of 1 CPU
1,200 of 5,000 images  240 images/s  1.2 MB/s  0 quarantined  ETA 16 s
shard 3 failed and is tried again in 1 s: 17 images were lost
2,400 of 5,000 images  241 images/s  1.2 MB/s  3 quarantined  ETA 11 s
"""


def test_the_log_of_a_job_becomes_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TerminalReporter()
    reporter.retell("Ray cluster: 2 nodes\n")
    assert capsys.readouterr().err == ""
    reporter.retell(LOG)
    assert capsys.readouterr().err == "2,400 of 5,000 images  241 images/s  1.2 MB/s  3 quarantined  ETA 11 s\n"


def test_the_log_of_a_job_becomes_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    reporter = TerminalReporter()
    reporter.retell(LOG)
    reporter.end()
    shown = capsys.readouterr().err
    assert "2400/5000" in shown and "241 images/s  1.2 MB/s  3 quarantined" in shown and "ETA 11 s" not in shown


def test_a_quiet_terminal_shows_nothing_of_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    TerminalReporter(quiet=True).retell(LOG)
    assert capsys.readouterr().err == ""


def test_a_job_tells_its_progress_more_often(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LINE_SECONDS_VARIABLE, "0")
    reporter = TerminalReporter()
    reporter.begin(100, 10)
    reporter.advance(5, 5_000_000, 1)
    told = capsys.readouterr().err
    assert told.startswith("15 of 100 images  ") and "1 quarantined" in told
    reporter.retell(told)
    assert capsys.readouterr().err == told
