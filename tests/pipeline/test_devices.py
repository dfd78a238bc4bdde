"""Which device is chosen where several are there."""

from __future__ import annotations

import pytest
import torch

from tokenshards.pipeline.devices import choose_device, tokenizer_device
from tokenshards.pipeline.errors import ConfigError


def test_apples_gpu_is_refused_and_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device() == tokenizer_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device is 'mps'; tokenshards does not run on Apple's GPU.* Give --device cpu"):
        choose_device("mps")
