"""Convolutional VQGANs (Esser et al. 2021, arXiv 2012.09841) as four projects publish them, on the classes of diffusers.

The four differ in parameter names, in the search of a code and in the range of their pixels. A wrong guess of any of these gives wrong
ids without an error. Only diffusers' encoder and decoder are used: its quantizer, like that of transformers' Janus, always compares plain
distances, whatever the checkpoint was trained with.

Shapes: B images, L sites, h and w sides of the grid, D values of a code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from diffusers import VQModel
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError, TokenizerError, shorten
from tokenshards.pipeline.tokenizers.base import Layout, Preprocess
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.nearest_code import Metric
from tokenshards.pipeline.tokenizers.networks.codebook_tokenizer import CodebookTokenizer, Floats
from tokenshards.pipeline.tokenizers.networks.network_tokenizer import published_preprocess
from tokenshards.pipeline.tokenizers.networks.square_grid import square_grid
from tokenshards.pipeline.tokenizers.networks.weights import EMA, count_parts, tensor_of, with_ema

__all__ = ["PRESETS", "ConvVqgan", "Preset"]

WHAT = "a convolutional VQGAN"
GROUPS = 32
SIZE = 256
Names = Literal["taming", "llamagen", "diffusers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """What the checkpoints of a project have in common."""

    names: Names
    metric: Metric
    colour_range: tuple[float, float] = (-1.0, 1.0)


PRESETS = {
    "taming": Preset(names="taming", metric="l2"),
    "llamagen": Preset(names="llamagen", metric="cosine"),
    "ibq": Preset(names="taming", metric="dot"),
    "amused": Preset(names="diffusers", metric="l2", colour_range=(0.0, 1.0)),
}
BLOCKS = {"taming": 2, "ibq": 4}
"""Blocks per encoder level in the published checkpoints of the two projects with equal names."""
LEVELS = {"taming": "encoder.down", "llamagen": "encoder.conv_blocks", "diffusers": "encoder.down_blocks"}
PARTS = {
    "taming": {r"resnets\.(\d+)": r"block.\1", r"mid_block\.block\.0": "mid.block_1", r"mid_block\.block\.1": "mid.block_2"},
    "llamagen": {r"resnets\.(\d+)": r"res.\1", r"mid_block\.res\.0": "mid.0", r"mid_block\.res\.1": "mid.2"},
}
"""Patterns in diffusers' names and their replacements in the names of the projects; applied in order."""
COMMON_PARTS = {
    r"attentions\.(\d+)": r"attn.\1",
    r"conv_shortcut": "nin_shortcut",
    r"conv_norm_out": "norm_out",
    r"group_norm": "norm",
    r"to_([qkv])": r"\1",
    r"to_out\.0": "proj_out",
    r"downsamplers\.0": "downsample",
    r"upsamplers\.0": "upsample",
}


class _PixelsToVectors(nn.Module):
    def __init__(self, model: VQModel) -> None:
        super().__init__()
        self.encoder, self.quant_conv = model.encoder, model.quant_conv

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        result: Tensor = self.quant_conv(self.encoder(pixels_BCHW)).flatten(2).transpose(1, 2)
        return result


