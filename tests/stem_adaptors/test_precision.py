"""One rule for the number format, and what stays in float32."""

from __future__ import annotations

import pytest
import torch

from tests.stem_adaptors.augment.layouts import grid, ids_of, spec_of, tables_of
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.classifier import build_classifier
from tokenshards.stem_adaptors.precision import autocast, precision_name, precision_of, recorded_precision

CPU = torch.device("cpu")


def test_formats_of_a_cpu() -> None:
    assert precision_of("auto", CPU) is torch.float32 and precision_of("bf16", CPU) is torch.bfloat16
    assert recorded_precision("fp16", CPU) is torch.float32 and recorded_precision("bf16", CPU) is torch.bfloat16
    assert precision_name(torch.bfloat16) == "bf16"
    with pytest.raises(ConfigError, match="--precision is fp16 on cpu"):
        precision_of("fp16", CPU)


@pytest.mark.parametrize("name", ["vit_nano", "timm:resnet10t"])
def test_norm_and_head_work_in_float32_under_autocast(name: str) -> None:
    if name.startswith("timm:"):
        allow_torchvision()
        pytest.importorskip("timm", reason="timm (an extra) is not installed")
    spec = spec_of(grid(8, 8))
    model = build_classifier(spec, tables_of(spec), None, ModelConfig(name=name), 5).eval()
    head = model.backbone.head if name == "vit_nano" else model.backbone.fc
    seen: list[torch.dtype] = []
    head.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))  # type: ignore[union-attr]
    with autocast(CPU, torch.bfloat16), torch.no_grad():
        logits_BC = model(ids_of(spec, 3))
        features = model.forward_features(ids_of(spec, 3))
    assert seen == [torch.float32, torch.float32] and logits_BC.dtype is torch.float32
    assert features.dtype is torch.bfloat16 or name == "vit_nano"
