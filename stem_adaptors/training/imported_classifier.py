"""Makes a run directory from weights that another project trained, such as SeiT's, so that `evaluate` and `predict` can use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment import allowed_augmentations
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig, with_settings
from tokenshards.stem_adaptors.data.loader import initial_state
from tokenshards.stem_adaptors.models.classifier import SIZES
from tokenshards.stem_adaptors.training.checkpoints import write_weights
from tokenshards.stem_adaptors.training.pretrained import LoadReport, load_pretrained, named_tensors
from tokenshards.stem_adaptors.training.run_directory import BEST, RUN_JSON, Run, statistics_of

__all__ = ["import_classifier"]


def import_classifier(
    weights: str, dataset: TokenDataset, out: Store, *, model: str | None = None, settings: Sequence[str] = ()
) -> tuple[Run, LoadReport]:
    """Write a run directory with the weights of a file, for tokens like those of the dataset and classes in the dataset's order.

    The model is a ViT of the file's sizes, or `model`. As in SeiT, embeddings are the code vectors unchanged, and evaluation takes the
    centre crop of 28 of 32 sites; `settings` (PART.FIELD=VALUE of model and augment) override this. Raises ConfigError where the directory
    holds a run, or where the file lacks a weight of the model in its shape: a classifier with some random weights would only seem to work.
    """
    if out.info(RUN_JSON) is not None:
        raise ConfigError(f"{out.url} already holds a run; expected an empty place. Give another RUN")
    if not dataset.classes:
        raise ConfigError(f"{dataset.store.url}: no image has a label; expected the classes of the weights, in their order")
    stored = named_tensors(weights)
    parts: dict[str, Any] = {
        "model": ModelConfig(name=model, raw_embeddings=True) if model is not None else _model_of(stored, weights),
        "augment": allowed_augmentations(dataset.spec, AugmentConfig()),
    }
    parts = with_settings(parts, settings)
    run = Run(
        model=parts["model"],
        augment=replace(parts["augment"], mix_group=0),
        loader=LoaderConfig(),
        train=TrainConfig(),
        spec=dataset.spec,
        classes=dataset.classes,
        statistics=None if parts["model"].raw_embeddings else statistics_of(dataset),
        data={**_identity(dataset), "url": dataset.store.url, "pretrained": weights, "imported": True},
    )
    classifier: Any = run.build(dataset.codebook()).model
    _require_shapes(classifier.backbone.state_dict(), stored, weights)
    report = load_pretrained(classifier, weights)
    write_weights(out, BEST, classifier.state_dict(), {"epoch": None, "val_top1": None, "weights": "imported"})
    run.save(out, dataset)
    return run, report


def _identity(dataset: TokenDataset) -> dict[str, Any]:
    state = initial_state(dataset, LoaderConfig()).to_json()
    return {name: state[name] for name in ("manifest", "subset", "mix_weights")}


def _model_of(stored: Mapping[str, Tensor], weights: str) -> ModelConfig:
    """Return a ViT of the sizes that the tensors have."""
    width = stored["cls_token"].shape[-1] if "cls_token" in stored else 0
    depth = len({name.split(".")[1] for name in stored if name.startswith("blocks.")})
    if not width or not depth:
        raise ConfigError(
            f"{weights}: its weights are not named as those of a ViT of timm (it has {shorten(sorted(stored)[:4])}); expected cls_token "
            "and blocks.N.… Give --model, such as timm:resnet50"
        )
    for name, (known_width, known_depth, _) in SIZES.items():
        if (width, depth) == (known_width, known_depth):
            return ModelConfig(name=name, raw_embeddings=True)
    return ModelConfig(width=width, depth=depth, raw_embeddings=True)


def _require_shapes(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor], weights: str) -> None:
    """Raise ConfigError unless the file has every weight of the model, with its shape."""
    wrong = []
    for name, tensor in wanted.items():
        found = stored.get(name, stored.get(name.replace("fc_norm.", "norm.")))
        if found is None:
            wrong.append(f"{name} is missing")
        elif found.shape != tensor.shape:
            wrong.append(f"{name} has shape {tuple(found.shape)}, the model {tuple(tensor.shape)}")
    if wrong:
        raise ConfigError(
            f"{weights}: {len(wrong)} of the {len(wanted)} weights do not fit the model for this dataset: {'; '.join(wrong[:4])}. The head "
            "needs a row for each class of DATA, the positions need one for each token of the crop, and the stem needs a channel for "
            "each channel of the codebook. Give the dataset that belongs to the weights, --model, or --set (model.heads, model.stem, "
            "augment.crop_share)"
        )
