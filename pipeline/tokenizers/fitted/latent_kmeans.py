"""A published encoder with your own codes: residual k-means on the latents that a small autoencoder makes of your images.

The encoder turns an image into a grid of latents. Each id names the nearest row of a table that was fitted to such latents. The decoder,
where one was given, turns table rows back into pixels.

Shapes: B images, C channels of the latent, h and w its sides, L = h * w sites, Q levels, N rows of latents, K codes of a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import (
    CodebookInfo,
    DecodeNotSupported,
    Images,
    Preprocess,
    Tables,
    TokenizerSpec,
    check_ids,
    check_images,
    codebook_sha256,
    square_layout,
)
from tokenshards.pipeline.tokenizers.fitted.taesd import STRIDE, build_decoder, build_encoder, plain_names
from tokenshards.pipeline.tokenizers.nearest_code import NearestCode, residual_ids
from tokenshards.pipeline.tokenizers.networks.checkpoint_file import read_state_dict
from tokenshards.pipeline.tokenizers.networks.exact_float32 import exact_float32
from tokenshards.pipeline.tokenizers.networks.network import Network, from_pixels, require_finite, scaled, to_device
from tokenshards.pipeline.tokenizers.networks.overlap import Begin, offer_overlap
from tokenshards.pipeline.tokenizers.networks.weights import as_arrays, as_tensors, load_into

__all__ = ["FAMILY", "LatentEncoder", "LatentKMeans", "open_encoder"]

Floats = npt.NDArray[np.float32]

FAMILY = "latent-kmeans"
ENCODER, DECODER = "encoder.", "decoder."
COLOURS = (0.0, 1.0)


class LatentEncoder:
    """The networks of a small autoencoder; `decoder` may be missing. The first use checks the weights."""

    def __init__(self, encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor] | None, where: str = FAMILY) -> None:
        self._states = {ENCODER: encoder, **({} if decoder is None else {DECODER: decoder})}
        self._where = where

    @classmethod
    def from_arrays(cls, arrays: Tables) -> Self:
        """Build the networks from the result of `arrays()`."""
        return cls(as_tensors(arrays, ENCODER), as_tensors(arrays, DECODER) or None)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all weights, named `encoder.…` and `decoder.…`."""
        return {name: array for prefix, state in self._states.items() for name, array in as_arrays(state, prefix).items()}

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder back to pixels."""
        return DECODER in self._states

    @cached_property
    def channels(self) -> int:
        """C, the channels of a latent. Raises TokenizerError where encoder and decoder do not belong to one model."""
        with torch.device("meta"):  # a driver only needs the spec
            _, channels = build_encoder(self._states[ENCODER], self._where)
            fits = not self.decodes or build_decoder(self._states[DECODER], self._where)[1] == channels
        if not fits:
            raise TokenizerError(f"{self._where}: the encoder has {channels} channels and the decoder does not; expected two of one model")
        return channels

    def check(self) -> None:
        """Build the networks now. TokenizerError names the key of weights that do not fit."""
        _ = self.channels, self._encoder, self.decodes and self._decoder

    @cached_property
    def _encoder(self) -> Network:
        module, _ = build_encoder(self._states[ENCODER], self._where)
        loaded = load_into(module, self._states[ENCODER], self._where)
        return Network(loaded.to(memory_format=torch.channels_last))  # type: ignore[call-overload]  # 1.3 times as fast on a CPU

    @cached_property
    def _decoder(self) -> Network:
        if not self.decodes:
            raise DecodeNotSupported(f"{FAMILY}: this tokenizer was fitted without --decoder, so there is no way back from ids to pixels")
        module, _ = build_decoder(self._states[DECODER], self._where)
        return Network(load_into(module, self._states[DECODER], self._where))

    def encode(self, images_BHWC: Images) -> Tensor:
        """Return the latents [B, L, C] of uint8 RGB images, sites in raster order."""
        latents_BLC, finite = self.queue(to_device(images_BHWC))
        require_finite(finite)
        return latents_BLC

    def queue(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents of uint8 images on the device, and whether all are finite numbers. Does not wait for the device."""
        latents_BChw, finite = self._encoder.queue(scaled(images_BHWC, COLOURS))
        return latents_BChw.flatten(2).transpose(1, 2), finite

    def take_notes(self) -> list[str]:
        """Return notes for the user about the encoder since the last call."""
        return self._encoder.take_notes()

    def decode(self, latents_BLC: Tensor, grid: tuple[int, ...]) -> Images:
        """Return uint8 RGB images [B, H, W, 3]; raises DecodeNotSupported where there is no decoder."""
        return from_pixels(self._decoder(latents_BLC.transpose(1, 2).reshape(len(latents_BLC), -1, *grid)), COLOURS)


