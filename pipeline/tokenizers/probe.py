"""Encoders that are not ours: what they give is looked at once, on made-up pictures, and held to in every batch after that.

Shapes: B images, L sites, Q ids per site, h and w sides of a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import TokenizerError
from pipeline.tokenizers.base import Images, Layout

__all__ = ["check_form", "layout_of", "probe_encoder"]

Ids = npt.NDArray[Any]


def probe_encoder(encode: Callable[[Images], Ids], size: int, batches: Sequence[int], where: str) -> tuple[Ids, int]:
    """Return the ids of some pictures, as the encoder gives them, and the first batch of `batches` that it takes.

    `encode` raises TokenizerError where it does not take a batch. Raises that of the first batch where it takes none, and TokenizerError
    where the ids of a picture are no integers, change from one time to the next, or change with the pictures beside it.
    """
    refusal: TokenizerError | None = None
    for batch in batches:
        images = _pictures(batch, size)
        try:
            ids = encode(images)
        except TokenizerError as error:
            refusal = refusal or error
            continue
        if ids.dtype.kind not in "iu":
            raise TokenizerError(
                f"{where}: for {batch} pictures it gives {ids.dtype} {list(ids.shape)}; expected integers, [B, L], [B, h, w] or [B, L, Q]. "
                "Export the part of the network that ends in ids"
            )
        if not np.array_equal(encode(images), ids):
            raise TokenizerError(f"{where}: the same pictures get other ids the second time; expected equal ids. Take its randomness out")
        images[1:] = 0
        if not np.array_equal(encode(images)[0], ids[0]):
            raise TokenizerError(
                f"{where}: the ids of a picture change with the pictures beside it in a batch of {batch}; expected ids that depend on the "
                "picture alone. Is it in training mode, with statistics of the batch? Export it after eval()"
            )
        return ids, batch
    raise refusal or TokenizerError(f"{where}: no batch to try")


def layout_of(shape: Sequence[int], levels: int, where: str) -> Layout:
    """Return how the sites lie, of the shape of one picture's ids: [L] a sequence, [h, w] a grid, [T, h, w] a video; Q above 1 is last.

    Dimensions of 1 do not count. Raises TokenizerError for any other shape.
    """
    sites = tuple(shape)
    if levels > 1:
        if len(sites) < 2 or sites[-1] != levels:
            raise TokenizerError(f"{where}: it gives ids of shape {_shown(shape)}, with {levels} vocabularies; expected [B, …, {levels}]")
        sites = sites[:-1]
    sites = tuple(n for n in sites if n != 1) or (1,)
    if len(sites) > 3 or 0 in sites:
        raise TokenizerError(
            f"{where}: it gives ids of shape {_shown(shape)}; expected [B, L], [B, h, w], [B, T, h, w] or one of them and Q"
        )
    kind: Any = ("sequence", "grid", "video")[len(sites) - 1]
    combine: Any = "concat" if levels > 1 else "single"
    grid = () if kind == "sequence" else sites
    return Layout(kind=kind, grid=grid, sites=int(np.prod(sites)), ids_per_site=levels, combine=combine)


def check_form(ids: Ids, count: int, shape: Sequence[int], vocabulary: Sequence[int], where: str) -> Ids:
    """Return the ids of `count` pictures as [B, L, Q]; TokenizerError unless they are integers of this shape within the vocabulary."""
    if ids.dtype.kind not in "iu" or ids.shape != (count, *shape):
        raise TokenizerError(f"{where}: it gives ids of {ids.dtype} {list(ids.shape)}; expected integers [{count}, {_shown(shape)[4:]}")
    ids_BLQ = ids.reshape(count, -1, len(vocabulary))
    for q, codes in enumerate(vocabulary):
        column = ids_BLQ[:, :, q]
        for found in (int(column.min(initial=0)), int(column.max(initial=0))):
            if not 0 <= found < codes:
                level = f" at level {q}" if len(vocabulary) > 1 else ""
                raise TokenizerError(
                    f"{where}: it gives the id {found}{level}; expected 0 to {codes - 1}, for a vocabulary of {codes}. "
                    "Is this the vocabulary of this network?"
                )
    return ids_BLQ


def _pictures(count: int, size: int) -> Images:
    """Patches of colour under a little noise."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (count, 4, 4, 3))
    smooth = cells.repeat(-(-size // 4), axis=1).repeat(-(-size // 4), axis=2)[:, :size, :size]
    images: Images = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    return images


def _shown(shape: Sequence[int]) -> str:
    return f"[B, {', '.join(map(str, shape))}]"
