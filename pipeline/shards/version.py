"""The version of the format, and which versions this package reads. Imports only the standard library and `errors`."""

from __future__ import annotations

import re

from tokenshards.pipeline.errors import CorruptObjectError, FormatVersionError, shorten

__all__ = [
    "ACCOUNTS_VERSION",
    "COMPACT_VERSION",
    "FORMAT_VERSION",
    "MASK_VERSION",
    "NEWEST_VERSION",
    "PUBLISHED_VERSION",
    "check_version",
    "version_numbers",
]

FORMAT_VERSION = "1.0"
"""major.minor of every object that needs nothing newer. Readers refuse a newer major and ignore unknown fields of a newer minor."""

ACCOUNTS_VERSION = "1.1"
"""Version of plans whose inputs follow newer rules, and of commits and manifests with inputs that are absent or left out."""

PUBLISHED_VERSION = "1.1"
"""Version of the manifest of a published copy, which has the field `published`."""

COMPACT_VERSION = "1.2"
"""Version of the plans and shards with the codec `compact`, which no reader before knows."""

MASK_VERSION = "1.3"
"""Version of the plans, shards, commits and manifests of images with masks."""

NEWEST_VERSION = MASK_VERSION
"""The newest version that this package writes, and that of the newest plans that it works on."""

_VERSION = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}")


def check_version(text: str, where: str) -> None:
    """Raise FormatVersionError if `text` is a newer major version than ours, CorruptObjectError if it is not a version."""
    if not _VERSION.fullmatch(text):
        raise CorruptObjectError(where, f"format version {shorten(text)}; expected major.minor such as {FORMAT_VERSION}")
    ours = version_numbers(FORMAT_VERSION)[0]
    if version_numbers(text)[0] > ours:
        raise FormatVersionError(f"{where}: written in format {text}; this version reads up to {ours}.x. Upgrade tokenshards to read it")


def version_numbers(text: str) -> tuple[int, int]:
    """Return (major, minor) of a version that `check_version` accepted."""
    major, minor = text.split(".")
    return int(major), int(minor)
