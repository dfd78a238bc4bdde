"""How many images a budget holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshards.pipeline.config import RunConfig
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.curves.curve_config import CurveRequest, Stock


@given(bytes_=st.integers(1, 10**9), images=st.integers(1, 10**5), budget=st.integers(1, 10**10), data=st.data())
def test_a_budget_holds_as_many_images_of_mean_bytes_as_fit(bytes_: int, images: int, budget: int, data: st.DataObject) -> None:
    labelled = data.draw(st.integers(1, images))
    stock = Stock(bytes=bytes_, images=images, labelled=labelled)
    held = stock.fitting(budget)
    assert held <= labelled and held * bytes_ <= budget * images
    assert held == labelled or (held + 1) * bytes_ > budget * images, "one more would not fit"
    least = stock.budget_for(labelled)
    assert stock.fitting(least) == labelled and (least == 1 or stock.fitting(least - 1) < labelled)


def test_a_budget_that_is_too_small_names_the_smallest() -> None:
    stock = Stock(bytes=1005, images=10, labelled=10)
    stock.require_room("--bytes", (302, 5000), 3, "one of each of 3 classes")
    with pytest.raises(ConfigError) as told:
        stock.require_room("--bytes", (301, 5000), 3, "one of each of 3 classes")
    assert str(told.value) == (
        "--bytes has 301 bytes, room for 2 images of 100.5 bytes; expected room for one of each of 3 classes. Give at least 302 bytes"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": ()}, "--bytes is 'missing'; expected sizes such as 300kB,1MB"),
        ({"choice": "first"}, "--choice is 'first'; expected stratified or random"),
        ({"minutes": 0.0}, "--minutes is 0.0; expected more than 0"),
        ({"minutes": float("inf")}, "--minutes is inf; expected more than 0"),
        ({"seeds": 0}, "--seeds is 0; expected 1 to 100"),
        ({"device": "tpu"}, "--device is 'tpu'; expected cpu, cuda, or cuda:NUMBER"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"data_url": "data", "val_url": "val", "budgets": (9,), "out_url": "out", "run": RunConfig()}
    with pytest.raises(ConfigError) as told:
        CurveRequest(**{**good, **changes})  # type: ignore[arg-type]
    assert str(told.value) == message
