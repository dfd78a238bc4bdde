"""View policies and the pixels of views: known names, boxes inside the image, and every view what Pillow makes of its box."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.pipeline.sources.zoo import IGNORED, POLICY, files
from tokenshards.pipeline.config import PlanConfig
from tokenshards.pipeline.errors import BadInput, ConfigError, FormatError, Reason
from tokenshards.pipeline.images.decode import decode_image
from tokenshards.pipeline.images.views import DecodedViews, decode_views
from tokenshards.pipeline.job.batches import DecodedBatch, decode_batches
from tokenshards.pipeline.records import FailedRecord, ImageRecord
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.view_policy import ViewPolicy, random_view

SIZE = 32
PREPROCESSES = {
    "crop": Preprocess(size=SIZE, resize="crop", exif_orientation=True),
    "squash": Preprocess(size=SIZE, resize="squash", exif_orientation=True),
    "short_side": Preprocess(size=SIZE, short_side=41, exif_orientation=True),
}


def encoded(width: int, height: int, *, orientation: int = 1, kind: str = "PNG", seed: int = 0, grain: int = 8) -> bytes:
    """Return an image of blobs of about `grain` pixels, no part of which looks like another."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // grain + 2, width // grain + 2, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    image.save(sink, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return sink.getvalue()


def views_of(data: bytes, preprocess: Preprocess, policy: str, *, seed: int = 3, sample_id: str = "a.png") -> DecodedViews:
    return decode_views(data, preprocess, ViewPolicy.parse(policy), seed=seed, sample_id=sample_id)


def difference(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left.astype(int) - right.astype(int)).mean())


def test_names_of_policies() -> None:
    found = {text: ViewPolicy.parse(text) for text in ("one", "1", "flip", "ten-crop", "ten-crop:1.10", "ten-crop:1.5", "2", "064", "64")}
    assert {text: (policy.name, policy.count) for text, policy in found.items()} == {
        "one": ("one", 1),
        "1": ("one", 1),
        "flip": ("flip", 2),
        "ten-crop": ("ten-crop", 10),
        "ten-crop:1.10": ("ten-crop", 10),
        "ten-crop:1.5": ("ten-crop:1.5", 10),
        "2": ("2", 2),
        "064": ("64", 64),
        "64": ("64", 64),
    }
    assert PlanConfig(views="1").views == "one" and PlanConfig(views="064") == PlanConfig(views="64")


@pytest.mark.parametrize(
    "text", ["", "0", "65", "-3", "2.5", "²", "many", "Flip", "ten-crop:", "ten-crop:1", "ten-crop:nan", "ten-crop:9", "9" * 5000]
)
def test_bad_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--views is .*expected one, flip, ten-crop, .* number from 1 to 64"):
        PlanConfig(views=text)
    with pytest.raises(FormatError, match=r"plan\.json: the view policy is .* Upgrade tokenshards"):
        ViewPolicy.stored(text, "plan.json")


def test_shards_aim_at_rows() -> None:
    assert [PlanConfig(views=views).rows_per_shard(1_000_000) for views in ("one", "flip", "64")] == [10_000, 5_000, 156]
    assert [PlanConfig(views=views).rows_per_shard(100) for views in ("one", "flip", "64")] == [256, 128, 7]
    assert PlanConfig(views="64", shard_rows=300).rows_per_shard(10**6) == 300


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), sample_id=st.text(max_size=8), view=st.integers(1, 63))
def test_random_boxes_are_inside_and_of_stated_area_and_aspect(width: int, height: int, sample_id: str, view: int) -> None:
    box, _ = random_view(width, height, seed=1, sample_id=sample_id, view=view)
    left, top, box_width, box_height = box
    assert all(type(value) is int for value in box)
    assert 0 <= left and 0 <= top and 1 <= box_width and 1 <= box_height
    assert left + box_width <= width and top + box_height <= height
    # Sides are rounded to whole pixels; a long image has no such box, and gives its middle.
    if max(width, height) <= 2 * min(width, height) and min(width, height) >= 100:
        assert 0.24 <= box_width * box_height / (width * height) <= 1
        assert 0.72 <= box_width / box_height <= 1.38


