"""What a plan records of the source's options, and which of them make it a plan of a newer format."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from tokenshards.pipeline.config import SHAPING_FIELDS, ImageRules, SourceConfig, UrlLimits
from tokenshards.pipeline.mask_rules import MaskRules
from tokenshards.pipeline.planning.plan import plan_version

OF_1_0 = {"all_files", "image_column", "id_column", "label", "no_labels", "meta", "tars_per_shard", "rules"}
"""As the golden plans of version 1.0 have them."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"all_files": True, "image_column": "i", "id_column": "n", "label": "l", "meta": ("a", "b"), "tars_per_shard": 3},
        {"no_labels": True, "rules": 1},
        {"tar_key": "first-dot", "image_rules": ImageRules(sixteen_bit="high-byte")},
        {
            "storage_options": {"key": "secret"},
            "allow_private_hosts": True,
            "unreadable": "stop",
            "urls": UrlLimits(attempts=9),
            "yes": True,
        },
    ],
)
def test_what_reads_as_version_1_0_does_is_a_plan_of_1_0(options: dict[str, Any]) -> None:
    config = SourceConfig(**options)
    assert not config.beyond_format_1_0 and plan_version(config, newer_inputs=False) == "1.0"
    assert plan_version(config, newer_inputs=True) == "1.1"
    assert set(config.planned()) - OF_1_0 == options.keys() & {"tar_key", "image_rules"}, "a settled rule is recorded all the same"
    assert "secret" not in str(config.planned())


def newer_values() -> dict[str, Any]:
    """Return a value that is not the usual one for every planned field that 1.0 does not know."""
    samples: dict[str, Any] = {
        "tar_key": "last-dot",
        "image_rules": ImageRules(accept_truncated=True),
        "mask_rules": MaskRules(mask_column="m"),
    }
    found = {}
    for part in fields(SourceConfig):
        if part.name in SHAPING_FIELDS - OF_1_0:
            usual = getattr(SourceConfig(), part.name)
            found[part.name] = samples.get(part.name, True if isinstance(usual, bool) else "x")
    return found


@pytest.mark.parametrize(("name", "value"), newer_values().items())
def test_each_newer_option_makes_a_plan_of_a_newer_version(name: str, value: Any) -> None:
    config = SourceConfig(**{name: value})
    assert config.beyond_format_1_0 and plan_version(config, newer_inputs=False) == ("1.3" if name == "mask_rules" else "1.1")
    assert set(config.planned()) == {*OF_1_0, name}
    back = SourceConfig(yes=True, storage_options={"key": "k"}, label_from="parent", split="test").with_planned(config.planned())
    kept = replace(config, yes=True, storage_options={"key": "k"}, frozen=True)
    assert back == kept, "what the plan leaves out has its default, not what was asked"


@pytest.mark.parametrize("rule", [{"max_pixels": 9}, {"accept_truncated": True}, {"sixteen_bit": "scale"}])
def test_each_newer_rule_for_images_makes_a_plan_of_1_1(rule: dict[str, Any]) -> None:
    config = SourceConfig(image_rules=ImageRules(**rule))
    assert config.beyond_format_1_0
    planned = config.planned()
    planned["image_rules"] = {**planned["image_rules"], "of_a_newer_minor": 1}
    assert SourceConfig().with_planned(planned).image_rules == config.image_rules


def test_a_codec_that_older_versions_lack_makes_a_plan_of_1_2() -> None:
    config = SourceConfig()
    assert plan_version(config, newer_inputs=True, codec=f"compact:{'0' * 64}") == "1.2"
    assert plan_version(config, newer_inputs=False, codec="publish") == "1.0"
