"""Images in one store and tokens in another, each with its own endpoint and its own credentials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datasets import call_cli, write_images
from tests.s3_servers import ACCESS_KEY, NO_CREDENTIALS, SECRET_KEY, S3Server, moto_server, rclone_server
from tests.secret_scan import SecretScan

SCAN = SecretScan(SECRET_KEY)
SMALL = ("--size", "16", "--codes", "16", "--workers", "1")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, S3Server]]:
    folder = tmp_path_factory.mktemp("sides")
    with moto_server() as images, rclone_server(folder / "rclone") as tokens:
        images.create_bucket("photos")
        tokens.create_bucket("tokens")
        write_images(folder / "src", 12)
        images.upload(folder / "src", "s3://photos/src")
        for path in (folder / "src").rglob("*.*"):
            images.client().put_object_acl(Bucket="photos", Key=str(path.relative_to(folder)), ACL="public-read")
        yield images, tokens


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


def check_no_secret(server: S3Server, out: str, said: tuple[str, str]) -> None:
    assert not any(SCAN.has(text.encode()) for text in said)
    objects = server.objects(out)
    assert len(objects) > 5 and [name for name, data in objects.items() if SCAN.has(data)] == []


def test_a_public_bucket_becomes_a_private_dataset(servers: tuple[S3Server, S3Server], nobody: None) -> None:
    images, tokens = servers
    src = ("--src-option", "anon=true", "--src-option", f"endpoint_url={images.endpoint}")
    out = ("--out-option", f"key={ACCESS_KEY}", "--out-option", f"secret={SECRET_KEY}", "--out-option", f"endpoint_url={tokens.endpoint}")
    said = call_cli("tokenize", "s3://photos/src", "s3://tokens/out", *SMALL, *src, *out)
    check_no_secret(tokens, "s3://tokens/out", said)
    checked, _ = call_cli("verify", "s3://tokens/out", "--re-encode", "4", *src, *out)
    assert "4 of 4 rows" in checked
    tokenizer = tuple(word.replace("--out-", "--tokenizer-") for word in out)
    call_cli("plan", "s3://photos/src", "s3://tokens/other", "--tokenizer", "s3://tokens/out/tokenizer", *src, *out, *tokenizer)
    _, errors = call_cli("status", "s3://tokens/out", "--out-option", f"endpoint_url={tokens.endpoint}", expect=2)
    assert "no credentials" in errors, "the options of one side are not those of the machine"


def test_a_profile_for_each_side(servers: tuple[S3Server, S3Server], nobody: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, tokens = servers
    keys = f"aws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\nregion = us-east-1\n"
    profiles = "".join(f"[profile {name}]\n{keys}endpoint_url = {server.endpoint}\n" for name, server in (("a", images), ("b", tokens)))
    (tmp_path / "config").write_text(profiles)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("TOKENSHARDS_SRC_PROFILE", "a")
    monkeypatch.setenv("TOKENSHARDS_OUT_PROFILE", "b")
    said = call_cli("tokenize", "s3://photos/src", "s3://tokens/profiled", *SMALL)
    check_no_secret(tokens, "s3://tokens/profiled", said)
    assert "complete" in call_cli("status", "s3://tokens/profiled")[0]
    assert "no such bucket" in call_cli("status", "s3://photos/src", expect=2)[1], "a dataset is looked for where the output lies"
