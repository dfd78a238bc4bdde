"""Trainings on masks: they learn, continue bit for bit, start from other runs, and are measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tokenshards
from tests.datasets import call_cli, call_json, convert
from tests.masked_images import write_masked_images
from tests.stem_adaptors.objectives.test_overlap import slow_miou
from tests.stem_adaptors.training.small_runs import Stopped, death_after
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.mask_rules import MaskRules
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.shards.masks import MaskFormat
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig
from tokenshards.stem_adaptors.commands.segment_views import segments_drawing
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.objectives import Blueprint
from tokenshards.stem_adaptors.objectives.segment import SegmentObjective
from tokenshards.stem_adaptors.segment_config import SegmentConfig
from tokenshards.stem_adaptors.training.run_directory import load_run, open_objective

FIT = FitConfig(size=32, codes=64, iterations=4, patch=4)
SMALL = {"model.depth": 2, "model.width": 32, "model.heads": 2, "train.warmup_epochs": 0.5}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """train.tokens and val.tokens, whose images 1 and 5 have no mask; plain.tokens without masks."""
    folder = tmp_path_factory.mktemp("masked")
    for name, count, seed, without in (("train", 96, 1, (1, 5)), ("val", 24, 2, ())):
        write_masked_images(folder / name, count, seed=seed, without=without)
        source = SourceConfig(masks=str(folder / name / "masks"), yes=True)
        tokenizer = {} if name == "train" else {"tokenizer": str(folder / "train.tokens" / "tokenizer")}
        convert(
            folder / name / "images",
            folder / f"{name}.tokens",
            source=source,
            shard_rows=32,
            **({"fit": FIT} | tokenizer if not tokenizer else tokenizer),
        )
    convert(folder / "val" / "images", folder / "plain.tokens", tokenizer=str(folder / "train.tokens" / "tokenizer"))
    yield folder


def train(place: Path, out: str, **options: Any) -> tokenshards.TrainReport:
    settings = {**SMALL, **options.pop("set", {})}
    given = {"val": str(place / "val.tokens"), "epochs": 3, "batch_size": 16, "lr": 5e-3, "cache_dir": str(place / "cache"), **options}
    return tokenshards.train(str(place / "train.tokens"), str(place / out), objective="segment", set=settings, **given)


@pytest.fixture(scope="module")
def run(place: Path) -> tokenshards.TrainReport:
    return train(place, "run", epochs=16)


def test_a_segmenter_learns_what_the_colour_tells(run: tokenshards.TrainReport, place: Path) -> None:
    assert run.best_top1 is None and run.best_miou is not None and run.best_miou > 0.6
    assert run.said[0].startswith("data          96 images with masks of 32 x 32 pixels and 3 classes, 8 x 8 sites")
    assert any(line.startswith("head          a linear layer (the default") for line in run.said)
    record = run.record
    assert record["val_images"] == 24 and 0.5 < record["val_miou"] <= record["val_pixel_accuracy"] <= 1
    found = load_run(place / "run")
    assert found.objective == "segment" and found.classes == (0, 1, 2) and found.maps == open_dataset(str(place / "train.tokens")).mask
    assert json.loads((place / "run" / "metrics.jsonl").read_text().splitlines()[-1])["val_miou"] == record["val_miou"]
    assert (place / "run" / "curves.png").stat().st_size > 10_000
    assert repr(run).startswith("TrainReport(run=") and "best_miou=0." in repr(run)


def test_evaluate_counts_the_pixels_that_a_slow_way_counts(run: tokenshards.TrainReport, place: Path) -> None:
    report = tokenshards.evaluate(str(place / "run"), str(place / "val.tokens"), batch_size=7)
    objective, _ = open_objective(Store(str(place / "run")))
    assert isinstance(objective, SegmentObjective)
    dataset = open_dataset(str(place / "val.tokens"))
    best, labels = [], []
    with torch.inference_mode():
        for batch in TokenLoader(dataset, batch_size=24, order="sequential", label_maps=True, cache_dir=str(place / "cache")):
            best.append(objective.logits(batch).argmax(1).numpy())
            assert batch.maps_BHW is not None
            labels.append(np.where(batch.maps_BHW.numpy() == 255, -1, batch.maps_BHW.numpy().astype(int)))
    expected, mean = slow_miou(np.concatenate(best), np.concatenate(labels), 3)
    assert report.overlap.miou == pytest.approx(mean) and report.overlap.iou_C.tolist() == pytest.approx(expected)
    assert report.overlap.miou == pytest.approx(run.best_miou, abs=1e-6) and report.left_out == 0
    with pytest.raises(ConfigError, match=r"learned masks, which have no accuracy of images; read report\.overlap"):
        report.accuracy.top1  # noqa: B018


def test_the_commands_say_what_they_found(run: tokenshards.TrainReport, place: Path) -> None:
    out, _ = call_cli("evaluate", str(place / "run"), str(place / "val.tokens"))
    assert "mean IoU" in out and "pixels right" in out and "per class, the worst first" in out and "IoU; pixels: " in out
    value = call_json("evaluate", str(place / "run"), str(place / "val.tokens"))
    assert sorted(value) == ["images", "left_out", "loss", "miou", "per_class", "pixel_accuracy", "precision"]
    out, err = call_cli(
        "train", str(place / "train.tokens"), "--out", str(place / "shown"), "--objective", "segment", "--epochs", "1", "--val",
        str(place / "val.tokens"), "--set", "segment.head=upernet", "--set", "segment.channels=8", "--model", "vit_nano",
        "--cache-dir", str(place / "cache"),
    )  # fmt: skip
    assert "best mean IoU" in out and "head          upernet of 8 channels (as given)" in err and "mean IoU" in err


def test_images_and_masks_are_measured_without_a_dataset(run: tokenshards.TrainReport, place: Path) -> None:
    options = {"images": str(place / "val" / "images"), "masks": str(place / "val" / "masks"), "workers": 1, "yes": True}
    assert tokenshards.evaluate(str(place / "run"), **options).overlap == tokenshards.evaluate(
        str(place / "run"), str(place / "val.tokens")
    ).overlap  # fmt: skip


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_a_killed_training_ends_in_the_same_weights(place: Path, head: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "set": {"segment.head": head, "segment.channels": 8, "train.checkpoint_steps": 2, "augment.cutmix_prob": 0.5}
    }
    train(place, f"whole_{head}", resume=True, **options)
    for step in (3, 7, 4):
        with pytest.raises(Stopped), death_after(step):
            train(place, f"killed_{head}", resume=True, **options)
    train(place, f"killed_{head}", resume=True, **options)
    for name in ("best.safetensors", "checkpoint.safetensors"):
        whole, killed = (load_file(place / f"{kind}_{head}" / name) for kind in ("whole", "killed"))
        assert whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole)


def test_a_classifier_and_a_pretraining_are_starts(place: Path) -> None:
    tokens, cache = str(place / "train.tokens"), str(place / "cache")
    tokenshards.train(tokens, str(place / "classifier"), epochs=1, batch_size=16, cache_dir=cache, set=SMALL)
    tokenshards.pretrain(tokens, str(place / "mtm"), epochs=1, batch_size=16, cache_dir=cache, set=SMALL)
    for start in ("classifier", "mtm"):
        report = train(place, f"from_{start}", pretrained=str(place / start), epochs=1, set={})
        line = next(text for text in report.said if "tensors loaded" in text)
        assert "left fresh: " in line and all(
            name.strip().startswith(("head.", "fc_norm.")) for name in line.split("left fresh: ")[1].split(",")
        )
        assert any(text.startswith("model ") and f"that of {place / start}" in text for text in report.said)
    probe = train(place, "probe", pretrained=str(place / "mtm"), train_part="head", epochs=1)
    before, after = load_file(place / "mtm" / "best.safetensors"), load_file(place / "probe" / "best.safetensors")
    assert torch.equal(before["backbone.blocks.0.attn.qkv.weight"], after["backbone.blocks.0.attn.qkv.weight"])
    assert any("of them trained" in text for text in probe.said)


def test_an_image_weighs_as_much_as_any_other_whatever_its_ignored_pixels() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[1, 1:] = -1
    loss_B, _ = SegmentObjective._scored(logits, labels, 0.0)
    slow = [-logits[0].log_softmax(0).gather(0, labels[0][None]).mean(), -logits[1, :, 0].log_softmax(0).gather(0, labels[1, :1]).mean()]
    torch.testing.assert_close(loss_B, torch.stack(slow))
    nothing, counts = SegmentObjective._scored(logits, torch.full_like(labels, -1), 0.1)
    assert nothing.tolist() == [0.0, 0.0] and not counts.any()


@pytest.mark.usefixtures("no_recompilation")
@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_a_step_and_a_measurement_are_one_graph_each(place: Path, head: str) -> None:
    dataset = open_dataset(str(place / "train.tokens"))
    blueprint = Blueprint(
        spec=dataset.spec,
        tables=dataset.codebook(),
        statistics=None,
        classes=(0, 1, 2),
        model=ModelConfig(name="vit_nano", depth=1, width=16, heads=2),
        augment=AugmentConfig(ops="0.5*flip(), 0.5*swap(), rrc(share=1.0), 0.5*cutmix()", mix_group=4),
        segment=SegmentConfig(head=head, channels=8),
        maps=dataset.mask,
        draws=DRAWS,
    )
    plain, compiled = (SegmentObjective.build(blueprint) for _ in range(2))
    compiled.compile_model(backend="aot_eager")
    loader = TokenLoader(dataset, batch_size=32, label_maps=True, cache_dir=str(place / "cache"))
    for batch in (batch for _ in range(2) for batch in loader):
        for one, other in ((plain(batch), compiled(batch)), (plain.answers(batch), compiled.answers(batch))):
            torch.testing.assert_close(one.loss_B, other.loss_B)
            assert (one.outputs - other.outputs).abs().sum() <= 2, "pixels whose scores are equal but for rounding"


def test_images_without_a_mask_teach_nothing(place: Path) -> None:
    dataset = open_dataset(str(place / "train.tokens"))
    assert dataset.manifest.mask is not None and dataset.manifest.mask.images == 94
    objective, _ = open_objective(Store(str(place / "run")))
    weights = [objective.weights_B(batch) for batch in TokenLoader(dataset, batch_size=32, label_maps=True, cache_dir=str(place / "cache"))]
    assert torch.cat(weights).sum() == 94


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"augment": "mixup()"}, "mixup blends two images"),
        ({"set": {"segment.head": "unet"}}, r"segment\.head is 'unet'; expected linear or upernet"),
        ({"set": {"segment.channels": 12}}, r"segment\.channels is 12; expected a multiple of 8"),
        ({"model": "timm:resnet18"}, r"timm:resnet18.*expected one of vit_nano"),
    ],
)
def test_what_does_not_fit_masks_is_told(place: Path, options: dict[str, Any], word: str, tmp_path: Path) -> None:
    defaults = {} if "model" in options else SMALL
    settings = {**defaults, **options.pop("set", {})}
    with pytest.raises(ConfigError, match=word):
        tokenshards.train(str(place / "train.tokens"), str(tmp_path / "run"), objective="segment", set=settings, **options)
    assert not (tmp_path / "run" / "run.json").exists()


def test_data_without_masks_are_told_and_labels_point_to_masks(place: Path, tmp_path: Path) -> None:
    plain, run = str(place / "plain.tokens"), str(tmp_path / "run")
    _, err = call_cli("train", plain, "--out", run, "--objective", "segment", expect=2)
    assert "plain.tokens has no masks; expected the class of each pixel. Tokenize the images with --masks" in err
    _, err = call_cli("train", plain, "--out", run, "--objective", "masks", expect=2)
    assert "--objective is 'masks'; expected classify or segment" in err
    _, err = call_cli("train", str(place / "train.tokens"), "--out", run, "--objective", "segment", "--val", plain, expect=2)
    assert "plain.tokens has no masks" in err
    _, err = call_cli("evaluate", str(place / "run"), plain, expect=2)
    assert "plain.tokens has no masks" in err
    _, err = call_cli("evaluate", str(place / "run"), str(place / "val.tokens"), "--confusion", str(tmp_path / "c.png"), expect=2)
    assert "--confusion draws a classifier of images" in err


def test_masks_of_16_bits_are_measured_by_a_run_of_8(place: Path, tmp_path: Path) -> None:
    source = SourceConfig(masks=str(place / "val" / "masks"), mask_rules=MaskRules(mask_bits=16, mask_ignore=(255,)), yes=True)
    tokenizer = str(place / "train.tokens" / "tokenizer")
    convert(place / "val" / "images", tmp_path / "wide", source=source, tokenizer=tokenizer)
    assert open_dataset(str(tmp_path / "wide")).mask == MaskFormat.of_size(32, "uint16")
    narrow, wide = (tokenshards.evaluate(str(place / "run"), data) for data in (str(place / "val.tokens"), str(tmp_path / "wide")))
    assert narrow.overlap == wide.overlap
    drawings = [segments_drawing(Store(str(place / "run")), open_dataset(str(data))) for data in (place / "val.tokens", tmp_path / "wide")]
    assert drawings[0].tobytes() == drawings[1].tobytes()


def test_masks_without_labels_are_learned(place: Path, tmp_path: Path) -> None:
    source = SourceConfig(masks=str(place / "val" / "masks"), no_labels=True, yes=True)
    tokens = tmp_path / "unlabelled"
    convert(place / "val" / "images", tokens, source=source, tokenizer=str(place / "train.tokens" / "tokenizer"))
    _, err = call_cli("train", str(tokens), "--out", str(tmp_path / "run"), expect=2)
    assert "none of the 24 images has a label" in err and "The images have masks, which `train --objective segment` learns" in err
    report = tokenshards.train(str(tokens), str(tmp_path / "run"), objective="segment", epochs=1, fraction=0.5, set=SMALL)
    assert any(line.startswith("data          12 images with masks") for line in report.said)
