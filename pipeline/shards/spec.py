"""The tokenizer spec: what the ids of a dataset mean (layout, vocabulary, preprocessing, codebook), as JSON and with a fingerprint.

The spec is in this room because every shard stores it and every reader needs it; a tokenizer only writes it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from tokenshards.pipeline.canonical import canonical_json, known_fields, sha256_hex
from tokenshards.pipeline.errors import ConfigError, TokenizerError, require

__all__ = ["CodebookInfo", "Layout", "Preprocess", "TokenizerSpec"]

Resize = Literal["squash", "crop"]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


KEPT_AS: dict[str, tuple[str, ...]] = {"pixels": ("file",)}
"""Family -> entries of `config` that only say what images went through before they were encoded, such as a small JPEG. Whatever these
entries say, an id means the same."""

LayoutKind = Literal["grid", "pyramid", "sequence", "video"]
Combine = Literal["single", "sum", "concat"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How L sites of Q ids are arranged. Consumers read these fields and never guess a grid from L.

    >>> layout = tokenshards.open_dataset("photos.tokens").spec.layout
    >>> layout.kind, layout.grid, layout.sites, layout.ids_per_site, layout.combine
    ('grid', (16, 16), 256, 2, 'sum')
    """

    kind: LayoutKind
    grid: tuple[int, ...] = ()
    """(H, W) of a grid or (T, H, W) of a video; the largest allowed if `variable`. Empty for other kinds."""
    scales: tuple[tuple[int, int], ...] = ()
    """(h, w) of each level of a pyramid, coarse to fine."""
    sites: int
    """L, or the largest L if `variable`."""
    ids_per_site: int = 1
    """Q: number of residual levels or sub-codebooks."""
    combine: Combine = "single"
    """How to combine the Q vectors of a site: `sum` (residual levels) or `concat` (sub-codebooks)."""
    variable: bool = False
    """Each row has its own `length` (sequence) or `shape` (grid, video)."""
    ordered: bool = False
    """Sites go from coarse to fine (1D tokenizers with nested dropout)."""
    prefix_decodable: bool = False
    """A prefix of the sites is a valid, coarser sample."""
    min_sites: int = 1

    def __post_init__(self) -> None:
        kinds = ("grid", "pyramid", "sequence", "video")
        require(self.kind in kinds, "layout.kind", self.kind, f"one of {', '.join(kinds)}")
        dims = {"grid": 2, "video": 3}.get(self.kind, 0)
        require(len(self.grid) == dims, "layout.grid", self.grid, f"{dims} numbers for kind {self.kind}")
        require(all(n > 0 for n in self.grid), "layout.grid", self.grid, "positive numbers")
        require(bool(self.scales) == (self.kind == "pyramid"), "layout.scales", self.scales, "scales for a pyramid only")
        expected = {
            "grid": math.prod(self.grid),
            "video": math.prod(self.grid),
            "pyramid": sum(h * w for h, w in self.scales),
        }.get(self.kind, self.sites)
        require(self.sites == expected and self.sites > 0, "layout.sites", self.sites, f"{expected}, at least 1")
        require(self.ids_per_site > 0, "layout.ids_per_site", self.ids_per_site, "at least 1")
        combines = ("single",) if self.ids_per_site == 1 else ("sum", "concat")
        require(self.combine in combines, "layout.combine", self.combine, f"one of {combines} for {self.ids_per_site} ids a site")
        require(not (self.variable and self.kind == "pyramid"), "layout.variable", True, "false for a pyramid")
        require(1 <= self.min_sites <= self.sites, "layout.min_sites", self.min_sites, f"1 to {self.sites}")

    @property
    def shape_dims(self) -> int:
        """D of the per-row `shape` column: 2 for variable grids, 3 for variable videos, else 0."""
        return len(self.grid) if self.variable else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """How image bytes become the pixels that the tokenizer expects. decode.py runs it, never a tokenizer."""

    size: int
    """Side of the square output in pixels."""
    resize: Resize = "crop"
    """`squash` the image to a square, or `crop`: resize the short side to `size` and take the middle."""
    filter: Filter = "bicubic"
    decode_mode: Literal["full", "dct_scaled"] = "full"
    """`dct_scaled` lets JPEG decode at a smaller DCT scale first: faster, but a few % of the ids differ."""
    exif_orientation: bool = False
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB under transparent pixels."""
    colour_range: tuple[float, float] = (0.0, 1.0)
    """The range that uint8 0..255 maps to before the tokenizer."""
    decoder: str = ""
    """Decoder library and major version, such as `pillow-12`; another version may resample differently."""
    short_side: int | None = None
    """Resize the short side to so many pixels, round the long side, and crop `size` from the middle, as torchvision does.

    None crops the largest square from the middle and resizes it, so no long side is rounded.
    """

    def __post_init__(self) -> None:
        require(self.size > 0, "preprocess.size", self.size, "at least 1 pixel")
        require(self.resize in ("squash", "crop"), "preprocess.resize", self.resize, "squash or crop")
        require(self.filter in get_args(Filter), "preprocess.filter", self.filter, f"one of {', '.join(get_args(Filter))}")
        whole = self.resize == "crop" and self.decode_mode == "full"
        ok = self.short_side is None or (whole and self.short_side >= self.size)
        require(ok, "preprocess.short_side", self.short_side, f"at least {self.size}, with resize crop and decode mode full")
        require(self.decode_mode in ("full", "dct_scaled"), "preprocess.decode_mode", self.decode_mode, "full or dct_scaled")
        ok = len(self.background) == 3 and all(0 <= v <= 255 for v in self.background)
        require(ok, "preprocess.background", self.background, "three numbers from 0 to 255")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodebookInfo:
    """Identity and meaning of the codebook; codebook.safetensors holds its tables as `level_0`, `level_1`, …"""

    sha256: str
    """SHA-256 over sorted tensor names, dtypes, shapes and bytes; it does not depend on the file format."""
    dims: tuple[int, ...]
    """Width of each level's vectors."""
    metric: Literal["l2", "cosine", "dot", "sign", "argmax", "fsq"] = "l2"
    rows_normalised: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSpec:
    """Everything that decides what an id means. One dataset has one fingerprint; two may be mixed if and only if their `meaning` is equal.

    >>> spec = tokenshards.open_dataset("photos.tokens").spec
    >>> spec.vocabulary, spec.preprocess.size, str(spec.id_dtype)
    ((256, 256), 64, 'uint8')
    >>> spec.fingerprint == tokenshards.open_dataset("more.tokens").spec.fingerprint
    True
    """

    family: str
    layout: Layout
    vocabulary: tuple[int, ...]
    """Ids of level q are 0 .. vocabulary[q] - 1; pad and mask ids are outside this range and never stored."""
    preprocess: Preprocess
    codebook: CodebookInfo | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """Parameters of the family (patch size, seed, …)."""
    weights_sha256: str = ""
    dtype: str = "float32"
    newer_json: dict[str, Any] = field(init=False, default_factory=dict, repr=False)
    """The whole JSON if it has fields of a newer minor version, because the fingerprint covers them; else {}."""

    def __post_init__(self) -> None:
        q = self.layout.ids_per_site
        require(len(self.vocabulary) == q, "vocabulary", self.vocabulary, f"{q} sizes, one per id of a site")
        require(all(0 < v <= 1 << 32 for v in self.vocabulary), "vocabulary", self.vocabulary, "sizes from 1 to 2**32")

    @property
    def id_dtype(self) -> np.dtype[Any]:
        """The smallest unsigned dtype that holds every id: uint8, uint16 or uint32."""
        return np.min_scalar_type(max(self.vocabulary) - 1)

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of the whole spec."""
        return sha256_hex(canonical_json(self.to_json()))

    @property
    def meaning(self) -> str:
        """The fingerprint without what images went through before (`KEPT_AS`): what a model that learns from the ids has to know.

        Pixels of whole images and pixels of small JPEGs have one meaning, and two fingerprints, because their figures must not be confused.
        """
        value = self.to_json()
        value["config"] = {name: entry for name, entry in value["config"].items() if name not in KEPT_AS.get(self.family, ())}
        return sha256_hex(canonical_json(value))

    def to_json(self) -> dict[str, Any]:
        """Return the spec in plain JSON types; `from_json` returns an equal spec."""
        if self.newer_json:
            return copy.deepcopy(self.newer_json)
        value: dict[str, Any] = _plain(dataclasses.asdict(self))
        del value["newer_json"]
        if self.preprocess.short_side is None:
            del value["preprocess"]["short_side"]  # the field came later; without it old fingerprints stay the same
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str = "tokenizer spec") -> TokenizerSpec:
        """Build a spec from `to_json` output; a missing field raises TokenizerError, an unknown one only enters the fingerprint."""
        try:
            parts = {name: known_fields(kind, value[name]) for name, kind in _PARTS.items() if value[name] is not None}
            made = {name: _PARTS[name](**_tuples(part)) for name, part in parts.items()}
            spec = cls(**{**known_fields(cls, value), **made, "vocabulary": tuple(value["vocabulary"])})
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise TokenizerError(f"{where}: not a valid tokenizer spec ({type(error).__name__}: {error})") from None
        if len(known_fields(cls, value)) < len(value) or any(len(part) < len(value[name]) for name, part in parts.items()):
            object.__setattr__(spec, "newer_json", copy.deepcopy(value))
        return spec


_PARTS: dict[str, Any] = {"layout": Layout, "preprocess": Preprocess, "codebook": CodebookInfo}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    def convert(item: Any) -> Any:
        return tuple(convert(entry) for entry in item) if isinstance(item, list) else item

    return {key: convert(item) for key, item in value.items()}
