"""Which device is chosen where several are there, and what it can compute with."""

from __future__ import annotations

import pytest
import torch

from tokenshards.pipeline.devices import choose_device, tokenizer_device, wide_float


def test_training_takes_apples_gpu_and_tokenizers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == torch.device("mps")
    assert tokenizer_device() == torch.device("cpu")
    assert wide_float(choose_device()) is torch.float32 and wide_float(choose_device("cpu")) is torch.float64
