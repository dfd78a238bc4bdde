"""Training: resumes bit for bit from anywhere, adds up to what it should, and says clearly what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._inductor import config as inductor

import tokenshards
from tests.datasets import convert, write_images
from tests.stem_adaptors.training.small_runs import FIT, MODEL, KeptReporter, Stopped, death_after, fit, request_for, tokenize_pair
from tokenshards.pipeline.errors import ConfigError, TrainingError
from tokenshards.pipeline.shards import TokenDataset, open_dataset
from tokenshards.stem_adaptors.config import AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.data.labels import has_labels
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.mixing import mix
from tokenshards.stem_adaptors.data.selection import labels_of, sample_count, select
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.checkpoints import read_checkpoint
from tokenshards.stem_adaptors.training.optimisation import Optimisation
from tokenshards.stem_adaptors.training.parameter_groups import parameter_groups, spared_names
from tokenshards.stem_adaptors.training.run_directory import load_run, open_classifier
from tokenshards.stem_adaptors.training.trainer import Trainer

PLAIN = AugmentConfig.off()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenDataset, TokenDataset]:
    train, val = tokenize_pair(tmp_path_factory.mktemp("pair"))
    return open_dataset(str(train)), open_dataset(str(val))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def tensors_of(run: Path, name: str = "checkpoint") -> dict[str, torch.Tensor]:
    return load_file(run / f"{name}.safetensors")


def assert_same_run(found: Path, expected: Path) -> None:
    for name in ("checkpoint", "best"):
        left, right = tensors_of(found, name), tensors_of(expected, name)
        assert left.keys() == right.keys()
        assert [key for key in right if not torch.equal(left[key], right[key])] == []
    measured = [
        [{key: value for key, value in json.loads(line).items() if key not in ("images_per_second", "data_wait_share")} for line in lines]
        for lines in ((run / "metrics.jsonl").read_text().splitlines() for run in (found, expected))
    ]
    assert measured[0] == measured[1]


CASES: dict[str, dict[str, Any]] = {
    "global": {},
    "windowed": {"loader": {"order": "windowed", "window_shards": 2, "lanes": 2}},
    "padded, in parts, no average": {"loader": {"end": "pad"}, "accumulate": 4, "ema_decay": 0.0},
    "learned codes, head": {"model": replace(MODEL, learned_codebook=True, stem="patch"), "train_part": "attention"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("death", [3, 6, 8, 11])
def test_a_training_that_died_ends_bit_equal(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, case: str, death: int
) -> None:
    data, val = pair
    expected = cache / f"undisturbed-{list(CASES).index(case)}"
    if not expected.exists():
        fit(request_for(data, expected, cache, val=val, **CASES[case]))
    request = request_for(data, tmp_path / "run", cache, val=val, checkpoint_steps=2, **CASES[case])
    with death_after(death), pytest.raises(Stopped):
        fit(request)
    said = fit(replace(request, resume=True)).lines
    assert any("continuing at step" in line for line in said)
    assert_same_run(tmp_path / "run", expected)


def test_a_training_that_died_before_any_checkpoint_starts_again(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path
) -> None:
    request = request_for(pair[0], tmp_path / "run", cache, resume=True)
    with death_after(2), pytest.raises(Stopped):
        fit(request)
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    fit(request)
    fit(request_for(pair[0], tmp_path / "other", cache))
    assert_same_run(tmp_path / "run", tmp_path / "other")


def test_a_log_that_a_kill_left_behind_its_checkpoint_is_written_again(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path
) -> None:
    request = request_for(pair[0], tmp_path / "run", cache, val=pair[1], epochs=2, resume=True)
    fit(request)
    written = {name: (tmp_path / "run" / name).read_bytes() for name in ("metrics.jsonl", "metrics.csv")}
    assert written["metrics.jsonl"].count(b"\n") == 2
    (tmp_path / "run" / "metrics.jsonl").write_bytes(written["metrics.jsonl"].splitlines(keepends=True)[0])
    (tmp_path / "run" / "metrics.csv").unlink()
    fit(request)
    assert written == {name: (tmp_path / "run" / name).read_bytes() for name in written}


def test_a_signal_stops_after_the_step_with_a_checkpoint(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    request = request_for(pair[0], tmp_path / "run", cache)

    class Interrupting(KeptReporter):
        def step(self, epoch: int, step: int, steps: int, images_per_second: float, loss: float) -> None:
            if (epoch, step) == (2, 2):
                os.kill(os.getpid(), signal.SIGTERM)

    reporter = Interrupting()
    with pytest.raises(SystemExit) as stop:
        Trainer(request, Ranks(), torch.device("cpu"), reporter).fit()
    assert stop.value.code == 128 + signal.SIGTERM
    assert "--resume continues" in reporter.lines[-1]
    assert read_checkpoint(request.out, "checkpoint.safetensors").state["step"] == 7  # the signal of step 6 is seen after the next
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    fit(replace(request, resume=True))
    fit(request_for(pair[0], tmp_path / "other", cache))
    assert_same_run(tmp_path / "run", tmp_path / "other")


def test_micro_batches_add_up_to_the_batch(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    settings = {"model": replace(MODEL, drop_path=0.0), "augment": PLAIN, "loader": {"end": "pad"}}
    whole = fit(request_for(pair[0], tmp_path / "whole", cache, **settings))
    parts = fit(request_for(pair[0], tmp_path / "parts", cache, accumulate=4, **settings))
    assert len(whole.losses) == 3 * 4  # 70 images in batches of 16, the fifth of an epoch ends it
    torch.testing.assert_close(torch.tensor(parts.losses), torch.tensor(whole.losses), rtol=1e-5, atol=0)


def test_micro_batches_of_different_sizes_are_refused(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    request = request_for(pair[0], tmp_path / "run", cache, accumulate=3)
    with pytest.raises(ConfigError, match="is 3; a batch of 16 on 1 processes cannot .*: give one of 1, 2, 4, 8, 16, or"):
        fit(request)
    assert not (tmp_path / "run").exists()


def test_the_first_losses_are_those_of_the_formula(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    request = request_for(pair[0], tmp_path / "run", cache, augment=PLAIN, model=replace(MODEL, drop_path=0.0), epochs=1)
    trainer = Trainer(request, Ranks(), torch.device("cpu"), reporter := KeptReporter())
    with closing(TokenLoader(request.data, request.loader).epoch(0)) as batches:
        batch = next(batches)
    logits_BC = trainer.model(batch.ids_BLQ)
    expected = torch.nn.functional.cross_entropy(logits_BC, batch.labels_B, label_smoothing=request.train.label_smoothing)
    trainer.fit()
    torch.testing.assert_close(torch.tensor(reporter.losses[0]), expected.detach(), rtol=1e-5, atol=1e-6)


def test_what_is_learned_classifies_and_the_average_is_measured(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path
) -> None:
    data, _ = pair
    request = request_for(data, tmp_path / "run", cache, val=data, augment=PLAIN, epochs=30, lr=3e-3, ema_decay=0.8)
    records = fit(request).records
    assert records[-1]["train_loss"] < records[0]["train_loss"] - 0.2 and records[-1]["val_top1"] > 0.8
    assert all(0 <= record["data_wait_share"] <= 1 and record["val_images"] == len(data) for record in records)
    best = max(max(record["val_top1"], record["ema_val_top1"]) for record in records)
    state = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert state["epoch"] == 30 and state["ema_val_top1"] == records[-1]["ema_val_top1"]
    model, _ = open_classifier(request.out)
    batches = data.batches(len(data))
    batch = next(iter(batches))
    found_B = model(torch.from_numpy(batch.ids_BLQ.astype("int64"))).argmax(1)
    assert float((found_B == torch.from_numpy(batch.labels_B).long()).float().mean()) == pytest.approx(best)


def test_losses_that_are_not_finite_end_it_and_the_checkpoint_is_from_before(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path
) -> None:
    request = request_for(pair[0], tmp_path / "run", cache, lr=1e30, clip_grad_norm=0.0, checkpoint_steps=1, warmup_epochs=0)
    with pytest.raises(TrainingError, match=r"at step \d+ \(epoch 1\); expected a finite number.*lower --lr \(it is 1e\+30\)"):
        fit(request)
    kept = tmp_path / "run" / "checkpoint.safetensors"
    if kept.exists():
        assert all(bool(tensor.isfinite().all()) for tensor in tensors_of(tmp_path / "run").values() if tensor.is_floating_point())


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_is_not_written_into_a_dataset(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, resume: bool) -> None:
    place = tmp_path / "tokens"
    shutil.copytree(pair[1].store.url, place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="tokens holds a dataset; expected an empty place for the run. Give another --out"):
        fit(request_for(pair[0], place, cache, epochs=1, resume=resume))
    assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_an_existing_run_needs_resume_and_a_misfit_is_named(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    data, val = pair
    request = request_for(data, tmp_path / "run", cache, epochs=1)
    fit(request)
    with pytest.raises(ConfigError, match="already holds a run. Add --resume"):
        fit(request)
    again = replace(request, resume=True)
    for part, name, value in (("train", "lr", 0.5), ("loader", "batch_size", 8), ("model", "depth", 3), ("augment", "flip_prob", 0.25)):
        changed = replace(again, **{part: replace(getattr(again, part), **{name: value})})
        with pytest.raises(ConfigError, match=rf"{part}\.{name} is {value}; this run was started with"):
            fit(changed)
    with pytest.raises(ConfigError, match="the dataset is"):
        fit(replace(again, data=select(data, fraction=0.5)))
    unhindered = replace(again, train=replace(again.train, checkpoint_steps=3), loader=replace(again.loader, prefetch_batches=0))
    assert "1 epoch is done" in fit(unhindered).lines[-1]


@pytest.mark.parametrize("inherited", [False, True])
def test_data_without_labels_is_an_error(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, inherited: bool) -> None:
    """Also where the class table is that of the tokenizer's dataset, and for a part of the rows."""
    write_images(tmp_path / "flat", 16, classes=0)
    how: dict[str, Any] = {"tokenizer": pair[0].store.url} if inherited else {"fit": FIT}
    convert(tmp_path / "flat", tmp_path / "out", **how)
    flat = open_dataset(str(tmp_path / "out"))
    assert bool(flat.classes) == inherited
    for data in (flat, select(flat, fraction=0.5), mix([(flat, 1.0), (select(flat, rows=[1]), 1.0)])):
        images = sample_count(data)
        with pytest.raises(ConfigError, match=rf"out: none of the {images} images has a label; .* --label-from"):
            fit(request_for(data, tmp_path / "run", cache))
    with pytest.raises(ConfigError, match="none of the 16 images has a label"):
        tokenshards.build("vit_nano", flat)
    if inherited:
        with pytest.raises(ConfigError, match="out: none of the 16 images has a label; .*nothing can be measured"):
            fit(request_for(pair[0], tmp_path / "run", cache, val=flat))
    assert not (tmp_path / "run").exists()


