"""Configs: values that cannot be are refused with what was seen and expected; a plan keeps what shapes the shards and no credentials."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tokenshards.pipeline.config import PlanConfig, RayConfig, RetryConfig, RunConfig, SourceConfig
from tokenshards.pipeline.errors import ConfigError


def test_a_plan_keeps_what_shapes_the_shards_and_each_run_brings_its_access() -> None:
    shaping = SourceConfig(id_column="id", label="class", meta=("a", "b"), tars_per_shard=3, rules=1)
    access: dict[str, Any] = {"storage_options": {"key": "hidden"}, "allow_private_hosts": True, "unreadable": "quarantine"}
    planned = json.loads(json.dumps(shaping.planned()))
    assert not planned.keys() & access.keys() and "hidden" not in str(SourceConfig(**access).planned())
    assert SourceConfig(label="other", **access).with_planned(planned) == SourceConfig(
        id_column="id", label="class", meta=("a", "b"), tars_per_shard=3, rules=1, frozen=True, **access
    )
    assert "hidden" not in repr(SourceConfig(**access))


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (SourceConfig, {"no_labels": True, "label": "cls"}, "--label is 'cls'; expected nothing beside --no-labels"),
        (SourceConfig, {"tars_per_shard": 0}, "--tars-per-shard is 0; expected at least 1"),
        (SourceConfig, {"unreadable": "skip"}, "--unreadable is 'skip'; expected stop or quarantine"),
        (PlanConfig, {"shard_rows": 0}, "--shard-rows is 0; expected 1 to 1000000"),
        (PlanConfig, {"batch_rows": 5000}, "batch_rows is 5000; expected 1 to 4096"),
        (PlanConfig, {"views": "many"}, "--views is 'many'; expected one, flip, ten-crop"),
        (RunConfig, {"workers": 0}, "--workers is 0; expected 1 to 1024"),
        (RunConfig, {"max_bad": 1.5}, "--max-bad is 1.5; expected a share from 0 to 1"),
        (RunConfig, {"stall_timeout_seconds": 0.0}, "--stall-timeout is 0.0; expected seconds above 0"),
        (RetryConfig, {"attempts": 0}, "retry attempts is 0; expected at least 1"),
        (RayConfig, {"gpus_per_actor": 1.5}, "--gpus-per-actor is 1.5; expected a share such as 0.5, or a whole number"),
        (RayConfig, {"decode": "there"}, "--decode is 'there'; expected one of auto, local, remote"),
    ],
)
def test_a_value_that_cannot_be_is_refused(make: Callable[..., object], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make(**options)
    assert says in str(refused.value)
