"""Another process gets an error whole."""

from __future__ import annotations

import pickle

import pytest

from tokenshards.pipeline import errors
from tokenshards.pipeline.errors import Reason


@pytest.mark.parametrize(
    "error",
    [
        errors.BadInput(Reason.DNS, "no such host", errors.Stage.FETCH),
        errors.CorruptObjectError("manifest.json", "not JSON"),
        errors.MissingObjectError("a.jpg", place="s3://bucket/a.jpg"),
        errors.TransientStorageError("it does not answer", advice="Wait"),
        errors.UnreadableObjectError("it is archived", reason=Reason.DNS, objects=("a", "b")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_another_process_gets_an_error_whole(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
