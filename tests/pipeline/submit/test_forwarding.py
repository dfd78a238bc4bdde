"""What may leave this machine with a job: options and variables on a list, and URLs without passwords and signatures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.datasets import run_cli
from tokenshards import cli
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.submit import job_watch
from tokenshards.pipeline.submit import submission as submit_module
from tokenshards.pipeline.submit.forwarding import FORWARDED_OPTIONS, credentials, forwarded_variables
from tokenshards.pipeline.submit.job_watch import JobEnd
from tokenshards.pipeline.submit.ray_dashboard import Dashboard
from tokenshards.pipeline.submit.submission import Submission, Submitted, _one_profile

SECRET = "s3cr3t-value"


def submission(**changes: Any) -> Submission:
    if (options := changes.pop("storage_options", None)) is not None:
        changes["arguments"] = tuple(f"--storage-option={name}={json.dumps(value)}" for name, value in options.items())
    return Submission(**{"source_url": "s3://bucket/src", "out_url": "s3://bucket/out", **changes})


@pytest.mark.parametrize(
    "options",
    [
        {"key": SECRET},
        {"secret": SECRET},
        {"token": SECRET},
        {"password": SECRET},
        {"sas_token": SECRET},
        {"account_key": SECRET},
        {"connection_string": f"DefaultEndpointsProtocol=https;AccountKey={SECRET}"},
        {"client_kwargs": {"aws_secret_access_key": SECRET}},
        {"client_kwargs": {"headers": {"Authorization": f"Bearer {SECRET}"}}},
        {"aws_access_key_id": SECRET},
        {"secretKey": SECRET},
        {"endpoint_url": f"http://me:{SECRET}@host:9000"},
        {"client_kwargs": {"endpoint_url": f"http://me:{SECRET}@host:9000"}},
        {"proxies": [f"http://me:{SECRET}@proxy"]},
        {"whatever_a_client_of_tomorrow_calls_it": SECRET},
        {"config_kwargs": {"proxies": {"https": f"http://me:{SECRET}@proxy"}}},
        {"host": f"https://host/?{SECRET}"},
        {"key": None, "secret": SECRET},
        {"base": f"https://host/blob?sv=2024&sig={SECRET}"},
        {"password": 12345},
        {"client_kwargs": {"cookies": {"session": SECRET}}},
        {"auth": {"user": "me", "pass": SECRET}},
        {"token": {"type": "authorized_user", "id": SECRET}},
        {"login": ["me", {"pass": SECRET}]},
        {"servers": [[{"endpoint_url": f"http://me:{SECRET}@host:9000"}]]},
        {"headers": {"Cookie": SECRET}},
        {"oauth2": SECRET},
        {"jwt": [SECRET]},
    ],
)
def test_a_secret_option_is_named_and_its_value_hidden(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--storage-option .*belong to the nodes") as caught:
        submission(storage_options=options)
    assert SECRET not in str(caught.value) and "12345" not in str(caught.value)


def test_options_without_a_secret_pass() -> None:
    submission(
        storage_options={
            "endpoint_url": "http://host:9000",
            "anon": True,
            "profile": "work",
            "token": "anon",
            "client_kwargs": {"region_name": "eu-west-1", "verify": False},
            "s3_additional_kwargs": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "1234"},
            "config_kwargs": {"s3": {"addressing_style": "path"}},
            "account_name": "work",
            "project": "birds",
        }
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"source_url": f"https://host/a.tar?X-Amz-Signature={SECRET}"},
        {"source_url": f"https://host/a.tar?sv=1&sig={SECRET}"},
        {"out_url": f"ftp://me:{SECRET}@host/out"},
        {"tokenizer_url": f"https://me:{SECRET}@host/tok"},
        {"source_url": f"https://host/a.tar?{SECRET}"},
        {"source_url": f"https://host/a.tar?session={SECRET}"},
        {"arguments": (f"--license=see https://me:{SECRET}@host/licence",)},
    ],
)
def test_a_url_with_a_secret_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="everybody") as caught:
        submission(**changes)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("option", ["--storage-option", "--src-option", "--out-option", "--tokenizer-option"])
def test_the_options_of_every_side_are_checked(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} secret is not an option that may go") as caught:
        submission(arguments=(f"{option}=secret={SECRET}",))
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match=f"{option} client_kwargs.aws_session_token is not an option"):
        submission(arguments=(f'{option}=client_kwargs={{"aws_session_token": "{SECRET}"}}',))
    with pytest.raises(ConfigError, match=f"{option} token is not an option"):
        submission(arguments=(f"{option}=token={SECRET}", f"{option}=token=anon"))
    submission(arguments=(f"{option}=anon=true", f'{option}=client_kwargs={{"region_name": "eu-west-1"}}'))


def test_a_question_mark_in_a_pattern_and_a_query_that_signs_nothing_pass() -> None:
    submission(source_url="s3://bucket/train-???.tar")
    submission(source_url="https://host/resolve/main/train.tar?download=true")


def test_no_name_on_the_list_sounds_like_a_secret() -> None:
    words = ("secret", "token", "pass", "credential", "auth", "cookie", "sas", "jwt")
    assert not [name for name in FORWARDED_OPTIONS if any(word in name.lower() for word in words)]


def test_the_container_of_azure_is_no_user() -> None:
    submission(source_url="abfs://container@account.dfs.core.windows.net/src")
    with pytest.raises(ConfigError):
        submission(source_url=f"abfs://me:{SECRET}@account.dfs.core.windows.net/src")


@pytest.mark.parametrize(
    "changes", [{"source_url": "photos"}, {"out_url": "/data/out"}, {"out_url": "file:///data/out"}, {"tokenizer_url": "/data/tok"}]
)
def test_a_local_path_needs_the_word_that_nodes_share_it(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="each node has its own disk.*--local-paths"):
        submission(**changes)
    if "photos" in changes.values():
        with pytest.raises(ConfigError, match="expected an absolute path"):
            submission(**changes, local_paths=True)
    else:
        submission(**changes, local_paths=True)


def test_only_the_list_is_forwarded() -> None:
    environ = {
        "AWS_ENDPOINT_URL": "http://host:9000",
        "AWS_REGION": "eu-west-1",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_DEFAULT_REGION": "",
        "AWS_MAX_ATTEMPTS": "9",
        "AWS_RETRY_MODE": "adaptive",
        "AWS_ACCESS_KEY_ID": SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": SECRET,
        "HF_TOKEN": SECRET,
        "RAY_AUTH_TOKEN": SECRET,
    }
    forwarded = forwarded_variables(environ)
    assert forwarded.keys() == {"AWS_ENDPOINT_URL", "AWS_REGION", "AWS_RESPONSE_CHECKSUM_VALIDATION"}
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL") as caught:
        forwarded_variables({"AWS_ENDPOINT_URL": f"http://me:{SECRET}@host:9000"})
    assert SECRET not in str(caught.value)


def test_credentials_come_from_the_environment_or_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(ConfigError, match="no AWS credentials"):
        credentials()
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = id\naws_secret_access_key = value\naws_session_token = t\n")
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert credentials() == {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "value", "AWS_SESSION_TOKEN": "t"}
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(ConfigError, match="absent"):
        credentials()
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "here")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "value")
    assert credentials() == {"AWS_ACCESS_KEY_ID": "here", "AWS_SECRET_ACCESS_KEY": "value"}


def test_credentials_of_one_profile_are_forwarded_and_not_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKENSHARDS_SRC_PROFILE", "TOKENSHARDS_OUT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert _one_profile(submission()) is None
    assert _one_profile(submission(storage_options={"profile": "work"})) == "work"
    assert _one_profile(submission(arguments=("--src-option=anon=true", "--out-option=profile=work"))) == "work"
    with pytest.raises(ConfigError, match="different profiles .src without a profile, out work."):
        _one_profile(submission(arguments=("--out-option=profile=work",)))
    monkeypatch.setenv("TOKENSHARDS_SRC_PROFILE", "reader")
    monkeypatch.setenv("TOKENSHARDS_OUT_PROFILE", "reader")
    assert _one_profile(submission()) == "reader"


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a b", "x" * 129])
def test_a_submission_id_is_a_plain_name(name: str) -> None:
    with pytest.raises(ConfigError, match="--submission-id"):
        submission(submission_id=name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sise", "32"], "No such option: --sise"),
        (["--size", "many"], "--size is 'many'; expected a whole number"),
        (["--runner", "local"], "No such option: --runner"),
        (["--size", "30"], "multiple of --patch 4"),
        (["--kind", "vq-autoencoder"], "--kind is 'vq-autoencoder'; expected one of patch-kmeans, layered-kmeans"),
        (["--kind", "layered-kmeans", "--size", "30"], "multiple of --site 8"),
        (["--codec", "nope"], "default, publish"),
        (["--max-bad", "7"], "0 to 1"),
        (["--give-up-after", "0"], "--give-up-after is 0"),
        (["--stall-timeout", "-1"], "--stall-timeout is -1"),
        (["--retry-attempts", "0"], "retry attempts is 0"),
        (["--workers", "0"], "--workers is 0"),
        (["--tars-per-shard", "0"], "--tars-per-shard is 0"),
        (["--max-actors", "0"], "--max-actors is 0"),
        (["--decode", "nowhere"], "--decode is 'nowhere'"),
        (["--storage-option", "key"], "key=value"),
        (["--storage-option", json.dumps({"a": 1})], "key=value"),
        (["--storage-option", f"secret={SECRET}"], "--storage-option secret"),
        (["--out-option", f"secret={SECRET}"], "--out-option secret"),
        (["--src-option", "key"], "--src-option was given without key=value"),
        (["--unreadable", "maybe"], "--unreadable is 'maybe'; expected stop or quarantine"),
        (["more"], "unexpected extra argument"),
    ],
)
def test_a_mistake_ends_here_before_any_cluster_is_asked(arguments: list[str], says: str) -> None:
    out, errors = run_cli("submit", "s3://a/b", "s3://a/c", "--address", "http://127.0.0.1:9", *arguments, expect=2)
    assert says in errors and SECRET not in errors and out == ""


def test_progress_is_read_with_the_options_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def watch(job: Submitted, reporter: object, *, open_out: Callable[[], Store], **_: object) -> JobEnd:
        opened.append(open_out())
        return JobEnd(status="succeeded", exit_code=0, seconds=1.0, log_end="")

    job = Submitted(submission_id="j", dashboard=Dashboard("http://head:8265"), client=None)
    monkeypatch.setattr(submit_module, "submit", lambda submission, dashboard, reporter: job)
    monkeypatch.setattr(job_watch, "watch_job", watch)
    options = ["--storage-option", "endpoint_url=http://a:1", "--out-option", "endpoint_url=http://b:2", "--src-option", "anon=true"]
    ended = CliRunner().invoke(cli.app, ["submit", "s3://a/b", "s3://a/c", "--quiet", *options])
    assert ended.exit_code == 0, ended.output
    (out,) = opened
    assert out.storage_options["endpoint_url"] == "http://b:2" and "anon" not in out.storage_options


def test_the_kind_of_the_fit_goes_with_the_job_and_nothing_that_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def submit(submission: Submission, dashboard: Dashboard, reporter: object) -> Submitted:
        sent.append(submission)
        return Submitted(submission_id="j", dashboard=dashboard, client=None)

    monkeypatch.setattr(submit_module, "submit", submit)
    for given in ([], ["--kind", "layered-kmeans", "--site", "16"]):
        ended = CliRunner().invoke(cli.app, ["submit", "s3://a/b", "s3://a/c", "--no-wait", *given])
        assert ended.exit_code == 0, ended.output
    assert [submission.arguments for submission in sent] == [(), ("--kind=layered-kmeans", "--site=16")]


def test_help_lists_the_options_of_tokenize() -> None:
    own, _ = run_cli("submit", "--help", env={"COLUMNS": "200"})
    other, _ = run_cli("tokenize", "--help", env={"COLUMNS": "200"})
    listed = {word for word in other.split() if word.startswith("--")}
    assert {word for word in listed if word not in own} == {"--runner", "--join"}
    assert "--forward-credentials" in own
