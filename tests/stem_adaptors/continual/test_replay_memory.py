"""The memory never takes more than its budget, and what a class has dropped never comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenshards.stem_adaptors.continual.replay_memory import ReplayMemory, quotas
from tokenshards.stem_adaptors.curves.curve_config import Stock


@given(images=st.integers(0, 400), classes=st.integers(1, 60))
def test_quotas_share_all_images_equally_and_never_grow(images: int, classes: int) -> None:
    shares, later = quotas(images, classes), quotas(images, classes + 1)
    assert sum(shares) == images and len(shares) == classes and max(shares) - min(shares) <= 1
    assert list(shares) == sorted(shares, reverse=True), "the first classes have the rest"
    assert all(after <= before for before, after in zip(shares, later, strict=False))


@given(data=st.data(), budget=st.integers(100, 20_000), bytes_=st.integers(1, 90_000), stored=st.integers(1, 300))
def test_the_memory_stays_in_its_budget_and_a_class_keeps_a_prefix(data: st.DataObject, budget: int, bytes_: int, stored: int) -> None:
    """Classes of any size come in groups; bytes are counted at the mean of the data set, as in the table."""
    stock = Stock(bytes=bytes_, images=stored, labelled=stored)
    images, memory, orders = stock.fitting(budget), ReplayMemory(), []
    for group, sizes in enumerate(data.draw(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=4), min_size=1, max_size=6))):
        new = [[f"{group}/{place}/{number}" for number in range(size)] for place, size in enumerate(sizes)]
        before, memory = memory, memory.with_classes(new, images)
        orders += new
        assert memory.images * stock.bytes <= budget * stock.images and memory.images <= images
        assert all(kept == tuple(order[: len(kept)]) for kept, order in zip(memory.ids, orders, strict=True))
        assert all(kept == old[: len(kept)] for kept, old in zip(memory.ids, before.ids, strict=False))
        shares = quotas(images, len(orders))
        assert [len(kept) for kept in memory.ids] == [min(pair) for pair in zip(shares, map(len, orders), strict=True)]
