from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.interop.releases import decode_loop, encode_loop, offsets_of
from tokenshards.pipeline.interop.seit.bytes import MAX_CODES, decode_images, encode_images, explain_fault

EXAMPLE = [3, 254, 255, 256, 390, 0]
EXAMPLE_BYTES = bytes.fromhex("03 FE FF00 FF01 FF87 00")


def test_the_worked_example_byte_for_byte() -> None:
    data, sizes = encode_images(np.array([EXAMPLE], np.uint16))
    assert data == EXAMPLE_BYTES
    assert sizes.tolist() == [9]
    ids, good = decode_images(EXAMPLE_BYTES, np.array([0, 9]), 6, 391)
    assert ids.tolist() == [EXAMPLE]
    assert good.tolist() == [True]


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_ids_come_back_and_the_bytes_are_those_of_the_loop(data: st.DataObject) -> None:
    sites = data.draw(st.integers(1, 9))
    codes = st.one_of(st.integers(0, MAX_CODES - 1), st.sampled_from([0, 254, 255, 256, 509]))
    images = data.draw(st.lists(st.lists(codes, min_size=sites, max_size=sites), min_size=1, max_size=6))
    encoded, sizes = encode_images(np.array(images, np.uint16))
    assert encoded == b"".join(map(encode_loop, images))
    assert sizes.tolist() == [len(encode_loop(image)) for image in images]
    ids, good = decode_images(encoded, np.concatenate([[0], np.cumsum(sizes)]), sites, MAX_CODES)
    assert good.all()
    assert ids.tolist() == images


@given(st.lists(st.lists(st.sampled_from([0, 1, 7, 135, 136, 254, 255, 255]), max_size=7), min_size=1, max_size=8), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_judged_image_by_image_as_the_loop_judges_them(images: list[list[int]], sites: int) -> None:
    strings = [bytes(image) for image in images]
    expected = [decode_loop(image) for image in strings]
    fits = [ids is not None and len(ids) == sites and max(ids) < 391 for ids in expected]
    ids, good = decode_images(b"".join(strings), offsets_of(strings), sites, 391)
    assert good.tolist() == fits
    assert ids.tolist() == [row for row, fit in zip(expected, fits, strict=True) if fit]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"\x01\xff\xff\x05", "bytes 1 and 2 are FF FF, after 1 ids; expected 00 to FE after FF"),
        (b"\x01\x02\xff", "last byte is FF, after 2 ids"),
        (b"\x01\xff\x88\x00", "id 391 at site 1; expected 0 to 390, as the codebook has 391 rows"),
        (b"\x01\x02", "2 ids in 2 bytes; expected 3"),
        (b"", "0 ids in 0 bytes; expected 3"),
    ],
)
def test_a_fault_is_told_in_words(image: bytes, words: str) -> None:
    assert not decode_images(image, np.array([0, len(image)]), 3, 391)[1].any()
    assert words in explain_fault(image, 3, 391)


def test_an_id_that_needs_a_third_byte_is_refused() -> None:
    assert encode_images(np.array([[509]], np.uint16))[0] == b"\xff\xfe"
    with pytest.raises(ValueError, match="id 510; SeiT's byte code holds ids of 0 to 509"):
        encode_images(np.array([[510]], np.uint16))


def test_narrow_ids_are_encoded_like_wide_ones() -> None:
    ids = np.arange(256, dtype=np.uint8)[None]
    assert encode_images(ids)[0] == encode_loop(range(256))
