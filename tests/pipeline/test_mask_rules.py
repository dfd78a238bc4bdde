"""Options of masks: their values, and what contradicts itself."""

from __future__ import annotations

import pytest

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.mask_rules import MaskRules, parse_values


def test_values_may_be_repeated_and_stand_between_commas() -> None:
    assert parse_values(["0,254", "-1", "0"], ["255=1", "128=2, 7=3"]) == ((-1, 0, 254), ((7, 3), (128, 2), (255, 1)))
    assert parse_values(None, None) == ((), ())


@pytest.mark.parametrize(
    ("ignore", "mapped", "words"),
    [
        (["x"], None, r"--mask-ignore is 'x'; expected a value such as 255"),
        (None, ["255"], r"--mask-map is '255'; expected OLD=NEW, such as 255=1"),
        (None, ["a=1"], r"--mask-map is 'a'; expected OLD=NEW"),
        (None, ["1=2", "1=3"], r"--mask-map gives 1 twice"),
    ],
)
def test_other_texts_are_refused(ignore: list[str] | None, mapped: list[str] | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_values(ignore, mapped)


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--mask-bits is 12; expected 8 or 16"):
        MaskRules(mask_bits=12)
    with pytest.raises(ConfigError, match=r"--mask-map 3= is 255; expected a class number from 0 to 254"):
        MaskRules(mask_bits=8, mask_map=((3, 255),))
    with pytest.raises(ConfigError, match=r"--mask-map and --mask-ignore is \[7\]; expected each value in one of the two"):
        MaskRules(mask_ignore=(7,), mask_map=((7, 1),))
    with pytest.raises(ConfigError, match=r"--mask-suffix is 'a/b'"):
        MaskRules(mask_suffix="a/b")
    with pytest.raises(ConfigError, match=r"--mask-column is 'm'; expected nothing beside --masks"):
        SourceConfig(masks="m", mask_rules=MaskRules(mask_column="m"))
    with pytest.raises(ConfigError, match=r"--mask-bits is 8; expected --masks FOLDER, or --mask-column NAME, beside it"):
        SourceConfig(mask_rules=MaskRules(mask_bits=8))
    with pytest.raises(ConfigError, match=r"--mask-suffix is '_m'; expected --masks FOLDER beside it"):
        SourceConfig(mask_rules=MaskRules(mask_column="m", mask_suffix="_m"))


def test_rules_come_back_from_a_plan_and_ignore_what_they_do_not_know() -> None:
    rules = MaskRules(mask_column="m", mask_ignore=(1,), mask_map=((255, 2),), mask_bits=16)
    assert MaskRules.from_json({**rules.to_json(), "of_1_9": 1}) == rules
    assert MaskRules.from_json({}) == MaskRules() and rules.dtype == "uint16" and MaskRules().dtype == "uint8"
    planned = SourceConfig(mask_rules=rules).planned()
    assert planned["mask_rules"] == rules.to_json() and SourceConfig().with_planned(planned).mask_rules == rules
    assert "mask_rules" not in SourceConfig().planned() and "masks" not in SourceConfig(masks="m").planned()
