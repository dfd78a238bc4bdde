"""Everything this package raises on purpose.

    TokenshardsError                what the CLI prints as one message, without a traceback
    ├── ConfigError                 an option or a field of a config has a value it cannot have
    ├── SourceError                 the input location cannot be listed, or nothing in it matched
    ├── TokenizerError              a tokenizer directory, spec or codebook cannot be used
    ├── PlanError                   the plan is missing, damaged, or differs from what was asked
    ├── FormatError                 an object of a dataset cannot be read
    │   ├── FormatVersionError      written by a newer major version of the format
    │   ├── FingerprintMismatchError  two tokenizers would be mixed
    │   └── CorruptObjectError      bytes are not what their checksum or schema promises
    ├── MissingObjectError          an object that must exist does not
    ├── TransientStorageError       a store failed for a while; the retry budget is used up
    │   ├── StoreAccessError        no such bucket, or no credentials: no retry will mend it, and nothing is quarantined for it
    │   ├── DiskFullError           there is no room for what must be written
    │   └── UnreadableObjectError   one object cannot be read, although its store answers for others
    ├── ClusterError                a Ray cluster cannot be reached, refuses us, cannot run our code, or lost the job
    ├── LiveRunError                another driver works on the same dataset
    ├── IncompleteError             the job ended, but inputs are neither committed nor quarantined
    ├── TooManyBadInputsError       the share of permanent failures passed --max-bad
    └── TrainingError               a training cannot go on: its loss is no longer a number

    BadInput                        one input failed for good; it becomes a quarantine row, never an abort

Every message says what failed, the value seen, the value expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

__all__ = [
    "BadInput",
    "ClusterError",
    "ConfigError",
    "CorruptObjectError",
    "DiskFullError",
    "FingerprintMismatchError",
    "FormatError",
    "FormatVersionError",
    "IncompleteError",
    "LiveRunError",
    "MissingObjectError",
    "PlanError",
    "Reason",
    "SourceError",
    "Stage",
    "StoreAccessError",
    "TokenizerError",
    "TokenshardsError",
    "TooManyBadInputsError",
    "TrainingError",
    "TransientStorageError",
    "UnreadableObjectError",
    "describe_unreadable",
    "install_hint",
    "require",
    "shorten",
]


def shorten(value: object, limit: int = 120) -> str:
    """Return repr(value), cut to `limit` characters, so that messages stay one screen long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def install_hint(extra: str = "") -> str:
    """Return the command that adds the packages of an extra: with the folder of a checkout; else by name, which an installed wheel answers.

    No package index has tokenshards. Of a package that is installed already, pip installs what an extra adds, and looks for nothing else.
    """
    root, extras = Path(__file__).resolve().parents[1], f"[{extra}]" if extra else ""
    if (root / "pyproject.toml").exists():
        return f"pip install -e '{root}{extras}'"
    return f"pip install 'tokenshards{extras}'"


class TokenshardsError(Exception):
    """Base of every error a user can cause or meet."""

    exit_code = 1
    hint = ""
    """What to do about it, where that is the same for all errors of a kind."""


class ConfigError(TokenshardsError, ValueError):
    """An option has a value it cannot have."""

    exit_code = 2


class SourceError(TokenshardsError):
    """The input location cannot be listed, or nothing in it matched."""


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise ConfigError with the value seen and the value expected unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name} is {shorten(value)}; expected {expected}")


class TokenizerError(TokenshardsError):
    """A tokenizer directory, spec or codebook cannot be used."""


class PlanError(TokenshardsError):
    """The plan is missing, damaged, or differs from what was asked."""


class FormatError(TokenshardsError):
    """An object of a dataset cannot be read."""


class FormatVersionError(FormatError):
    """The object was written by a newer major version of the format."""


class FingerprintMismatchError(FormatError):
    """Two different tokenizers would be mixed."""


class CorruptObjectError(FormatError):
    """The bytes of an object are not what its checksum or schema promises.

    Attributes: `object_path` relative to the dataset root, `detail` what was seen and expected.
    """

    hint = "`tokenshards verify OUT` names everything that is damaged, `tokenshards repair OUT` what can be mended"

    def __init__(self, object_path: str, detail: str) -> None:
        super().__init__(f"{object_path}: {detail}")
        self.object_path = object_path
        self.detail = detail


