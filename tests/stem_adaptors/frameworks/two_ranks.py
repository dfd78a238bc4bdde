"""One of two processes under accelerate: what each reads, and a training; the results go to a file. See test_real_libraries.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import tokenshards
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.data.torch_loader import BatchDataset, StepSampler

allow_torchvision()
BATCH, RATE = 16, 4e-3


class Numbered(tokenshards.TokenSamples):
    """Samples that tell their number."""

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [{**sample, "number": index} for sample, index in zip(super().__getitems__(indices), indices, strict=True)]


def refusal(accelerator: Any, dataset: tokenshards.TokenDataset, config: tokenshards.LoaderConfig) -> str:
    loader = DataLoader(BatchDataset(dataset, config), batch_size=None, sampler=StepSampler(dataset, config))
    try:
        next(iter(accelerator.prepare(loader)))
    except ConfigError as error:
        return str(error)
    return "no refusal"


def main(train: str, val: str, out: str) -> None:
    from accelerate import Accelerator
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    dataset, measured = tokenshards.open_dataset(train), tokenshards.open_dataset(val)
    config = tokenshards.LoaderConfig(batch_size=BATCH)
    samples = Numbered(dataset)
    found: dict[str, Any] = {"refused": refusal(accelerator, dataset, config)}
    loader, tokens = accelerator.prepare(DataLoader(samples, batch_size=BATCH // 2, shuffle=True), tokenshards.TokenLoader(dataset, config))
    found["prepared_samples"] = [int(number) for batch in loader for number in batch["number"]]
    found["token_loader"] = [int(row) for batch in tokens for row in batch.rows_B]
    model = tokenshards.ClassifierWithLoss(*tokenshards.build("vit_nano", dataset, augment="none"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    steps = 2 * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(2 * (step + 1) / steps, 2 * (steps - step) / steps, 1.0))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(2):
        for batch in loader:
            output = wrapped(batch["input_ids"], batch["labels"])
            accelerator.backward(output.loss)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    wrapped.eval()
    right = torch.zeros((), dtype=torch.int64)
    with torch.no_grad():
        for batch in accelerator.prepare(DataLoader(tokenshards.TokenSamples(measured, classes=dataset.classes), batch_size=60)):
            hits = wrapped(batch["input_ids"]).logits.argmax(dim=1) == batch["labels"]
            right += accelerator.gather_for_metrics(hits).sum()
    found["top1"] = int(right) / len(measured)
    arguments = TrainingArguments(
        output_dir=str(Path(out).parent),
        per_device_train_batch_size=BATCH // 2,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
    )
    trainer = Trainer(model, arguments, train_dataset=samples)
    found["trainer"] = [int(number) for batch in trainer.get_train_dataloader() for number in batch["number"]]
    Path(out).write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
