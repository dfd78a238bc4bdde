from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.quality.fidelity import Fidelity
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.code_usage import code_usage
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.pipeline.tokenizers.kmeans.patch_fit import _ordered
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import PatchKMeans, choose_size, default_preprocess, fit_patch_kmeans
from tokenshards.pipeline.tokenizers.kmeans.patches import images_to_patches, patches_to_images


def hashed(images: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(hashlib.sha256(image.tobytes()).hexdigest(), image) for image in images]


def fit(images: np.ndarray, **config: int) -> tuple[PatchKMeans, dict]:
    size = images.shape[1]
    return fit_patch_kmeans(hashed(images), FitConfig(**config), size, default_preprocess(size, "test-1"))


def flat_images(size: int) -> np.ndarray:
    """The corners and some edges of the colour cube."""
    colours = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)] + [(255, 128, 0), (128, 0, 255), (0, 128, 255), (9, 77, 3)]
    return np.stack([np.full((size, size, 3), colour, np.uint8) for colour in colours])


def textures(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Noise as in photographs: less of it at high frequencies, less in colour than in brightness. Nothing in it is flat."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    spectrum = np.fft.fft2(rng.normal(size=(count, 4, size, size))) / np.maximum(frequency, 1 / size) ** 1.2
    fields = np.fft.ifft2(spectrum).real
    fields /= fields.std((2, 3), keepdims=True)
    colours = 128 + 45 * fields[:, :1] + 15 * fields[:, 1:]
    return np.clip(colours, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def exact_ids(images: np.ndarray, tokenizer: PatchKMeans) -> np.ndarray:
    """Residual nearest rows the slow way, in float64."""
    rest = images_to_patches(images, tokenizer.spec.config["patch"]) / 255.0
    ids = []
    for table in tokenizer.codebook().values():
        nearest = np.square(rest[:, None] - table.astype(np.float64)).sum(axis=2).argmin(axis=1)
        rest = rest - table[nearest]
        ids.append(nearest)
    return np.stack(ids, axis=1).reshape(len(images), -1, len(ids))


class TestTwoLevels(TokenizerContract):
    tokenizer, _ = fit(sample_images(12, 32), codes=32)

    def make_tokenizer(self) -> PatchKMeans:
        return PatchKMeans(list(self.tokenizer.codebook().values()), patch=4, preprocess=self.tokenizer.spec.preprocess)


class TestOneLevelOfManyCodes(TokenizerContract):
    tokenizer, _ = fit(textures(64, 64), codes=300, levels=1, iterations=2)

    def make_tokenizer(self) -> PatchKMeans:
        return self.tokenizer

    def test_ids_need_two_bytes(self) -> None:
        assert self.tokenizer.spec.vocabulary == (300,) and self.tokenizer.spec.id_dtype == np.uint16


class TestBeam(TokenizerContract):
    tokenizer, _ = fit(sample_images(12, 32), codes=32, levels=3, beam=4)

    def make_tokenizer(self) -> PatchKMeans:
        return PatchKMeans(list(self.tokenizer.codebook().values()), patch=4, preprocess=self.tokenizer.spec.preprocess, beam=4)


def squared_error(tokenizer: PatchKMeans, images: np.ndarray) -> np.ndarray:
    """Of each patch, in float64."""
    ids = tokenizer.encode(images).ids_BLQ.reshape(-1, tokenizer.spec.layout.ids_per_site)
    rest = images_to_patches(images, tokenizer.spec.config["patch"]) / 255.0
    for level, table in enumerate(tokenizer.codebook().values()):
        rest = rest - table.astype(np.float64)[ids[:, level]]
    return np.square(rest).sum(axis=1)


def with_beam(tokenizer: PatchKMeans, beam: int) -> PatchKMeans:
    return PatchKMeans(list(tokenizer.codebook().values()), patch=4, preprocess=tokenizer.spec.preprocess, beam=beam)


def test_a_beam_of_all_codes_finds_the_nearest_of_all_sums_of_two() -> None:
    images = textures(6, 32, seed=3)
    tokenizer, _ = fit(images, codes=16, iterations=3)
    first, second = (table.astype(np.float64) for table in tokenizer.codebook().values())
    sums = (first[:, None] + second).reshape(-1, first.shape[1])
    patches = images_to_patches(images, 4) / 255.0
    nearest = np.square(patches[:, None] - sums).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(squared_error(with_beam(tokenizer, 16), images), nearest, rtol=1e-4, atol=1e-6)
    assert squared_error(tokenizer, images).mean() > 1.01 * nearest.mean()


def test_a_wider_beam_is_closer_on_the_whole_and_changes_what_the_spec_says() -> None:
    images = textures(12, 32, seed=4)
    tokenizer, _ = fit(images, codes=16, levels=4, iterations=3)
    errors = [squared_error(with_beam(tokenizer, beam), images).mean() for beam in (1, 2, 8)]
    assert errors[0] > 1.02 * errors[1] > errors[2]
    assert with_beam(tokenizer, 1).spec == tokenizer.spec and "beam" not in tokenizer.spec.config
    wide = with_beam(tokenizer, 8)
    assert wide.spec.fingerprint != tokenizer.spec.fingerprint
    again = PatchKMeans.from_saved(wide.spec, wide.codebook())
    np.testing.assert_array_equal(again.encode(images).ids_BLQ, wide.encode(images).ids_BLQ)
    broken = dataclasses.replace(wide.spec, config={"patch": 4, "beam": "wide"})
    with pytest.raises(TokenizerError, match="beam is 'wide'; expected a whole number"):
        PatchKMeans.from_saved(broken, wide.codebook())


def test_default_layout_is_the_grid_of_patches() -> None:
    tokenizer, _ = fit(textures(20, 32), size=32)
    layout = tokenizer.spec.layout
    assert (layout.kind, layout.grid, layout.ids_per_site, layout.combine) == ("grid", (8, 8), 2, "sum")
    assert tokenizer.spec.codebook is not None and tokenizer.spec.codebook.dims == (48, 48)
    assert fit(textures(20, 32), levels=1)[0].spec.layout.combine == "single"


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ids_are_the_nearest_rows(levels: int) -> None:
    tokenizer, _ = fit(textures(30, 32), levels=levels, iterations=3)
    images = textures(7, 32, seed=1)
    ids = tokenizer.encode(images).ids_BLQ
    expected = exact_ids(images, tokenizer)
    assert np.mean(ids == expected) > 0.999, "only exact ties may differ from a search in float64"


def test_ids_are_stored_level_by_level() -> None:
    tokenizer, _ = fit(textures(20, 32))
    assert tokenizer.encode(textures(3, 32)).ids_BLQ.swapaxes(1, 2).flags.c_contiguous


def test_no_image_at_all_encodes_to_no_row() -> None:
    tokenizer, _ = fit(textures(20, 32))
    tokens = tokenizer.encode(np.zeros((0, 32, 32, 3), np.uint8))
    assert tokens.ids_BLQ.shape == (0, 64, 2)
    assert tokenizer.decode(tokens).shape == (0, 32, 32, 3)


def test_batches_of_any_size_agree() -> None:
    tokenizer, _ = fit(textures(20, 64))
    images = textures(9, 64, seed=2)  # 2304 patches: more than one block
    alone = np.concatenate([tokenizer.encode(image[None]).ids_BLQ for image in images])
    assert np.mean(alone == tokenizer.encode(images).ids_BLQ) > 0.999


def test_the_order_of_images_changes_nothing() -> None:
    pairs = hashed(textures(40, 32))
    config = FitConfig(max_patches=700, iterations=3)  # fewer than the images hold, so that patches are drawn
    first, first_statistics = fit_patch_kmeans(pairs, config, 32, default_preprocess(32, "test-1"))
    again, again_statistics = fit_patch_kmeans(iter(pairs[::-1] + pairs[:5]), config, 32, default_preprocess(32, "test-1"))
    assert first.spec.fingerprint == again.spec.fingerprint
    assert first_statistics == again_statistics
    assert first_statistics["images"] == 40 and first_statistics["patches"] == 40 * (700 // 40)


def test_the_seed_changes_the_draw() -> None:
    # 16 patches for 16 codes: the tables hold exactly what was drawn.
    drawn = [fit(textures(4, 32), seed=seed, levels=1, max_patches=16)[0].codebook()["level_0"] for seed in (0, 0, 1)]
    values = [{tuple(np.rint(row * 255)) for row in table} for table in drawn]
    assert len(values[0]) == 16 and values[0] == values[1] and len(values[0] & values[2]) < 8


def test_reconstructions_look_like_the_originals() -> None:
    images = textures(30, 64)
    psnr_db = []
    for levels in (1, 2, 3):
        tokenizer, statistics = fit(images, levels=levels, iterations=4)
        fidelity = Fidelity()
        fidelity.add(images, tokenizer.decode(tokenizer.encode(images)))
        psnr_db.append(fidelity.mean_psnr_db)
        assert statistics["levels"][-1]["psnr_db"] == pytest.approx(fidelity.pixel_psnr_db, abs=0.01), "all patches were in the sample"
    assert psnr_db[0] > 20 and psnr_db[1] > psnr_db[0] + 2 and psnr_db[2] > psnr_db[1] + 1


@pytest.mark.parametrize("levels", [1, 2])
def test_rare_flat_colours_survive_among_textures(levels: int) -> None:
    flat = flat_images(64)
    tokenizer, _ = fit(np.concatenate([textures(120, 64), flat]), levels=levels, iterations=4, max_patches=20_000)
    error = np.abs(tokenizer.decode(tokenizer.encode(flat)).astype(int) - flat)
    assert error.max() <= 6


def test_a_handful_of_flat_images_shrinks_the_vocabulary() -> None:
    flat = flat_images(32)[:8]
    tokenizer, statistics = fit(flat)
    assert tokenizer.spec.vocabulary == (8, 1)
    assert np.array_equal(tokenizer.decode(tokenizer.encode(flat)), flat)
    assert statistics["levels"][0] == {**code_usage(np.ones(8)), "psnr_db": 100.0}
    assert len(statistics["notes"]) == 2 and "codes limited from 256 to 16" in statistics["notes"][0]


def test_one_black_image_is_enough() -> None:
    black = np.zeros((1, 32, 32, 3), np.uint8)
    tokenizer, _ = fit(black)
    assert tokenizer.spec.vocabulary == (1, 1)
    assert np.array_equal(tokenizer.decode(tokenizer.encode(black)), black)


def test_codes_go_from_dark_to_light() -> None:
    tokenizer, _ = fit(textures(40, 32), levels=1)
    table = tokenizer.codebook()["level_0"]
    luminance = table.mean(axis=1)
    assert np.corrcoef(np.arange(len(table)), luminance)[0, 1] > 0.9
    shuffled = np.random.default_rng(0).permutation(table)
    assert np.square(np.diff(table, axis=0)).sum() < 0.8 * np.square(np.diff(shuffled, axis=0)).sum()


@pytest.mark.parametrize("inverted", [False, True])
def test_the_first_code_is_the_dark_end(inverted: bool) -> None:
    ramp = np.linspace(0, 255, 16)[:, None].repeat(48, axis=1) ** 1.1 / 255**0.1
    centres = (255 - ramp if inverted else ramp).astype(np.float32)
    assert np.array_equal(_ordered(centres), np.sort(centres, axis=0))


def test_decoding_adds_rounds_and_clips() -> None:
    tables = [
        np.array([[0.0] * 12, [100.3] * 12, [250] * 12], np.float32) / 255,
        np.array([[-9.0] * 12, [0.3] * 12, [9] * 12], np.float32) / 255,
    ]
    tokenizer = PatchKMeans(tables, patch=2, preprocess=default_preprocess(6, ""))
    ids = np.array([[(a, b) for a in range(3) for b in range(3)]], np.uint8)
    assert tokenizer.decode(TokenBatch(ids))[0, ::2, ::2, 0].tolist() == [[0, 0, 9], [91, 101, 109], [241, 250, 255]]


def test_statistics_describe_the_sample() -> None:
    images = textures(30, 32)
    tokenizer, statistics = fit(images)
    ids = tokenizer.encode(images).ids_BLQ
    summed = sum(table[ids[:, :, q]] for q, table in enumerate(tokenizer.codebook().values())).reshape(-1, 48)
    assert statistics["embedding"]["mean"] == pytest.approx(summed.mean(axis=0).tolist(), rel=1e-3)
    assert statistics["embedding"]["std"] == pytest.approx(summed.std(axis=0).tolist(), rel=1e-3)
    assert statistics["patches"] == 30 * 64
    for q, level in enumerate(statistics["levels"]):
        assert level["dead_codes"] == level["codes"] - len(np.unique(ids[:, :, q]))
        assert 1 < level["perplexity"] <= level["codes"]
    assert json.loads(json.dumps(statistics)) == statistics


def test_unfit_input_is_refused() -> None:
    tokenizer, _ = fit(textures(20, 32))
    with pytest.raises(TokenizerError, match=r"float64 \(2, 32, 32, 3\).*expected uint8 \[B, 32, 32, 3\]"):
        tokenizer.encode(np.zeros((2, 32, 32, 3)))
    with pytest.raises(TokenizerError, match=r"\(2, 64, 64, 3\)"):
        tokenizer.encode(np.zeros((2, 64, 64, 3), np.uint8))
    with pytest.raises(TokenizerError, match="id 255 at level 0"):
        tokenizer.decode(TokenBatch(np.full((1, 64, 2), 255, np.uint8)))
    with pytest.raises(TokenizerError, match=r"\(1, 10, 2\); expected \[B, 64, 2\]"):
        tokenizer.decode(TokenBatch(np.zeros((1, 10, 2), np.uint8)))
    with pytest.raises(TokenizerError, match="no image"):
        fit_patch_kmeans([], FitConfig(), 32, default_preprocess(32, ""))
    with pytest.raises(TokenizerError, match=r"image aa is uint8 \(8, 8, 3\)"):
        fit_patch_kmeans([("aa", np.zeros((8, 8, 3), np.uint8))], FitConfig(), 32, default_preprocess(32, ""))


def test_tables_that_do_not_fit_the_spec_are_refused() -> None:
    tokenizer, _ = fit(textures(20, 32))
    tables = tokenizer.codebook()
    with pytest.raises(TokenizerError, match="expected tables"):
        PatchKMeans.from_saved(tokenizer.spec, {"level_0": tables["level_0"]})
    with pytest.raises(TokenizerError, match="do not fit"):
        PatchKMeans([tables["level_0"][:, :12]], patch=4, preprocess=tokenizer.spec.preprocess)


@pytest.mark.parametrize(
    ("sides", "patch", "size"),
    [
        ([8, 8, 8], 4, 32),
        ([64, 64, 500], 4, 64),
        ([63, 63], 4, 32),
        ([375, 500, 128], 4, 128),
        ([200], 5, 125),
        ([500], 48, 96),
        ([], 4, 32),
    ],
)
def test_size_follows_the_median_short_side(sides: list[int], patch: int, size: int) -> None:
    assert choose_size(sides, patch) == size


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_patches_are_cut_and_joined(count: int, rows: int, columns: int, patch: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (count, rows * patch, columns * patch, 3), dtype=np.uint8)
    patches = images_to_patches(images, patch)
    plain = images.reshape(count, rows, patch, columns, patch, 3).swapaxes(2, 3).reshape(-1, patch * patch * 3)
    assert np.array_equal(patches, plain)
    assert np.array_equal(patches_to_images(patches.reshape(count, rows * columns, -1), (rows, columns), patch), images)


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, tokenshards.pipeline.tokenizers.kmeans.patch_kmeans; "
        "print([name for name in ('torch', 'PIL', 'pyarrow', 'ray', 'matplotlib') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