def test_random_boxes_differ_by_seed_sample_and_view() -> None:
    keys = [{"seed": seed, "sample_id": name, "view": view} for seed in (0, 1) for name in ("a", "b") for view in range(1, 9)]
    drawn = [random_view(400, 300, **key) for key in keys]
    assert drawn == [random_view(400, 300, **key) for key in keys], "of the key alone"
    assert len({box for box, _ in drawn}) == len(keys)
    mirrored = sum(random_view(400, 300, seed=0, sample_id=str(n), view=1)[1] for n in range(400))
    assert 150 < mirrored < 250
    shares = [math.prod(random_view(400, 300, seed=0, sample_id=str(n), view=1)[0][2:]) / 120_000 for n in range(400)]
    assert 0.25 <= min(shares) + 0.01 < 0.32 and 0.85 < max(shares) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", PREPROCESSES)
@pytest.mark.parametrize("policy", ["flip", "6"])
def test_a_view_is_what_pillow_makes_of_its_box(policy: str, how: str, orientation: int) -> None:
    preprocess, data = PREPROCESSES[how], encoded(90, 61, orientation=orientation)
    found = views_of(data, preprocess, policy)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (found.width, found.height) == upright.size
    assert np.array_equal(found.pixels_VHWC[0], decode_image(data, preprocess).pixels_HWC)
    assert not found.mirrored[0] and any(found.mirrored)
    for pixels, (left, top, width, height), mirrored in zip(found.pixels_VHWC, found.boxes, found.mirrored, strict=True):
        corners = (max(0, left), max(0, top), min(upright.width, left + width), min(upright.height, top + height))
        shown = upright.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=corners)
        # Turned before it is resized here, after it there: Pillow rounds between its two passes.
        assert np.abs(pixels.astype(int) - np.asarray(ImageOps.mirror(shown) if mirrored else shown)).max() <= 3
        if policy != "flip" and (left, top) == (round(left), round(top)) and width == round(width) and height == round(height):
            cut = upright.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            assert difference(pixels, np.asarray(ImageOps.mirror(cut) if mirrored else cut)) < 2.5, (
                "but for the edges, where a cut has no neighbours"
            )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", PREPROCESSES)
def test_ten_crop_is_centre_and_corners_of_the_image_resized(how: str, orientation: int) -> None:
    preprocess, data = PREPROCESSES[how], encoded(91, 61, orientation=orientation)
    found = views_of(data, preprocess, "ten-crop:1.25")
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    left, top = (0, 0) if how == "squash" else ((upright.width - 61) // 2, (upright.height - 61) // 2)
    whole = upright.crop((left, top, upright.width - left, upright.height - top)).resize((40, 40), Image.Resampling.BICUBIC)
    corners = ((4, 4), (0, 0), (8, 0), (0, 8), (8, 8))
    expected = [whole.crop((x, y, x + SIZE, y + SIZE)) for x, y in corners]
    expected += [ImageOps.mirror(crop) for crop in expected]
    assert found.mirrored == (False,) * 5 + (True,) * 5 and found.boxes[:5] == found.boxes[5:]
    for pixels, crop in zip(found.pixels_VHWC, expected, strict=True):
        assert difference(pixels, np.asarray(crop)) < 1.5, "but for the edges, where a cut has no neighbours"
    by_x, by_y = (upright.width - 2 * left) / 40, (upright.height - 2 * top) / 40
    for (x, y), box in zip(corners, found.boxes[:5], strict=True):
        assert box == pytest.approx((left + x * by_x, top + y * by_y, SIZE * by_x, SIZE * by_y))


def test_crops_of_a_jpeg_are_not_enlarged_from_a_smaller_scale() -> None:
    scaled, full = Preprocess(size=SIZE, decode_mode="dct_scaled"), Preprocess(size=SIZE)
    data = encoded(300, 270, kind="JPEG", grain=4)
    found, exact = views_of(data, scaled, "12"), views_of(data, full, "12")
    assert np.array_equal(found.pixels_VHWC[0], decode_image(data, scaled).pixels_HWC)
    assert found.boxes == exact.boxes
    small = Image.open(io.BytesIO(data))
    small.draft(None, (SIZE, SIZE))
    assert small.width < 40, "what view 0 is made of"
    for pixels, sharp, (left, top, width, height), mirrored in zip(
        *(found.pixels_VHWC[1:], exact.pixels_VHWC[1:], found.boxes[1:], found.mirrored[1:]), strict=True
    ):
        corners = (left / 8, top / 8, min(small.width, (left + width) / 8), min(small.height, (top + height) / 8))
        blurred = small.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=corners)
        blurred = ImageOps.mirror(blurred) if mirrored else blurred
        assert difference(pixels, sharp) < difference(np.asarray(blurred), sharp) / 2 or width * height > 0.8 * 300 * 270


