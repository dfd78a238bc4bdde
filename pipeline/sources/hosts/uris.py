"""The places that a table's URIs may name, and the store of each place.

A table may come from a stranger. A table in a remote store may not name local files of the machine that reads it. No table may name hosts
that are not public, unless the user allows it. The quarantine never gets the bytes of local files outside the table's folder.
"""

from __future__ import annotations

import os
import posixpath
import threading
from collections import OrderedDict
from typing import Any
from urllib.parse import urljoin

import fsspec
from fsspec.core import split_protocol

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import (
    BadInput,
    Reason,
    Stage,
    shorten,
)
from tokenshards.pipeline.sources.hosts.store import HostStore
from tokenshards.pipeline.sources.source_store import SourceStore
from tokenshards.pipeline.storage.redaction import S3_PROTOCOLS, has_credentials
from tokenshards.pipeline.storage.store import Store, display_url, is_absolute

__all__ = ["is_outside", "locate", "names_local_file", "resolve_uri"]

MAX_STORES = 1024
"""Most stores of other hosts and buckets to keep open; a table may name a million hosts."""
_LOCAL = (None, "file", "local")
_WEB = ("http", "https")
_CLOUD = {*S3_PROTOCOLS, "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "hf", "memory"}
"""Protocols whose clients connect to the provider, or to the endpoint that the user names."""
_UNCHECKED = {"ftp", "ftps", "sftp", "ssh", "smb", "webhdfs", "hdfs"}
"""Protocols whose clients connect to the host that a URI names, without a way to check its address."""


class _Stores:
    """A thread-safe cache of the most recently used stores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], Store] = OrderedDict()

    def get(self, source: Store, config: SourceConfig, protocol: str, url: str) -> Store:
        # Options belong to one protocol: endpoint and keys of one store do not fit another. A local source has no options of its own, so
        # its options are meant for S3.
        same = split_protocol(source.url)[0] == protocol or (source.is_local and protocol in S3_PROTOCOLS)
        options = source.storage_options if same else {}
        public_only = not config.allow_private_hosts
        key = (url, repr(sorted(options.items(), key=str)), source.retry, config.urls, public_only)
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        if protocol in _WEB:
            opened: Store = HostStore(url, storage_options=options, retry=source.retry, limits=config.urls, public_only=public_only)
        else:
            opened = SourceStore(url, storage_options=options, retry=source.retry)
        with self._lock:
            opened = self._kept.setdefault(key, opened)
            while len(self._kept) > MAX_STORES:
                self._kept.popitem(last=False)
        return opened


_stores = _Stores()


def names_local_file(path: str) -> bool:
    """Return whether a planned path is an absolute path of the machine that reads it, not a path below the source root."""
    return is_absolute(path) and split_protocol(path)[0] in _LOCAL


def is_outside(store: Store, path: str, *, links: bool = True) -> bool:
    """Return whether a table's path is a local file outside the table's folder; `links=False` does not resolve links on disk."""
    if not store.is_local or (is_absolute(path) and not names_local_file(path)):
        return False
    resolved = os.path.realpath if links else os.path.normpath
    try:
        root, place = resolved(store.root), resolved(split_protocol(path)[1] if is_absolute(path) else store.join(path))
        return os.path.commonpath((root, place)) != root
    except ValueError:  # a NUL: not a valid file name
        return True


def locate(source: Store, path: str, config: SourceConfig) -> tuple[Store, str]:
    """Return the store that holds a planned path and the path inside it. Raises BadInput if a table may not name it."""
    if not path:
        raise BadInput(Reason.BAD_URI, "the table gives no URI; expected a path or a URL", Stage.FETCH)
    if not is_absolute(path):
        return source, path
    protocol, rest = split_protocol(path)
    if protocol in _LOCAL:
        if not source.is_local:
            raise _bad_uri(path, "is a local file, but the table is in a remote store; expected a URL, or a path relative to the table")
        return _stores.get(source, config, "file", "/"), rest.lstrip("/")
    _check_protocol(protocol, path, config)
    if protocol in S3_PROTOCOLS and has_credentials(path):
        raise BadInput(Reason.BAD_URI, f"{display_url(path)} has credentials in the URL; expected s3://BUCKET/KEY", Stage.FETCH)
    host, _, inside = rest.partition("/")
    return _stores.get(source, config, protocol, f"{protocol}://{host}"), inside


def _check_protocol(protocol: str, path: str, config: SourceConfig) -> None:
    if "::" in path and protocol not in _WEB:
        raise _bad_uri(path, "is a chain of URLs; expected a single URL")
    if protocol in _UNCHECKED and not config.allow_private_hosts:
        raise _bad_uri(path, "leads to a host whose address cannot be checked; if you trust the table, add --allow-private-hosts")
    if protocol not in {*_WEB, *_CLOUD, *_UNCHECKED}:
        raise _bad_uri(path, "cannot be opened; expected a path or a URL such as https://host/name or s3://bucket/key")
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise _bad_uri(path, f"cannot be opened ({error})") from None


def _bad_uri(path: str, what: str) -> BadInput:
    return BadInput(Reason.BAD_URI, f"{shorten(display_url(path))} {what}", Stage.FETCH)


def resolve_uri(store: Store, table_path: str, uri: str) -> str:
    """Resolve a URI of a table: a relative one starts at the table's folder. Return a path below the root, an absolute path or a URL."""
    if not uri or "://" in uri or uri.startswith("/"):
        return uri
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(table_path), uri))
    if not joined.startswith("../"):
        return joined
    if store.is_web:
        return urljoin(store.join(table_path), uri)
    absolute = posixpath.normpath(store.join(joined))
    return absolute if store.is_local else str(store.fs.unstrip_protocol(absolute))
