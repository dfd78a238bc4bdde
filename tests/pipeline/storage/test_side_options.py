"""Options of one side of a command win over the common ones, and who asks is one set."""

from __future__ import annotations

from typing import Any

import pytest

from tokenshards.pipeline.storage.side_options import options_of

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
