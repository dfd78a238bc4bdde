"""Toy tokenizers, one for each layout whose real models come later: ids are quantised means of cells of the image."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import (
    CodebookInfo,
    DecodeNotSupported,
    Layout,
    Preprocess,
    Tables,
    TokenizerSpec,
    codebook_sha256,
)

SIZE = 16


def cell_means(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean grey value of each cell: [..., H, W, C] -> [..., rows * columns]."""
    *lead, height, width, _ = images.shape
    cells = images.mean(axis=-1).reshape(*lead, rows, height // rows, columns, width // columns).mean(axis=(-3, -1))
    return cells.reshape(*lead, rows * columns)


def paint(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Undo cell_means: [..., rows * columns] -> uint8 [..., SIZE, SIZE, 3]."""
    cells = values.reshape(*values.shape[:-1], rows, columns)
    grey = np.rint(cells).astype(np.uint8).repeat(SIZE // rows, axis=-2).repeat(SIZE // columns, axis=-1)
    return np.repeat(grey[..., None], 3, axis=-1)


def quantise(values: np.ndarray, vocabulary: int) -> np.ndarray:
    return (values * vocabulary / 256).astype(np.int64)


def centre(ids: np.ndarray, vocabulary: int) -> np.ndarray:
    return (ids.astype(np.float64) + 0.5) * 256 / vocabulary - 0.5


class Toy:
    family = ""
    vocabulary: tuple[int, ...] = (16,)
    layout = Layout(kind="sequence", sites=1)
    has_codebook = True

    def __init__(self) -> None:
        tables = self.codebook()
        info = CodebookInfo(sha256=codebook_sha256(tables), dims=(1,) * len(tables)) if tables else None
        preprocess = Preprocess(size=SIZE, resize="squash")
        self.spec = TokenizerSpec(family=self.family, layout=self.layout, vocabulary=self.vocabulary, preprocess=preprocess, codebook=info)

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        return cls()

    def codebook(self) -> dict[str, Any]:
        if not self.has_codebook:
            return {}
        return {f"level_{q}": centre(np.arange(v), v)[:, None].astype(np.float32) for q, v in enumerate(self.vocabulary)}

    def _tokens(self, ids_BLQ: np.ndarray, **variable: np.ndarray) -> TokenBatch:
        return TokenBatch(ids_BLQ.astype(self.spec.id_dtype), **{k: v.astype(np.int32) for k, v in variable.items()})


class PyramidToy(Toy):
    family = "toy-pyramid"
    layout = Layout(kind="pyramid", scales=((1, 1), (2, 2), (4, 4)), sites=21)

    def encode(self, images_BHWC: np.ndarray) -> TokenBatch:
        means = np.concatenate([cell_means(images_BHWC, h, w) for h, w in self.layout.scales], axis=1)
        return self._tokens(quantise(means, 16)[:, :, None])

    def decode(self, tokens: TokenBatch) -> np.ndarray:
        return paint(centre(tokens.ids_BLQ[:, 5:, 0], 16), 4, 4)


class FixedSequenceToy(Toy):
    """Wide ids without vectors and without a way back: uint32, no codebook."""

    family = "toy-sequence"
    vocabulary = (1 << 18,)
    layout = Layout(kind="sequence", sites=8)
    has_codebook = False

    def encode(self, images_BHWC: np.ndarray) -> TokenBatch:
        return self._tokens(quantise(cell_means(images_BHWC, 8, 1), 1 << 18)[:, :, None])

    def decode(self, tokens: TokenBatch) -> np.ndarray:
        raise DecodeNotSupported("toy-sequence: there is no decoder; use another tokenizer")


class VariableSequenceToy(Toy):
    """Coarse to fine: the whole, then halves, then quarters (rows); flat images need one site only."""

    family = "toy-variable"
    vocabulary = (1000,)
    layout = Layout(kind="sequence", sites=7, variable=True, ordered=True, prefix_decodable=True)

    def encode(self, images_BHWC: np.ndarray) -> TokenBatch:
        means = np.concatenate([cell_means(images_BHWC, rows, 1) for rows in (1, 2, 4)], axis=1)
        contrast = np.ptp(cell_means(images_BHWC, 4, 1), axis=1)
        lengths = np.select([contrast < 8, contrast < 64], [1, 3], 7)
        ids = np.where(np.arange(7) < lengths[:, None], quantise(means, 1000), 0)[:, : lengths.max(initial=1)]
        return self._tokens(ids[:, :, None], lengths_B=lengths)

    def decode(self, tokens: TokenBatch) -> np.ndarray:
        assert tokens.lengths_B is not None
        images = []
        for ids, length in zip(tokens.ids_BLQ[:, :, 0], tokens.lengths_B, strict=True):
            start, rows = {1: (0, 1), 3: (1, 2), 7: (3, 4)}[int(length)]
            images.append(paint(centre(ids[start : start + rows], 1000), rows, 1))
        return np.stack(images)


class VideoToy(Toy):
    family = "toy-video"
    layout = Layout(kind="video", grid=(3, 2, 4), sites=24)

    def encode(self, images_BTHWC: np.ndarray) -> TokenBatch:
        means = cell_means(images_BTHWC, 2, 4)
        return self._tokens(quantise(means, 16).reshape(len(means), 24, 1))

    def decode(self, tokens: TokenBatch) -> np.ndarray:
        return paint(centre(tokens.ids_BLQ[:, :, 0].reshape(-1, 3, 8), 16), 2, 4)


class ConcatToy(Toy):
    """One sub-codebook for each colour channel, of different sizes."""

    family = "toy-concat"
    vocabulary = (256, 8, 4)
    layout = Layout(kind="grid", grid=(4, 4), sites=16, ids_per_site=3, combine="concat")

    def encode(self, images_BHWC: np.ndarray) -> TokenBatch:
        channels = [quantise(cell_means(images_BHWC[..., c, None], 4, 4), v) for c, v in enumerate(self.vocabulary)]
        return self._tokens(np.stack(channels, axis=2))

    def decode(self, tokens: TokenBatch) -> np.ndarray:
        channels = [paint(centre(tokens.ids_BLQ[:, :, c], v), 4, 4)[..., 0] for c, v in enumerate(self.vocabulary)]
        return np.stack(channels, axis=-1)


class VariableGridToy(Toy):
    """Bright images get a finer grid; rows carry their own shape."""

    family = "toy-variable-grid"
    layout = Layout(kind="grid", grid=(4, 8), sites=32, variable=True)

    def encode(self, images_BHWC: np.ndarray) -> TokenBatch:
        fine = images_BHWC.mean(axis=(1, 2, 3)) >= 128
        shapes = np.where(fine[:, None], (4, 8), (2, 4))
        ids = np.zeros((len(images_BHWC), int(shapes.prod(axis=1).max(initial=1)), 1), np.int64)
        for row, image, (h, w) in zip(ids, images_BHWC, shapes, strict=True):
            row[: h * w, 0] = quantise(cell_means(image, h, w), 16)
        return self._tokens(ids, shapes_BD=shapes)

    def decode(self, tokens: TokenBatch) -> np.ndarray:
        if tokens.shapes_BD is None:
            raise TokenizerError("toy-variable-grid: rows without shapes")
        pairs = zip(tokens.ids_BLQ[:, :, 0], tokens.shapes_BD, strict=True)
        return np.stack([paint(centre(ids[: h * w], 16), h, w) for ids, (h, w) in pairs])


class VariableVideoToy(VideoToy):
    """A video of variable size: short clips have fewer frames."""

    family = "toy-variable-video"
    layout = Layout(kind="video", grid=(3, 2, 4), sites=24, variable=True)

    def encode(self, images_BTHWC: np.ndarray) -> TokenBatch:
        frames = np.where(images_BTHWC[:, -1].any(axis=(1, 2, 3)), 3, 2)
        ids = quantise(cell_means(images_BTHWC, 2, 4), 16).reshape(len(frames), 24, 1)
        ids = np.where(np.arange(24)[:, None] < frames[:, None, None] * 8, ids, 0)[:, : frames.max(initial=1) * 8]
        return self._tokens(ids, shapes_BD=np.stack([frames, np.full_like(frames, 2), np.full_like(frames, 4)], axis=1))

    def decode(self, tokens: TokenBatch) -> np.ndarray:
        raise DecodeNotSupported("toy-variable-video: there is no decoder")


class FilmStripToy(Toy):
    """An image as a film: four strips, one below the other, are its frames."""

    family = "toy-film-strip"
    layout = Layout(kind="video", grid=(4, 2, 4), sites=32)

    def encode(self, images_BHWC: np.ndarray) -> TokenBatch:
        frames_BTHWC = images_BHWC.reshape(len(images_BHWC), 4, SIZE // 4, SIZE, 3)
        return self._tokens(quantise(cell_means(frames_BTHWC, 2, 4), 16).reshape(len(images_BHWC), 32, 1))

    def decode(self, tokens: TokenBatch) -> np.ndarray:
        return paint(centre(tokens.ids_BLQ[:, :, 0], 16), 8, 4)


class VariableFilmStripToy(FilmStripToy):
    """The same, where black strips at the end are no frames."""

    family = "toy-variable-film-strip"
    layout = Layout(kind="video", grid=(4, 2, 4), sites=32, variable=True)

    def encode(self, images_BHWC: np.ndarray) -> TokenBatch:
        whole_BLQ = super().encode(images_BHWC).ids_BLQ
        lit_BT = images_BHWC.reshape(len(images_BHWC), 4, SIZE // 4, SIZE, 3).mean(axis=(2, 3, 4)) >= 16
        frames_B = (lit_BT * np.arange(1, 5)).max(axis=1).clip(min=1)
        ids_BLQ = np.where(np.arange(32)[:, None] < frames_B[:, None, None] * 8, whole_BLQ, 0)[:, : frames_B.max(initial=1) * 8]
        return self._tokens(ids_BLQ, shapes_BD=np.stack([frames_B, np.full_like(frames_B, 2), np.full_like(frames_B, 4)], axis=1))

    def decode(self, tokens: TokenBatch) -> np.ndarray:
        raise DecodeNotSupported("toy-variable-film-strip: there is no decoder")
