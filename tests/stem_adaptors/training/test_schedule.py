"""The learning rate: rises, falls, and needs nothing but the step."""

from __future__ import annotations

import math

import pytest

from tokenshards.stem_adaptors.training.schedule import learning_rate

SETTINGS = {"total_steps": 100, "warmup_steps": 10, "peak": 1.0, "floor": 0.1}


def test_it_rises_in_equal_steps_to_the_peak() -> None:
    rates = [learning_rate(step, **SETTINGS) for step in range(10)]
    assert rates == pytest.approx([0.1 * (step + 1) for step in range(10)])


def test_it_falls_along_half_a_cosine() -> None:
    rates = [learning_rate(step, **SETTINGS) for step in range(10, 100)]
    assert rates == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * step / 90)) for step in range(90)])
    assert rates[0] == 1.0
    assert all(late < early for early, late in zip(rates, rates[1:], strict=False))


def test_it_ends_at_the_floor_and_stays_there() -> None:
    assert learning_rate(100, **SETTINGS) == pytest.approx(0.1)
    assert learning_rate(1000, **SETTINGS) == pytest.approx(0.1)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, total_steps=5, warmup_steps=0, peak=0.3, floor=0.0) == pytest.approx(0.3)