def test_some_images_without_a_label_are_no_error(pair: tuple[TokenDataset, TokenDataset], tmp_path: Path) -> None:
    write_images(tmp_path / "images", 6, classes=1)
    write_images(tmp_path / "images", 3, classes=0, seed=5)
    convert(tmp_path / "images", tmp_path / "out", tokenizer=pair[0].store.url)
    some = open_dataset(str(tmp_path / "out"))
    labels = labels_of(some)
    assert 0 < (labels < 0).sum() < len(some)
    for data in (some, select(some, rows=[int(labels.argmax())]), mix([(some, 1.0), (pair[0], 1.0)])):
        assert has_labels(data)
    assert not has_labels(select(some, rows=[int(labels.argmin())]))


def test_a_validation_class_that_is_missing_and_another_tokenizer_are_errors(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path
) -> None:
    data, _ = pair
    write_images(tmp_path / "images", 12, classes=4)
    tokenizer = f"{data.store.url}/tokenizer"
    convert(tmp_path / "images", tmp_path / "four", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"classes .*class_3.* unknown to the classifier, which has 3"):
        fit(request_for(data, tmp_path / "run", cache, val=open_dataset(str(tmp_path / "four"))))
    convert(tmp_path / "images", tmp_path / "alien", fit=replace(FIT, codes=8))
    with pytest.raises(ConfigError, match="was made by the tokenizer .* Tokenize the validation set with --tokenizer"):
        fit(request_for(data, tmp_path / "run", cache, val=open_dataset(str(tmp_path / "alien"))))


