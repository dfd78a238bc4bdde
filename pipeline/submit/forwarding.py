"""What may leave this machine with a job: Ray shows a job's command line and environment in job info, logs and the process list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.storage.redaction import has_credentials, looks_secret
from tokenshards.pipeline.storage.side_options import PROFILE_VARIABLES

__all__ = ["FORWARDED", "credentials", "forwarded_variables", "refuse_secret_options", "refuse_secret_urls"]

FORWARDED = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "GOOGLE_CLOUD_PROJECT",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "HF_ENDPOINT",
    "TOKENSHARDS_ALLOW_PYTHON",
    *PROFILE_VARIABLES.values(),
)
"""Variables handed on where they are set here; none of them is a secret."""
CREDENTIALS_BELONG = (
    "credentials belong to the nodes (instance role, Kubernetes secret, environment of `ray start`), "
    "or add --forward-credentials to hand on the AWS credentials of this machine"
)
_HARMLESS = [("token", name) for name in ("anon", "browser", "cache", "cloud", "google_default")]
"""Words that gcsfs takes in place of a token."""


def refuse_secret_options(options: Mapping[str, Any], prefix: str = "", *, option: str = "--storage-option") -> None:
    """Raise ConfigError where a storage option, nested ones included, would hold a secret; the message names it and hides its value."""
    for name, value in options.items():
        full = f"{prefix}{name}"
        if looks_secret(str(name)) and not (value is None or isinstance(value, bool) or (name, value) in _HARMLESS):
            raise ConfigError(f"{option} {full} looks like a secret, and Ray shows the command of a job to everybody; {CREDENTIALS_BELONG}")
        _refuse_secrets_in(value, full, option)


def _refuse_secrets_in(value: Any, full: str, option: str) -> None:
    if isinstance(value, Mapping):
        refuse_secret_options(value, f"{full}.", option=option)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_secrets_in(item, full, option)
    elif isinstance(value, str):
        refuse_secret_urls(f"{option} {full}", [value])


def refuse_secret_urls(what: str, texts: Iterable[str]) -> None:
    """Raise ConfigError where a URL holds a user, a password or a signature; `what` names its place."""
    for text in texts:
        for url in re.findall(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", text):
            location, _, query = url.partition("?")
            secret = [name for name, _ in parse_qsl(query, keep_blank_values=True) if looks_secret(name)]
            if _has_password(location) or secret:
                seen = f"a signed query ({', '.join(secret)})" if secret else "user:password@"
                raise ConfigError(f"{what} is a URL with {seen}, and Ray shows the command of a job to everybody; {CREDENTIALS_BELONG}")


def _has_password(location: str) -> bool:
    user, at, _ = location.partition("://")[2].partition("/")[0].rpartition("@")
    if at and urlsplit(location).scheme in ("abfs", "abfss", "wasb", "wasbs"):
        return ":" in user  # there it is container@account
    return has_credentials(location)


def forwarded_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the allow-list that are set. Raises ConfigError where one holds a URL with a password."""
    found = {name: environ[name] for name in FORWARDED if environ.get(name)}
    for name, value in found.items():
        refuse_secret_urls(name, [value])
    return found


def credentials(profile: str | None = None) -> dict[str, str]:
    """Return the AWS credentials of this machine as variables, from where botocore finds them; of a named profile its region too.

    Raises ConfigError where there are none.
    """
    import botocore.exceptions
    import botocore.session

    try:
        session = botocore.session.Session(profile=profile)
        found = session.get_credentials()
        frozen = None if found is None else found.get_frozen_credentials()
        region = session.get_config_variable("region") if profile else None
    except botocore.exceptions.BotoCoreError as error:
        raise ConfigError(f"--forward-credentials: the AWS credentials of this machine cannot be had ({error})") from None
    if frozen is None or not frozen.access_key or not frozen.secret_key:
        raise ConfigError(
            "--forward-credentials: this machine has no AWS credentials; expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    pairs = {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key, "AWS_SESSION_TOKEN": frozen.token}
    return {name: value for name, value in {**pairs, "AWS_DEFAULT_REGION": region}.items() if value}
