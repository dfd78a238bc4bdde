"""What a notebook shows of an object is one to three lines, without arrays."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tokenshards
from tests.datasets import write_images
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.commands.evaluation_report import evaluate_run
from tokenshards.stem_adaptors.data.mixing import mix
from tokenshards.stem_adaptors.data.selection import select
from tokenshards.stem_adaptors.training.run_directory import load_run

allow_torchvision()  # timm and Lightning import it

LONGEST = 3 * 140
OF_OTHERS = {"TokenClassifier", "ClassifierWithLoss", "TokenClassifierModule", "Operation"}
"""Modules of torch, which show their layers."""
NOT_MADE = {
    "Layout",
    "TokenizerSpec",
    "AugmentConfig",
    "LoaderConfig",
    "MaskConfig",
    "ModelConfig",
    "SegmentConfig",
    "TrainConfig",
    "Tokenizer",
}
"""Settings, which show all their fields, and a protocol."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The repr of an object of each kind that a user holds, by the name of its class; of rows and batches also the variants."""
    folder = tmp_path_factory.mktemp("reprs")
    write_images(folder / "photos", 72, side=64)
    write_images(folder / "more", 12, side=64, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TOKENSHARDS_CACHE", str(folder / "cache"))
        yield {name: repr(value) for name, value in made()}


def made() -> Iterator[tuple[str, Any]]:
    yield "TokenizeReport", tokenshards.tokenize("photos", "photos.tokens", workers=1)
    tokenshards.tokenize("more", "more.tokens", tokenizer="photos.tokens", workers=1)
    dataset, more = tokenshards.open_dataset("photos.tokens"), tokenshards.open_dataset("more.tokens")
    yield "TrainReport", tokenshards.train("photos.tokens", "run", val="more.tokens", epochs=1, set={"model.depth": 1})
    yield "PretrainReport", tokenshards.pretrain("photos.tokens", "pretrained", epochs=1, set={"model.depth": 1})
    yield "TokenDataset", dataset
    yield "JoinedDataset", tokenshards.open_dataset(["photos.tokens", "more.tokens"])
    yield "Manifest", dataset.manifest
    yield "Batch", dataset[2:5]
    yield "Batch of all", dataset[:]
    yield "TokenBatch", dataset[2:5].tokens
    yield "Sample", dataset[0]
    yield "ImageTokenizer", tokenshards.load_tokenizer("photos.tokens")
    yield "Selection", select(dataset, fraction=0.5)
    yield "Mix", mix([(dataset, 1.0), (more, 1.0)])
    loader = tokenshards.TokenLoader(dataset, batch_size=16)
    yield "TokenLoader", loader
    batch = next(iter(loader))
    yield "Batch of training", batch
    model, transform = tokenshards.build("vit_nano", dataset)
    yield "TokenTransform", transform
    yield "StepInputs", transform.inputs(model, batch)
    yield "TokenState", transform.state(model, batch)
    yield "Transformed", transform.transformed(model, transform.inputs(model, batch))
    yield "TokenSamples", tokenshards.TokenSamples(dataset)
    yield "TokenStream", tokenshards.TokenStream(dataset)
    yield "TokenPipeline", tokenshards.TokenPipeline(dataset)
    yield "TokenDataModule", tokenshards.TokenDataModule(dataset, more)
    import timm

    tokenshards.register_timm_models()
    net = timm.create_model("tokenshards_vit_nano", data=dataset)
    yield "TimmLoader", tokenshards.TimmLoader(dataset, net, training=True, batch_size=32)
    store = Store("run")
    yield "Run", load_run(store)
    report = evaluate_run(store, more, weights="best", device=torch.device("cpu"))
    yield "EvaluationReport", report
    yield "Accuracy", report.accuracy
    yield "Prediction", tokenshards.predict("run", "more", top=3)[0]


def test_what_a_user_holds_shows_itself_in_three_lines(shown: dict[str, str]) -> None:
    for name, text in shown.items():
        assert len(text) <= LONGEST and "\n" not in text, f"{name}: {text}"
        assert (
            text.startswith(f"{name.split(' of ')[0]}(") and "object at 0x" not in text and "array(" not in text and "tensor(" not in text
        )


def test_every_public_class_is_among_them(shown: dict[str, str]) -> None:
    public = {name for name in tokenshards.__all__ if inspect.isclass(getattr(tokenshards, name))}
    assert public - shown.keys() == OF_OTHERS | NOT_MADE
    assert all(issubclass(getattr(tokenshards, name), nn.Module) for name in OF_OTHERS)


def test_the_words_are_those_that_tell_one_from_another(shown: dict[str, str]) -> None:
    assert shown["Batch"].startswith("Batch(rows=3, ids_BLQ=uint8 [3, 256, 2], labels_B=[") and ".jpg'" in shown["Batch"]
    assert "rows=72" in shown["Batch of all"] and "...]" in shown["Batch of all"]
    assert "label='class_" in shown["Sample"] and "ids_LQ=uint8 [256, 2]" in shown["Sample"]
    assert "ids_BLQ=uint8 [16, 256, 2], labels_B=int64 [16]" in shown["Batch of training"] and "device='cpu'" in shown["Batch of training"]
    assert "batches=4, batch_size=16" in shown["TokenLoader"]
    assert "cutmix(alpha=1)" in shown["TokenTransform"] and "3 classes, grid (14, 14)" in shown["TokenTransform"]
    assert shown["TrainReport"].startswith("TrainReport(run='run', best_top1=0.") and "model='vit_nano'" in shown["TrainReport"]


def test_ragged_rows_show_their_lengths_and_long_names_are_cut() -> None:
    ids_BLQ = np.zeros((2, 6, 1), np.uint16)
    assert repr(TokenBatch(ids_BLQ, np.array([6, 2], np.int32))) == "TokenBatch(ids_BLQ=uint16 [2, 6, 1], lengths_B=int32 [2])"
    assert len(short_repr(1, names=["x" * 1000] * 1000, none=None)) < 700
