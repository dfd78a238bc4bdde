"""The tokenizer `pixels`: colour values are ids, and a file format loses what it loses before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.shards.spec import Preprocess
from tokenshards.pipeline.tokenizers.pixels.pixel_values import PixelValues
from tokenshards.pipeline.tokenizers.pixels.small_file import SmallFile

PREPROCESS = Preprocess(size=16)


class TestPlain(TokenizerContract):
    def make_tokenizer(self) -> PixelValues:
        return PixelValues(PREPROCESS)

    def test_ids_are_the_colour_values_in_reading_order(self) -> None:
        images = sample_images(3, 16)
        tokens = self.make_tokenizer().encode(images)
        assert tokens.ids_BLQ.dtype == np.uint8 and tokens.ids_BLQ.shape == (3, 256, 3)
        assert tokens.ids_BLQ[1, 5 * 16 + 2].tolist() == images[1, 5, 2].tolist()
        np.testing.assert_array_equal(self.make_tokenizer().decode(tokens), images)

    def test_an_embedding_is_the_value(self) -> None:
        tables = self.make_tokenizer().codebook()
        assert [table[7].tolist() for table in tables.values()] == [[7.0]] * 3


class TestJpeg(TokenizerContract):
    min_reencode_agreement = 0.0  # each passage loses something

    def make_tokenizer(self) -> PixelValues:
        return PixelValues(PREPROCESS, SmallFile(format="jpeg", side=8, quality=30, subsampling="4:4:4"))

    def test_ids_are_the_values_of_the_file_enlarged_again(self) -> None:
        tokenizer, images = self.make_tokenizer(), sample_images(2, 16)
        assert tokenizer.file is not None
        expected = np.stack([tokenizer.file.passed(image) for image in images])
        found = tokenizer.decode(tokenizer.encode(images))
        np.testing.assert_array_equal(found, expected)
        assert (found != images).any()


class TestWebp(TokenizerContract):
    min_reencode_agreement = 0.0

    def make_tokenizer(self) -> PixelValues:
        return PixelValues(PREPROCESS, SmallFile(format="webp", side=16, quality=20))


def test_each_setting_makes_another_fingerprint() -> None:
    file = SmallFile(format="jpeg", side=8, quality=30)
    files = [None, file, replace(file, quality=31), replace(file, side=9), replace(file, subsampling="4:4:4"), replace(file, format="webp")]
    assert len({PixelValues(PREPROCESS, one).spec.fingerprint for one in files}) == len(files)


def test_a_small_file_changes_the_fingerprint_and_not_the_meaning_of_an_id() -> None:
    """Another size, or the same setting in another family, is another meaning."""
    whole, small = (PixelValues(PREPROCESS, file).spec for file in (None, SmallFile(format="jpeg", side=8, quality=30)))
    assert whole.meaning == small.meaning and whole.fingerprint != small.fingerprint
    assert whole.meaning == type(whole).from_json(small.to_json()).meaning, "kept in JSON"
    assert PixelValues(replace(PREPROCESS, size=2 * PREPROCESS.size)).spec.meaning != whole.meaning
    assert replace(whole, family="patch-kmeans").meaning != replace(small, family="patch-kmeans").meaning


def test_a_spec_of_another_form_is_refused() -> None:
    spec = replace(PixelValues(PREPROCESS).spec, config={"file": "jpeg"})
    with pytest.raises(TokenizerError, match="file is 'jpeg'; expected the settings of a small file or null"):
        PixelValues.from_saved(spec, {})
