"""What `submit` forwards of the options of each side: one profile, no secrets."""

from __future__ import annotations

import pytest

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.submit.submission import Submission, _one_profile


def submission(*arguments: str) -> Submission:
    return Submission(source_url="s3://bucket/src", out_url="s3://bucket/out", arguments=arguments)


def test_credentials_of_one_profile_are_forwarded_and_not_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKENSHARDS_SRC_PROFILE", "TOKENSHARDS_OUT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert _one_profile(submission()) is None
    assert _one_profile(submission("--storage-option=profile=work")) == "work"
    assert _one_profile(submission("--src-option=anon=true", "--out-option=profile=work")) == "work"
    with pytest.raises(ConfigError, match="different profiles .src without a profile, out work."):
        _one_profile(submission("--out-option=profile=work"))
    monkeypatch.setenv("TOKENSHARDS_SRC_PROFILE", "reader")
    monkeypatch.setenv("TOKENSHARDS_OUT_PROFILE", "reader")
    assert _one_profile(submission()) == "reader"


@pytest.mark.parametrize("side", ["src", "out", "tokenizer"])
def test_a_secret_of_one_side_is_not_submitted(side: str) -> None:
    with pytest.raises(ConfigError, match=f"--{side}-option secret is not an option that may go") as caught:
        submission(f"--{side}-option=secret=hidden")
    assert "hidden" not in str(caught.value)
