"""S3 through s3fs: client settings, verified puts, listings page by page, and the errors that a retry cannot mend.

We use botocore's checksums only where S3 requires them, because other servers fail with botocore's defaults: rclone sends a checksum of
the whole object with a range, and others refuse the trailers of puts. We compare by stronger means: puts by Content-MD5 and etag, reads by
planned size and etag or by sha256.

A --storage-option overrides every setting here. The environment overrides only the checksum settings: AWS_MAX_ATTEMPTS and AWS_RETRY_MODE
have no effect, because `Store` makes the retries.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
from botocore.config import Config
from botocore.exceptions import (
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)

from tokenshards.pipeline.errors import ConfigError, MissingObjectError, Reason, StoreAccessError, TokenshardsError, TransientStorageError
from tokenshards.pipeline.storage.fsspec_requests import Remote
from tokenshards.pipeline.storage.listing import Folder, Page
from tokenshards.pipeline.storage.redaction import display_url, masked
from tokenshards.pipeline.storage.request_limit import MOST, status_of

__all__ = ["S3Remote", "checked_options", "open_s3"]

PART_BYTES = 16 << 20
"""Size of the parts of a put; objects of at least twice this size are put in parts."""
PART_CONCURRENCY = 8
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""Silence after which a connection counts as dead."""
PAGE_KEYS = 1000
"""Keys per answer: the most that S3 allows."""
FANOUT = 16
MOST_DEPTH = 3
MANY_FOLDERS = 500
SPARSE_KEYS = 10
CREDENTIAL_ATTEMPTS = 3
_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")

_CREDENTIALS = ("key", "secret", "token", "username", "password")
_OF_FSSPEC = {"use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache"}
_OF_CLIENT = {
    *("region_name", "api_version", "use_ssl", "verify", "endpoint_url"),
    *("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_account_id"),
}
"""Options of `create_client`; its signature does not name them."""
_REGION = 'client_kwargs={"region_name": "eu-west-1"}'
_EXAMPLES = {"client_kwargs": _REGION, "config_kwargs": 'config_kwargs={"s3": {"addressing_style": "path"}}'}
_MEANT = {
    "endpoint": "endpoint_url",
    "url": "endpoint_url",
    "region": _REGION,
    "region_name": _REGION,
    "aws_access_key_id": "key",
    "access_key": "key",
    "aws_secret_access_key": "secret",
    "secret_key": "secret",
    "aws_session_token": "token",
    "session_token": "token",
    "client_kwargs.region": _REGION,
}
"""An option's name in other tools -> what to give here."""

_filesystems: dict[str, Any] = {}


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return storage options as s3fs takes them, credentials as text. Raises ConfigError for an unknown option or a wrong type."""
    from aiobotocore.session import AioSession
    from s3fs import S3FileSystem

    known = _parameters(S3FileSystem.__init__) | _parameters(AioSession.__init__) | _OF_FSSPEC
    _refuse_unknown("", options, known)
    for name, value in options.items():
        if name.endswith("_kwargs") and not isinstance(value, Mapping | None):
            expected = f"a JSON object, such as {_EXAMPLES.get(name, f'{name}={{}}')}"
            raise ConfigError(f"the storage option {name} is of type {type(value).__name__}; expected {expected}")
        # The CLI parses an all-digit value as int.
        if name in _CREDENTIALS and not isinstance(value, str | None) and type(value) is not int:
            seen = type(value).__name__
            raise ConfigError(f"the storage option {name} is of type {seen}; expected text in quotes: '{name}=\"…\"'")
    _refuse_unknown("client_kwargs.", options.get("client_kwargs") or {}, _OF_CLIENT)
    _refuse_unknown("config_kwargs.", options.get("config_kwargs") or {}, set(Config.OPTION_DEFAULTS))
    return {name: str(value) if name in _CREDENTIALS and type(value) is int else value for name, value in options.items()}


def _parameters(function: Callable[..., Any]) -> set[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind in kinds} - {"self"}


def _refuse_unknown(prefix: str, options: Mapping[str, Any], known: set[str]) -> None:
    for name in options:
        if name not in known:
            meant = _MEANT.get(f"{prefix}{name}")
            expected = f"expected {meant}" if meant else f"expected one of {', '.join(sorted(known))}"
            raise ConfigError(f"the storage option {prefix}{name} is not an option of S3; {expected}")


def open_s3(options: dict[str, Any]) -> Any:
    """Return the s3fs filesystem for the storage options; equal options share one client per process."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    key = repr((os.getpid(), sorted(settings.items()), sorted(options.items(), key=str)))
    found = _filesystems.get(key)
    if found is None:
        config = {**_client_settings(), **(options.get("config_kwargs") or {})}
        # A cached listing would hide objects that other writers published later.
        always = {"use_listings_cache": False, "skip_instance_cache": True}
        found = _filesystems[key] = fsspec.filesystem("s3", **{**always, **options, "config_kwargs": config})
        found.retries = 1  # retries of s3fs or botocore would multiply the retries of `Store`
    return found


