"""Layers in their order, and the share of the rate that each one gets."""

from __future__ import annotations

import pytest
from torch import nn

from tests.stem_adaptors.augment.layouts import grid, spec_of, tables_of
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.config import ModelConfig
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, build_classifier
from tokenshards.stem_adaptors.training.parameter_groups import layers_of, parameter_groups


def classifier(config: ModelConfig) -> TokenClassifier:
    spec = spec_of(grid(8, 8))
    return build_classifier(spec, tables_of(spec), None, config, 5)


def test_each_layer_learns_slower_than_the_one_after_it() -> None:
    model = classifier(ModelConfig(name="vit_nano", width=16, depth=3, heads=2, learned_codebook=True))
    scales = {}
    for group in parameter_groups(model, 0.1, layer_decay=0.5):
        for parameter in group["params"]:
            scales[id(parameter)] = group["lr_scale"]
    named = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    assert named["backbone.head.weight"] == named["backbone.fc_norm.bias"] == 1.0
    blocks = [named[f"backbone.blocks.{index}.attn.qkv.weight"] for index in range(3)]
    assert blocks == [0.125, 0.25, 0.5]
    assert named["backbone.pos_embed"] == named["backbone.patch_embed.proj.weight"] == 0.0625
    assert named["embedding.level_0"] == 0.03125, "embeddings of ids are the first layer"


def test_without_layer_decay_there_are_two_groups_in_the_order_of_older_checkpoints() -> None:
    model = classifier(ModelConfig(name="vit_nano", width=16, depth=1, heads=2))
    decayed, spared = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0) and decayed["lr_scale"] == spared["lr_scale"] == 1.0
    assert sum(len(group["params"]) for group in (decayed, spared)) == len(list(model.parameters()))
    model.requires_grad_(False)
    assert [group["params"] for group in parameter_groups(model, 0.1)] == [[], []]


def test_timms_models_name_their_layers_and_others_are_refused() -> None:
    allow_torchvision()
    pytest.importorskip("timm", reason="timm (an extra) is not installed")
    layers = layers_of(classifier(ModelConfig(name="timm:resnet10t")))
    assert layers["backbone.conv1.0.weight"] == 1 < layers["backbone.layer1.0.conv1.weight"] < layers["backbone.layer4.0.conv1.weight"]
    assert layers["backbone.fc.weight"] == max(layers.values())
    with pytest.raises(ConfigError, match="layer_decay needs a model that names its layers; Linear has no group_matcher"):
        parameter_groups(nn.Linear(2, 2), 0.1, layer_decay=0.9)
