"""Where images are decoded: a table of clusters, each with the decision and the reason."""

from __future__ import annotations

from typing import Any

import pytest

from tokenshards.pipeline.runners.decode_placement import DecodeRates, choose_placement

HUNGRY = {"decode": 400.0, "decode_per_cpu": 100.0, "encode": 2000.0, "network": 5000.0, "idle_cpus": 32, "actors": 2}
"""Two actors whose own four CPUs decode a fifth of the images that the GPUs could encode, beside 32 idle CPUs."""


@pytest.mark.parametrize(
    ("changes", "remote", "says"),
    [
        ({}, True, "32 idle CPUs decode 1,600 images/s for each actor, and the network carries them"),
        ({"decode": 1800.0}, False, "an actor decodes 1,800 and encodes 2,000 images/s, so decoding beside the tokenizer keeps up"),
        ({"decode": 1799.0, "idle_cpus": 400}, True, "the network carries them"),
        ({"idle_cpus": 0}, False, "decoding is the limit, and no CPU is idle. About 40 CPUs in all would feed the encoders"),
        ({"idle_cpus": -3}, False, "no CPU is idle"),
        ({"network": None}, False, "decoding is the limit, but the network could not be measured"),
        ({"network": 300.0}, False, "the network carries only 300 images/s for an actor"),
        ({"network": 450.0}, True, "32 idle CPUs decode 450 images/s for each actor"),
        ({"idle_cpus": 8}, False, "8 idle CPUs would decode only 400 images/s for an actor"),
        ({"idle_cpus": 9}, True, "9 idle CPUs decode 450 images/s"),
        ({"actors": 0}, True, "32 idle CPUs decode 3,200 images/s"),
        ({"decode": 0.0, "decode_per_cpu": 0.0, "idle_cpus": 0}, False, "no CPU is idle"),
        ({"encode": 0.0, "decode": 0.0}, False, "keeps up"),
    ],
)
def test_decisions(changes: dict[str, Any], remote: bool, says: str) -> None:
    placement = choose_placement(DecodeRates(**{**HUNGRY, **changes}))
    assert placement.remote is remote
    assert says in placement.why, placement.why
