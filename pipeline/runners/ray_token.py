"""The token of a Ray cluster, by Ray's rules of where it lies. Imports no Ray."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tokenshards.pipeline.errors import ConfigError

__all__ = ["find_token"]

_PLAIN = re.compile(r"[!-~]*")


def find_token(environ: Mapping[str, str]) -> str:
    """Return the token that Ray's rules name: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token; empty where there is none.

    Raises ConfigError, which never shows the token, where the named file cannot be read or no header could carry what is found.
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
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"RAY_AUTH_TOKEN_PATH is {named!r}, which cannot be read ({why}); expected a file with the token") from None
    if named and not token:
        raise ConfigError(f"RAY_AUTH_TOKEN_PATH is {named!r}, which is empty; expected a file with the token")
    return _checked(token, str(path))


def _checked(token: str, place: str) -> str:
    """Return the token; refuse here what HTTP and gRPC refuse with a text that holds the token."""
    if not _PLAIN.fullmatch(token):
        raise ConfigError(
            f"the token in {place} holds spaces, line ends or characters outside ASCII; expected one word, "
            "as `ray get-auth-token` prints it on the head"
        )
    return token