class _VectorsToPixels(nn.Module):
    def __init__(self, model: VQModel, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder, self._grid = model.post_quant_conv, model.decoder, grid

    def forward(self, vectors_BLD: Tensor) -> Tensor:
        vectors_BDhw = vectors_BLD.transpose(1, 2).reshape(len(vectors_BLD), -1, *self._grid)
        result: Tensor = self.decoder(self.post_quant_conv(vectors_BDhw))
        return result


class ConvVqgan(CodebookTokenizer):
    """VQGANs of taming-transformers and latent diffusion, LlamaGen, IBQ and aMUSEd, of any stride, width and depth."""

    family = "conv-vqgan"
    ENCODER_KEYS = ("encoder.", "quant_conv.")
    DECODER_KEYS = ("decoder.", "post_quant_conv.")
    DROPPED_KEYS = ("loss.", "quantize.codebook_used", EMA)
    AVERAGES = ("ema",)
    OPTIONS = ("size", "preset")

    def __init__(self, state: Mapping[str, Tensor], codes_KD: Floats, *, config: Mapping[str, Any], **rest: Any) -> None:
        self._preset = PRESETS[config["preset"]]
        self.metric = self._preset.metric
        super().__init__({key: _flat(key, value) for key, value in state.items()}, codes_KD, config=config, **rest)

    @classmethod
    def prepared(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, where: str) -> Mapping[str, Tensor]:
        """Take the moving averages, as the next stage of IBQ does."""
        parts = (*cls.ENCODER_KEYS, *cls.DECODER_KEYS, cls.TABLE_KEY)
        return with_ema(checkpoint, parts, where) if config.ema else checkpoint

    @classmethod
    def doubts(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, where: str) -> list[str]:
        """Compare the names, and the two differences between taming's and IBQ's checkpoints, whose names are equal: blocks and averages.

        Raises ConfigError without a preset, TokenizerError for the names of another preset, and where both differences point to the other
        preset.
        """
        if config.preset not in PRESETS:
            raise ConfigError(f"--preset is {shorten(config.preset)}; expected one of {', '.join(PRESETS)}: whose checkpoint is it?")
        names = PRESETS[config.preset].names
        if not count_parts(checkpoint, LEVELS[names]):
            found = [preset for preset, known in PRESETS.items() if count_parts(checkpoint, LEVELS[known.names])]
            raise TokenizerError(
                f"{where}: no {LEVELS[names]}.0…, which --preset {config.preset} has; its names are those of {', '.join(found) or 'none'}: "
                f"{', '.join(sorted(checkpoint)[:3])}"
            )
        if names != "taming":
            return []
        blocks, averaged = count_parts(checkpoint, "encoder.down.0.block"), any(key.startswith(EMA) for key in checkpoint)
        expected_blocks, expected_averaged = BLOCKS[config.preset], config.preset == "ibq"
        seen = f"{blocks} blocks a level and {'moving' if averaged else 'no moving'} averages"
        known = f"{expected_blocks} blocks and {'moving' if expected_averaged else 'no moving'} averages"
        other = next(preset for preset in BLOCKS if preset != config.preset)
        if blocks == BLOCKS[other] and averaged is not expected_averaged:
            raise TokenizerError(
                f"{where}: it has {seen}, as the checkpoints of {other} have; those of {config.preset} have {known}. The two find their "
                f"codes in different ways, and the wrong one gives wrong ids: give --preset {other}"
            )
        if blocks != expected_blocks or (averaged and not expected_averaged):
            return [
                f"it has {seen}, and the published checkpoints of {config.preset} have {known}: was it trained by {config.preset}'s code?"
            ]
        return []

    @classmethod
    def settings(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, where: str) -> dict[str, Any]:
        """Return the project of the checkpoint."""
        return {"preset": config.preset}

    @classmethod
    def preprocess(cls, state: Mapping[str, Tensor], config: ImportConfig, decoder: str, where: str) -> Preprocess:
        """Short side to 256 pixels and the centre, bicubic; values from -1 to 1, for aMUSEd from 0 to 1."""
        colours = PRESETS[config.preset or ""].colour_range
        size = config.size or SIZE
        return published_preprocess(config, size=size, resize="crop", filter="bicubic", colour_range=colours, decoder=decoder)

    def layout(self, preprocess: Preprocess) -> Layout:
        """A square grid; each level but the first halves its side."""
        return square_grid(preprocess.size, self._levels, self._where)

    def code_width(self) -> int:
        """D, the channels of `quant_conv`."""
        return tensor_of(self._state, "quant_conv.weight", 4, self._where, WHAT).shape[0]

    def published_name(self, key: str) -> str:
        """Return the project's name for a key of diffusers' classes."""
        names = self._preset.names
        if names == "diffusers":
            return key
        for pattern, name in {**PARTS[names], **COMMON_PARTS}.items():
            key = re.sub(pattern, name, key)
        key = re.sub(r"mid_block\.attn\.0", "mid.attn_1" if names == "taming" else "mid.1", key)
        if names == "llamagen":
            return re.sub(r"(down|up)_blocks", "conv_blocks", key)
        levels = self._levels  # taming also counts the levels of the decoder from the finest
        return re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", key.replace("down_blocks", "down"))

    def build_encoder(self) -> nn.Module:
        """Pixels to vectors."""
        return _PixelsToVectors(self._model())

    def build_decoder(self) -> nn.Module:
        """Rows to pixels."""
        return _VectorsToPixels(self._model(), self.spec.layout.grid)

    @property
    def _levels(self) -> int:
        return count_parts(self._state, LEVELS[self._preset.names])

    def _model(self) -> VQModel:
        """Diffusers' model with the sizes of the checkpoint, without its weights."""
        levels = range(self._levels)
        widths = [self._published(f"encoder.down_blocks.{i}.resnets.0.conv1.weight").shape[0] for i in levels]
        attends = [self.published_name(f"encoder.down_blocks.{i}.attentions.0.to_q.weight") in self._state for i in levels]
        block = self.published_name("encoder.down_blocks.0.resnets.0").rpartition(".")[0]
        return VQModel(
            down_block_types=tuple("AttnDownEncoderBlock2D" if attends[i] else "DownEncoderBlock2D" for i in levels),
            up_block_types=tuple("AttnUpDecoderBlock2D" if attends[i] else "UpDecoderBlock2D" for i in reversed(levels)),
            block_out_channels=tuple(widths),
            layers_per_block=count_parts(self._state, block),
            latent_channels=self._published("encoder.conv_out.weight").shape[0],
            vq_embed_dim=self.code_width(),
            num_vq_embeddings=1,  # its quantizer is not used
            norm_num_groups=GROUPS,
            mid_block_add_attention=self.published_name("encoder.mid_block.attentions.0.to_q.weight") in self._state,
        )

    def _published(self, key: str) -> Tensor:
        return tensor_of(self._state, self.published_name(key), 4, self._where, WHAT)


def _flat(key: str, value: Tensor) -> Tensor:
    """Return attention weights as matrices, as in diffusers; the projects store them as 1 x 1 convolutions."""
    return value[:, :, 0, 0] if value.ndim == 4 and value.shape[2:] == (1, 1) and re.search(r"\.(q|k|v|proj_out)\.weight$", key) else value