class MissingObjectError(TokenshardsError):
    """An object that must exist does not. Attribute: `object_path`, below the root of its store; `place` is the whole name for people."""

    def __init__(self, object_path: str, detail: str = "the object does not exist", *, place: str = "") -> None:
        super().__init__(f"{place or object_path}: {detail}")
        self.object_path = object_path


class TransientStorageError(TokenshardsError):
    """A store failed and kept failing until the retry budget was used up; nothing is quarantined for this.

    Attribute: `words`, the message without the advice that ends it.
    """

    exit_code = 3

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(f"{message}. {advice}" if advice else message)
        self.words = message


class StoreAccessError(TransientStorageError):
    """A store cannot be used as it was named: no such bucket, no credentials, no such profile; trying again would not help.

    It counts as an outage, because inputs that cannot be reached are not inputs that are bad. Attribute: `bad_name`, the reason for which
    one input whose own URI names this store is bad, None where the name is not what is wrong.
    """

    exit_code = 2

    def __init__(self, message: str, *, bad_name: Reason | None = None) -> None:
        super().__init__(message)
        self.bad_name = bad_name


class DiskFullError(TransientStorageError):
    """There is no room for what must be written; trying again does not make any."""


class UnreadableObjectError(TransientStorageError):
    """Objects cannot be read although their store answers for others, by the rule "Permanent or passing" of SPEC.md section 6.

    Attributes: `reason` under which the input is quarantined where that is allowed, `objects` names them.
    """

    def __init__(self, message: str, *, reason: Reason | None = None, objects: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reason = Reason.UNREADABLE if reason is None else reason
        self.objects = objects

    def __reduce__(self) -> tuple[Any, ...]:
        return _unreadable, (str(self), self.reason, self.objects)


def describe_unreadable(count: int, examples: Sequence[str]) -> str:
    """Return one sentence on objects that cannot be read, and the way out."""
    shown = ", ".join(examples[:3])
    noun, verb = ("object", "its store answers") if count == 1 else ("objects", "their stores answer")
    return (
        f"{count:,} {noun} cannot be read although {verb} for others, such as {shown}. Restore what is archived or give the right to read "
        "it, then run the same command again; or leave it out and quarantine it with --unreadable quarantine"
    )


def _unreadable(message: str, reason: Reason, objects: tuple[str, ...]) -> UnreadableObjectError:
    return UnreadableObjectError(message, reason=reason, objects=objects)


class ClusterError(TokenshardsError):
    """A Ray cluster cannot be reached, refuses us, cannot run our code, or lost the job."""

    exit_code = 3


class LiveRunError(TokenshardsError):
    """Another driver works on the same dataset."""

    exit_code = 4


class IncompleteError(TokenshardsError):
    """The job ended, but some inputs are neither committed nor quarantined; running again continues."""

    exit_code = 3


class TooManyBadInputsError(TokenshardsError):
    """The share of permanently failed inputs passed --max-bad."""

    exit_code = 5


class TrainingError(TokenshardsError):
    """A training cannot go on: its loss is no longer a number."""


class Stage(StrEnum):
    """Where in the work an input failed."""

    FETCH = "fetch"
    DECODE = "decode"
    ENCODE = "encode"


class Reason(StrEnum):
    """Why an input can never become a token row as it is. Only permanent causes are listed."""

    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    TOO_MANY_PIXELS = "too_many_pixels"
    DECOMPRESSION_BOMB = "decompression_bomb"
    UNSUPPORTED_MODE = "unsupported_mode"
    MISSING = "missing"
    NOT_A_FILE = "not_a_file"
    BAD_URI = "bad_uri"
    CHANGED_SINCE_PLAN = "changed_since_plan"
    DUPLICATE_ID = "duplicate_id"
    BAD_LABEL = "bad_label"
    NO_IMAGE = "no_image"
    BAD_CONTAINER = "bad_container"
    KILLED_WORKER = "killed_worker"
    UNREADABLE = "unreadable"
    DNS = "dns"
    REFUSED = "refused"
    HTTP_403 = "http_403"
    TIMEOUT = "timeout"
    TOO_SLOW = "too_slow"
    PRIVATE_HOST = "private_host"


class BadInput(Exception):
    """One input failed for good: raised inside a shard's work and turned into a quarantine row."""

    def __init__(self, reason: Reason, detail: str, stage: Stage = Stage.DECODE) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.stage = stage
