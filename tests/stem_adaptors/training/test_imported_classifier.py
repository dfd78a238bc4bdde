"""Weights of another project become a run that evaluates as they do; what does not fit is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets import call_cli
from tests.stem_adaptors.training.small_runs import tokenize_pair
from tests.stem_adaptors.training.test_pretrained import save, seit_state
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.models.classifier import VisionTransformer
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding
from tokenshards.stem_adaptors.models.stems import ConvStem
from tokenshards.stem_adaptors.training.imported_classifier import import_classifier


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 4 x 4 sites: of these the centre crop leaves 4 x 4 too."""
    return tokenize_pair(tmp_path_factory.mktemp("pair"))[0]


def foreign_vit(tokens: Path, classes: int = 3) -> VisionTransformer:
    torch.manual_seed(4)
    channels = TokenEmbedding(open_dataset(str(tokens)).spec, open_dataset(str(tokens)).codebook()).channels
    vit = VisionTransformer(ConvStem(channels, 64, (4, 4), (1, 1), overlap=True), classes=classes, width=64, depth=4, heads=4)
    torch.nn.init.normal_(vit.fc_norm.bias)
    return vit.eval()


def test_a_vit_named_as_seits_evaluates_as_it_does_itself(tokens: Path, tmp_path: Path) -> None:
    vit, dataset = foreign_vit(tokens), open_dataset(str(tokens))
    path = save(tmp_path / "trained-vit.ckpt", {"model": seit_state(vit), "epoch": 299})
    out, _ = call_cli("import", "classifier", path, str(tokens), str(tmp_path / "run"))
    assert "left fresh" in out and " 0 left fresh" in out and "norm.* taken as fc_norm.*" in out
    batch = next(iter(dataset.batches(len(dataset))))
    with torch.inference_mode():
        x_BDHW = TokenEmbedding(dataset.spec, dataset.codebook())(torch.from_numpy(batch.ids_BLQ.astype(np.int64)))
        logits_BC = vit(x_BDHW)  # its code vectors are as they are stored
    labels_B = torch.from_numpy(batch.labels_B.astype(np.int64))
    found = json.loads(call_cli("evaluate", str(tmp_path / "run"), str(tokens), "--device", "cpu", "--json")[0])
    assert found["top1"] == pytest.approx(float((logits_BC.argmax(1) == labels_B).float().mean()))
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits_BC, labels_B)), rel=1e-4)
    _, refused = call_cli("train", str(tokens), "--out", str(tmp_path / "run"), "--resume", "--device", "cpu", expect=2)
    assert "holds imported weights and no training to continue" in refused


def test_weights_that_do_not_fit_are_named_and_nothing_is_written(tokens: Path, tmp_path: Path) -> None:
    dataset, out = open_dataset(str(tokens)), Store(str(tmp_path / "run"))
    thousand = save(tmp_path / "thousand.pt", seit_state(foreign_vit(tokens, classes=1000)))
    with pytest.raises(ConfigError, match=r"head.weight has shape \(1000, 64\), the model \(3, 64\)"):
        import_classifier(thousand, dataset, out)
    state = seit_state(foreign_vit(tokens))
    del state["blocks.1.attn.qkv.bias"]
    with pytest.raises(ConfigError, match=r"1 of the \d+ weights do not fit .*blocks.1.attn.qkv.bias is missing"):
        import_classifier(save(tmp_path / "part.pt", state), dataset, out)
    with pytest.raises(ConfigError, match="not named as those of a ViT"):
        import_classifier(save(tmp_path / "cnn.pt", {"conv1.weight": torch.zeros(3, 3)}), dataset, out)
    assert list(out.list()) == []
