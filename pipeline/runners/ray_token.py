"""Find the token of a Ray cluster by Ray's own rules, without importing Ray."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tokenshards.pipeline.errors import ConfigError

__all__ = ["find_token"]

_PLAIN = re.compile(r"[!-~]*")


def find_token(environ: Mapping[str, str]) -> str:
    """Return the token of RAY_AUTH_TOKEN, of the file RAY_AUTH_TOKEN_PATH, or of ~/.ray/auth_token; empty if there is no token.

    Raises ConfigError if the named file cannot be read, or if the token does not fit into a header. The error never shows the token.
    """
    if token := environ.get("RAY_AUTH_TOKEN", "").strip():
        return _checked(token, "RAY_AUTH_TOKEN")
    named = environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named) if named else Path(environ.get("HOME", "~")).expanduser() / ".ray" / "auth_token"
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        if not named:
            return ""
        # The text of a UnicodeDecodeError holds bytes of the file.
        why = error.strerror if isinstance(error, OSError) else "the file is not text"
        raise ConfigError(f"RAY_AUTH_TOKEN_PATH is {named!r}, which cannot be read ({why}); expected a file with the token") from None
    if named and not token:
        raise ConfigError(f"RAY_AUTH_TOKEN_PATH is {named!r}, which is empty; expected a file with the token")
    return _checked(token, str(path))


def _checked(token: str, place: str) -> str:
    """Return a valid token. Refuse an invalid token here, because the errors of HTTP and gRPC would show the token."""
    if not _PLAIN.fullmatch(token):
        raise ConfigError(
            f"the token in {place} holds spaces, line ends or characters outside ASCII; expected one word, "
            "as `ray get-auth-token` prints it on the head"
        )
    return token
