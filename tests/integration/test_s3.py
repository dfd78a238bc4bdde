"""The whole job between S3 buckets with the local runner, on two S3 servers, and through one that fails as S3 does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.datasets import call_cli, content, convert, quarantine_of, run_cli, write_images
from tests.inline import InlineRunner
from tests.s3_servers import ACCESS_KEY, NO_CREDENTIALS, SECRET_KEY, S3Server, faulty_proxy, moto_server, rclone_server
from tests.secret_scan import SecretScan
from tokenshards.pipeline.config import RetryConfig, SourceConfig
from tokenshards.pipeline.conversion.resume import PlanRun
from tokenshards.pipeline.errors import IncompleteError
from tokenshards.pipeline.ledger.verify import verify_dataset
from tokenshards.pipeline.sources import lfs
from tokenshards.pipeline.storage.store import Store

IMAGES, BAD = 60, 1
FIT = ("--size", "16", "--codes", "16", "--max-bad", "1", "--shard-rows", "20")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local images and the dataset made from them: what the same job in buckets must equal."""
    folder = tmp_path_factory.mktemp("s3")
    write_images(folder / "images", IMAGES, bad=BAD)
    convert(folder / "images", folder / "local", shard_rows=20)
    return folder


@pytest.fixture(scope="module")
def servers(place: Path) -> Iterator[dict[str, S3Server]]:
    with ExitStack() as stack:
        found = {"moto": stack.enter_context(moto_server()), "rclone": stack.enter_context(rclone_server(place / "rclone"))}
        for server in found.values():
            server.upload(place / "images", "s3://src/images")
            server.upload(place / "local" / "tokenizer", "s3://src/tokenizer")
            server.create_bucket("out")
        yield found


@pytest.fixture
def server(servers: dict[str, S3Server], request: pytest.FixtureRequest) -> S3Server:
    return servers[getattr(request, "param", "moto")]