def test_classes_are_matched_by_name(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    data, _ = pair
    write_images(tmp_path / "images" / "x", 12, classes=3)
    (tmp_path / "images" / "x" / "class_0").rename(tmp_path / "gone")  # what is left has other indices
    convert(tmp_path / "images" / "x", tmp_path / "two", tokenizer=f"{data.store.url}/tokenizer")
    val = open_dataset(str(tmp_path / "two"))
    assert val.classes == ("class_1", "class_2")
    request = request_for(data, tmp_path / "run", cache, val=val, epochs=1)
    trainer = Trainer(request, Ranks(), torch.device("cpu"), KeptReporter())
    trainer.fit()
    assert trainer.validation._align.args[0].tolist() == [1, 2, -1]


def test_first_weights_are_those_of_the_seed(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        request = request_for(pair[0], tmp_path / "run", cache, seed=seed)
        return Trainer(request, Ranks(), torch.device("cpu"), KeptReporter()).model.state_dict()["backbone.blocks.0.attn.qkv.weight"]

    first, again, other = weights(0), weights(0), weights(7)
    assert torch.equal(first, again)
    assert float((first - other).abs().mean()) > 0.01, "of a standard deviation of 0.02"


def test_a_linear_probe_moves_the_head_alone(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    request = request_for(pair[0], tmp_path / "run", cache, train_part="head", epochs=1)
    start = Trainer(request, Ranks(), torch.device("cpu"), KeptReporter()).model.state_dict()
    before = {name: tensor.clone() for name, tensor in start.items()}
    fit(request)
    after = read_checkpoint(request.out, "checkpoint.safetensors").model
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"backbone.head.weight", "backbone.head.bias"}


@pytest.mark.parametrize("file", ["", "/best.safetensors", "/checkpoint.safetensors"])
def test_a_run_starts_from_another_run(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, file: str) -> None:
    first = request_for(pair[0], tmp_path / "first", cache, epochs=1, ema_decay=0.0)
    fit(first)
    request = request_for(pair[0], tmp_path / "run", cache, epochs=1, pretrained=f"{tmp_path}/first{file}")
    trainer = Trainer(request, Ranks(), torch.device("cpu"), KeptReporter())
    learned = read_checkpoint(first.out, "checkpoint.safetensors").model
    assert all(torch.equal(tensor, learned[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_run_continues_from_another_folder_and_with_its_first_weights_elsewhere(
    pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(request_for(pair[0], tmp_path / "first", cache, epochs=1))
    monkeypatch.chdir(tmp_path)
    request = request_for(pair[0], tmp_path / "run", cache, epochs=1, pretrained="first")
    fit(request)
    monkeypatch.chdir("/")
    assert "1 epoch is done" in fit(replace(request, resume=True, pretrained=str(tmp_path / "first"))).lines[-1]
    with pytest.raises(ConfigError, match="this run was started with"):
        fit(replace(request, resume=True, pretrained=None))


def test_mixes_selections_and_remote_runs_train(pair: tuple[TokenDataset, TokenDataset], cache: Path) -> None:
    data, val = pair
    mixed = mix([(select(data, fraction=0.5), 1.0), (data, 0.5)])
    request = request_for(mixed, "memory://tests/train/run", cache, epochs=1)
    fit(request)
    run = load_run(request.out)
    assert run.data["mix_weights"] and run.classes == data.classes
    fit(replace(request, resume=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_backbone_learns_the_same(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    # The compiler takes a minute for the augmentation, which tests/stem_adaptors/augment/test_compiled.py compiles.
    small = {"model": replace(MODEL, depth=1), "epochs": 1, "augment": PLAIN}
    plain = fit(request_for(pair[0], tmp_path / "plain", cache, **small))
    with inductor.patch({"cpp.simdlen": 0, "aot_inductor.debug_compile": True}):  # plain C++ without optimisation compiles fastest
        compiled = fit(request_for(pair[0], tmp_path / "compiled", cache, compile=True, **small))
    torch.testing.assert_close(torch.tensor(compiled.losses), torch.tensor(plain.losses), rtol=1e-3, atol=1e-4)
    open_classifier(request_for(pair[0], tmp_path / "compiled", cache).out, "last")  # the weights keep their names


def test_any_timm_model_trains(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    from tests.stem_adaptors.torchvision_shim import allow_torchvision

    allow_torchvision()
    pytest.importorskip("timm", reason="timm (an extra) is not installed")
    request = request_for(pair[0], tmp_path / "run", cache, model=ModelConfig(name="timm:resnet10t"), epochs=1, lr=1e-3)
    fit(request)
    model, _ = open_classifier(request.out)
    assert not model.training
    probe = replace(request_for(pair[0], tmp_path / "probe", cache, train_part="head", epochs=1), model=request.model)
    before = Trainer(probe, Ranks(), torch.device("cpu"), KeptReporter()).model.state_dict()
    fit(probe)
    after = read_checkpoint(probe.out, "checkpoint.safetensors").model
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"backbone.fc.weight", "backbone.fc.bias"}


def test_weight_decay_spares_what_timms_model_says(pair: tuple[TokenDataset, TokenDataset], cache: Path, tmp_path: Path) -> None:
    request = request_for(pair[0], tmp_path / "run", cache, epochs=1)
    trainer = Trainer(request, Ranks(), torch.device("cpu"), KeptReporter())
    weight = trainer.model.backbone.head.weight
    trainer.model.backbone.no_weight_decay = lambda: {"head.weight", "cls_token"}  # as timm's models have it
    assert spared_names(trainer.model) == {"backbone.head.weight", "backbone.cls_token"}
    decayed, spared = parameter_groups(trainer.model, 0.1, spared_names(trainer.model))
    assert any(parameter is weight for parameter in spared["params"]) and not any(parameter is weight for parameter in decayed["params"])
    for draws in (1, 2):  # runs of the first version go by names alone, to their end
        optimisation = Optimisation(trainer.objective, request.train, Ranks(), torch.device("cpu"), epoch_steps=1, draws=draws)
        assert any(parameter is weight for parameter in optimisation.optimizer.param_groups[draws - 1]["params"])
