"""SeiT's byte code of ids, for whole blocks of images at a time.

An id below 255 is one byte; an id from 255 to 509 is two bytes, FF and id - 255. So FF is never the second byte of an id and never the last
byte of an image.

Shapes: N images, L sites of an image, G images without a fault.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_CODES", "decode_images", "encode_images", "explain_fault"]

ESCAPE = 0xFF
MAX_CODES = 2 * ESCAPE
"""Number of ids that the byte code can hold: 0 to 509."""


def decode_images(
    data: bytes, bounds_N1: npt.NDArray[np.int64], sites: int, codes: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.bool_]]:
    """Return the ids [G, L] of the images without a fault, in order, and a mask [N] of these images.

    Image k is `data[bounds[k]:bounds[k + 1]]`; the first bound is 0, the last `len(data)`. A fault is FF twice in a row, FF as the last
    byte, an id of `codes` or more, or a number of ids other than `sites`; `explain_fault` describes it.
    """
    bytes_T = np.frombuffer(data, np.uint8)
    is_escape_T = bytes_T == ESCAPE
    escapes = np.flatnonzero(is_escape_T)
    stops_N = bounds_N1[1:]
    counts_N = np.diff(bounds_N1) - np.diff(np.searchsorted(escapes, bounds_N1))
    good_N = counts_N == sites

    last = stops_N[stops_N > bounds_N1[:-1]] - 1
    cut = last[is_escape_T[last]]
    if len(cut):  # an escape at the end of an image does not apply to the next image
        good_N[_owners(cut, stops_N)] = False
        escapes = np.setdiff1d(escapes, cut, assume_unique=True)
    second = escapes + 1
    good_N[_owners(second[is_escape_T[second]], stops_N)] = False

    values_T = bytes_T.astype(np.uint16)
    values_T[second] += ESCAPE
    ids_I = values_T[~is_escape_T]
    if ids_I.size and int(ids_I.max()) >= codes:
        good_N[_owners(np.flatnonzero(ids_I >= codes), np.cumsum(counts_N))] = False
    if not good_N.all():
        ids_I = ids_I[np.repeat(good_N, counts_N)]
    return ids_I.reshape(-1, sites), good_N


def _owners(positions: npt.NDArray[np.intp], stops_N: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return the index of the image that contains each position."""
    return np.searchsorted(stops_N, positions, side="right")


def explain_fault(image: bytes, sites: int, codes: int) -> str:
    """Return a message about the first fault in the bytes of one image, with the value seen and the value expected."""
    ids: list[int] = []
    carry = 0
    for position, byte in enumerate(image):
        if byte == ESCAPE and carry:
            return f"bytes {position - 1} and {position} are FF FF, after {len(ids)} ids; expected 00 to FE after FF"
        if byte != ESCAPE:
            if carry + byte >= codes:
                return f"id {carry + byte} at site {len(ids)}; expected 0 to {codes - 1}, as the codebook has {codes} rows"
            ids.append(carry + byte)
        carry = ESCAPE if byte == ESCAPE else 0
    if carry:
        return f"its last byte is FF, after {len(ids)} ids; expected a byte 00 to FE after FF"
    return f"{len(ids)} ids in {len(image)} bytes; expected {sites}"


def encode_images(ids_NL: npt.NDArray[np.unsignedinteger[Any]]) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Return the bytes of ids [N, L], image after image, and the number of bytes per image [N]; raises ValueError for an id above 509."""
    ids_I = ids_NL.reshape(-1)
    wide_I = ids_I >= ESCAPE
    if ids_I.size and int(ids_I.max()) >= MAX_CODES:
        raise ValueError(f"id {int(ids_I.max())}; SeiT's byte code holds ids of 0 to {MAX_CODES - 1}")
    last_I = np.cumsum(1 + wide_I) - 1
    bytes_T = np.full(int(last_I[-1]) + 1 if len(last_I) else 0, ESCAPE, np.uint8)
    bytes_T[last_I] = ids_I - ESCAPE * wide_I.astype(ids_I.dtype)
    return bytes_T.tobytes(), ids_NL.shape[1] + wide_I.reshape(ids_NL.shape).sum(axis=1, dtype=np.int64)
