"""What cannot be read though its store answers is named or quarantined, as asked; what cannot be written stops a run."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import SilentReporter, call_cli, content, convert, quarantine_of, write_images
from tests.inline import InlineRunner
from tests.s3_servers import S3Server, moto_server
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.shards.writer import read_quarantine
from tokenshards.pipeline.storage.store import Store

SMALL = ("--size", "16", "--codes", "16", "--workers", "1", "--max-bad", "1", "--shard-rows", "8", "--retry-attempts", "2")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with moto_server() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        server.create_bucket("bucket")
        yield server


def test_archived_objects_are_named_or_quarantined_and_come_back_when_restored(s3: S3Server, tmp_path: Path) -> None:
    write_images(tmp_path / "src", 30)
    s3.upload(tmp_path / "src", "s3://bucket/src")
    cold = ["src/class_1/img_0001.png", "src/class_2/img_0014.jpg"]
    for key in cold:
        body = (tmp_path / key).read_bytes()
        s3.client().put_object(Bucket="bucket", Key=key, Body=body, StorageClass="GLACIER")
    out = tmp_path / "out"
    command = ("tokenize", "s3://bucket/src", str(out), *SMALL)
    _, errors = call_cli(*command, expect=3)
    assert "2 objects cannot be read although their stores answer for others" in errors and "--unreadable quarantine" in errors
    assert all(f"s3://bucket/{key}" in errors for key in cold)
    assert "sampled inputs could not be decoded, such as class_" in errors, "the fit leaves them out"
    assert not list(out.glob("quarantine/*")) and not (out / "manifest.json").exists()
    assert list(out.glob("commits/*/*")), "the other shards are done"
    call_cli(*command, "--unreadable", "quarantine")
    assert quarantine_of(out) == {key.removeprefix("src/"): "unreadable" for key in cold}
    assert len(content(out)) == 28 and verify_dataset(Store(str(out))).ok
    later = "src/class_0/img_0000.jpg"
    s3.client().put_object(Bucket="bucket", Key=later, Body=(tmp_path / later).read_bytes(), StorageClass="GLACIER")
    assert "1 unreadable" in call_cli("verify", str(out), "--re-encode", "28")[0]
    for key in cold:
        s3.client().put_object(Bucket="bucket", Key=key, Body=(tmp_path / key).read_bytes())
    call_cli("retry-failed", str(out), "--workers", "1")
    assert quarantine_of(out) == {} and len(content(out)) == 30


@pytest.mark.parametrize("place", ["disk", "store"])
def test_a_table_takes_no_secrets_of_the_machine_into_the_quarantine(tmp_path: Path, place: str) -> None:
    secret = tmp_path / "home" / "credentials"
    secret.parent.mkdir()
    secret.write_bytes(b"aws_secret_access_key = hidden")
    write_images(tmp_path / "table", 8, classes=0)
    (tmp_path / "table" / "notes.txt").write_bytes(b"no image")
    names = [*sorted(path.name for path in (tmp_path / "table").iterdir()), str(secret), f"file://{secret}", "../home/credentials"]
    rows = "\n".join(["path", *names[: -1 if place == "store" else None], ""])
    (tmp_path / "table" / "t.csv").write_text(rows)
    source = str(tmp_path / "table" / "t.csv")
    if place == "store":
        store = Store("memory://tables/here")
        for path in (tmp_path / "table").iterdir():
            store.write(path.name, path.read_bytes())
        source = "memory://tables/here/t.csv"
    reporter = SilentReporter()
    convert(source, tmp_path / "out", runner=InlineRunner(), reporter=reporter)
    found = {row["uri"].rpartition("/")[2]: row for row in quarantine_rows(tmp_path / "out")}
    assert found["notes.txt"]["data"] == b"no image"
    assert found["credentials"]["data"] is None
    assert found["credentials"]["reason"] == ("bad_uri" if place == "store" else "not_an_image")
    said = "2 rows name local files" if place == "store" else "3 rows name files outside"
    assert any(said in line for line in reporter.lines), reporter.lines
    assert not any("aws" in str(row) or "hidden" in str(row) for row in found.values())
    assert not any(b"hidden" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_a_repeated_id_of_a_table_keeps_no_bytes_of_files_outside(tmp_path: Path) -> None:
    secret = tmp_path / "credentials"
    secret.write_bytes(b"hidden")
    write_images(tmp_path / "table", 2, classes=0)
    inside = sorted(path.name for path in (tmp_path / "table").iterdir())
    rows = ["id,path", f"a,{inside[0]}", f"b,{inside[1]}", f"b,{inside[1]}", f"c,{secret}", f"c,{secret}"]
    (tmp_path / "table" / "t.csv").write_text("\n".join(rows))
    convert(tmp_path / "table" / "t.csv", tmp_path / "out", runner=InlineRunner(), source=SourceConfig(id_column="id"))
    found = {(row["sample_id"], row["reason"]): row["data"] for row in quarantine_rows(tmp_path / "out")}
    assert found.keys() == {("b", "duplicate_id"), ("c", "duplicate_id"), ("c", "not_an_image")}
    assert found["b", "duplicate_id"] and found["c", "duplicate_id"] is None and found["c", "not_an_image"] is None


def quarantine_rows(out: Path) -> list[dict[str, Any]]:
    store = Store(str(out))
    return [row for path in store.glob("quarantine/*.parquet") for row in read_quarantine(store.read(path), path)]


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if "0007" in self.path:
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_dead_hosts_of_a_table_cost_themselves(tmp_path: Path) -> None:
    write_images(tmp_path / "web", 20, classes=0)
    write_images(tmp_path / "fit", 20)
    convert(tmp_path / "fit", tmp_path / "fitted")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/x.jpg"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "web"))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        urls = [f"{base}/img_{n:04d}.{'png' if n % 2 else 'jpg'}" for n in range(20)]
        rows = [closed, "http://no-such-host.invalid/x.jpg", *urls, "http://169.254.169.254/latest/meta-data"]
        (tmp_path / "table.csv").write_text("\n".join(["url", *rows, ""]))
        command = ("tokenize", str(tmp_path / "table.csv"), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "fitted" / "tokenizer"))
        plain = (*command, "--workers", "1", "--max-bad", "1", "--retry-attempts", "2")
        call_cli(*plain, "--allow-private-hosts")
        reasons = quarantine_of(tmp_path / "out")
        found = {name: reasons[f"table.csv#{row}"] for name, row in (("closed", 0), ("dns", 1), ("forbidden", 9))}
        assert found == {"closed": "refused", "dns": "dns", "forbidden": "http_403"}
        assert len(content(tmp_path / "out")) == 19
        (tmp_path / "table.csv").write_text("\n".join(["url", *urls, rows[-1], ""]))
        call_cli(*(str(tmp_path / "untrusted") if word == str(tmp_path / "out") else word for word in plain))
        assert set(quarantine_of(tmp_path / "untrusted").values()) == {"private_host"}
        server.shutdown()


def test_a_full_disk_stops_the_run_after_a_few_shards(tmp_path: Path) -> None:
    write_images(tmp_path / "src", 200, side=128)
    convert(tmp_path / "src", tmp_path / "fitted")
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(out)], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        tokenizer = ("--size", "128", "--codes", "64", "--sample", "20")
        command = ("tokenize", str(tmp_path / "src"), str(out), *tokenizer, "--workers", "2", "--shard-rows", "20")
        _, errors = call_cli(*command, expect=3)
        assert "3 shards could not be written, so this run stops" in errors and "there is no room for it" in errors
        assert len(re.findall("is left uncommitted", errors)) <= 3
        subprocess.run(["mount", "-o", "remount,size=8m", str(out)], check=True)
        call_cli(*command)
        assert len(content(out)) == 200
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)
