"""Images in buckets become shards of discrete tokens, and classifiers are trained straight from the shards.

    tokenshards tokenize photos/ photos.tokens                   # in a terminal: images to shards; again = continue
    dataset = tokenshards.open_dataset("photos.tokens")          # ids, labels and columns of a finished dataset
    loader = tokenshards.TokenLoader(dataset)                    # shuffled batches of tensors, resumable to the sample
    model, transform = tokenshards.build("vit_tiny", dataset)    # a classifier, and the augmentation of its training
    loss = transform.loss(model, next(iter(loader)))             # one step of a loop of your own; model(batch.ids_BLQ) gives logits
    tokenizer = tokenshards.load_tokenizer("photos.tokens")      # encode and decode images yourself
    report = tokenshards.train("photos.tokens", "run")           # the commands as functions: tokenize, pretrain, train, …

Names load on first use, so that `import tokenshards` alone loads no numpy, no pyarrow and no torch.
"""

import os
from importlib import import_module

TYPE_CHECKING = False  # typing.TYPE_CHECKING without the import, which costs more than the rest of this module
if TYPE_CHECKING:
    from typing import Any

    from tokenshards.pipeline.commands.tokenizing import tokenize
    from tokenshards.pipeline.reports.run_report import TokenizeReport
    from tokenshards.pipeline.shards.dataset import Batch, Sample, TokenDataset
    from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
    from tokenshards.pipeline.tokenizers.base import Tokenizer
    from tokenshards.pipeline.tokenizers.image_tokenizer import ImageTokenizer, load_tokenizer
    from tokenshards.pipeline.tokenizers.token_datasets import open_dataset
    from tokenshards.stem_adaptors.augment.operation import Operation
    from tokenshards.stem_adaptors.augment.registry import register_augmentation
    from tokenshards.stem_adaptors.augment.transform import TokenTransform
    from tokenshards.stem_adaptors.commands.comparing import compare
    from tokenshards.stem_adaptors.commands.curving import curve
    from tokenshards.stem_adaptors.commands.evaluating import evaluate
    from tokenshards.stem_adaptors.commands.evaluation_report import EvaluationReport
    from tokenshards.stem_adaptors.commands.learning_continually import continual
    from tokenshards.stem_adaptors.commands.predicting import Prediction, predict
    from tokenshards.stem_adaptors.commands.pretraining import PretrainReport, pretrain
    from tokenshards.stem_adaptors.commands.training import TrainReport, train
    from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig, TrainConfig
    from tokenshards.stem_adaptors.data.loader import TokenLoader
    from tokenshards.stem_adaptors.frameworks.lightning_modules import TokenClassifierModule, TokenDataModule
    from tokenshards.stem_adaptors.frameworks.samples import TokenSamples
    from tokenshards.stem_adaptors.frameworks.stream import TokenStream
    from tokenshards.stem_adaptors.frameworks.timm_models import TimmLoader, register_timm_models
    from tokenshards.stem_adaptors.frameworks.webdataset_pipeline import TokenPipeline
    from tokenshards.stem_adaptors.frameworks.with_loss import ClassifierWithLoss
    from tokenshards.stem_adaptors.mask_config import MaskConfig
    from tokenshards.stem_adaptors.models.classifier import TokenClassifier
    from tokenshards.stem_adaptors.segment_config import SegmentConfig
    from tokenshards.stem_adaptors.training.build import build

    __version__: str

__all__ = [
    "AugmentConfig",
    "Batch",
    "ClassifierWithLoss",
    "EvaluationReport",
    "ImageTokenizer",
    "Layout",
    "LoaderConfig",
    "MaskConfig",
    "ModelConfig",
    "Operation",
    "Prediction",
    "PretrainReport",
    "Sample",
    "SegmentConfig",
    "TimmLoader",
    "TokenClassifier",
    "TokenClassifierModule",
    "TokenDataModule",
    "TokenDataset",
    "TokenLoader",
    "TokenPipeline",
    "TokenSamples",
    "TokenStream",
    "TokenTransform",
    "TokenizeReport",
    "Tokenizer",
    "TokenizerSpec",
    "TrainConfig",
    "TrainReport",
    "__version__",
    "build",
    "compare",
    "continual",
    "curve",
    "evaluate",
    "load_tokenizer",
    "open_dataset",
    "predict",
    "pretrain",
    "register_timm_models",
    "register_augmentation",
    "tokenize",
    "train",
]

_HOMES = {
    "AugmentConfig": "stem_adaptors.config",
    "Batch": "pipeline.shards.dataset",
    "ClassifierWithLoss": "stem_adaptors.frameworks.with_loss",
    "EvaluationReport": "stem_adaptors.commands.evaluation_report",
    "ImageTokenizer": "pipeline.tokenizers.image_tokenizer",
    "Layout": "pipeline.shards.spec",
    "LoaderConfig": "stem_adaptors.config",
    "MaskConfig": "stem_adaptors.mask_config",
    "ModelConfig": "stem_adaptors.config",
    "Operation": "stem_adaptors.augment.operation",
    "Prediction": "stem_adaptors.commands.predicting",
    "Sample": "pipeline.shards.dataset",
    "SegmentConfig": "stem_adaptors.segment_config",
    "TimmLoader": "stem_adaptors.frameworks.timm_models",
    "TokenClassifier": "stem_adaptors.models.classifier",
    "TokenClassifierModule": "stem_adaptors.frameworks.lightning_modules",
    "TokenDataModule": "stem_adaptors.frameworks.lightning_modules",
    "TokenDataset": "pipeline.shards.dataset",
    "TokenLoader": "stem_adaptors.data.loader",
    "TokenPipeline": "stem_adaptors.frameworks.webdataset_pipeline",
    "TokenSamples": "stem_adaptors.frameworks.samples",
    "TokenStream": "stem_adaptors.frameworks.stream",
    "TokenTransform": "stem_adaptors.augment.transform",
    "TokenizeReport": "pipeline.reports.run_report",
    "Tokenizer": "pipeline.tokenizers.base",
    "TokenizerSpec": "pipeline.shards.spec",
    "TrainConfig": "stem_adaptors.config",
    "TrainReport": "stem_adaptors.commands.training",
    "PretrainReport": "stem_adaptors.commands.pretraining",
    "build": "stem_adaptors.training.build",
    "compare": "stem_adaptors.commands.comparing",
    "continual": "stem_adaptors.commands.learning_continually",
    "curve": "stem_adaptors.commands.curving",
    "evaluate": "stem_adaptors.commands.evaluating",
    "load_tokenizer": "pipeline.tokenizers.image_tokenizer",
    "open_dataset": "pipeline.tokenizers.token_datasets",
    "predict": "stem_adaptors.commands.predicting",
    "pretrain": "stem_adaptors.commands.pretraining",
    "register_timm_models": "stem_adaptors.frameworks.timm_models",
    "register_augmentation": "stem_adaptors.augment.registry",
    "tokenize": "pipeline.commands.tokenizing",
    "train": "stem_adaptors.commands.training",
}

if os.path.isfile(os.path.join(os.path.dirname(__file__), "pipeline")):
    raise ImportError(
        "tokenshards/pipeline is a text file instead of a link: this checkout was made without symbolic links, as git on Windows does. "
        "Run `git config core.symlinks true` and `git checkout -- tokenshards`, or install the package with pip"
    )


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenshards' has no attribute {name!r}; its names are {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(f"tokenshards.{_HOMES[name]}"), name)
    return value


def __dir__() -> "list[str]":
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tokenshards")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0.0.0+source"
