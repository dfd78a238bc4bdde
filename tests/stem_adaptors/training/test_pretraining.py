"""Pre-training without labels and fine-tuning with them: exact resumption, what is loaded, and what a user is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.datasets import call_cli, convert, write_images
from tests.stem_adaptors.training.small_runs import FIT, MODEL, Stopped, death_after, fit, request_for, tokenize_pair
from tests.stem_adaptors.training.test_trainer import assert_same_run, tensors_of
from tokenshards.pipeline.canonical import seal
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment import PRESETS
from tokenshards.stem_adaptors.commands.masked_views import masked_views
from tokenshards.stem_adaptors.config import AugmentConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.training.defaults import default_configs, pretraining_configs, usual_configs
from tokenshards.stem_adaptors.training.run_directory import load_run

PRETRAINING: dict[str, Any] = {
    "objective": "mtm",
    "mask": MaskConfig(decoder_depth=1, decoder_width=16),
    "model": replace(MODEL, stem="patch", learned_codebook=True, embed_norm=True),
    "augment": replace(PRESETS["mtm"], flip_prob=0.5, crop_share=1.0),
}
WORDS = ["--device=cpu", "--batch-size=16", "--set=model.width=16", "--set=model.depth=2", "--set=mask.decoder_depth=1"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenDataset, TokenDataset]:
    train, val = tokenize_pair(tmp_path_factory.mktemp("pair"))
    return open_dataset(str(train)), open_dataset(str(val))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(pair: tuple[TokenDataset, TokenDataset], cache: Path) -> Path:
    """An undisturbed pre-training."""
    fit(request_for(pair[0], cache / "run", cache, val=pair[1], **PRETRAINING))
    return cache / "run"


@pytest.mark.parametrize("death", [3, 6, 11])
def test_a_pretraining_that_died_ends_bit_equal(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, run: Path, tmp_path: Path, death: int
) -> None:
    request = request_for(pair[0], tmp_path / "run", cache, val=pair[1], checkpoint_steps=2, **PRETRAINING)
    with death_after(death), pytest.raises(Stopped):
        fit(request)
    fit(replace(request, resume=True))
    assert_same_run(tmp_path / "run", run)


@pytest.mark.parametrize("targets", ["ids", "features"])
@pytest.mark.parametrize(
    "augment",
    [PRESETS["mild"], PRESETS["seitpp_small"], AugmentConfig(ops="rrc(), mixup()"), AugmentConfig(ops='rrc(), cutmix(labels="area")')],
    ids=["mild", "seitpp_small", "mixup", "cutmix"],
)
def test_images_are_mixed_where_nothing_has_a_label(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, augment: AugmentConfig, targets: str
) -> None:
    mask = replace(PRETRAINING["mask"], targets=targets, centroids=12)
    found = fit(request_for(pair[0], tmp_path / "run", cache, **{**PRETRAINING, "augment": augment, "mask": mask, "epochs": 1}))
    assert np.isfinite(found.records[-1]["train_loss"])


@pytest.mark.parametrize("targets", ["features", "centroids"])
def test_centroids_are_found_once_and_kept(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, targets: str) -> None:
    """A killed run goes on with the features and centroids of its start; before the first checkpoint it finds the same ones again."""
    settings = {**PRETRAINING, "mask": replace(PRETRAINING["mask"], targets=targets, centroids=12)}
    fit(request_for(pair[0], tmp_path / "whole", cache, val=pair[1], **settings))
    for death in (2, 7):
        request = request_for(pair[0], tmp_path / f"run{death}", cache, val=pair[1], checkpoint_steps=4, resume=True, **settings)
        with death_after(death), pytest.raises(Stopped):
            fit(request)
        fit(request)
        assert_same_run(tmp_path / f"run{death}", tmp_path / "whole")
    learned = tensors_of(tmp_path / "whole", "best")
    assert learned["centroids.centroids_KE"].shape == (12, 32) and learned["centroids.centroids_KE"].abs().sum() > 0


def test_another_mask_does_not_continue_a_run(pair: tuple[TokenDataset, TokenDataset], cache: Path, run: Path) -> None:
    same = request_for(pair[0], run, cache, val=pair[1], **PRETRAINING, resume=True)
    with pytest.raises(ConfigError, match=r"mask.drop_share is 0.2; this run was started with 0.4"):
        fit(replace(same, mask=replace(PRETRAINING["mask"], drop_share=0.2)))
    with pytest.raises(ConfigError, match=r"this run learns 'mtm', and the command 'classify'.*`pretrain` for 'mtm'"):
        fit(request_for(pair[0], run, cache, val=pair[1], resume=True))


def test_the_run_says_what_it_hides_and_an_older_version_is_still_read(run: Path, tmp_path: Path) -> None:
    found = load_run(run)
    assert found.objective == "mtm" and found.mask == PRETRAINING["mask"]
    value = json.loads((run / "run.json").read_text())
    body = value.get("body", value)
    assert body["version"] == 5 and body["segment"] is body["maps"] is None and body["mask"]["decoder_width"] == 16
    body.pop("mask")
    (tmp_path / "run.json").write_bytes(seal({**body, "version": 3, "objective": "classify"}))
    assert load_run(tmp_path).mask is None and load_run(tmp_path).objective == "classify"


def test_fine_tuning_loads_the_encoder_and_the_code_vectors(pair: tuple[TokenDataset, TokenDataset], cache: Path, run: Path) -> None:
    model = replace(load_run(run).model, drop_path=0.1)
    request = request_for(pair[0], cache / "tuned", cache, model=model, pretrained=str(run), lr=1e-12, min_lr=0.0, weight_decay=0.0)
    said = fit(request).lines
    assert any("left fresh: fc_norm.bias, fc_norm.weight, head.bias, head.weight" in line for line in said)
    before, after = tensors_of(run, "best"), tensors_of(cache / "tuned", "best")
    encoder = [name for name in after if not name.startswith(("backbone.head.", "backbone.fc_norm."))]
    assert len(encoder) > 20 and "embedding.level_0" in encoder and "backbone.patch_embed.embed_norm.weight" in encoder
    for name in encoder:  # the rate is next to nothing, so the weights are still those that were loaded
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9)
    stored = pair[0].codebook()["level_0"]
    assert not np.allclose(after["embedding.level_0"].numpy(), stored, atol=1e-3), "the code vectors have learned"


def test_code_vectors_of_another_tokenizer_are_not_taken(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, run: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "images", 70, seed=9)
    convert(tmp_path / "images", tmp_path / "other", fit=FIT, shard_rows=16)
    other = open_dataset(str(tmp_path / "other"))
    assert other.spec.fingerprint != pair[0].spec.fingerprint and other.spec.vocabulary == pair[0].spec.vocabulary
    request = request_for(
        other, tmp_path / "run", cache, model=load_run(run).model, pretrained=str(run), lr=1e-12, min_lr=0.0, epochs=1, weight_decay=0.0
    )
    said = fit(request).lines
    assert any("tokens of another tokenizer, so the code vectors start from this dataset's codebook" in line for line in said)
    after, before = tensors_of(tmp_path / "run", "best"), tensors_of(run, "best")
    assert not torch.allclose(after["embedding.level_0"], before["embedding.level_0"], atol=1e-3)
    torch.testing.assert_close(after["backbone.blocks.0.attn.qkv.weight"], before["backbone.blocks.0.attn.qkv.weight"], rtol=0, atol=1e-9)


def test_what_is_usual_after_a_pretraining(pair: tuple[TokenDataset, TokenDataset], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, start = default_configs(pair[0]), load_run(run)
    tuned = usual_configs(pair[0], "classify", start)
    assert tuned["model"] == start.model and (tuned["train"].layer_decay, tuned["train"].lr) == (1.0, 1e-3)
    assert tuned["augment"] == plain["augment"] and "mask" not in tuned
    found = pretraining_configs(pair[0])
    assert found["mask"].drop_share == 0.75 and found["train"].label_smoothing == 0 and found["train"].beta2 == 0.95
    monkeypatch.setattr("tokenshards.stem_adaptors.training.defaults._SMALL", 50)  # as if 70 images were a large set
    large = usual_configs(pair[0], "classify", start)
    assert large["model"] == replace(start.model, drop_path=0.1) and large["train"].layer_decay == 0.65
    assert pretraining_configs(pair[0])["mask"] == MaskConfig()
    assert (found["model"].stem, found["model"].learned_codebook, found["model"].embed_norm) == ("patch", True, True)
    assert usual_configs(pair[0], "mtm", start)["model"] == start.model


def test_unlabelled_images_are_learned_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pretrain` on a flat folder without labels, `preview --masked`, then `train --pretrained` on a few labels."""
    monkeypatch.setenv("TOKENSHARDS_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "flat", 48, classes=0)
    convert(tmp_path / "flat", tmp_path / "tokens", fit=FIT, shard_rows=16)
    write_images(tmp_path / "classes", 60, seed=4)
    convert(tmp_path / "classes", tmp_path / "labelled", tokenizer=str(tmp_path / "tokens" / "tokenizer"), shard_rows=30)
    tokens, labelled, out = (str(tmp_path / name) for name in ("tokens", "labelled", "pre"))

    text, said = call_cli("pretrain", tokens, "--val", labelled, "--out", out, "--epochs=4", *WORDS)
    assert "labels are not read" in said and "masking       75% of the patches; the encoder does not see 75%" in said
    assert "perplexity" not in said, "features have none"
    assert "hidden tokens right" in said and "reconstructions.png shows" in said and "of hidden tokens right, after epoch" in text
    with Image.open(tmp_path / "pre" / "reconstructions.png") as drawing:
        assert drawing.width > 3 * 32
    with Image.open(tmp_path / "pre" / "curves.png") as curves:
        assert curves.width > 500

    call_cli("preview", labelled, "--to", str(tmp_path / "look.png"), "--masked", out, "-n", "3")
    with Image.open(tmp_path / "look.png") as drawing:
        grey = (np.asarray(drawing.convert("RGB")) == 128).all(-1).mean()
    assert 0.05 < grey < 0.5, "a third of the images, three quarters hidden"
    _, error = call_cli("preview", labelled, "--to", str(tmp_path / "look.png"), "--masked", out, "--augment", expect=2)
    assert "--masked was given with --augment" in error

    options = ["--device=cpu", "--batch-size=16", "--epochs=2", "--fraction=0.5"]
    _, said = call_cli("train", labelled, "--val", labelled, "--out", str(tmp_path / "tuned"), "--pretrained", out, *options)
    assert f"weights (that of {out})" in said and "AdamW at 0.001" in said
    tuned = load_run(Store(str(tmp_path / "tuned")))
    assert (tuned.model.width, tuned.model.depth, tuned.model.stem) == (16, 2, "patch")
    call_cli("train", labelled, "--out", str(tmp_path / "probe"), "--pretrained", out, "--train-part=head", *options)
    moved = [
        name
        for name, tensor in tensors_of(tmp_path / "probe").items()
        if name in (before := tensors_of(tmp_path / "pre", "best")) and not torch.equal(tensor, before[name])
    ]
    assert moved == [], "a linear probe moves the head alone"
    _, error = call_cli("preview", labelled, "--to", str(tmp_path / "look.png"), "--masked", str(tmp_path / "tuned"), expect=2)
    assert "the run learned 'classify'; expected one of `pretrain`" in error
    _, error = call_cli("evaluate", out, labelled, expect=2)
    assert "the run learned 'mtm'; expected a classifier" in error


def test_what_a_pretraining_refuses_is_a_sentence(pair: tuple[TokenDataset, TokenDataset], run: Path, tmp_path: Path) -> None:
    data, out = pair[0].store.url, str(tmp_path / "no")
    for options, words in (
        (["--objective=jigsaw"], "--objective is 'jigsaw'; expected one of mtm"),
        (["--recipe=laptop_64px"], "--recipe laptop_64px is for `train`; expected one for `pretrain`: laptop_64px_mtm, seitpp_mtm_vit_b"),
        (["--set=mask.targets=ids", "--set=mask.centroids=9"], "mask.centroids changes nothing where mask.targets is ids"),
        (["--set=mask.ratio_std=0.1"], "mask.ratio_std=0.1 changes nothing where mask.ratio_min and mask.ratio_max are both 0.75"),
        ([f"--pretrained={data}", "--model=vit_nano"], "holds a dataset; expected a run of `train` or `pretrain`, or a file of weights"),
    ):
        _, error = call_cli("pretrain", data, "--out", out, *WORDS, *options, expect=2)
        assert words in error and not (tmp_path / "no" / "run.json").exists()
    _, error = call_cli("preview", data, "--to", str(tmp_path / "look.png"), "--masked", str(run), "--set=augment.crop=none", expect=2)
    assert "--masked was given with --recipe or --set" in error


def test_a_finished_pretraining_says_that_it_is_done(pair: tuple[TokenDataset, TokenDataset], cache: Path, run: Path) -> None:
    again = fit(request_for(pair[0], run, cache, val=pair[1], **PRETRAINING, resume=True))
    assert any("steps are done; more --epochs continue the run" in line for line in again.lines)


def test_the_edge_that_a_crop_leaves_out_is_grey(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    """The model neither sees nor completes it."""
    augment = replace(PRETRAINING["augment"], crop="random", crop_share=0.5)
    fit(request_for(pair[0], tmp_path / "run", cache, **{**PRETRAINING, "augment": augment, "epochs": 1}))
    batch = next(iter(TokenLoader(pair[1], batch_size=2, cache_dir=str(cache))))
    tokens = TokenBatch(batch.ids_BLQ.numpy().astype(pair[1].spec.id_dtype))
    views = masked_views(Store(str(tmp_path / "run")), pair[1], tokens)
    grey_BHW = views[2][2]
    expected_HW = np.ones((4, 4), dtype=bool)
    expected_HW[1:3, 1:3] = False
    assert (grey_BHW == expected_HW).all() and views[1][2][:, expected_HW].all()
