"""Text without credentials: URLs without user, password and query, messages without the secrets of the storage options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fsspec.core import split_protocol

__all__ = ["MASK", "S3_PROTOCOLS", "display_url", "has_credentials", "looks_secret", "masked"]

S3_PROTOCOLS = ("s3", "s3a")
MASK = "***"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_AFTER_URL = ".,;:!|)]}"
"""Punctuation that belongs to the sentence if it follows a URL; inside a URL it may be part of a secret."""
_PUBLIC_OPTIONS = {"region", "region_name", "endpoint_url", "profile", "project", "username", "account_name"}
"""Options whose values may be shown: they name places, and messages need them."""
_SHORTEST_SECRET = 4
_SECRET_WORDS = {
    *("auth", "authorization", "bearer", "cookie", "cookies", "credential", "credentials", "jwt", "key", "oauth", "pass", "passphrase"),
    *("passwd", "password", "pwd", "sas", "secret", "sig", "signature", "token"),
}
_SECRET_PARTS = ("accesskey", "accountkey", "apikey", "connectionstring", "password", "secret")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def display_url(url: str) -> str:
    """Return `url` without user, password and query, fit for messages, plans and logs."""
    protocol, rest = split_protocol(url)
    if protocol is None:
        return url
    rest = rest.split("?", 1)[0]
    if _has_secret_key(protocol, rest):
        return f"{protocol}://{rest.rpartition('@')[2]}"
    host, slash, path = rest.partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def has_credentials(url: str) -> bool:
    """Return whether a URL carries a user or password before its host."""
    protocol, rest = split_protocol(url)
    return protocol is not None and ("@" in rest.partition("/")[0] or _has_secret_key(protocol, rest))


def _has_secret_key(protocol: str, rest: str) -> bool:
    """Return whether `KEY:SECRET@` precedes a bucket. An S3 secret may contain `/`; a bucket name never contains `:`."""
    first = rest.partition("/")[0]
    return protocol in S3_PROTOCOLS and ":" in first and not first.startswith("arn:") and "@" in rest


def looks_secret(name: str) -> bool:
    """Return whether an option or a query parameter of this name would hold a secret, such as `account_key` or `X-Amz-Signature`."""
    words = [word.lower() for word in _WORD.findall(name)]
    if "kms" in name.lower():  # the id of a KMS key is not secret
        return False
    return bool(_SECRET_WORDS & set(words)) or any(part in "".join(words) for part in _SECRET_PARTS)


def masked(text: str, options: Mapping[str, Any]) -> str:
    """Return a client's message without secrets: URLs cut to `display_url`, values of storage options replaced."""
    for secret in sorted(_secrets(options), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _URL.sub(_cut, text)


def _cut(match: re.Match[str]) -> str:
    url = match[0].rstrip(_AFTER_URL)
    return display_url(url) + match[0][len(url) :]


def _secrets(options: Mapping[str, Any], under_secret: bool = False) -> Iterator[str]:
    """Yield the values that no message may show. If an option's name is not secret, a plain word or number such as `path` may be shown."""
    for name, value in options.items():
        secret = under_secret or looks_secret(str(name))
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, Mapping):
                yield from _secrets(one, secret)
            elif isinstance(one, str | int) and not isinstance(one, bool) and len(text := str(one)) >= _SHORTEST_SECRET:
                if name not in _PUBLIC_OPTIONS and (secret or not text.isalnum()):
                    yield text
