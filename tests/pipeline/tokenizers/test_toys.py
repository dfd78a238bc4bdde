"""Every layout of the design passes the contract, so that later models need no change of the format."""

from __future__ import annotations

import numpy as np

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tests.pipeline.tokenizers import toys


class _ToyContract(TokenizerContract):
    test_images_and_ids_of_another_form_are_refused = None  # toys take what they are given


class TestPyramid(_ToyContract):
    make_tokenizer = staticmethod(toys.PyramidToy)


class TestFixedSequence(_ToyContract):
    make_tokenizer = staticmethod(toys.FixedSequenceToy)


class _MixedContrast(_ToyContract):
    def make_images(self, count: int) -> np.ndarray:
        images = sample_images(count, toys.SIZE)
        images[0] = images[0] // 64 + 60  # low contrast and dark: a row shorter than the others
        return images


class TestVariableSequence(_MixedContrast):
    make_tokenizer = staticmethod(toys.VariableSequenceToy)
    min_reencode_agreement = 0.0  # 256 greys cannot tell its 1000 codes apart

    def test_rows_differ_in_length(self) -> None:
        lengths = toys.VariableSequenceToy().encode(self.make_images(5)).lengths_B
        assert lengths is not None and len(set(lengths.tolist())) > 1


class TestVariableGrid(_MixedContrast):
    make_tokenizer = staticmethod(toys.VariableGridToy)

    def make_images(self, count: int) -> np.ndarray:
        images = super().make_images(count)
        images[1:] = images[1:] // 2 + 100
        return images

    def test_rows_differ_in_shape(self) -> None:
        shapes = toys.VariableGridToy().encode(self.make_images(3)).shapes_BD
        assert shapes is not None and shapes.tolist() == [[2, 4], [4, 8], [4, 8]]


class TestVideo(_ToyContract):
    make_tokenizer = staticmethod(toys.VideoToy)

    def make_images(self, count: int) -> np.ndarray:
        return sample_images(count * 3, toys.SIZE).reshape(count, 3, toys.SIZE, toys.SIZE, 3)


class TestVariableVideo(TestVideo):
    make_tokenizer = staticmethod(toys.VariableVideoToy)

    def make_images(self, count: int) -> np.ndarray:
        images = super().make_images(count)
        images[0, -1] = 0
        return images


class TestConcat(_ToyContract):
    make_tokenizer = staticmethod(toys.ConcatToy)


class TestFilmStrip(_ToyContract):
    make_tokenizer = staticmethod(toys.FilmStripToy)


class TestVariableFilmStrip(_ToyContract):
    make_tokenizer = staticmethod(toys.VariableFilmStripToy)

    def make_images(self, count: int) -> np.ndarray:
        images = super().make_images(count)
        images[0, toys.SIZE // 2 :] = 0
        return images

    def test_frames_end_with_the_last_lit_strip(self) -> None:
        shapes = toys.VariableFilmStripToy().encode(self.make_images(3)).shapes_BD
        assert shapes is not None and shapes.tolist() == [[2, 2, 4], [4, 2, 4], [4, 2, 4]]
