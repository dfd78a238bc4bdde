"""Storage options of a command: common ones for all its stores, own ones of each side, and an AWS profile per side from the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from fsspec.core import split_protocol

from tokenshards.pipeline.storage.redaction import S3_PROTOCOLS

__all__ = ["PROFILE_VARIABLES", "options_of", "parse_pairs"]

PROFILE_VARIABLES = {
    "src": "TOKENSHARDS_SRC_PROFILE",
    "out": "TOKENSHARDS_OUT_PROFILE",
    "tokenizer": "TOKENSHARDS_TOKENIZER_PROFILE",
}
"""Side -> environment variable with the AWS profile of its store."""
_IDENTITY = {"anon", "key", "secret", "token", "username", "password", "profile", "session"}


def parse_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """Return `key=value` texts as a dict. A value that is valid JSON is parsed: numbers, true, {"region_name": "x"}."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def options_of(
    side: str, url: str, common: Mapping[str, Any], own: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """Return the options of the store at `url` on one side of a command: `src`, `out` or `tokenizer`.

    The side's own options override the common ones. Identity options (keys, a profile, `anon`) form one set: if the side has any of its
    own, all common ones are ignored. The profile from the environment is used only for S3, and only if there is no identity option.
    """
    if _IDENTITY & own.keys():
        common = {name: value for name, value in common.items() if name not in _IDENTITY}
    options = {**common, **own}
    profile = environ.get(PROFILE_VARIABLES[side])
    # Local paths get the profile too, because a local table may name objects in S3.
    if profile and not _IDENTITY & options.keys() and split_protocol(url)[0] in (None, "file", "local", *S3_PROTOCOLS):
        options["profile"] = profile
    return options
