"""The model that gives each pixel a class: a classifier's embedding and encoder, and a head on the plane of the encoder's tokens.

Embedding and encoder have the names of a classifier's, so that `--pretrained` fills them from a classifier or a pre-training.

Shapes: B samples, L sites, Q ids per site, N = H x W tokens of the transformer, E its width, C classes, O x P pixels of a label map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.classifier import SIZES, TokenClassifier, VisionTransformer, build_classifier, seeded
from tokenshards.stem_adaptors.models.drop_path import draw_paths
from tokenshards.stem_adaptors.models.embedding import Statistics
from tokenshards.stem_adaptors.models.segment_heads import LinearHead, PyramidHead, pyramid_blocks
from tokenshards.stem_adaptors.models.stems import ConvStem
from tokenshards.stem_adaptors.precision import in_float32
from tokenshards.stem_adaptors.segment_config import SegmentConfig

__all__ = ["TokenSegmenter", "build_segmenter"]


class TokenSegmenter(TokenClassifier):
    """Token ids to logits of pixels. `backbone.head` is the head, and `backbone.fc_norm` norms the tokens before it."""

    backbone: VisionTransformer

    def __init__(self, classifier: TokenClassifier, head: LinearHead | PyramidHead) -> None:
        """Take over embedding and backbone of a classifier, with another head."""
        backbone = cast(VisionTransformer, classifier.backbone)
        backbone.head = head  # type: ignore[assignment]  # a classifier's is a linear layer
        super().__init__(classifier.embedding, backbone, classifier.out_grid)
        depth = len(backbone.blocks)
        self.read_blocks = (depth - 1,) if isinstance(head, LinearHead) else pyramid_blocks(depth)
        """Numbers of the blocks whose tokens the head reads."""

    def segment(self, x: Tensor, pixels: Sequence[int], draws_BP: Tensor | None = None) -> Tensor:
        """Return float32 logits [B, C, O, P] of `pixels` = (O, P), from embeddings over `out_grid`. `draws_BP` as for `classify`."""
        if draws_BP is not None:
            draw_paths(self._drop_paths, draws_BP)
        levels = self._levels(x)
        with in_float32(x.device):
            logits_BCHW = self.backbone.head([level.float() for level in levels])
            logits = F.interpolate(logits_BCHW, tuple(pixels), mode="bilinear", align_corners=False)
        if draws_BP is not None:
            draw_paths(self._drop_paths, None)
        return logits

    def _levels(self, x: Tensor) -> list[Tensor]:
        """Return the normed tokens [B, E, H, W] of the blocks that the head reads."""
        backbone = self.backbone
        height, width = backbone.grid
        x_BNE, _ = backbone.tokens(x)
        found: dict[int, Tensor] = {}
        for number, block in enumerate(backbone.blocks):
            x_BNE = block(x_BNE, None)
            if number in self.read_blocks:
                plane_BNE = backbone.fc_norm(x_BNE[:, 1:])
                found[number] = plane_BNE.transpose(1, 2).reshape(len(x_BNE), -1, height, width)
        return [found[number] for number in self.read_blocks]

    def forward(self, ids_BLQ: Tensor, *, mask_BL: Tensor | None = None, shapes_BD: Tensor | None = None) -> Tensor:
        """Return logits [B, C, H, W] of whole samples after the centre crop, one for each site of `out_grid`."""
        x, _ = self._centre(ids_BLQ, mask_BL, shapes_BD)
        return self.segment(x, self.out_grid)


def build_segmenter(
    spec: TokenizerSpec,
    tables: Mapping[str, npt.NDArray[Any]],
    statistics: Statistics | None,
    config: ModelConfig,
    segment: SegmentConfig,
    classes: int,
    out_grid: Sequence[int] | None = None,
    *,
    seed: int = 0,
) -> TokenSegmenter:
    """Return a new segmenter for datasets of one spec; arguments as for `build_classifier`, whose encoder it has.

    Raises ConfigError for tokens that are no plane of one size, and for models and stems that are not ours.
    """
    layout = spec.layout
    if layout.kind != "grid" or layout.variable:
        kind = f"{layout.kind} of varying size" if layout.variable else layout.kind
        raise ConfigError(
            f"the tokens are a {kind}, in which a pixel has no place; expected a grid of one size. Tokenize the images and masks with "
            "another --kind, such as patch-kmeans"
        )
    if config.name not in SIZES:
        raise ConfigError(f"model is {config.name!r}, whose tokens have no known places; expected one of {', '.join(SIZES)} for masks")
    classifier = build_classifier(spec, tables, statistics, config, 1, out_grid, seed=seed)
    backbone = cast(VisionTransformer, classifier.backbone)
    if not isinstance(backbone.patch_embed, ConvStem):
        raise ConfigError(f"stem is {config.stem!r}, whose tokens have no known places; expected auto, conv or patch for masks")
    width = backbone.pos_embed.shape[2]
    with seeded(seed + 1):
        head = LinearHead(width, classes) if segment.head == "linear" else PyramidHead(width, classes, segment.channels)
        with torch.no_grad():
            for module in head.modules():
                if isinstance(module, nn.Linear):  # as the other linear layers of the model
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)
    return TokenSegmenter(classifier, head)
