"""Which masks belong to the images of a source, and what their values mean. A plan records it. Standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenshards.pipeline.canonical import known_fields
from tokenshards.pipeline.errors import ConfigError, require, shorten

__all__ = ["MaskRules", "parse_values"]

BITS = (8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRules:
    """The planned options of masks; the place of a folder of masks is an option of each run, as that of the source is."""

    mask_column: str | None = None
    """Table column, or suffix of the member of a tar, that holds the mask of an image."""
    mask_suffix: str = ""
    """What the name of a mask has behind that of its image, such as `_mask`."""
    mask_below: int = 0
    """How many leading folders of an image's path the path of its mask lacks; planning finds it."""
    mask_ignore: tuple[int, ...] = ()
    """Values that belong to no class."""
    mask_map: tuple[tuple[int, int], ...] = ()
    """Pairs of a value and the class number that it is stored as."""
    mask_bits: int | None = None
    """Bits of a stored value, 8 or 16; planning settles None."""

    def __post_init__(self) -> None:
        require(self.mask_bits in (None, *BITS), "--mask-bits", self.mask_bits, "8 or 16")
        require("/" not in self.mask_suffix, "--mask-suffix", self.mask_suffix, "the end of a file name without its extension, as `_mask`")
        require(self.mask_column != "", "--mask-column", self.mask_column, "the name of a column, or a suffix such as seg.png")
        most = (1 << (self.mask_bits or 16)) - 2
        for old, new in self.mask_map:
            require(0 <= new <= most, f"--mask-map {old}=", new, f"a class number from 0 to {most:,}")
        twice = {old for old, _ in self.mask_map} & set(self.mask_ignore)
        require(not twice, "--mask-map and --mask-ignore", sorted(twice), "each value in one of the two")

    @property
    def dtype(self) -> str:
        """Numpy's name of the type of a stored value; 8 bits where planning has not settled it."""
        return "uint16" if self.mask_bits == 16 else "uint8"

    def settled(self, *, bits: int) -> MaskRules:
        """Return the rules with the bits of a stored value."""
        return replace(self, mask_bits=bits)

    def check(self, folder: str | None) -> None:
        """Raise ConfigError for options that say where masks are twice, or how to read masks where there are none."""
        column = self.mask_column
        require(folder is None or column is None, "--mask-column", column, "nothing beside --masks: masks are in one place")
        names = {
            "--mask-suffix": self.mask_suffix,
            "--mask-ignore": self.mask_ignore,
            "--mask-map": self.mask_map,
            "--mask-bits": self.mask_bits,
        }
        for name, value in names.items():
            of_a_folder = name == "--mask-suffix"
            there = folder is not None or (column is not None and not of_a_folder)
            require(not value or there, name, value, "--masks FOLDER" + ("" if of_a_folder else ", or --mask-column NAME,") + " beside it")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        lists = {"mask_ignore": list(self.mask_ignore), "mask_map": [list(pair) for pair in self.mask_map]}
        return {**asdict(self), **lists}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> MaskRules:
        """Return the rules that `asdict` turned into JSON types."""
        pairs = tuple((int(old), int(new)) for old, new in value.get("mask_map", ()))
        known = known_fields(cls, value)
        return cls(**{**known, "mask_ignore": tuple(value.get("mask_ignore", ())), "mask_map": pairs})


def parse_values(ignore: list[str] | None, mapped: list[str] | None) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return the numbers of --mask-ignore, and the pairs of --mask-map, each given several times or with commas. Raises ConfigError."""
    ignored = [_number("--mask-ignore", part, "a value such as 255") for part in _parts(ignore)]
    pairs = []
    for part in _parts(mapped):
        old, equals, new = part.partition("=")
        if not equals:
            raise ConfigError(f"--mask-map is {shorten(part)}; expected OLD=NEW, such as 255=1")
        pairs.append((_number("--mask-map", old, "OLD=NEW, such as 255=1"), _number("--mask-map", new, "OLD=NEW, such as 255=1")))
    if again := sorted({old for old, _ in pairs if [one for one, _ in pairs].count(old) > 1}):
        raise ConfigError(f"--mask-map gives {again[0]} twice; expected one class number for a value")
    return tuple(sorted(set(ignored))), tuple(sorted(pairs))


def _parts(given: list[str] | None) -> list[str]:
    return [part.strip() for text in given or () for part in text.split(",")]


def _number(option: str, text: str, expected: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{option} is {shorten(text)}; expected {expected}") from None
