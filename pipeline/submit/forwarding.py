"""The options and variables that may go with a job. Ray shows a job's command line and environment in job info, logs and process lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.named_code import ALLOW_PYTHON
from tokenshards.pipeline.storage.redaction import has_credentials
from tokenshards.pipeline.storage.side_options import PROFILE_VARIABLES
from tokenshards.pipeline.tokenizers.config import GPU_ROWS

__all__ = ["FORWARDED", "FORWARDED_OPTIONS", "credentials", "forwarded_variables", "refuse_secret_options", "refuse_secret_urls"]

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
    ALLOW_PYTHON,
    GPU_ROWS,
    *PROFILE_VARIABLES.values(),
)
"""Environment variables that go with a job if they are set here; none of them is a secret."""
CREDENTIALS_BELONG = (
    "credentials belong to the nodes (instance role, Kubernetes secret, environment of `ray start`), "
    "or add --forward-credentials to send the AWS credentials of this machine"
)
FORWARDED_OPTIONS = frozenset(
    """
    anon endpoint_url profile requester_pays use_ssl version_aware
    client_kwargs.endpoint_url client_kwargs.region_name client_kwargs.use_ssl client_kwargs.verify
    config_kwargs.connect_timeout config_kwargs.max_pool_connections config_kwargs.read_timeout config_kwargs.signature_version
    config_kwargs.request_checksum_calculation config_kwargs.response_checksum_validation
    config_kwargs.retries.max_attempts config_kwargs.retries.mode config_kwargs.use_dualstack_endpoint config_kwargs.use_fips_endpoint
    config_kwargs.s3.addressing_style config_kwargs.s3.payload_signing_enabled config_kwargs.s3.use_accelerate_endpoint
    s3_additional_kwargs.ACL s3_additional_kwargs.RequestPayer s3_additional_kwargs.SSEKMSKeyId
    s3_additional_kwargs.ServerSideEncryption s3_additional_kwargs.StorageClass
    account_host account_name consistency default_location host port project revision
    """.split()
)
"""Storage options that everybody with access to the cluster may see, with dots for nesting. None of them holds a secret."""
_WORDS_FOR_TOKEN = ("anon", "browser", "cache", "cloud", "google_default")
"""Values of gcsfs's option `token` that are words, not tokens."""
_QUERY = {"dl", "download", "format", "generation", "raw", "ref", "revision", "versionid"}
"""Query parameters of web addresses that are no signature."""


def refuse_secret_options(options: Mapping[str, Any], option: str = "--storage-option", prefix: str = "") -> None:
    """Raise ConfigError for a storage option, also a nested one, that is not in FORWARDED_OPTIONS or whose URL holds a secret.

    The message names the option and hides its value.
    """
    for name, value in options.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            refuse_secret_options(value, option, f"{full}.")
            continue
        if full not in FORWARDED_OPTIONS and (full, value) not in [("token", word) for word in _WORDS_FOR_TOKEN]:
            raise ConfigError(
                f"{option} {full} is not an option that may go with a job: Ray shows the command of a job to everybody, and this may be a "
                f"secret. Expected one of {', '.join(sorted(FORWARDED_OPTIONS))}. Set other options on the nodes, where the store's client "
                f"reads them; {CREDENTIALS_BELONG}"
            )
        for text in value if isinstance(value, list | tuple) else [value]:
            refuse_secret_urls(f"{option} {full}", [str(text)])


def refuse_secret_urls(what: str, texts: Iterable[str]) -> None:
    """Raise ConfigError if a URL holds a user, a password, or a query that may be a signature; `what` names the URL's place."""
    for text in texts:
        for url in re.findall(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", text):
            location, _, query = url.partition("?")
            # In keys of other stores `?` is an ordinary character or a wildcard.
            names = [name for name, _ in parse_qsl(query, keep_blank_values=location.lower().startswith("http"))]
            unknown = any(name.lower() not in _QUERY for name in names)
            if _has_password(location) or unknown:
                seen = f"a query that may sign it, beyond {', '.join(sorted(_QUERY))}" if unknown else "user:password@"
                raise ConfigError(f"{what} is a URL with {seen}, and Ray shows the command of a job to everybody; {CREDENTIALS_BELONG}")


def _has_password(location: str) -> bool:
    user, at, _ = location.partition("://")[2].partition("/")[0].rpartition("@")
    if at and urlsplit(location).scheme in ("abfs", "abfss", "wasb", "wasbs"):
        return ":" in user  # in these schemes it is container@account
    return has_credentials(location)


def forwarded_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of FORWARDED that are set. Raises ConfigError if one holds a URL with a password."""
    found = {name: environ[name] for name in FORWARDED if environ.get(name)}
    for name, value in found.items():
        refuse_secret_urls(name, [value])
    return found


def credentials(profile: str | None = None) -> dict[str, str]:
    """Return the AWS credentials that botocore finds on this machine, as environment variables; for a named profile also its region.

    Raises ConfigError if there are none.
    """
    import botocore.exceptions
    import botocore.session

    try:
        session = botocore.session.Session(profile=profile)
        found = session.get_credentials()
        frozen = None if found is None else found.get_frozen_credentials()
        region = session.get_config_variable("region") if profile else None
    except botocore.exceptions.BotoCoreError as error:
        raise ConfigError(f"--forward-credentials: cannot get the AWS credentials of this machine ({error})") from None
    if frozen is None or not frozen.access_key or not frozen.secret_key:
        raise ConfigError(
            "--forward-credentials: this machine has no AWS credentials; expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    pairs = {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key, "AWS_SESSION_TOKEN": frozen.token}
    return {name: value for name, value in {**pairs, "AWS_DEFAULT_REGION": region}.items() if value}