def open_encoder(encoder: str, decoder: str | None, storage_options: Mapping[str, Any] | None = None) -> LatentEncoder:
    """Return the networks of two weight files, checked key by key. Raises TokenizerError that names the file and the key."""
    states = []
    for url, part in ((encoder, "encoder"), (decoder, "decoder")):
        found = {} if url is None else plain_names(read_state_dict(url, storage_options), part)
        # A copy, because the mapped file may change during the long fit.
        states.append(None if url is None else {key: value.clone() for key, value in found.items()})
    opened = LatentEncoder(states[0] or {}, states[1], where=encoder if decoder is None else f"{encoder} and {decoder}")
    opened.check()
    return opened


class LatentKMeans:
    """Residual k-means on the latents of `encoder`; `tables` are float32 [K, C], level by level."""

    begin: Begin

    def __init__(self, encoder: LatentEncoder, tables: Sequence[Floats], *, preprocess: Preprocess) -> None:
        self._encoder = encoder
        self._tables = [np.ascontiguousarray(table, dtype=np.float32) for table in tables]
        width = encoder.channels
        if preprocess.size % STRIDE or not tables or any(t.ndim != 2 or t.shape[1] != width or len(t) == 0 for t in tables):
            raise TokenizerError(
                f"{FAMILY}: size {preprocess.size} and tables of {[t.shape for t in tables]} do not fit an encoder of {width} channels; "
                f"expected a size that is a multiple of {STRIDE} and tables [K, {width}]. Fit the tokenizer again"
            )
        self._spec = TokenizerSpec(
            family=FAMILY,
            layout=square_layout(preprocess.size, STRIDE, len(tables), "sum", FAMILY),
            vocabulary=tuple(len(table) for table in tables),
            preprocess=preprocess,
            codebook=CodebookInfo(sha256=codebook_sha256(self.codebook()), dims=(width,) * len(tables)),
            config={"encoder": "taesd"},
            weights_sha256=codebook_sha256(self.weights()),
        )
        offer_overlap(self)

    @property
    def spec(self) -> TokenizerSpec:
        """Everything that decides what an id means."""
        return self._spec

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Build the tokenizer back from its spec, tables and weights."""
        names = [f"level_{q}" for q in range(spec.layout.ids_per_site)]
        missing = [name for name in (*names, f"{ENCODER}0.weight") if name not in tables]
        if missing or spec.config.get("encoder") != "taesd":
            raise TokenizerError(
                f"{FAMILY}: {', '.join(missing) or 'nothing'} is missing, encoder {spec.config.get('encoder')!r}; expected {names} and the "
                "weights of an encoder 'taesd'. Copy the whole tokenizer folder, or load it with the version that wrote it"
            )
        return cls(LatentEncoder.from_arrays(tables), [np.asarray(tables[name]) for name in names], preprocess=spec.preprocess)

    def codebook(self) -> dict[str, Floats]:
        """Return the tables as `level_0`, `level_1`, …: float32 [K, C]."""
        return {f"level_{q}": table for q, table in enumerate(self._tables)}

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the parameters of both networks, named `encoder.…` and `decoder.…`."""
        return self._encoder.arrays()

    @cached_property
    def _search(self) -> list[NearestCode]:
        return [NearestCode(table) for table in self._tables]

    def encode(self, images_BHWC: Images) -> TokenBatch:
        """Return ids [B, L, Q] of uint8 RGB images."""
        check_images(images_BHWC, self._spec)
        ids_BLQ, finite = self.queue(to_device(images_BHWC))
        require_finite(finite)
        return TokenBatch(ids_BLQ.cpu().numpy().astype(self._spec.id_dtype))

    def queue(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids [B, L, Q] of uint8 images on the device, and whether all latents were finite. Does not wait for the device."""
        with exact_float32():
            latents_BLC, finite = self._encoder.queue(images_BHWC)
            return residual_ids(self._search, latents_BLC), finite

    def take_notes(self) -> list[str]:
        """Return notes for the user about the encoder since the last call."""
        return self._encoder.take_notes()

    def decode(self, tokens: TokenBatch) -> Images:
        """Return uint8 images [B, size, size, 3] from the sum of each site's table rows; raises DecodeNotSupported without a decoder."""
        check_ids(tokens.ids_BLQ, self._spec)
        latents_BLC = sum(torch.from_numpy(table[tokens.ids_BLQ[:, :, q]]) for q, table in enumerate(self._tables))
        return self._encoder.decode(torch.as_tensor(latents_BLC), self._spec.layout.grid)
