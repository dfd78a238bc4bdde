"""Samples, the model with a loss and the stream, without the frameworks: what they hold, how they are split, what they refuse."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import tokenshards
from tests.datasets import convert, write_images
from tests.pipeline.shards.samples import LAYOUTS
from tests.pipeline.shards.test_dataset import build
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.errors import ConfigError, OtherTokenizerError
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.stem_adaptors.data.selection import select

COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    write_images(folder / "photos", COUNT)
    write_images(folder / "fewer", 8, classes=2, seed=1)
    convert(folder / "photos", folder / "tokens", fit=FitConfig(size=32, codes=16, iterations=4, patch=8), shard_rows=12)
    convert(folder / "photos", folder / "views", tokenizer=str(folder / "tokens" / "tokenizer"), views="flip")
    convert(folder / "fewer", folder / "fewer.tokens", tokenizer=str(folder / "tokens" / "tokenizer"))
    convert(folder / "fewer", folder / "other.tokens", fit=FitConfig(size=32, codes=8, iterations=2, patch=8))
    return folder


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENSHARDS_CACHE", str(folder / "cache"))


@pytest.fixture
def dataset(folder: Path) -> tokenshards.TokenDataset:
    return tokenshards.open_dataset(folder / "tokens")


def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Be one of two ranks after the other."""
    for rank in range(2):
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
        yield rank


def test_samples_are_the_rows_of_the_dataset(dataset: tokenshards.TokenDataset) -> None:
    samples = tokenshards.TokenSamples(dataset)
    assert len(samples) == COUNT and samples.classes == dataset.classes
    whole = dataset[:]
    for place in (0, 17, -1):
        assert torch.equal(samples[place]["input_ids"], torch.from_numpy(whole.ids_BLQ[place].astype(np.int64)))
        assert samples[place]["labels"] == whole.labels_B[place]
    again = pickle.loads(pickle.dumps(samples))
    assert torch.equal(again[3]["input_ids"], samples[3]["input_ids"]) and len(pickle.dumps(samples)) < 30_000
    with pytest.raises(IndexError, match=f"{COUNT} of a dataset of {COUNT}"):
        samples[COUNT]


def test_labels_of_another_set_are_those_of_the_table_given(dataset: tokenshards.TokenDataset, folder: Path) -> None:
    fewer = tokenshards.open_dataset(folder / "fewer.tokens")
    table = ("class_9", *reversed(dataset.classes))
    samples = tokenshards.TokenSamples(fewer, classes=table)
    assert [table[int(samples[row]["labels"])] for row in range(8)] == [fewer[row].label for row in range(8)]
    with pytest.raises(ConfigError, match="class_2.* are unknown to the classifier"):
        tokenshards.TokenSamples(dataset, classes=fewer.classes)
    chosen = tokenshards.TokenSamples(select(dataset, classes=["class_1"], remap=True))
    assert {int(chosen[row]["labels"]) for row in range(len(chosen))} == {0} and chosen.classes == ("class_1",)


def test_a_stream_numbers_labels_by_the_classes_given(dataset: tokenshards.TokenDataset) -> None:
    table = ("class_9", *reversed(dataset.classes))
    stream = tokenshards.TokenStream(dataset, classes=table)
    assert stream.classes == table
    plain = {sample["__key__"]: dataset.classes[int(sample["labels"])] for sample in tokenshards.TokenStream(dataset)}
    assert {sample["__key__"]: table[int(sample["labels"])] for sample in stream} == plain
    with pytest.warns(UserWarning, match="class_2.* no label"):
        fewer = tokenshards.TokenStream(dataset, classes=dataset.classes[:2])
    assert {sample["__key__"] for sample in fewer if sample["labels"] < 0} == {key for key, name in plain.items() if name == "class_2"}
    pipeline = tokenshards.TokenPipeline(dataset, classes=table)
    assert {sample["__key__"]: table[int(sample["labels"])] for sample in pipeline} == plain


def test_an_image_of_several_views_is_one_sample(folder: Path) -> None:
    both = tokenshards.open_dataset(folder / "views")
    samples = tokenshards.TokenSamples(both)
    assert len(samples) == COUNT
    drawn = []
    for epoch in range(3):
        samples.set_epoch(epoch)
        ids = torch.stack([sample["input_ids"] for sample in samples.__getitems__(range(COUNT))]).numpy()
        views = [[(ids[row] == both[2 * row + view].ids_LQ).all() for view in range(2)] for row in range(COUNT)]
        assert all(any(pair) for pair in views)
        drawn.append([pair[0] for pair in views])
    assert drawn[0] != drawn[1] != drawn[2]


