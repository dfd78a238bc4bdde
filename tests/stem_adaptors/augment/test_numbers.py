"""All numbers of a step at once are those of `SampleKeys`, one stream at a time."""

from __future__ import annotations

import pytest
import torch

from tests.stem_adaptors.augment.layouts import keys_of
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.augment.keys import SampleKeys, digest_halves
from tokenshards.stem_adaptors.augment.numbers import Draw, DrawnNumbers, DrawPlan

DRAWS = [
    Draw("noise.value", "normal", 301),
    Draw("eda"),
    Draw("crop.y", "integers"),
    Draw("noise.channel", "normal", 5),
    Draw("crop.box", "uniform", 20),
    Draw("swap.corners", "integers", 40),
    Draw("dropout", "uniform", 100),
]


def drawn(keys: SampleKeys, few: int | None) -> DrawnNumbers:
    epoch_21 = digest_halves(f"{keys.seed} {keys.epoch}", torch.device("cpu"))
    found: DrawnNumbers = DrawPlan(DRAWS, few=few)(epoch_21, keys.positions_B)
    return found


@pytest.mark.parametrize("few", [None, 64, 0])
@pytest.mark.parametrize("seed", [0, 2**63])
def test_numbers_are_bit_for_bit_those_of_the_keys(few: int | None, seed: int) -> None:
    keys = keys_of(9, start=(1 << 32) - 4, seed=seed, epoch=7)  # positions on both sides of 32 bits
    whole = drawn(keys, few)
    order = torch.tensor([7, 2, 2, 8])
    rows = [(whole, keys), (whole[2:6], keys[2:6]), (whole[order], keys[order]), (whole[3:9][order[1:3]], keys[3:9][order[1:3]])]
    for found, expected in rows:
        assert len(found) == len(expected)
        for draw in DRAWS:
            for count in {1, draw.count, max(1, draw.count - 3)}:  # a ragged batch asks for fewer
                if draw.kind == "integers":
                    high = torch.arange(1, count + 1)
                    assert torch.equal(found.integers(draw.name, 1000, count), expected.integers(draw.name, 1000, count))
                    assert torch.equal(found.integers(draw.name, high, count), expected.integers(draw.name, high, count))
                else:
                    assert torch.equal(getattr(found, draw.kind)(draw.name, count), getattr(expected, draw.kind)(draw.name, count))


def test_a_compiler_gets_the_same_halves_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_of(3)
    expected = drawn(keys, None).normal("noise.value", 301)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(drawn(keys, None).normal("noise.value", 301), expected)


def test_a_number_that_nobody_declared_is_refused() -> None:
    with pytest.raises(ConfigError, match="draws 'other', which it has not declared; expected one of .*eda.*noise.value"):
        drawn(keys_of(2), 64).uniform("other")
