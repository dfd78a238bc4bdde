"""Options of the stores of a command: for all of its stores, for one side of it, or as an AWS profile of a side in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fsspec.core import split_protocol

from tokenshards.pipeline.storage.redaction import S3_PROTOCOLS

__all__ = ["PROFILE_VARIABLES", "options_of"]

PROFILE_VARIABLES = {
    "src": "TOKENSHARDS_SRC_PROFILE",
    "out": "TOKENSHARDS_OUT_PROFILE",
    "tokenizer": "TOKENSHARDS_TOKENIZER_PROFILE",
}
"""Side -> variable that names the AWS profile of its store."""
_WHO_ASKS = {"anon", "key", "secret", "token", "username", "password", "profile", "session"}


def options_of(
    side: str, url: str, common: Mapping[str, Any], own: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """Return the options of the store at `url` on one side of a command: `src`, `out` or `tokenizer`.

    Its own options win over the common ones. Those that say who asks (keys, a profile, `anon`) are one set: where a side has any of its
    own, none of the common ones is taken. The profile in the environment counts where no option says who asks, and for S3 alone.
    """
    if _WHO_ASKS & own.keys():
        common = {name: value for name, value in common.items() if name not in _WHO_ASKS}
    options = {**common, **own}
    profile = environ.get(PROFILE_VARIABLES[side])
    # A table on a disk may name objects of S3.
    if profile and not _WHO_ASKS & options.keys() and split_protocol(url)[0] in (None, "file", "local", *S3_PROTOCOLS):
        options["profile"] = profile
    return options