def test_what_frameworks_cannot_know_is_refused(dataset: tokenshards.TokenDataset, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", 6, classes=0)
    convert(tmp_path / "flat", tmp_path / "tokens", tokenizer=str(dataset.store.url) + "/tokenizer")
    with pytest.raises(ConfigError, match="6 of the 6 images have no label"):
        tokenshards.TokenSamples(tokenshards.open_dataset(tmp_path / "tokens"))
    with pytest.raises(ConfigError, match="nothing can be learned"):
        tokenshards.build("vit_nano", tokenshards.open_dataset(tmp_path / "tokens"))
    with pytest.raises(ConfigError, match=r'expected the model first, such as build\("vit_tiny", dataset\)'):
        tokenshards.build(dataset, "vit_nano")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected one of seit"):
        tokenshards.build("vit_nano", dataset, augment="strong")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_varying_size_are_streamed_whole_and_refused_as_samples(layout: str, tmp_path: Path) -> None:
    build(tmp_path, [9, 4], layout)
    data = tokenshards.open_dataset(tmp_path)
    found = list(tokenshards.TokenStream(data, shuffle_shards=False))
    assert len(found) == 13
    for row, sample in enumerate(found):
        expected = data[row].ids_LQ
        assert (sample["input_ids"].numpy() == (expected[:, 0] if expected.shape[1] == 1 else expected)).all()
        assert ("shape" in sample) == (data[row].tokens.shapes_BD is not None)
    if data.spec.layout.variable:
        with pytest.raises(ConfigError, match="this layout varies.*Read it with tokenshards.TokenLoader"):
            tokenshards.TokenSamples(data)


def test_the_model_augments_in_train_mode_alone(dataset: tokenshards.TokenDataset) -> None:
    model = tokenshards.ClassifierWithLoss(*tokenshards.build("vit_nano", dataset, augment="mild"))
    batch = next(iter(DataLoader(tokenshards.TokenSamples(dataset), batch_size=16)))
    first, second = (model(**batch).loss for _ in range(2))
    assert first.requires_grad and first.item() != second.item(), "each call draws its own numbers"
    state = model.state_dict()
    other = tokenshards.ClassifierWithLoss(*tokenshards.build("vit_nano", dataset, augment="mild", seed=5))
    other.load_state_dict(state)
    assert state["steps"] == 2 and other(**batch).loss.item() == model(**batch).loss.item()
    plain = model.eval()(**batch)
    expected = torch.nn.functional.cross_entropy(model.model(batch["input_ids"]), batch["labels"])
    assert plain["loss"] is plain.loss and plain.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert list(model(batch["input_ids"])) == ["logits"]
    batch["labels"][3:] = -100
    few = torch.nn.functional.cross_entropy(model.model(batch["input_ids"][:3]), batch["labels"][:3])
    assert model(**batch).loss.item() == pytest.approx(few.item(), rel=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_share_a_stream(dataset: tokenshards.TokenDataset, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for _ in under_torchrun(monkeypatch):
        context = "fork" if workers else None
        loader = DataLoader(tokenshards.TokenStream(dataset), batch_size=None, num_workers=workers, multiprocessing_context=context)
        parts.append([sample["__key__"] for sample in loader])
    assert [len(part) for part in parts] == [COUNT // 2] * 2 and not set(parts[0]) & set(parts[1])


def test_a_stream_is_the_dataset_in_another_order_each_epoch(dataset: tokenshards.TokenDataset) -> None:
    stored = {
        batch.sample_ids[row]: (batch.ids_BLQ[row], batch.labels_B[row]) for batch in dataset.batches(16) for row in range(len(batch))
    }
    stream = tokenshards.TokenStream(dataset)
    epochs = [list(stream) for _ in range(3)]
    for samples in epochs:
        assert sorted(sample["__key__"] for sample in samples) == sorted(stored)
        for sample in samples:
            ids, label = stored[sample["__key__"]]
            assert (sample["input_ids"].numpy() == ids).all() and sample["labels"] == label
    orders = [[sample["__key__"] for sample in samples] for samples in epochs]
    assert len({tuple(order) for order in orders}) > 1
    stream.set_epoch(1)
    assert [sample["__key__"] for sample in stream] == orders[1]


def test_lightning_reads_by_rank_and_begins_its_validation_anew(
    dataset: tokenshards.TokenDataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_torchvision()
    rows = []
    for _ in under_torchrun(monkeypatch):
        data = tokenshards.TokenDataModule(dataset, tokenshards.open_dataset(folder / "fewer.tokens"), batch_size=10)
        rows.append([row for batch in data.train_dataloader() for row in batch.rows_B.tolist()])
    assert sorted(rows[0] + rows[1]) == list(range(COUNT))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    val = data.val_dataloader()
    next(iter(val))  # Lightning's sanity check takes some batches and goes away
    found = [batch for batch in val]
    assert [int(batch.weights_B.sum()) for batch in found] == [8] and len(val) == 1
    fewer = tokenshards.open_dataset(folder / "fewer.tokens")
    assert [dataset.classes[label] for label in found[0].labels_B.tolist()[:8]] == [fewer[row].label for row in range(8)]
    with pytest.warns(UserWarning, match="the validation set .* is the training set"):
        tokenshards.TokenDataModule(dataset, tokenshards.open_dataset(folder / "tokens"))


def test_lightning_predicts_unlabelled_images_and_measures_none(dataset: tokenshards.TokenDataset, folder: Path, tmp_path: Path) -> None:
    allow_torchvision()
    write_images(tmp_path / "flat", 7, classes=0)
    convert(tmp_path / "flat", tmp_path / "tokens", tokenizer=f"{dataset.store.url}/tokenizer")
    flat = tokenshards.open_dataset(tmp_path / "tokens")
    data = tokenshards.TokenDataModule(dataset, test=flat, batch_size=4)
    module = tokenshards.TokenClassifierModule(*tokenshards.build("vit_nano", dataset))
    answers = [module.predict_step(batch, number) for number, batch in enumerate(data.predict_dataloader())]
    assert [len(logits_BC) for logits_BC in answers] == [4, 3]
    with pytest.raises(ConfigError, match="none of the 7 images has a label; .*Trainer.predict needs none"):
        data.test_dataloader()
    with pytest.raises(ConfigError, match="none of the 7 images has a label; .*nothing can be measured"):
        tokenshards.TokenDataModule(dataset, flat)


def test_timm_models_say_what_they_need(dataset: tokenshards.TokenDataset) -> None:
    allow_torchvision()
    import timm

    names = tokenshards.register_timm_models()
    assert names == tokenshards.register_timm_models() and set(names) <= set(timm.list_models("tokenshards_*"))
    for options, words in (
        ({}, "data is missing; expected a dataset or its URL"),
        ({"data": dataset, "pretrained": True}, "pretrained=True"),
        ({"data": dataset, "num_classes": 7}, "num_classes is 7; the dataset has 3"),
        ({"data": dataset, "in_chans": 3}, "no option in_chans"),
    ):
        with pytest.raises(ConfigError, match=words):
            timm.create_model("tokenshards_vit_nano", **options)
    model = timm.create_model("tokenshards_vit_nano", data=dataset, augment="none", drop_path_rate=0.1)
    assert timm.data.resolve_data_config(model=model)["input_size"] == model.pretrained_cfg["input_size"]
    assert {"backbone.pos_embed", "backbone.cls_token"} <= model.no_weight_decay()
    features = model.forward_features(torch.from_numpy(dataset[:2].ids_BLQ.astype(np.int64)))
    assert features.shape[0] == 2 and features.shape[2] == 64


def test_ids_of_another_tokenizer_are_refused(dataset: tokenshards.TokenDataset, folder: Path) -> None:
    allow_torchvision()
    import timm

    other, fewer = tokenshards.open_dataset(folder / "other.tokens"), tokenshards.open_dataset(folder / "fewer.tokens")
    name = tokenshards.register_timm_models()[0]
    model = timm.create_model(name, data=dataset, augment="none").eval()
    words = r"other\.tokens was made by the tokenizer .*; .* Tokenize both sets with one tokenizer"
    for make in (
        lambda val: tokenshards.TokenDataModule(dataset, val),
        lambda val: tokenshards.TokenDataModule(dataset, test=val),
        lambda val: tokenshards.TimmLoader(val, model, training=False),
        lambda val: tokenshards.TokenSamples(val, like=dataset),
    ):
        with pytest.raises(OtherTokenizerError, match=words):
            make(other)
        make(fewer)
    assert tokenshards.TokenSamples(fewer, like=dataset).classes == dataset.classes


@pytest.mark.parametrize("timm_model", [False, True])
def test_what_is_no_tensor_of_ids_is_refused_with_a_sentence(dataset: tokenshards.TokenDataset, timm_model: bool) -> None:
    allow_torchvision()
    import timm

    model, transform = tokenshards.build("vit_nano", dataset)
    batch = next(iter(tokenshards.TokenLoader(dataset, batch_size=4)))
    wrapped = tokenshards.ClassifierWithLoss(model, transform)
    if timm_model:
        model = timm.create_model(tokenshards.register_timm_models()[0], data=dataset, augment="none")
    ids, stored = batch.ids_BLQ, dataset[:4]
    given = {
        "NumPy array of uint.*torch.from_numpy": stored.ids_BLQ,
        "whole batch; expected its tensor of ids: batch.ids_BLQ": batch,
        r"whole batch; expected its tensor of ids: torch.from_numpy\(batch.ids_BLQ\)": stored,
        "'photos', a str; expected a tensor": "photos",
        "torch.float32": ids.float() + 0.9,
    }
    for words, value in given.items():
        for call in (model, wrapped):
            with pytest.raises(ConfigError, match=words):
                call(value)
    for value in (stored, replace(batch, ids_BLQ=ids.float())):
        with pytest.raises(ConfigError, match="expected a batch of a TokenLoader|torch.float32"):
            transform.loss(model, value)
