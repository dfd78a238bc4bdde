"""Published networks as a tokenizer: a checkpoint is taken apart under its own names, checked key by key, saved and built again.

A family describes the layout of its checkpoint, builds its networks, and turns vectors into ids.

Shapes: B images, L sites, Q ids of a site, D values of a site's vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError, TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.tokenizers.base import (
    CodebookInfo,
    DecodeNotSupported,
    Images,
    Layout,
    Preprocess,
    TokenizerSpec,
    check_ids,
    check_images,
    codebook_sha256,
    published_preprocess,
)
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.networks.checkpoint_file import read_state_dict
from tokenshards.pipeline.tokenizers.networks.exact_float32 import exact_float32
from tokenshards.pipeline.tokenizers.networks.network import Network, from_pixels, require_finite, scaled, to_device
from tokenshards.pipeline.tokenizers.networks.overlap import Begin, offer_overlap
from tokenshards.pipeline.tokenizers.networks.weights import as_arrays, check_fits, load_into

__all__ = ["NetworkTokenizer", "published_preprocess"]

Floats = npt.NDArray[np.float32]


class NetworkTokenizer(ABC):
    """`state` is a checkpoint under its published names; `tables` [K, D] are the code vectors of each level."""

    family: ClassVar[str]
    ENCODER_KEYS: ClassVar[tuple[str, ...]]
    """Prefixes of the keys that an encoder needs."""
    DECODER_KEYS: ClassVar[tuple[str, ...]]
    DROPPED_KEYS: ClassVar[tuple[str, ...]]
    """Prefixes of keys that training left in checkpoints and no network needs."""
    AVERAGES: ClassVar[tuple[str, ...]] = ()
    """Entries of moving averages that may lie beside the state dict, under the same names."""
    OPTIONS: ClassVar[tuple[str, ...]] = ()
    """Options among `size`, `preset` and `max_tokens` that an import may choose."""
    begin: Begin

    def __init__(
        self,
        state: Mapping[str, Tensor],
        tables: list[Floats],
        *,
        preprocess: Preprocess,
        config: Mapping[str, Any],
        dtype: str,
        where: str,
    ) -> None:
        self._where = where or self.family
        self._state = dict(state)
        self._tables = [np.ascontiguousarray(table, dtype=np.float32) for table in tables]
        self._config = dict(config)
        self._notes: list[str] = []
        widths = tuple(int(table.shape[1]) for table in self._tables)
        layout = self.layout(preprocess)
        width = widths[0] if layout.combine == "sum" and len(set(widths)) == 1 else sum(widths)
        if width != self.code_width():
            raise TokenizerError(
                f"{self._where}: codes of {width} values, and the encoder gives {self.code_width()}; expected a table and an encoder "
                "of one model"
            )
        self._spec = TokenizerSpec(
            family=self.family,
            layout=layout,
            vocabulary=tuple(len(table) for table in self._tables),
            preprocess=preprocess,
            codebook=self.codebook_info(codebook_sha256(self.codebook()), widths),
            config=self.saved_config(),
            weights_sha256=codebook_sha256(self.weights()),
            dtype=dtype,
        )
        offer_overlap(self)

    @abstractmethod
    def layout(self, preprocess: Preprocess) -> Layout:
        """Return the layout of the sites. Raises TokenizerError where the checkpoint and the preprocessing do not fit."""

    @abstractmethod
    def code_width(self) -> int:
        """Return D, the values that the encoder gives for a site."""

    @abstractmethod
    def codebook_info(self, sha256: str, dims: tuple[int, ...]) -> CodebookInfo:
        """Return how the tables are compared."""

    @abstractmethod
    def build_encoder(self) -> nn.Module:
        """Return the module [B, 3, H, W] -> [B, L, D] without its weights; its state dict has the published names."""

    @abstractmethod
    def build_decoder(self) -> nn.Module:
        """Return the module [B, L, D] -> [B, 3, H, W] without its weights; its state dict has the published names."""

    @abstractmethod
    def quantise(self, vectors_BLD: Tensor) -> Tensor:
        """Return the ids [B, L, Q] of float32 vectors."""

    @abstractmethod
    def dequantise(self, ids_BLQ: Tensor) -> Tensor:
        """Return the float32 vectors [B, L, D] that the decoder sees for ids."""

    @classmethod
    def read_checkpoint(cls, url: str, config: ImportConfig, storage_options: Mapping[str, Any] | None) -> Mapping[str, Tensor]:
        """Return the tensors of a state dict at any path or URL: the moving averages, unless the import declines them."""
        return read_state_dict(url, storage_options, averages=cls.AVERAGES if config.ema else ())

    @classmethod
    def networks_of(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, table_key: str | None, where: str) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint that the networks need.

        Raises TokenizerError that names a key of no known part, ConfigError for an option that this family does not have.
        """
        for option in ("size", "preset", "max_tokens", "decoder_file", "vocabulary", "colour_range", "settings"):
            value = getattr(config, option)
            if value not in (None, (), {}) and option not in cls.OPTIONS:
                raise ConfigError(
                    f"--{option.replace('_', '-').replace('settings', 'config')} is {value}; {cls.family} has no such choice. Leave it out"
                )
        wanted = cls.ENCODER_KEYS + (cls.DECODER_KEYS if config.decoder else ())
        dropped = cls.DROPPED_KEYS + (() if config.decoder else cls.DECODER_KEYS)
        for key in checkpoint:
            if key != table_key and not key.startswith(wanted + dropped):
                raise TokenizerError(
                    f"{where}: the key {key} is not a part of a {cls.family} checkpoint; expected {', '.join(wanted)}"
                    f"{f' and {table_key}' if table_key else ''}, and dropped {', '.join(dropped)}. Is this the file of another model?"
                )
        return {key: value for key, value in checkpoint.items() if key != table_key and key.startswith(wanted)}

    @classmethod
    def doubts(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, where: str) -> list[str]:
        """Return signs that the checkpoint belongs to another family, a sentence each; TokenizerError where it certainly does."""
        return []

    def published_name(self, key: str) -> str:
        """Return the name in the checkpoint for a key of the networks' own state dict."""
        return key

    def check_networks(self) -> None:
        """Check every key against the networks now, before anything is written."""
        with torch.device("meta"):  # names and shapes, without memory for parameters
            networks = [(self.build_encoder(), self.ENCODER_KEYS)]
            if self.decodes:
                networks.append((self.build_decoder(), self.DECODER_KEYS))
        for module, prefixes in networks:
            check_fits(module, self._part(prefixes), self._where, names=self.published_name)

    def saved_config(self) -> dict[str, Any]:
        """Return what the spec keeps besides preprocessing and dtype, in plain JSON types."""
        return self._config

    @property
    def spec(self) -> TokenizerSpec:
        """Everything that decides what an id means."""
        return self._spec

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder back to pixels."""
        return any(key.startswith(self.DECODER_KEYS) for key in self._state)

    def codebook(self) -> dict[str, Floats]:
        """Return the raw code vectors as `level_0`, `level_1`, …: float32 [K, D]."""
        return {f"level_{q}": table for q, table in enumerate(self._tables)}

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the parameters of the networks under their published names."""
        return as_arrays(self._state, "")

    def encode(self, images_BHWC: Images) -> TokenBatch:
        """Return ids [B, L, Q] of uint8 RGB images."""
        check_images(images_BHWC, self._spec)
        ids_BLQ, finite = self.queue(to_device(images_BHWC))
        require_finite(finite)
        return TokenBatch(ids_BLQ.cpu().numpy().astype(self._spec.id_dtype))

    def queue(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids [B, L, Q] of uint8 images on the device, and whether all values were finite. Does not wait for the device."""
        with exact_float32():
            vectors_BLD, finite = self._encoder.queue(scaled(images_BHWC, self._spec.preprocess.colour_range))
            return self.quantise(vectors_BLD), finite

    def take_notes(self) -> list[str]:
        """Return notes for the user about the checkpoint, and about the encoder since the last call."""
        notes, self._notes = self._notes, []
        return notes + (self._encoder.take_notes() if "_encoder" in self.__dict__ else [])

    def decode(self, tokens: TokenBatch) -> Images:
        """Return uint8 images [B, size, size, 3]; raises DecodeNotSupported where the weights of the decoder were left out."""
        check_ids(tokens.ids_BLQ, self._spec)
        if not self.decodes:
            raise DecodeNotSupported(f"{self.family}: it was imported without its decoder, so there is no way back from ids to pixels")
        vectors_BLD = self.dequantise(torch.from_numpy(tokens.ids_BLQ.astype(np.int64)))
        return from_pixels(self._decoder(vectors_BLD), self._spec.preprocess.colour_range)

    @cached_property
    def _encoder(self) -> Network:
        return self._network(self.build_encoder(), self.ENCODER_KEYS)

    @cached_property
    def _decoder(self) -> Network:
        return self._network(self.build_decoder(), self.DECODER_KEYS)

    def _network(self, module: nn.Module, prefixes: tuple[str, ...]) -> Network:
        return Network(load_into(module, self._part(prefixes), self._where, names=self.published_name), dtype=self._spec.dtype)

    def _part(self, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
        return {key: value for key, value in self._state.items() if key.startswith(prefixes)}
