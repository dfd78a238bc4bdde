"""A pytest plugin: writes one JSON line as each test ends, so that a stopped run leaves the results so far."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest


@pytest.hookimpl
def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    why = ""
    if report.outcome == "failed":
        why = str(report.longrepr)[-1500:]
    elif report.outcome == "skipped":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    with open(os.environ["GPU_CHECK_RESULTS"], "a") as file:
        file.write(json.dumps({"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2), "why": why}) + "\n")


@pytest.hookimpl
def pytest_collectreport(report: Any) -> None:
    if report.outcome == "failed":
        with open(os.environ["GPU_CHECK_RESULTS"], "a") as file:
            file.write(json.dumps({"test": report.nodeid, "outcome": "failed", "seconds": 0, "why": str(report.longrepr)[-1500:]}) + "\n")
