"""Canonical JSON and its seal: any flipped bit shows."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenshards.pipeline.canonical import canonical_json, keyed_hash64, keyed_hashes64, seal, unseal
from tokenshards.pipeline.errors import CorruptObjectError

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def writable(value: object) -> bool:
    try:
        canonical_json(value)
    except UnicodeEncodeError:
        return False
    return True


@given(st.dictionaries(st.text(min_size=1).filter(lambda key: key != "self_sha256"), values, max_size=5).filter(writable))
def test_round_trip(value: dict[str, object]) -> None:
    assert unseal(seal(value), "x") == value


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": 1},  # the seal is the last key
        {"z": 1},
        {"a": {"self_sha256": "x", "b": 1}, "z": ['"self_sha256":"x",']},
    ],
)
def test_a_seal_in_any_place_is_checked(value: dict[str, object]) -> None:
    data = seal(value)
    assert unseal(data, "x") == value
    other = seal({**value, "more": 1})
    swapped = data.replace(json.loads(data)["self_sha256"].encode(), json.loads(other)["self_sha256"].encode())
    with pytest.raises(CorruptObjectError, match="does not match"):
        unseal(swapped, "x")


def test_every_single_flipped_bit_is_found() -> None:
    data = seal({"b": [1, 2.5, None, "ä"], "a": {"deep": True}})
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(CorruptObjectError):
                unseal(bytes(flipped), "x")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"a": 1}', b"null\n", b"\xff\xfe", seal({"a": 1}) + b"\n", seal({"a": 1})[:-1]])
def test_what_is_not_sealed_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptObjectError, match="x: "):
        unseal(data, "x")


def test_bytes() -> None:
    assert canonical_json({"b": 1, "a": ["ä", 0.1]}) == '{"a":["ä",0.1],"b":1}\n'.encode()
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


def test_the_order_hash_is_pinned() -> None:
    assert keyed_hash64("order-0", "a/b.jpg") == 0x8E8D5B17142B1A52  # another value would cut every data set anew


FILE_NAMES = st.text(st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]))
"""Any text, and what Python makes of bytes in a file name that are no UTF-8."""


@given(st.text(st.characters(codec="utf-8"), max_size=80), st.lists(FILE_NAMES))
def test_hashes_of_many_are_those_of_each(key: str, values: list[str]) -> None:
    assert list(keyed_hashes64(key, values)) == [keyed_hash64(key, value) for value in values]
