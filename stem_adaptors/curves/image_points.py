"""The sides of a curve that store images: fewer of the original files, and all images as small JPEGs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.image_sides import pixels_of_size
from tokenshards.stem_adaptors.curves.both_sets import WholePixels
from tokenshards.stem_adaptors.curves.curve_config import FEWER, JPEG, CurveRequest
from tokenshards.stem_adaptors.curves.points import least_images, trained
from tokenshards.stem_adaptors.curves.result import Point

__all__ = ["ImagePoints"]


class ImagePoints:
    """Makes the datasets of pixels of both sides."""

    def __init__(self, request: CurveRequest, pixels: WholePixels) -> None:
        self._request, self._sides, self._size = request, pixels.sides, pixels.size
        self._place, self._pixels, self.files = pixels.place, pixels.data, pixels.files
        self.measured: dict[str, TokenDataset] = {self._place: self._pixels.val}
        """The images to measure on of each place that was made."""

    def at(self, budget: int) -> Iterator[Point]:
        """Yield both sides at a budget."""
        yield self._fewer(budget)
        yield self._jpeg(budget)

    def _fewer(self, budget: int) -> Point:
        images, (least, of_what) = self.files.fitting(budget), least_images(self._request.choice, self._pixels.train)
        if images < least:
            held = f"room for {counted(images, 'file')} of {self.files.mean:,.0f} bytes, not for {of_what}"
            return Point(side=FEWER, budget=budget, absent=held)
        point = Point(side=FEWER, budget=budget, images=images, bytes_per_image=self.files.mean)
        return trained(point, self._request, side=self._place, data=self._pixels.digest)

    def _jpeg(self, budget: int) -> Point:
        share, train = budget / self.files.labelled, self._pixels.train
        name = f"{JPEG} of {share:,.1f} bytes"
        found = self._sides.small_file(name, JPEG, share, self._pixels, train, f"{self._pixels.digest} measured on train")
        if found is None:
            return Point(side=JPEG, budget=budget, absent=f"no resolution gets files down to {share:.3g} bytes")
        file, mean = found
        place, data = self._sides.pixels(name, pixels_of_size(self._size, file))
        self.measured[place] = data.val
        point = Point(side=JPEG, budget=budget, images=self.files.labelled, bytes_per_image=mean)
        point = replace(point, detail=f"{file.side} px, quality {file.quality}")
        return trained(point, self._request, side=place, data=data.digest)
