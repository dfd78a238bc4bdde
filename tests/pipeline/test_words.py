"""A number and its noun agree wherever a sentence counts something."""

from __future__ import annotations

import pytest

from tokenshards.pipeline.words import counted


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, ("input",), "0 inputs"),
        (1, ("input",), "1 input"),
        (2000, ("input",), "2,000 inputs"),
        (1, ("class",), "1 class"),
        (2, ("class",), "2 classes"),
        (1, ("row has", "rows have"), "1 row has"),
        (2, ("row has", "rows have"), "2 rows have"),
    ],
)
def test_a_count_and_its_noun_agree(count: int, words: tuple[str, ...], text: str) -> None:
    assert counted(count, *words) == text
