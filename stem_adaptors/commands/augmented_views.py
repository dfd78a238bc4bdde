"""What each augmentation does to some samples, as ids that a tokenizer can decode to pixels.

Shapes: B samples, L sites, N = B * L, Q ids per site, D channels, K codes of a level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.reports.previews import View
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.augment import TokenTransform
from tokenshards.stem_adaptors.augment.composed import HalfBatch, OneOf
from tokenshards.stem_adaptors.augment.language import parse_operations, text_of
from tokenshards.stem_adaptors.augment.on_embeddings import Crop
from tokenshards.stem_adaptors.augment.operation import Operation
from tokenshards.stem_adaptors.augment.quantise import NearestCodes
from tokenshards.stem_adaptors.augment.token_model import Lookup
from tokenshards.stem_adaptors.config import AugmentConfig
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding, embedding_statistics
from tokenshards.stem_adaptors.settings import with_settings
from tokenshards.stem_adaptors.training.defaults import default_configs, read_recipe

__all__ = ["augmented_views"]

Ids = npt.NDArray[Any]

MOST_LETTERS = 24
"""Width of a column's caption."""

# These options turn on one operation alone, in every sample. All other settings are those that `train` would use. A large alpha makes
# CutMix and Mixup take about half of the other image, whatever the seed.
_OPERATIONS: dict[str, dict[str, Any]] = {
    "synonyms": {"synonym_prob": 1.0},
    "block swap": {"swap_prob": 1.0},
    "mirror": {"flip_prob": 1.0},
    "resized crop": {"crop": "rrc"},
    "noise": {"noise_prob": 1.0},
    "ColorAdapt": {"coloradapt_prob": 1.0},
    "site dropout": {"dropout_prob": 0.25},
    "CutMix": {"cutmix_prob": 1.0, "cutmix_alpha": 50.0},
    "Mixup": {"cutmix_prob": 1.0, "mixup_alpha": 50.0},
}
# The output is the whole grid, so that it can be decoded; training crops `crop_share` of the grid.
_NOTHING = {"synonym_prob": 0.0, "swap_prob": 0.0, "flip_prob": 0.0, "dropout_prob": 0.0, "crop": "centre", "crop_share": 1.0}
_NOTHING |= {"noise_prob": 0.0, "coloradapt_prob": 0.0, "cutmix_prob": 0.0, "cutmix_alpha": 0.0, "mixup_alpha": 0.0}


def augmented_views(
    dataset: TokenDataset, tokens: TokenBatch, *, seed: int = 0, recipe: str | None = None, settings: Sequence[str] = ()
) -> list[View]:
    """Return (caption, tokens) pairs: unchanged, after each operation that the layout allows, and after all operations of `train`.

    `recipe` (a name or a file) and `settings` (augment.FIELD=VALUE) are those of `train`. The second line of a caption says how often
    `train` applies the operation. Embeddings are standardised as in training, and come back as the ids of the nearest codes. Without a
    codebook only operations on ids are shown. Raises ConfigError for layouts of varying size, where nothing can be shown, and for a setting
    that is not of `augment`.
    """
    spec, tables = dataset.spec, dataset.codebook()
    if spec.layout.variable:
        raise ConfigError("samples of varying size cannot be shown augmented; leave --augment out")
    configs = {**default_configs(dataset), **({} if recipe is None else read_recipe(recipe))}
    config: AugmentConfig = with_settings({"augment": configs["augment"]}, settings)["augment"]
    ids_BLQ = torch.from_numpy(tokens.ids_BLQ.astype(np.int64))
    shown = len(ids_BLQ)
    if shown > 1 and shown % 2:
        # Images are mixed in pairs. One that is not shown keeps the middle one from a pair with itself.
        ids_BLQ = torch.cat([ids_BLQ, ids_BLQ[1:2]])
    places_B = torch.arange(len(ids_BLQ))
    batch = Batch(ids_BLQ, places_B, torch.ones(len(ids_BLQ)), places_B, places_B, epoch=0, seed=seed)
    statistics = embedding_statistics(dataset)
    model = Lookup(TokenEmbedding(spec, tables, standardise=statistics))
    nearest = None if spec.codebook is None else NearestCodes(spec, tables, statistics)
    views: list[View] = [("tokens\nas stored", tokens)]
    columns = [*_columns(config)]
    if spec.codebook is not None:
        columns.append(("all together\nas in training", _whole_grid(config)))
    for caption, part in columns:
        try:
            transform = TokenTransform(spec, tables, part, len(ids_BLQ), statistics=statistics)
        except ConfigError:
            continue  # the layout has no such operation
        transform.load()
        state = transform.state(model, batch)
        operations = parse_operations(part.ops) if part.ops else []
        holds_ids = all(operation.stage == "ids" for operation in operations) or operations[-1].gives_ids
        if holds_ids if operations else not _on_embeddings(part):
            ids = state.ids_BLQ.numpy().astype(spec.id_dtype)
        elif nearest is not None:
            ids = nearest(state.embeddings.flatten(2).transpose(1, 2)).numpy().astype(spec.id_dtype)
        else:
            continue
        views.append((caption, TokenBatch(_framed(ids, ids_BLQ, spec.layout.grid, state.embeddings.shape[2:])[:shown])))
    if len(views) == 1:
        raise ConfigError(
            f"no augmentation of tokenizer family {spec.family!r} can be shown: its layout is {spec.layout.kind!r} and it has no codebook; "
            "leave --augment out"
        )
    return views


