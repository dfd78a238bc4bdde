"""Options of one side of a command win over the common ones, and who asks is one set."""

from __future__ import annotations

from typing import Any

import pytest

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.storage.side_options import options_of
from tokenshards.pipeline.submit.submission import Submission, _one_profile

COMMON = {"key": "common", "secret": "hidden", "endpoint_url": "http://host:9000"}


@pytest.mark.parametrize(
    ("common", "own", "found"),
    [
        (COMMON, {}, COMMON),
        (COMMON, {"endpoint_url": "http://other"}, {**COMMON, "endpoint_url": "http://other"}),
        (COMMON, {"anon": True}, {"endpoint_url": "http://host:9000", "anon": True}),
        (COMMON, {"profile": "work"}, {"endpoint_url": "http://host:9000", "profile": "work"}),
        ({}, {}, {"profile": "reader"}),
        ({"use_ssl": False}, {}, {"use_ssl": False, "profile": "reader"}),
        ({}, {"anon": True}, {"anon": True}),
    ],
)
def test_what_a_side_gets(common: dict[str, Any], own: dict[str, Any], found: dict[str, Any]) -> None:
    environ = {"TOKENSHARDS_SRC_PROFILE": "reader", "TOKENSHARDS_OUT_PROFILE": "writer"}
    assert options_of("src", "s3://bucket/x", common, own, environ) == found


def test_a_profile_is_for_s3_and_for_tables_that_may_name_it() -> None:
    environ = {"TOKENSHARDS_SRC_PROFILE": "reader"}
    for url, profiled in (("s3://b/x", True), ("photos.csv", True), ("https://host/x", False), ("gs://b/x", False)):
        assert ("profile" in options_of("src", url, {}, {}, environ)) == profiled, url
    assert options_of("out", "s3://b/x", {}, {}, environ) == {}


def submission(**changes: Any) -> Submission:
    return Submission(**{"source_url": "s3://bucket/src", "out_url": "s3://bucket/out", **changes})


def test_credentials_of_one_profile_are_forwarded_and_not_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKENSHARDS_SRC_PROFILE", "TOKENSHARDS_OUT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert _one_profile(submission()) is None
    assert _one_profile(submission(storage_options={"profile": "work"})) == "work"
    assert _one_profile(submission(side_options={"src": {"anon": True}, "out": {"profile": "work"}})) == "work"
    with pytest.raises(ConfigError, match="different profiles .src without a profile, out work."):
        _one_profile(submission(side_options={"out": {"profile": "work"}}))
    monkeypatch.setenv("TOKENSHARDS_SRC_PROFILE", "reader")
    monkeypatch.setenv("TOKENSHARDS_OUT_PROFILE", "reader")
    assert _one_profile(submission()) == "reader"


@pytest.mark.parametrize("side", ["src", "out", "tokenizer"])
def test_a_secret_of_one_side_is_not_submitted(side: str) -> None:
    with pytest.raises(ConfigError, match=f"--{side}-option secret is not an option that may go") as caught:
        submission(side_options={side: {"secret": "hidden"}})
    assert "hidden" not in str(caught.value)
    assert "hidden" not in repr(submission(side_options={side: {"profile": "hidden"}}))