def _client_settings() -> dict[str, Any]:
    settings: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "max_pool_connections": MOST,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    for name in _CHECKSUMS:
        if f"AWS_{name.upper()}" not in os.environ and name in Config.OPTION_DEFAULTS:  # botocore before 1.36 has none
            settings[name] = "when_required"
    return settings


class S3Remote(Remote):
    """Requests to S3: one request where s3fs would make two, with checks of the answers."""

    def read(self, full: str, start: int | None, end: int | None, *, size: int = 0) -> bytes:
        """Return an object, or the part of its range [start, end) that exists; `size` is its expected size, if known."""
        if start is None and end is None:
            return bytes(
                self.fs.cat_file(full, max_concurrency=1, **self.bound_of(size))
            )  # more than 1 would cost an extra request for the size
        return super().read(full, start, end)

    def write(self, full: str, data: bytes) -> None:
        """Put a whole object, a large one in parts, and compare its etag; if the etag is not an MD5, read the object back and compare.

        S3 refuses a body that does not match the Content-MD5 of the request. An unfinished upload in parts is never visible as an object.
        """
        digest = hashlib.md5(data, usedforsecurity=False)
        content_md5 = base64.b64encode(digest.digest()).decode()
        whole = data if len(data) >= 2 * PART_BYTES else bytes(data)  # `data` may be a mapped file, which only the upload in parts accepts
        answer = self.fs.pipe_file(
            full, whole, chunksize=PART_BYTES, max_concurrency=PART_CONCURRENCY, ContentMD5=content_md5, **self.bound_of(len(data))
        )
        if answer is not None and _etag(answer) == digest.hexdigest():
            return
        entry = self.info(full)
        if entry["size"] != len(data):
            raise OSError(f"the store holds {entry['size']} bytes after a put of {len(data)}")
        if answer is None and _etag(entry) in (_etag_of_parts(data), digest.hexdigest()):
            return
        self.check_content(full, data)

    def info(self, full: str) -> dict[str, Any]:
        """Return the entry of one object; raises FileNotFoundError if the object is missing, StoreAccessError if the bucket is missing."""
        bucket, key, _ = self.fs.split_path(full)
        if not key:
            self._head_bucket(bucket)
            return {"name": full, "size": 0, "type": "directory"}
        try:
            answer = self.fs.call_s3("head_object", Bucket=bucket, Key=key, **self.bound)
        except FileNotFoundError:
            self._head_bucket(bucket)  # the answer to a HEAD does not say whether object or bucket is missing
            raise
        return {
            "name": full,
            "size": answer["ContentLength"],
            "type": "file",
            "ETag": answer.get("ETag"),
            "LastModified": answer.get("LastModified"),
        }

    def page(self, folder: Folder) -> Page:
        """List one page of a folder.

        The walk lists the first levels folder by folder, until there are enough folders to list in parallel; each of these is listed with
        everything below it. A folder of very many small folders costs less as one long listing.
        """
        answer = self._list(folder)
        children = [entry["Prefix"] for entry in answer.get("CommonPrefixes", [])]
        more = bool(answer.get("IsTruncated"))
        if more and len(children) >= MANY_FOLDERS and folder.token is None and self._is_sparse(folder):
            folder = Folder(folder.path, folder.depth, deep=True)
            answer, children, more = self._list(folder), [], True
        bucket, _, _ = self.fs.split_path(folder.path)
        page = Page()
        for entry in answer.get("Contents", []):
            if entry["Size"] or not entry["Key"].endswith("/"):  # an empty key that ends in `/` is a folder made by a console
                page.entries.append({**entry, "name": f"{bucket}/{entry['Key']}", "size": entry["Size"], "type": "file"})
        deep = more or len(children) >= FANOUT or folder.depth >= MOST_DEPTH
        page.further.extend(Folder(f"{bucket}/{prefix}", folder.depth + 1, deep) for prefix in children)
        if more and answer.get("IsTruncated"):
            page.further.append(Folder(folder.path, folder.depth, folder.deep, answer["NextContinuationToken"]))
        return page

    def hopeless(self, error: Exception, path: str, where: str, attempt: int) -> TokenshardsError | None:
        """Return a StoreAccessError for a missing bucket, credentials or profile, MissingObjectError for a key that cannot exist."""
        code, why = status_of(error)[1], masked(str(error), self.fs.storage_options)
        if code in ("NoSuchBucket", "InvalidBucketName"):
            return self._no_bucket(where, Reason.MISSING if code == "NoSuchBucket" else Reason.BAD_URI)
        if code == "KeyTooLongError":
            return MissingObjectError(path, "S3 does not allow a key as long as this one", place=where)
        if code == "InvalidObjectState":
            return TransientStorageError(f"{where}: the object is archived, so that its bytes cannot be read ({why})", advice="Restore it")
        if isinstance(error, NoCredentialsError):
            if attempt < CREDENTIAL_ATTEMPTS:  # the metadata service may be slow on a busy machine
                self.fs.connect(refresh=True)
                return None
            return StoreAccessError(
                f"{where}: there are no credentials for S3; expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, the role of "
                "this machine, or --storage-option key=… and secret=…; for a public bucket give --storage-option anon=true"
            )
        if isinstance(error, ProfileNotFound | PartialCredentialsError | InvalidRegionError):
            return StoreAccessError(f"{where}: S3 cannot be opened: {why}. Check the profile, the AWS_ variables and --storage-option")
        if isinstance(error, ParamValidationError):
            expected = "expected s3://BUCKET/KEY with a bucket of 3 to 63 lowercase letters, digits, dots or hyphens"
            return StoreAccessError(f"{where}: not a valid S3 name; {expected}", bad_name=Reason.BAD_URI)
        if isinstance(error, ValueError) and "endpoint" in str(error).lower():
            why = re.sub(r"\S+@", "", why)  # an invalid URL may still contain a password
            return StoreAccessError(f"{where}: {why}; expected an endpoint such as https://host:9000 in AWS_ENDPOINT_URL")
        return None

    def _list(self, folder: Folder) -> dict[str, Any]:
        bucket, key, _ = self.fs.split_path(folder.path)
        prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
        query: dict[str, Any] = {"Prefix": prefix, "Delimiter": "" if folder.deep else "/", "MaxKeys": PAGE_KEYS}
        if folder.path.endswith("//"):  # a folder with an empty name
            query["Prefix"] = key
        if folder.token is not None:
            query["ContinuationToken"] = folder.token
        answer: dict[str, Any] = self.fs.call_s3("list_objects_v2", Bucket=bucket, **query, **self.bound)
        return answer

    def _is_sparse(self, folder: Folder) -> bool:
        """Return whether the subfolders hold few keys each, judged by the first thousand keys."""
        answer = self._list(Folder(folder.path, deep=True))
        keys = [entry["Key"] for entry in answer.get("Contents", [])]
        level = self.fs.split_path(folder.path)[1].strip("/").count("/") + bool(self.fs.split_path(folder.path)[1].strip("/"))
        return len(keys) < SPARSE_KEYS * len({tuple(key.split("/")[: level + 1]) for key in keys})

    def _head_bucket(self, bucket: str) -> None:
        try:
            self.fs.call_s3("head_bucket", Bucket=bucket, **self.bound)
        except FileNotFoundError:
            raise self._no_bucket(f"s3://{bucket}") from None
        except PermissionError:
            pass  # the bucket exists; its objects may be readable without the right to list

    def _no_bucket(self, where: str, bad_name: Reason = Reason.MISSING) -> StoreAccessError:
        endpoint = display_url(self.fs.s3.meta.endpoint_url)
        return StoreAccessError(
            f"{where}: there is no such bucket at {endpoint}. Create it, or correct the URL or the endpoint (AWS_ENDPOINT_URL)",
            bad_name=bad_name,
        )


def _etag(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"').lower()


def _etag_of_parts(data: bytes) -> str:
    """Return the etag that S3 gives an object put in parts: the MD5 of the parts' MD5s, and the number of parts."""
    view = memoryview(data)
    parts = [hashlib.md5(view[start : start + PART_BYTES], usedforsecurity=False).digest() for start in range(0, len(data), PART_BYTES)]
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"
