"""Sealed tensors: a damaged or foreign header is one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tokenshards.pipeline.errors import CorruptObjectError, FormatVersionError
from tokenshards.pipeline.storage.tensor_file import parse_tensors


@pytest.mark.parametrize(
    ("header", "error"),
    [({"version": 1}, CorruptObjectError), ([], CorruptObjectError), ({"version": 2}, FormatVersionError)],
)
def test_a_header_that_is_not_ours(header: Any, error: type[Exception]) -> None:
    data = save({"a": torch.zeros(1)}, {"tokenshards.checkpoint": json.dumps(header)})
    with pytest.raises(error, match="run/checkpoint"):
        parse_tensors(data, "run/checkpoint")
