"""The sides of a curve that store images: fewer of the original files, and all images as small JPEGs."""

from __future__ import annotations

from collections.abc import Iterator

from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.curves.both_sets import WholePixels, jpegs_missing
from tokenshards.stem_adaptors.curves.curve_config import FEWER, JPEG, CurveRequest
from tokenshards.stem_adaptors.curves.points import least_images, trained
from tokenshards.stem_adaptors.curves.result import Point

__all__ = ["ImagePoints"]


class ImagePoints:
    """Makes the datasets of pixels of both sides."""

    def __init__(self, request: CurveRequest, pixels: WholePixels) -> None:
        self._request, self._whole, self.files = request, pixels, pixels.files
        self.measured: dict[str, TokenDataset] = {pixels.place: pixels.data.val}
        """The images to measure on of each place that was made."""

    def at(self, budget: int) -> Iterator[Point]:
        """Yield both sides at a budget."""
        yield self._fewer(budget)
        yield self._jpeg(budget)

    def _fewer(self, budget: int) -> Point:
        images, (least, of_what) = self.files.fitting(budget), least_images(self._request.choice, self._whole.data.train)
        if images < least:
            held = f"room for {counted(images, 'file')} of {self.files.mean:,.0f} bytes, not for {of_what}"
            return Point(side=FEWER, budget=budget, absent=held)
        point = Point(side=FEWER, budget=budget, images=images, bytes_per_image=self.files.mean)
        return trained(point, self._request, side=self._whole.place, data=self._whole.data.digest)

    def _jpeg(self, budget: int) -> Point:
        share = budget / self.files.labelled
        found = self._whole.jpegs_of(share)
        if found is None:
            return Point(side=JPEG, budget=budget, absent=jpegs_missing(share))
        self.measured[found.place] = found.data.val
        mean = found.bytes_per_image
        point = Point(side=JPEG, budget=budget, images=self.files.labelled, bytes_per_image=mean, detail=found.detail)
        return trained(point, self._request, side=found.place, data=found.data.digest)