def test_views_of_the_zoo_fail_and_succeed_as_one_view_does() -> None:
    for name, (data, case) in files().items():
        if case.expected == IGNORED or not data:
            continue
        try:
            usual: DecodedViews | Reason | None = None
            pixels = decode_image(data, POLICY)
        except BadInput as bad:
            usual = bad.reason
        for policy in ("flip", "ten-crop", "3"):
            try:
                found = views_of(data, POLICY, policy)
            except BadInput as bad:
                assert bad.reason == usual, name
                continue
            assert usual is None, name
            assert found.pixels_VHWC.shape == (ViewPolicy.parse(policy).count, 32, 32, 3)
            assert (found.width, found.height) == (pixels.width, pixels.height)
            assert policy == "ten-crop" or np.array_equal(found.pixels_VHWC[0], pixels.pixels_HWC)


def records() -> Iterator[ImageRecord | FailedRecord]:
    for index in range(11):
        data = b"no image" if index == 4 else encoded(40, 30, seed=index)
        yield ImageRecord(sample_id=f"{index}.png", data=data, label=index % 3, meta={"n": index})
    yield FailedRecord(sample_id="gone.png", error=BadInput(Reason.MISSING, "gone"))


def batches(threads: int, views: str, batch_rows: int) -> list[DecodedBatch]:
    policy = ViewPolicy.parse(views)
    return list(decode_batches(records(), Preprocess(size=8), batch_rows, views=policy, seed=5, threads=threads))


@pytest.mark.parametrize(("views", "batch_rows", "inputs"), [("flip", 8, 4), ("5", 13, 2), ("ten-crop", 4, 1)])
def test_batches_hold_whole_images_however_many_threads_decode(views: str, batch_rows: int, inputs: int) -> None:
    inline, threaded = batches(0, views, batch_rows), batches(3, views, batch_rows)
    count = ViewPolicy.parse(views).count
    assert len(inline) == len(threaded) == math.ceil(12 / inputs)
    for left, right in zip(inline, threaded, strict=True):
        assert np.array_equal(left.images_BHWC, right.images_BHWC)
        assert (left.slots, left.rows, left.failed, left.inputs, left.bytes_in) == (
            right.slots,
            right.rows,
            right.failed,
            right.inputs,
            right.bytes_in,
        )
        assert left.images_BHWC.shape == (inputs * count, 8, 8, 3)
        assert len(left.rows) == count * (left.inputs - len(left.failed))
        blank = sorted(set(range(inputs * count)) - set(left.slots))
        assert not left.images_BHWC[blank].any()
    rows = [row for batch in inline for row in batch.rows]
    assert [(row.sample_id, row.view) for row in rows] == [(f"{n}.png", view) for n in range(11) if n != 4 for view in range(count)]
    assert [row["sample_id"] for batch in inline for row in batch.failed] == ["4.png", "gone.png"], "once, not for each view"
    assert sum(batch.bytes_in for batch in inline) == sum(len(record.data or b"") for record in records())
    first = decode_views(encoded(40, 30, seed=7), Preprocess(size=8), ViewPolicy.parse(views), seed=5, sample_id="7.png")
    batch = inline[7 // inputs]
    start = 7 % inputs * count
    assert np.array_equal(batch.images_BHWC[start : start + count], first.pixels_VHWC)
    assert [(row.box, row.mirrored) for row in rows if row.sample_id == "7.png"] == list(zip(first.boxes, first.mirrored, strict=True))
