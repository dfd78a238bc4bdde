"""SRC and OUT must not contain each other: otherwise the dataset would be listed as input, or be written among the source images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources import source_root
from tokenshards.pipeline.storage.redaction import S3_PROTOCOLS
from tokenshards.pipeline.storage.store import Store, absolute_url

__all__ = ["refuse_nested_stores", "refuse_nesting", "rows_outside"]

_BRACES = re.compile(r"\{[^{}]*\}")


def refuse_nesting(source_url: str, config: SourceConfig, out: Store) -> None:
    """Raise ConfigError if OUT is SRC, is inside SRC, or contains SRC; links on a local disk are resolved.

    If SRC is a pattern or a file name, OUT may be in the same folder, as long as the pattern cannot match objects in OUT.
    """
    source = source_root(source_url, config)
    src_path, out_path = _paths_in_one_store(source, out)
    pattern = _pattern(source_url, source)
    advice = f"Give an OUT outside SRC, such as {_beside(source_url)}"
    if _holds(out_path, src_path):
        same = out_path == src_path and not pattern
        how = "is SRC itself: the dataset would be among its own inputs" if same else f"contains SRC, {source.url}"
        raise ConfigError(f"OUT, {out.url}, {how}; expected two separate places. {advice}")
    if _holds(src_path, out_path) and (not pattern or _may_match(pattern, out_path[len(src_path) :].strip("/"))):
        raise ConfigError(f"OUT, {out.url}, is inside SRC, {source_url}: the dataset would be listed among its own inputs. {advice}")


def refuse_nested_stores(one: Store, other: Store) -> None:
    """Raise ConfigError if two stores are the same place or one contains the other."""
    first, second = _paths_in_one_store(one, other)
    if _holds(first, second) or _holds(second, first):
        raise ConfigError(f"{other.url} and {one.url} are the same place, or one contains the other; expected two separate places")


def rows_outside(rows: Iterable[PlanRow], source: Store, out: Store) -> Iterator[PlanRow]:
    """Yield the rows of a listing; raise ConfigError at the first row that a link in SRC takes from OUT."""
    if not (source.is_local and out.is_local):
        yield from rows
        return
    out_path, folder = _place(out)[1], None
    for row in rows:
        parent = row.path.rpartition("/")[0]
        if parent != folder:
            folder = parent
            if _holds(out_path, os.path.realpath(source.join(parent))):
                raise ConfigError(
                    f"{source.join(parent)} is a link into OUT, {out.url}: the dataset would be listed among its own inputs. "
                    "Remove the link, or give another OUT"
                )
        yield row


def _place(store: Store) -> tuple[tuple[str, ...], str]:
    """Return (identity of the store, path in the store): two places can nest only if they are in one store."""
    if store.is_local:
        return ("file",), os.path.realpath(store.root)
    protocol = store.fs.protocol if isinstance(store.fs.protocol, str) else store.fs.protocol[0]
    return (protocol, _endpoint(store) if protocol in S3_PROTOCOLS else ""), store.root.rstrip("/")


def _endpoint(store: Store) -> str:
    """Return the host of an S3 store. Two profiles may lead to one host, and one region's host of AWS reads the buckets of another."""
    try:
        store.fs.connect()
        host = str(urlsplit(store.fs.s3.meta.endpoint_url).netloc)
    except Exception:  # of any client; the first request reports it
        return ""
    return "AWS" if "amazonaws.com" in host else host


def _paths_in_one_store(one: Store, other: Store) -> tuple[str, str]:
    """Return both paths if they are in one store; for two stores return two paths that do not nest."""
    first, second = _place(one), _place(other)
    return (first[1], second[1]) if first[0] == second[0] else ("1", "2")


def _pattern(source_url: str, source: Store) -> str:
    """Return the part of SRC below its root: a file name or a pattern, empty for a folder."""
    whole = absolute_url(source_url).rstrip("/")
    root = absolute_url(source.location).rstrip("/")
    return whole[len(root) :].strip("/") if whole.startswith(root) else ""


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _may_match(pattern: str, folder: str) -> bool:
    """Return whether a pattern may match an object in a folder; both are relative to the same root."""
    parts = _BRACES.sub("*", pattern).split("/")
    for place, name in enumerate(folder.split("/") if folder else []):
        if place >= len(parts) - 1:  # the last part of a pattern matches files
            return "**" in parts[min(place, len(parts) - 1)]
        if "**" in parts[place]:
            return True
        if not fnmatchcase(name, parts[place]):
            return False
    return True


def _beside(source_url: str) -> str:
    stem = re.split(r"[*?\[{]", source_url)[0].rstrip("/")
    return f"{stem or 'dataset'}.tokens"
