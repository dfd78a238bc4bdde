"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.curves.byte_sizes import byte_text, bytes_of, sizes_of


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0.1MB", 100_000), ("300kB", 300_000), ("1_000_000", 1_000_000), ("1GB", 10**9), (" 2 gib ", 2 << 30), ("1.5KiB", 1536),
        (".5 MB", 500_000), ("7B", 7), ("12", 12), ("0.3MB", 300_000), ("1TB", 10**12),
    ],
)  # fmt: skip
def test_a_text_is_so_many_bytes(text: str, count: int) -> None:
    assert bytes_of("--bytes", text) == count


@pytest.mark.parametrize("text", ["", "5 apples", "0", "0.1", "-3kB", "1e6", "1,5", "kB", "1 k", "1..5MB", "inf"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--bytes has .*; expected sizes of at least a byte with commas between them, such as 300kB"):
        bytes_of("--bytes", text)


def test_an_option_has_each_size_once_the_smallest_first() -> None:
    assert sizes_of("--bytes", ["1MB,300kB", "0.3MB, 5"]) == (5, 300_000, 1_000_000)


@given(st.integers(1, 10**13))
def test_a_size_that_is_shown_is_read_back_to_four_digits(count: int) -> None:
    assert bytes_of("--bytes", byte_text(count).replace(",", "")) == pytest.approx(count, rel=1e-3)


def test_sizes_are_shown_with_the_largest_unit() -> None:
    assert [byte_text(count) for count in (5, 999, 1000, 300_000, 1_048_576, 2 * 10**9)] == [
        "5 B",
        "999 B",
        "1 kB",
        "300 kB",
        "1.049 MB",
        "2 GB",
    ]