def _columns(config: AugmentConfig) -> Iterator[tuple[str, AugmentConfig]]:
    """Yield the caption of each operation, and a config that applies it alone to all samples."""
    if not config.ops:
        for name, options in _OPERATIONS.items():
            yield f"{name}\n{_how_often(name, config)}", dataclasses.replace(config, **{**_NOTHING, **options})
        return
    for operation in parse_operations(config.ops):
        for chance, parts in _alternatives(operation):
            of = "mix groups" if parts[0].by_group else "images"
            text = text_of(parts)
            name = text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"
            yield f"{name}\n{chance:.0%} of {of}", _whole_grid(AugmentConfig(ops=text))


def _alternatives(operation: Operation) -> Iterator[tuple[float, Sequence[Operation]]]:
    """Yield what an operation does to some of the images, with their share: the choices of `one_of`, each half of `half_batch`."""
    if isinstance(operation, OneOf):
        yield from ((chance, [part]) for chance, part in operation.choices)
    elif isinstance(operation, HalfBatch):
        yield from ((0.5, half) for half in operation.halves if half)
    else:
        yield 1.0, [operation]


def _framed(ids_BNQ: Ids, stored_BLQ: Tensor, grid: tuple[int, ...], made: Sequence[int]) -> Ids:
    """Return whole samples, which a tokenizer can decode: a smaller grid in the middle of the stored ids."""
    if tuple(made) == grid or len(grid) != 2 or ids_BNQ.shape[1] == stored_BLQ.shape[1]:
        return ids_BNQ
    top, left = ((side - own) // 2 for side, own in zip(grid, made, strict=True))
    whole = stored_BLQ.numpy().astype(ids_BNQ.dtype).reshape(len(stored_BLQ), *grid, -1)
    whole[:, top : top + made[0], left : left + made[1]] = ids_BNQ.reshape(len(ids_BNQ), *made, -1)
    return whole.reshape(*stored_BLQ.shape)


def _whole_grid(config: AugmentConfig) -> AugmentConfig:
    """Return the config with crops that keep the size of the grid, so that a tokenizer can decode it."""
    if not config.ops:
        return dataclasses.replace(config, crop_share=1.0)
    operations = parse_operations(config.ops)
    for operation in (member for one in operations for member in one.members()):
        if isinstance(operation, Crop):
            operation.options["share"] = 1.0
    return dataclasses.replace(config, ops=text_of(operations))


def _on_embeddings(config: AugmentConfig) -> bool:
    """Whether a config changes embeddings."""
    mixed = config.cutmix_prob > 0 and (config.cutmix_alpha > 0 or config.mixup_alpha > 0)
    return mixed or config.crop != "centre" or max(config.noise_prob, config.coloradapt_prob, config.dropout_prob) > 0


def _how_often(name: str, config: AugmentConfig) -> str:
    both = 2 if config.cutmix_alpha > 0 and config.mixup_alpha > 0 else 1
    shares = {
        "synonyms": config.synonym_prob,
        "block swap": config.swap_prob,
        "mirror": config.flip_prob,
        "resized crop": float(config.crop == "rrc"),
        "noise": config.noise_prob,
        "ColorAdapt": config.coloradapt_prob,
        "site dropout": float(config.dropout_prob > 0),
        "CutMix": config.cutmix_prob * (config.cutmix_alpha > 0) / both,
        "Mixup": config.cutmix_prob * (config.mixup_alpha > 0) / both,
    }
    of = "mix groups" if name in ("CutMix", "Mixup") else "images"
    return f"{shares[name]:.0%} of {of}" if shares[name] > 0 else "off"