@pytest.fixture
def env(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process sees the server as the commands do."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return server.env


@pytest.mark.parametrize("server", ["moto", "rclone"], indirect=True)
def test_bucket_to_bucket_equals_folder_to_folder(server: S3Server, env: dict[str, str], place: Path) -> None:
    arguments = ("s3://src/images", "s3://out/tokens", "--tokenizer", "s3://src/tokenizer", "--max-bad", "1", "--shard-rows", "20")
    run_cli("tokenize", *arguments, "--workers", "2")
    assert content("s3://out/tokens") == content(place / "local")
    assert quarantine_of("s3://out/tokens") == quarantine_of(place / "local")
    out, _ = call_cli("verify", "s3://out/tokens")
    assert "ok, 4 shards" in out or "ok, 5 shards" in out, out
    status = json.loads(call_cli("status", "s3://out/tokens", "--json")[0])
    assert status["complete"] is True, status
    _, said = call_cli("tokenize", *arguments)
    assert len(content("s3://out/tokens")) == IMAGES, said


def test_a_profile_file_is_enough(servers: dict[str, S3Server], tmp_path: Path) -> None:
    server = servers["rclone"]
    (tmp_path / "credentials").write_text(f"[work]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
    (tmp_path / "config").write_text(f"[profile work]\nregion = us-east-1\nendpoint_url = {server.endpoint}\n")
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "AWS_CONFIG_FILE": str(tmp_path / "config")}
    out, _ = run_cli(
        "plan", "s3://src/images", "s3://out/planned", "--tokenizer", "s3://src/tokenizer", env={**files, "AWS_PROFILE": "work"}
    )
    assert "nothing was written" in out
    assert "planned" not in str(server.objects("s3://out").keys())


def test_credentials_leave_no_trace(servers: dict[str, S3Server]) -> None:
    server = servers["rclone"]
    with faulty_proxy(server, rates={"internal_error": 0.1}) as proxy:
        flags = server.through(proxy.endpoint).flags
        made = run_cli("tokenize", "s3://src/images", "s3://out/secret", *FIT, *flags, "--workers", "2", env=NO_CREDENTIALS)
        proxy.set(forbidden_seconds=600)
        failed = run_cli("tokenize", "s3://src/images", "s3://out/secret", *flags, "--retry-attempts", "2", env=NO_CREDENTIALS, expect=3)
        proxy.calm()
    gone = run_cli("verify", "s3://no-such-bucket/x", *server.flags, env=NO_CREDENTIALS, expect=2)
    refused = run_cli("verify", f"s3://{ACCESS_KEY}:{SECRET_KEY}@out/secret", env=NO_CREDENTIALS, expect=2)
    nobody = run_cli("verify", "s3://out/secret", env={**NO_CREDENTIALS, "AWS_ENDPOINT_URL": server.endpoint}, expect=2)
    assert "403" in failed[1] or "Access Denied" in failed[1]
    assert "no such bucket" in gone[1] and "credentials in the URL" in refused[1] and "no credentials" in nobody[1]
    scan = SecretScan(ACCESS_KEY, SECRET_KEY)
    assert [text for pair in (made, failed, gone, refused, nobody) for text in pair if scan.has(text.encode())] == []
    objects = server.objects("s3://out/secret")
    assert len(objects) > 5 and [name for name, data in objects.items() if scan.has(data) or scan.has(name.encode())] == []


def test_the_other_commands(env: dict[str, str], place: Path, tmp_path: Path) -> None:
    convert("s3://src/images", "s3://out/commands", tokenizer="s3://src/tokenizer", shard_rows=20, runner=InlineRunner())
    assert "16 + 16" in call_cli("inspect", "s3://out/commands")[0]
    call_cli("preview", "s3://out/commands", "--to", str(tmp_path / "look.png"), "-n", "4", "--source", "s3://src/images")
    assert (tmp_path / "look.png").stat().st_size > 500
    call_cli("retry-failed", "s3://out/commands", "--workers", "1")
    client = S3Server("moto", env["AWS_ENDPOINT_URL"]).client()
    victim = next(info.path for info in Store("s3://out/commands").list("shards"))
    client.put_object(Bucket="out", Key=f"commands/{victim}", Body=b"damaged")
    assert victim in call_cli("verify", "s3://out/commands", expect=1)[0]
    call_cli("repair", "s3://out/commands", "--apply")
    call_cli("tokenize", "s3://src/images", "s3://out/commands", "--max-bad", "1", "--workers", "1")
    assert content("s3://out/commands") == content(place / "local")


def test_export_and_import_of_seit(env: dict[str, str]) -> None:
    fit = ("--size", "16", "--codes", "16", "--levels", "1", "--max-bad", "1")
    call_cli("tokenize", "s3://src/images", "s3://out/one-level", *fit, "--workers", "1")
    call_cli("export", "seit", "s3://out/one-level", "s3://out/seit", "--split", "train")
    call_cli("import", "seit", "s3://out/seit", "s3://out/back", "--split", "train", "--grid", "4x4", "--max-bad", "1")
    assert sorted(ids for _, ids in content("s3://out/back").values()) == sorted(ids for _, ids in content("s3://out/one-level").values())


def test_training_from_and_to_a_bucket(env: dict[str, str], tmp_path: Path) -> None:
    convert("s3://src/images", "s3://out/train", tokenizer="s3://src/tokenizer", shard_rows=20, runner=InlineRunner())
    small = ("--model", "vit_nano", "--batch-size", "16", "--device", "cpu", "--cache-dir", str(tmp_path), "--order", "windowed")
    call_cli("train", "s3://out/train", "--val", "s3://out/train", "--out", "s3://out/run", *small, "--epochs", "1")
    _, said = call_cli("train", "s3://out/train", "--val", "s3://out/train", "--out", "s3://out/run", *small, "--epochs", "2", "--resume")
    assert "continuing at step" in said and "2 epochs are done" in said
    report = json.loads(call_cli("evaluate", "s3://out/run", "s3://out/train", "--device", "cpu", "--json")[0])
    assert report["images"] == len(content("s3://out/train"))
    out, _ = call_cli("predict", "s3://out/run", "s3://src/images/class_0/img_0000.jpg", "--device", "cpu")
    assert "class_" in out


def test_tars_and_tables_are_read_by_ranges(env: dict[str, str], server: S3Server, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((place / "images").rglob("img_*"))
    with tarfile.open(place / "some.tar", "w") as archive:
        for path in files[:20]:
            archive.add(path, arcname=f"{path.stem}{path.suffix}")
    rows = {"image": [path.read_bytes() for path in files], "label": [path.parent.name for path in files]}
    pq.write_table(pa.table(rows), place / "some.parquet", row_group_size=20)
    for name in ("some.tar", "some.parquet"):
        server.client().put_object(Bucket="src", Key=f"whole/{name}", Body=(place / name).read_bytes())
    with faulty_proxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        convert("s3://src/whole/some.tar", "s3://out/tar", tokenizer="s3://src/tokenizer", runner=InlineRunner())
        convert("s3://src/whole/some.parquet", "s3://out/table", tokenizer="s3://src/tokenizer", runner=InlineRunner())
        log = proxy.report()["log"]
        assert len(content("s3://out/tar")) == 20 and len(content("s3://out/table")) == IMAGES
    assert sum("GET /src/whole/some.tar" in line for line in log) <= 4
    assert sum("GET /src/whole/some.parquet" in line for line in log) <= 30


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_images_and_tars_from_the_web(place: Path, tmp_path: Path) -> None:
    import tarfile

    files = sorted((place / "images").rglob("img_*"))
    (tmp_path / "web").mkdir()
    with tarfile.open(tmp_path / "web" / "some.tar", "w") as archive:
        for path in files[:20]:
            archive.add(path, arcname=f"{path.stem}{path.suffix}")
    for path in files:
        (tmp_path / "web" / path.name).write_bytes(path.read_bytes())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "web"))) as web:
        threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        base = f"http://127.0.0.1:{web.server_address[1]}"
        (tmp_path / "web" / "table.csv").write_text("url\n" + "".join(f"{base}/{path.name}?signature=abc\n" for path in files))
        tokenizer = str(place / "local" / "tokenizer")
        convert(f"{base}/some.tar", tmp_path / "tar", tokenizer=tokenizer, runner=InlineRunner())
        trusted = SourceConfig(allow_private_hosts=True)
        convert(f"{base}/table.csv", tmp_path / "table", tokenizer=tokenizer, runner=InlineRunner(), shard_rows=30, source=trusted)
        web.shutdown()
    assert len(content(tmp_path / "tar")) == 20
    expected = sorted(ids for _, ids in content(place / "local").values())
    assert sorted(ids for _, ids in content(tmp_path / "table").values()) == expected


