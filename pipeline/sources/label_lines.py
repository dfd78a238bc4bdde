"""Lists of labels whose lines begin with the name of an image: `001.jpg 3`, or with more words, as many benchmarks have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["KEY_NAMES", "WordLines", "word_lines"]

KEY_NAMES = tuple(
    "file_name filename file image_path img_path filepath path image image_name img image_id imageid img_id key id name image_file fname "
    "url image_url".split()
)
"""Usual names of the column that names the images."""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")


@dataclass(frozen=True, slots=True)
class WordLines:
    """The lines of a list as cells; the first cell names an image."""

    names: tuple[str, ...]
    rows: list[list[str]]
    label: str | None
    """The column that is plainly the label; None if an option must name it."""
    note: str = ""


def word_lines(lines: Iterable[str], asked_label: str | None) -> WordLines | None:
    """Return the cells of lines that begin with a name each; None if they do not, as in a list of labels in the order of the images.

    Lines of comments (`#`), a first line that holds a number alone, and a line of column names are no rows. Where words other than numbers
    follow the name, all of them together are the label, unless `asked_label` names one of the columns.
    """
    words = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if len(words) > 2 and len(words[0]) == 1 and words[0][0].isdigit() and len(words[1]) > 1:
        words = words[1:]
    header = _header(words)
    rows = words[1:] if header else words
    if len(rows) < 2 or min(map(len, rows)) < 2 or len({row[0] for row in rows}) < len(rows):
        return None
    count = len(rows[0])
    equal = all(len(row) == count for row in rows)
    names = header or tuple(str(number) for number in range(1, count + 1))
    if equal and (count == 2 or header or asked_label in names):
        return WordLines(names, rows, names[1] if count == 2 else None)
    if equal and all(_NUMBER.fullmatch(word) for row in rows for word in row[1:]):
        return WordLines(names, rows, names[1], f"its lines hold {count} words: the label is the second; --label 3 takes the next")
    joined = [[row[0], " ".join(row[1:])] for row in rows]
    another = "; --label 2 takes one word" if equal else ""
    return WordLines(("1", "2"), joined, "2", f"the label is all that follows the name in its lines, such as {joined[0][1]!r}{another}")


def _header(words: list[list[str]]) -> tuple[str, ...]:
    """Return the names of the columns if the first line holds them: one fewer than its cells, or with a usual name of the first."""
    if len(words) < 3:
        return ()
    first, count = words[0], len(words[1])
    if len(first) == count - 1 > 1 and len(words[2]) == count:
        return ("name", *first)
    return tuple(first) if len(first) == count and first[0].lower() in KEY_NAMES else ()
