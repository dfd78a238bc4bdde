"""Ids of the codec `compact`, decoded on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.pipeline.shards.compact.models import random_model
from tests.pipeline.shards.samples import LAYOUTS, make_spec, make_tokens
from tokenshards.pipeline.shards.compact.rows import decode_batch, encode_batch


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("vocabulary", [2, 391])
def test_ids_are_those_of_the_cpu(device: torch.device, name: str, vocabulary: int) -> None:
    spec = make_spec(name, vocabulary)
    model, tokens = random_model(spec, seed=3, hidden=32), make_tokens(spec, 300, seed=3)
    sizes = tokens.lengths_B if tokens.shapes_BD is None else tokens.shapes_BD
    streams = encode_batch(model, tokens, spec)
    found = decode_batch(model, streams, spec, sizes, device=str(device))
    np.testing.assert_array_equal(found, tokens.ids_BLQ)
    streams[7] = streams[7][:-2] + bytes([streams[7][-2] ^ 4, streams[7][-1]])
    with pytest.raises(ValueError, match="row 7: its stream does not end as one"):
        decode_batch(model, streams, spec, sizes, device=str(device))
