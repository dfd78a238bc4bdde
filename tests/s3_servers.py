"""Real S3 servers of two makes for tests, moto and rclone, and the faulty proxy in front of them; each its own process.

A server dies with the process that started it, however that ends.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.config import Config

ROOT = Path(__file__).resolve().parents[1]
ACCESS_KEY, SECRET_KEY = "tokenshardskey1", "tokenshardssecret123"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
NO_CREDENTIALS = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CONFIG_FILE": "/dev/null"}
"""No credentials from the machine that runs the tests, and no waiting for the metadata service of a cloud."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class S3Server:
    """A running server: where it is and who may use it."""

    name: str
    endpoint: str

    @property
    def env(self) -> dict[str, str]:
        """Environment with endpoint and credentials; nothing about checksums, because nobody should have to set that."""
        return {**NO_CREDENTIALS, **CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint, "AWS_DEFAULT_REGION": "us-east-1"}

    @property
    def options(self) -> dict[str, Any]:
        """The same as storage options."""
        return {"key": ACCESS_KEY, "secret": SECRET_KEY, "client_kwargs": {"endpoint_url": self.endpoint, "region_name": "us-east-1"}}

    @property
    def flags(self) -> list[str]:
        """The same as flags of the command line."""
        return [flag for key, value in self.options.items() for flag in ("--storage-option", f"{key}={_text(value)}")]

    def client(self) -> Any:
        """Return a boto3 client: another implementation than the one under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(
                response_checksum_validation="when_required",
                request_checksum_calculation="when_required",
                s3={"addressing_style": "path"},
                max_pool_connections=32,
            ),
        )

    def through(self, endpoint: str) -> S3Server:
        """Return the same server as seen through a proxy."""
        return S3Server(self.name, endpoint)

    def create_bucket(self, bucket: str) -> None:
        self.client().create_bucket(Bucket=bucket)

    def upload(self, folder: Path, url: str) -> None:
        """Put every file below a folder under an s3:// URL; the bucket is made if need be."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        client = self.client()
        with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/")
                client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())

    def objects(self, url: str) -> dict[str, bytes]:
        """Return key -> bytes of everything under an s3:// URL."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        client, found = self.client(), {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                found[entry["Key"]] = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        return found

    def empty_bucket(self, bucket: str) -> None:
        """Delete a bucket and all that is in it."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=entry["Key"])
        client.delete_bucket(Bucket=bucket)


class FaultyProxy:
    """Control of a running `tests.faulty_s3`."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def set(self, *, forbidden_seconds: float = 0.0, **rates: float) -> None:
        """Replace the rates of the faults; `forbidden_seconds` answers 403 to everything from now on for so long."""
        self._ask({"rates": rates, "forbidden_seconds": forbidden_seconds})

    def calm(self) -> None:
        """No faults, and all counts from zero."""
        self._ask({"rates": {}, "forbidden_seconds": 0.0, "reset": True})

    def report(self) -> dict[str, Any]:
        """Return `requests`, `operations` (kind -> count), `injected` (fault -> count), and the last requests as `log`."""
        return self._ask(None)

    def _ask(self, value: dict[str, Any] | None) -> dict[str, Any]:
        data = None if value is None else json.dumps(value).encode()
        with urllib.request.urlopen(f"{self.endpoint}/__faults__", data=data, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """Start moto; it takes any credentials, and honours conditional puts."""
    with _process([sys.executable, "-m", "tests.s3_servers", "--serve-moto"], r"listening on (http://\S+)", stream="stdout") as endpoint:
        yield S3Server("moto", endpoint)


@contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    """Start rclone on a folder; it checks signatures, fails botocore's default checksums, and ignores conditions of puts."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [_rclone(), "serve", "s3", str(folder), "--addr", "127.0.0.1:0", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    # Its cache of folders stays on: without it each put costs twice as much as the one before. So change objects through S3 alone.
    command += ["--config", os.devnull, "--log-level", "NOTICE"]
    with _process(command, r"Starting s3 server on \[(http://[^/\]]+)", stream="stderr") as endpoint:
        yield S3Server("rclone", endpoint)


@contextmanager
def faulty_proxy(server: S3Server, *, seed: int = 0, rates: Mapping[str, float] | None = None) -> Iterator[FaultyProxy]:
    """Start the faulty proxy in front of a server."""
    command = [sys.executable, "-m", "tests.faulty_s3", "--upstream", server.endpoint, "--port", "0", "--seed", str(seed)]
    command += ["--rates", json.dumps(dict(rates or {}))]
    with _process(command, r"listening on (http://\S+)", stream="stdout") as endpoint:
        yield FaultyProxy(endpoint)


@contextmanager
def _process(command: list[str], pattern: str, *, stream: str) -> Iterator[str]:
    """Start a server, yield the address it prints, and stop it."""
    other = subprocess.DEVNULL
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if stream == "stdout" else other,
        stderr=subprocess.PIPE if stream == "stderr" else other,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=_die_with_parent,
    )
    pipe = process.stdout if stream == "stdout" else process.stderr
    assert pipe is not None
    try:
        said = []
        for line in pipe:
            said.append(line)
            if match := re.search(pattern, line):
                break
        else:
            raise RuntimeError(f"{command[0]} did not start and said: {''.join(said)[-2000:]}")
        drain = threading.Thread(target=_drain, args=(pipe,), daemon=True)
        drain.start()
        try:
            yield match[1].rstrip("/]")
        finally:
            process.kill()
            drain.join()
    finally:
        process.kill()
        process.wait()
        pipe.close()


def _drain(pipe: IO[str]) -> None:
    for _ in pipe:
        pass


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _rclone() -> str:
    return str(Path(sys.executable).parent / "rclone")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _serve_moto() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"listening on http://{host}:{port}", flush=True)
    signal.pause()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve S3 from memory until killed.")
    parser.add_argument("--serve-moto", action="store_true", required=True)
    parser.parse_args()
    _serve_moto()