def test_a_bucket_that_vanishes_quarantines_nothing(
    env: dict[str, str], server: S3Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.upload(place / "images", "s3://soon-gone/images")
    original = PlanRun._work

    def delete_bucket_first(self: PlanRun, *arguments: object) -> object:
        server.empty_bucket("soon-gone")
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PlanRun, "_work", delete_bucket_first)
    with pytest.raises(IncompleteError, match="there is no such bucket"):
        convert("s3://soon-gone/images", "s3://out/vanished", tokenizer="s3://src/tokenizer", runner=InlineRunner())
    left = server.objects("s3://out/vanished").keys()
    assert not any("/quarantine/" in key or "/commits/" in key or key.endswith("manifest.json") for key in left)


FAULTS = {"slow_down": 0.03, "internal_error": 0.03, "forbidden": 0.002, "reset": 0.03, "truncated": 0.03, "lost": 0.05, "stall": 0.001}


@pytest.mark.parametrize("server", ["moto", "rclone"], indirect=True)
def test_every_input_exactly_once_through_a_faulty_store(
    env: dict[str, str], server: S3Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retry = RetryConfig(attempts=6, first_delay_seconds=0.1)  # enough for most of the times when everything is forbidden
    with faulty_proxy(server, seed=11, rates=FAULTS) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for _ in range(6):  # to join: a run that could not say its end counts as live while its process, this one, is alive
            try:
                convert(
                    "s3://src/images", "s3://out/chaos", tokenizer="s3://src/tokenizer", shard_rows=20, workers=2, join=True, retry=retry
                )
                break
            except Exception as error:
                assert "Nothing was lost" in str(error) or "it continues" in str(error), error
        else:
            pytest.fail("six runs did not finish it")
        injected = proxy.report()["injected"]
        proxy.calm()
        assert sum(injected.values()) > 10, injected
        assert content("s3://out/chaos") == content(place / "local")
        assert quarantine_of("s3://out/chaos") == quarantine_of(place / "local")
        assert verify_dataset(Store("s3://out/chaos")).ok


def test_requests_of_a_small_job_are_few(env: dict[str, str], server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty_proxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        convert("s3://src/images", "s3://out/few", tokenizer="s3://src/tokenizer", shard_rows=20, runner=InlineRunner())
        report = proxy.report()
        shards = len(list(Store("s3://out/few").list("commits")))
    of_images = sum(line.startswith("GET /src/images/") for line in report["log"])
    # Planning reads the header of each PNG, which is every second image, and a few of the files that are as small as pointers of Git LFS.
    assert of_images == IMAGES + BAD + IMAGES // 2 + lfs.LOOKED_AT
    # Of a shard: two looks for a manifest, data, quarantine, commit, and the commit read by the survey. Of a dataset:
    # about ten for its card (README.md, a listing of the shards, the footer of the first), one to see that OUT does not lie in SRC.
    assert report["requests"] - of_images <= 72 + 6 * shards, report["operations"]
