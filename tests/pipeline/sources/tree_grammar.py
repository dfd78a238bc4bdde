"""Random inputs, and what the rules of pipeline/README.md say about each of their images. Nothing here uses the product's own rules.

A tree is written with Python's own tools. It keeps what it expects: (id, bytes, label) of each row, (id, reason) of each quarantined
input, how many inputs are absent, and how many files each stated rule leaves out. Every image has bytes of its own, so a test needs no
ids to tell which one became of it.
"""

from __future__ import annotations

import os
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from tests.pipeline.sources.zoo import encoded

_T = TypeVar("_T")

Stated = tuple[int | None, str] | None
"""A label as a whole number, if it is one, and as text; None is no label."""

WORDS = [
    "cat",
    "Dog",
    "owl",
    "red fox",
    "x-y_z",
    "v1.0",
    "Zebra",
    "日本",
    "it's",
    "50%",
    "nfc-é",
    unicodedata.normalize("NFD", "nfd-ü"),
    "n01",
]
"""Names of folders and classes; none is that of a split, of a shard, or of any images."""
JUNK = [
    (".hidden{n}.png", "hidden"),
    (".git/{n}.png", "hidden"),
    ("._{n}.png", "AppleDouble"),
    ("__MACOSX/a/{n}.png", "of the system"),
    ("@eaDir/{n}.jpg", "of the system"),
    ("Thumbs.db", "of the system"),
]
"""Names of what systems leave beside data, and the rule that leaves it out."""
RULES = {
    "hidden": "hidden",
    "AppleDouble": "AppleDouble",
    "of the system": "of the system",
    "further images": "further images",
    "a device": "device",
    "an archive inside an archive": "nested",
    "an archive inside that": "unread archive",
    "links to folders": "links",
    "of another split": "another split",
    "tars without images": "tars without images",
}
"""How the names of rules begin, as a person reads them."""


@dataclass
class Tree:
    """One input and what to expect of it."""

    root: Path
    random: random.Random
    form: str = ""
    named: str = ""
    """The file or pattern below the root that is given to the program; empty for the root itself."""
    options: dict[str, Any] = field(default_factory=dict)
    stops: str = ""
    """What the refusal must name if the input is given without `settles`."""
    settles: tuple[str, ...] = ()
    """The options that settle a grave doubt or a refusal."""
    never: bool = False
    """Whether no option helps: the input has to be changed, as the refusal says."""
    says: list[str] = field(default_factory=list)
    """What has to be among the lines that are printed."""
    rows: list[tuple[str, bytes, Stated]] = field(default_factory=list)
    pool: list[Stated] = field(default_factory=list)
    """Further labels that decide with those of the rows whether all are whole numbers."""
    bad: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: dict[bytes, str] = field(default_factory=dict)
    """The reason for which an image cannot be decoded."""
    absent: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Files beside the inputs, or rows."""
    members_left_out: Counter[str] = field(default_factory=Counter)
    made: int = 0

    local: bool = False
    """Whether what is stated holds on a local disk only."""
    store: str = ""
    """URL of a store that holds the tree; empty for a local disk."""

    @property
    def url(self) -> str:
        """What the program is given."""
        root = self.store or str(self.root)
        return f"{root}/{self.named}" if self.named else root

    def one(self, values: Sequence[_T]) -> _T:
        """Return one of the values."""
        return values[self.random.randrange(len(values))]

    def chance(self, share: float) -> bool:
        """Return True with this probability."""
        return self.random.random() < share

    def number(self) -> int:
        """Return a number that no name of this tree has."""
        self.made += 1
        return self.made

    def image(self, kind: str = "", *, broken: float = 0.0) -> bytes:
        """Return an image that no other image of the tree equals; with probability `broken` it cannot be decoded."""
        number = self.number()
        if self.chance(broken):
            data, reason = self.one(
                [
                    (f"<html>404 {number}</html>".encode(), "not_an_image"),
                    (self.image("PNG")[:-40], "truncated"),
                ]
            )
            self.broken[data] = reason
            return data
        side = self.random.randint(8, 12)
        pixels = number.to_bytes(3, "big") + self.random.randbytes(3 * side * side - 3)
        image = Image.frombytes("RGB", (side, side), pixels)
        return encoded(image, kind or self.one(["PNG", "PNG", "BMP", "JPEG"]))

    def extension(self) -> str:
        """Return the extension of an image in any case; it need not fit the bytes."""
        return self.one(["png", "jpg", "jpeg", "bmp", "PNG", "Jpg", "JPEG", "webp"])

    def expect(self, sample_id: str, data: bytes, label: Stated = None) -> None:
        """Expect a row, or a quarantined input if the image cannot be decoded."""
        if data in self.broken:
            self.bad[sample_id, self.broken[data]] += 1
            self.pool.append(label)
        else:
            self.rows.append((sample_id, data, label))

    def expected_rows(self) -> Counter[tuple[str, bytes, str]]:
        """Return (id, bytes, label) of all rows. Labels are whole numbers if all of them are, else text."""
        known = [label for label in (*self.pool, *(label for *_, label in self.rows)) if label is not None]
        whole = all(label[0] is not None for label in known) and not self.options.get("as_text")
        return Counter(
            (sample_id, data, repr(None if label is None else label[0] if whole else label[1])) for sample_id, data, label in self.rows
        )

    def write(self, name: str, data: bytes) -> str:
        """Write a file below the root and return its name."""
        path = os.path.join(os.fsencode(self.root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        return name

    def junk(self, most: int = 3) -> list[tuple[str, str]]:
        """Return a few names of junk, each once, with their rules."""
        chosen = [self.one(JUNK) for _ in range(self.random.randrange(most + 1))]
        return list({name.format(n=self.number()): rule for name, rule in chosen}.items())

    def write_junk(self) -> None:
        """Write junk that holds images, beside the data."""
        for name, rule in self.junk():
            self.write(name, self.image())
            self.left_out[rule] += 1

    def folder(self, depth: int = 3) -> str:
        """Return a random path of folders with its last slash, or nothing."""
        return "".join(f"{self.one(WORDS)}/" for _ in range(self.random.randrange(depth + 1)))


def text(value: str) -> Stated:
    """Return a label that is text."""
    return None, value


def whole(value: int) -> Stated:
    """Return a label that is a whole number."""
    return value, str(value)


def rule_of(kind: str) -> str:
    """Return the short name of a rule that left something out."""
    return next((short for begins, short in RULES.items() if kind.startswith(begins)), kind)


Maker = Callable[[Tree], None]
