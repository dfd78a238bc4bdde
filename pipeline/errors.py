"""Every error that this package raises on purpose.

    TokenshardsError                the CLI prints it as one message, without a traceback
    ├── ConfigError                 an option or a field of a config has an invalid value
    ├── SourceError                 the source is not there, holds no input, or lacks what an option names
    │   └── DoubtError              the input may be meant otherwise than it is understood
    ├── TokenizerError              a tokenizer directory, spec or codebook cannot be used
    ├── PlanError                   the plan is missing or damaged, or another project's import
    ├── FormatError                 an object of a dataset cannot be read
    │   ├── FormatVersionError      a newer major version of the format wrote it
    │   ├── FingerprintMismatchError  two tokenizers would be mixed
    │   │   └── OtherTokenizerError the user named data of another tokenizer
    │   └── CorruptObjectError      the bytes do not match their checksum or schema
    ├── MissingObjectError          an object that must exist does not
    │   └── NotFoundError           what the user named is not there: a dataset, a run, a file, an id
    ├── TransientStorageError       a store kept failing until the retry budget was used up
    │   ├── StoreAccessError        no such bucket, or no credentials: a retry does not help, and nothing is quarantined
    │   ├── DiskFullError           there is no room for the object to write
    │   └── UnreadableObjectError   one object cannot be read, although its store answers for others
    ├── ClusterError                a Ray cluster cannot be reached, refuses us, cannot run our code, or lost the job
    ├── LiveRunError                another driver works on the same dataset
    ├── IncompleteError             the job ended, but inputs are neither committed nor quarantined
    ├── TooManyBadInputsError       the share of permanent failures passed --max-bad
    ├── TrainingError               a training cannot continue: its loss is not a number
    └── StoppedError                a signal ended a training, after a checkpoint

    BadInput                        one input failed permanently; it becomes a quarantine row and never stops the run

Every message says what failed, the value seen, the value expected, and what to do. The exit code is 2 where what was given must change.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

__all__ = [
    "BadInput",
    "ClusterError",
    "ConfigError",
    "CorruptObjectError",
    "DiskFullError",
    "DoubtError",
    "FingerprintMismatchError",
    "FormatError",
    "FormatVersionError",
    "IncompleteError",
    "LiveRunError",
    "MissingObjectError",
    "NotFoundError",
    "OtherTokenizerError",
    "PlanError",
    "Reason",
    "SourceError",
    "Stage",
    "StoppedError",
    "StoreAccessError",
    "TokenizerError",
    "TokenshardsError",
    "TooManyBadInputsError",
    "TrainingError",
    "TransientStorageError",
    "UnreadableObjectError",
    "require",
    "shorten",
]


def shorten(value: object, limit: int = 120) -> str:
    """Return repr(value), cut to `limit` characters, so that messages stay one screen long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _rebuilt(kind: type[BaseException], args: tuple[object, ...], attributes: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class _Whole(Exception):
    """An error that another process gets whole. By default Python calls the class with the message alone, which most of ours refuse."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__)


class TokenshardsError(_Whole):
    """Base of every error that a user can see."""

    exit_code = 1
    hint = ""
    """What the user should do, if that is the same for all errors of this class."""


class ConfigError(TokenshardsError, ValueError):
    """An option or a field of a config has an invalid value."""

    exit_code = 2


class SourceError(TokenshardsError):
    """The source cannot be read as asked: it is not there, holds no input, or lacks what an option names."""

    exit_code = 2


class DoubtError(SourceError):
    """The input may be meant otherwise than it is understood. Attribute: `understood`, the summary of the listing in JSON types."""

    def __init__(self, message: str, *, understood: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.understood = understood or {}


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise ConfigError with the value seen and the value expected unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name} is {shorten(value)}; expected {expected}")


class TokenizerError(TokenshardsError):
    """A tokenizer directory, spec or codebook cannot be used."""

    exit_code = 2


class PlanError(TokenshardsError):
    """The plan is missing or damaged, or is that of an import."""


class FormatError(TokenshardsError):
    """An object of a dataset cannot be read."""


class FormatVersionError(FormatError):
    """A newer major version of the format wrote the object."""


class FingerprintMismatchError(FormatError):
    """Two different tokenizers would be mixed."""


class OtherTokenizerError(FingerprintMismatchError):
    """What the user named together was made by different tokenizers. A shard of another tokenizer within a dataset is damage instead."""

    exit_code = 2


class CorruptObjectError(FormatError):
    """The bytes of an object do not match their checksum or schema.

    Attributes: `object_path` relative to the dataset root; `detail`, what was seen and what was expected.
    """

    hint = "`tokenshards verify OUT` lists every damaged object; `tokenshards repair OUT` shows which of them can be repaired"

    def __init__(self, object_path: str, detail: str) -> None:
        super().__init__(f"{object_path}: {detail}")
        self.object_path = object_path
        self.detail = detail


class MissingObjectError(TokenshardsError):
    """An object that must exist does not. Attribute: `object_path` below the root of its store. `place` is the full name in the message."""

    def __init__(self, object_path: str, detail: str = "the object does not exist", *, place: str = "") -> None:
        super().__init__(f"{place or object_path}: {detail}")
        self.object_path = object_path


class NotFoundError(MissingObjectError):
    """What the user named is not there: a dataset, a run, a file, an id. A missing object of a dataset is damage instead."""

    exit_code = 2


class TransientStorageError(TokenshardsError):
    """A store kept failing until the retry budget was used up; no input is quarantined because of it.

    Attribute: `words`, the message without the advice at its end.
    """

    exit_code = 3

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(f"{message}. {advice}" if advice else message)
        self.words = message


class StoreAccessError(TransientStorageError):
    """A store cannot be used as configured: no such bucket, no credentials, no such profile. A retry does not help, yet it counts as an
    outage: an input out of reach is no bad input. Attribute: `bad_name`, the quarantine reason where the input's own URI is the cause."""

    exit_code = 2

    def __init__(self, message: str, *, bad_name: Reason | None = None) -> None:
        super().__init__(message)
        self.bad_name = bad_name


class DiskFullError(TransientStorageError):
    """There is no room for the object to write; a retry does not help."""


class UnreadableObjectError(TransientStorageError):
    """Objects cannot be read although their store answers for others (rule "Permanent or passing" of SPEC.md section 6).

    Attributes: `reason`, the quarantine reason if the run may quarantine the input; `objects`, the names of the objects.
    """

    def __init__(self, message: str, *, reason: Reason | None = None, objects: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reason = Reason.UNREADABLE if reason is None else reason
        self.objects = objects


class ClusterError(TokenshardsError):
    """A Ray cluster cannot be reached, refuses us, cannot run our code, or lost the job."""

    exit_code = 3


class LiveRunError(TokenshardsError):
    """Another driver works on the same dataset."""

    exit_code = 4


class IncompleteError(TokenshardsError):
    """The job ended, but some inputs are neither committed nor quarantined; the same command continues the job."""

    exit_code = 3


class TooManyBadInputsError(TokenshardsError):
    """The share of permanently failed inputs passed --max-bad."""

    exit_code = 5


class TrainingError(TokenshardsError):
    """A training cannot continue: its loss is not a number."""


class StoppedError(TokenshardsError):
    """A signal ended a training, after a checkpoint; the same call with `resume` continues it. `exit_code` is 128 + the signal."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stage(StrEnum):
    """The stage of the work in which an input failed."""

    FETCH = "fetch"
    DECODE = "decode"
    ENCODE = "encode"


class Reason(StrEnum):
    """Why an input, unchanged, can never become a token row. Only permanent causes are listed."""

    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    TOO_MANY_PIXELS = "too_many_pixels"
    DECOMPRESSION_BOMB = "decompression_bomb"
    UNSUPPORTED_MODE = "unsupported_mode"
    NO_DECODER = "no_decoder"
    MISSING = "missing"
    NOT_A_FILE = "not_a_file"
    BAD_URI = "bad_uri"
    CHANGED_SINCE_PLAN = "changed_since_plan"
    DUPLICATE_ID = "duplicate_id"
    BAD_LABEL = "bad_label"
    BAD_MASK = "bad_mask"
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


class BadInput(_Whole):
    """One input failed permanently; the shard's job turns this error into a quarantine row."""

    def __init__(self, reason: Reason, detail: str, stage: Stage = Stage.DECODE) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.stage = stage
