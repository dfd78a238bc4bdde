"""Each framework itself trains two epochs on the demo's digits; its accuracy is close to that of `train` on the same tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import tokenshards
from tests.datasets import ROOT
from tests.ports import free_ports
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.commands.demo_images import write_digits
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.commands.evaluation_report import evaluate_run
from tokenshards.stem_adaptors.training.imported_classifier import import_classifier
from tokenshards.stem_adaptors.training.pretrained import load_pretrained

allow_torchvision()
pytestmark = pytest.mark.timeout(300)  # the first test makes the tokens, and one starts two processes

EPOCHS, BATCH, RATE = 2, 16, 4e-3
CLOSE = 0.1
"""How far from the command's accuracy another order of samples, or another schedule, may lead."""


@dataclass(frozen=True)
class Digits:
    train: tokenshards.TokenDataset
    val: tokenshards.TokenDataset
    top1: float
    """Accuracy of the command."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    os.environ["TOKENSHARDS_CACHE"] = str(folder / "cache")
    write_digits(folder / "images")
    tokenshards.tokenize(folder / "images" / "train", folder / "train", size=32, levels=1, workers=1)
    tokenshards.tokenize(folder / "images" / "val", folder / "val", tokenizer=folder / "train", workers=1)
    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "augment": "none", "device": "cpu"}
    report = tokenshards.train(folder / "train", folder / "run", val=folder / "val", **options)
    assert report.best_top1 is not None and report.best_top1 > 0.75
    return Digits(tokenshards.open_dataset(folder / "train"), tokenshards.open_dataset(folder / "val"), report.records[-1]["val_top1"])


def parts(digits: Digits, **options: Any) -> tuple[tokenshards.TokenClassifier, tokenshards.TokenTransform]:
    return tokenshards.build("vit_nano", digits.train, augment="none", **options)


def warmed(steps: int) -> Callable[[int], float]:
    """Linear warm-up over half of the steps, then a fall to nothing, for loops that have no schedule of their own."""
    return lambda step: min(2 * (step + 1) / steps, 2 * (steps - step) / steps, 1.0)


def top1(model: tokenshards.TokenClassifier, digits: Digits) -> float:
    samples = tokenshards.TokenSamples(digits.val, classes=digits.train.classes)
    right = 0
    model.eval()
    with torch.no_grad():
        for batch in DataLoader(samples, batch_size=120):
            right += int((model(batch["input_ids"][..., None]).argmax(dim=1) == batch["labels"]).sum())
    return right / len(samples)


def imported_top1(weights: Path, digits: Digits) -> float:
    """Accuracy of weights that a framework saved, as `import classifier` and `evaluate` give it; `--pretrained` takes all of them too."""
    assert not load_pretrained(parts(digits, seed=2)[0], str(weights)).fresh
    out = Store(str(weights.parent / "imported" / weights.name))
    import_classifier(str(weights), digits.train, out)
    return evaluate_run(out, digits.val, weights="best", device=torch.device("cpu")).accuracy.top1


def test_trainer_of_transformers(digits: Digits, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = tokenshards.ClassifierWithLoss(*parts(digits))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=60,
        use_cpu=True,
        report_to=[],
        logging_strategy="no",
        save_strategy="epoch",
        save_total_limit=1,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=tokenshards.TokenSamples(digits.train),
        eval_dataset=tokenshards.TokenSamples(digits.val, classes=digits.train.classes),
        compute_metrics=lambda found: {"top1": float((found.predictions.argmax(axis=1) == found.label_ids).mean())},
    )
    trainer.train()
    found = trainer.evaluate()
    assert abs(found["eval_top1"] - digits.top1) < CLOSE and found["eval_loss"] < 1
    assert found["eval_top1"] == pytest.approx(top1(model.model, digits))
    trainer.save_model(str(tmp_path / "saved"))
    for place in ("saved", "saved/model.safetensors"):
        assert imported_top1(tmp_path / place, digits) == pytest.approx(found["eval_top1"])
    again = tokenshards.ClassifierWithLoss(*parts(digits, seed=1))
    newest = max(tmp_path.glob("checkpoint-*"))
    Trainer(again, arguments)._load_from_checkpoint(str(newest))
    assert again.state_dict()["steps"] == model.state_dict()["steps"] == EPOCHS * 90
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_accelerate_on_two_processes(digits: Digits, tmp_path: Path) -> None:
    """Both ranks get samples of their own, whatever is prepared, and the DataLoader that would be divided twice is refused."""
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_ports(1)[0]),
        "WORLD_SIZE": "2",
        "PYTHONPATH": str(ROOT),
    }
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.stem_adaptors.frameworks.two_ranks", digits.train.store.url, digits.val.store.url]
    ranks = [
        subprocess.Popen(
            [*command, str(tmp_path / f"{rank}.json")],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    count = len(digits.train)
    for name in ("prepared_samples", "trainer"):
        own = [set(part[name]) for part in found]
        assert own[0] | own[1] == set(range(count))
        assert len(own[0] & own[1]) < BATCH // 2, "accelerate fills the last batch with samples of the first"
    own = [set(part["token_loader"]) for part in found]
    assert not own[0] & own[1] and len(own[0]) == len(own[1]) == count // BATCH * BATCH // 2
    for part in found:
        assert "Prepare the model and the optimizer alone" in part["refused"]
        assert abs(part["top1"] - digits.top1) < CLOSE
    assert found[0]["top1"] == found[1]["top1"]


def test_accelerate_in_one_process_refuses_what_would_be_divided_twice(digits: Digits) -> None:
    from accelerate import Accelerator

    from tokenshards.stem_adaptors.data.torch_loader import BatchDataset, StepSampler

    config = tokenshards.LoaderConfig(batch_size=BATCH)
    loader = DataLoader(BatchDataset(digits.train, config), batch_size=None, sampler=StepSampler(digits.train, config))
    with pytest.raises(ConfigError, match="Prepare the model and the optimizer alone"):
        Accelerator(cpu=True).prepare(loader)


def test_lightning(digits: Digits, tmp_path: Path) -> None:
    from lightning.pytorch import Callback, Trainer

    class Keep(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    def fitted(resumed: str | None, *callbacks: Any) -> Any:
        model, transform = parts(digits)
        data = tokenshards.TokenDataModule(digits.train, digits.val, batch_size=BATCH)
        module = tokenshards.TokenClassifierModule(model, transform, tokenshards.TrainConfig(lr=RATE, warmup_epochs=2))
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=list(callbacks), enable_checkpointing=False, **quiet)
        trainer.fit(module, data, ckpt_path=resumed)
        return trainer

    whole = fitted(None, Keep())
    found = float(whole.callback_metrics["val_top1"])
    assert whole.global_step == EPOCHS * 89
    assert abs(found - digits.top1) < 0.02, "order, augmentation, schedule and optimiser are those of the command"
    module, data = whole.lightning_module, whole.datamodule
    tested = whole.test(module, data, verbose=False)[0]
    assert set(tested) == {"test_loss", "test_top1"} and tested["test_top1"] == pytest.approx(found)
    logits_NC = torch.cat(whole.predict(module, data))
    labels_N = next(iter(digits.val.batches(len(digits.val)))).labels_B
    answers_N = [digits.train.classes[place] for place in logits_NC.argmax(dim=1)]
    right = [digits.val.classes[label] == answer for label, answer in zip(labels_N, answers_N, strict=True)]
    assert sum(right) / len(digits.val) == pytest.approx(found), "each image once, without padding"
    whole.save_checkpoint(tmp_path / "last.ckpt")
    assert imported_top1(tmp_path / "last.ckpt", digits) == pytest.approx(found)
    resumed = fitted(str(tmp_path / "first.ckpt"))
    assert resumed.global_step == whole.global_step and float(resumed.callback_metrics["val_top1"]) == found


def test_timm(digits: Digits) -> None:
    import timm
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter, accuracy

    tokenshards.register_timm_models()
    model = timm.create_model("tokenshards_vit_nano", data=digits.train.store.url, augment="none")
    train = tokenshards.TimmLoader(digits.train, model, training=True, batch_size=BATCH)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=RATE, weight_decay=0.05, layer_decay=0.9)
    steps = EPOCHS * len(train)
    schedule = CosineLRScheduler(optimizer, t_initial=steps, warmup_t=steps // 2, warmup_lr_init=1e-4, t_in_epochs=False)
    loss_of, done = SoftTargetCrossEntropy(), 0
    for _ in range(EPOCHS):
        model.train()
        for input, target in train:
            optimizer.zero_grad()
            loss_of(model(input), target).backward()
            optimizer.step()
            done += 1
            schedule.step_update(done)
    meter = AverageMeter()
    model.eval()
    with torch.no_grad():
        for input, target in tokenshards.TimmLoader(digits.val, model, training=False, batch_size=100):
            meter.update(accuracy(model(input), target)[0].item() / 100, len(input))
    assert done == steps and meter.count == len(digits.val)
    assert abs(meter.avg - digits.top1) < CLOSE and meter.avg == pytest.approx(top1(model, digits))


def test_webdataset(digits: Digits) -> None:
    import webdataset

    model, _ = parts(digits)
    stages = tokenshards.TokenPipeline(digits.train).shuffle(1500).to_tuple("input_ids", "labels").batched(BATCH, partial=False)
    steps = EPOCHS * (len(digits.train) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule, done = torch.optim.lr_scheduler.LambdaLR(optimizer, warmed(steps)), 0
    for _ in range(EPOCHS):
        for ids, labels in stages:
            loss = torch.nn.functional.cross_entropy(model(ids[..., None]), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
    assert done == steps and abs(top1(model, digits) - digits.top1) < CLOSE
    workers = webdataset.WebLoader(tokenshards.TokenPipeline(digits.val), num_workers=2, batch_size=None, multiprocessing_context="fork")
    keys = [sample["__key__"] for sample in workers]
    assert len(keys) == len(set(keys)) == len(digits.val)
