"""Makes a run directory from weights alone, ours or another project's such as SeiT's, for `evaluate` and `predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment import allowed_augmentations, require_own_operations_allowed
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
from tokenshards.stem_adaptors.data.loader import initial_state
from tokenshards.stem_adaptors.data.same_tokenizer import require_same_tokenizer
from tokenshards.stem_adaptors.models.classifier import SIZES, TokenClassifier
from tokenshards.stem_adaptors.models.embedding import Statistics, embedding_statistics
from tokenshards.stem_adaptors.models.own_code import require_own_code_allowed
from tokenshards.stem_adaptors.settings import with_settings
from tokenshards.stem_adaptors.training.checkpoints import require_finite, write_weights
from tokenshards.stem_adaptors.training.pretrained import LoadReport, fill_model
from tokenshards.stem_adaptors.training.run_directory import BEST, RUN_JSON, Run, load_run
from tokenshards.stem_adaptors.training.stored_embeddings import standardising_of
from tokenshards.stem_adaptors.training.weight_files import code_vectors, plain_names, read_tensors

__all__ = ["Imported", "import_classifier"]

_VIT_NAMES = ("cls_token", "pos_embed", "blocks.0.norm1.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
_RAW = "model.raw_embeddings"


class Imported(NamedTuple):
    """A run made from weights."""

    run: Run
    report: LoadReport
    notes: tuple[str, ...]
    """What was taken for the model, and from where."""


class _Embeddings(NamedTuple):
    raw: bool
    statistics: Statistics | None
    note: str


def import_classifier(
    weights: str, dataset: TokenDataset, out: Store, *, model: str | None = None, settings: Sequence[str] = ()
) -> Imported:
    """Write a run directory with the weights of a file, for tokens like those of the dataset and classes in the dataset's order.

    A run directory says its model, classes and embeddings itself. Of a file the model is a ViT of the sizes in it, or `model`, and
    evaluation takes the centre crop of 28 of 32 sites. The code vectors in the file tell whether embeddings are standardised; without
    code vectors the embeddings are those of the codebook unchanged, as in SeiT. `settings` (PART.FIELD=VALUE of model and augment)
    override this. Raises ConfigError where the directory holds a run, where the file lacks a weight of the model in its shape (a classifier
    with some random weights would only seem to work) or has other code vectors than the dataset, and for weights that are not finite.
    """
    if out.info(RUN_JSON) is not None:
        raise ConfigError(f"{out.url} already holds a run; expected an empty place. Give another RUN")
    recorded = _recorded(weights, dataset)
    if recorded is None and not dataset.classes:
        raise ConfigError(f"{dataset.store.url}: no image has a label; expected the classes of the weights, in their order")
    tensors = read_tensors(weights)
    parts: dict[str, Any] = {"augment": allowed_augmentations(dataset.spec, AugmentConfig()) if recorded is None else recorded.augment}
    if model is not None:
        parts["model"] = ModelConfig(name=model, raw_embeddings=True)
    else:
        parts["model"] = _model_of(plain_names(tensors, _VIT_NAMES, weights), weights) if recorded is None else recorded.model
    parts = with_settings(parts, settings)
    embeddings = _embeddings(tensors, dataset, recorded, parts["model"], weights, settings)
    run = Run(
        model=replace(parts["model"], raw_embeddings=embeddings.raw),
        augment=replace(parts["augment"], mix_group=0),
        loader=LoaderConfig(),
        train=TrainConfig() if recorded is None else recorded.train,
        spec=dataset.spec,
        classes=dataset.classes if recorded is None else recorded.classes,
        statistics=embeddings.statistics,
        data={**_identity(dataset), "url": dataset.store.url, "pretrained": weights, "imported": True},
    )
    classifier: Any = run.build(dataset.codebook()).model
    wanted = classifier.backbone.state_dict()
    _require_shapes(wanted, plain_names(tensors, wanted, weights), weights)
    report = fill_model(classifier, tensors, weights)
    if classifier.embedding.learned:
        _fill_codes(classifier, tensors, weights)
    write_weights(out, BEST, classifier.state_dict(), {"epoch": None, "val_top1": None, "weights": "imported"})
    run.save(out, dataset)
    heads = () if model is not None or recorded is not None else (_sizes_note(run.model, classifier),)
    return Imported(run, report, (*heads, embeddings.note))


def _recorded(weights: str, dataset: TokenDataset) -> Run | None:
    """Return the run whose directory `weights` is, None for a file. Raises ConfigError and OtherTokenizerError where it cannot be
    used with the dataset."""
    store = Store(weights)
    if store.info(RUN_JSON) is None:
        return None
    run = load_run(store)
    require_own_code_allowed(run.model)
    require_own_operations_allowed(run.augment)
    require_same_tokenizer(dataset, run.spec, f"the run {weights}", f"Tokenize the images with --tokenizer {weights}/tokenizer")
    return run


def _embeddings(
    tensors: Mapping[str, Tensor], dataset: TokenDataset, recorded: Run | None, model: ModelConfig, weights: str, settings: Sequence[str]
) -> _Embeddings:
    """Decide between raw and standardised embeddings: by `--set`, by the run, by the code vectors of the file, else raw."""
    if model.learned_codebook or dataset.spec.codebook is None:
        return _Embeddings(
            model.raw_embeddings, None if recorded is None else recorded.statistics, "embeddings: learned, those of the file"
        )
    usual = recorded.statistics if recorded is not None and recorded.statistics is not None else _usual(dataset, model)
    asked = any(setting.startswith(f"{_RAW}=") for setting in settings)
    if asked or recorded is not None:
        raw = model.raw_embeddings if asked or recorded is None else recorded.model.raw_embeddings
        return _Embeddings(raw, None if raw else usual, f"embeddings: {_kind(raw)}, as {'--set' if asked else 'the run'} says")
    stored = code_vectors(tensors, len(dataset.spec.vocabulary), weights)
    if stored is None:
        change = f"If the weights learned from standardised ones, add --set {_RAW}=false"
        return _Embeddings(True, None, f"embeddings: {_kind(True)}, because the file has no code vectors to tell. {change}")
    found = standardising_of(stored, dataset.spec, dataset.codebook(), usual, levels=model.levels)
    if found is None:
        raise ConfigError(
            f"{weights}: its code vectors (embedding.level_0, …) are neither those of the codebook of {dataset.store.url} nor these "
            "standardised. Give the dataset whose tokenizer made the tokens that the weights learned from; if the weights trained code "
            "vectors of their own, add --set model.learned_codebook=true"
        )
    return _Embeddings(found.raw, found.statistics, f"embeddings: {_kind(found.raw)}, as the code vectors in the file are")


def _kind(raw: bool) -> str:
    return "the code vectors as stored" if raw else "standardised code vectors"


def _usual(dataset: TokenDataset, model: ModelConfig) -> Statistics | None:
    return embedding_statistics(dataset, levels=model.levels)


def _fill_codes(classifier: TokenClassifier, tensors: Mapping[str, Tensor], weights: str) -> None:
    """Give learned code vectors the values in the file. Raises ConfigError where it has none in these shapes."""
    own = classifier.embedding.state_dict()
    stored = code_vectors(tensors, len(own), weights)
    shapes, wanted = [list(table.shape) for table in stored or ()], [list(table.shape) for table in own.values()]
    if stored is None or shapes != wanted:
        raise ConfigError(
            f"{weights}: the model learned its code vectors, of shapes {wanted}; the file has {shapes or 'none'} (embedding.level_0, …). "
            "Give a file with the whole classifier, and the dataset that belongs to it"
        )
    codes = dict(zip(own, stored, strict=True))
    require_finite({f"embedding.{name}": table for name, table in codes.items()}, weights)
    classifier.embedding.load_state_dict(codes)


def _sizes_note(model: ModelConfig, classifier: TokenClassifier) -> str:
    heads = getattr(getattr(getattr(classifier.backbone, "blocks", [None])[0], "attn", None), "heads", None)
    return f"model: {model.name} with {heads} heads, the usual number for its width, because no file tells it (--set model.heads=N)"


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
        if width == known_width:
            return ModelConfig(name=name, depth=None if depth == known_depth else depth, raw_embeddings=True)
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
