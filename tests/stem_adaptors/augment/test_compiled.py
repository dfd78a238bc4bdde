"""What an accelerator asks of a transform: no wait for a value, few kernels, and one graph for all steps and epochs."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
import torch
from torch._inductor import config as inductor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pipeline.shards.samples import LAYOUTS
from tests.stem_adaptors.augment.layouts import grid, spec_of, tables_of
from tests.stem_adaptors.augment.test_transform import EVERYTHING, batch_of, embedded, transform_of
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment import TokenTransform, allowed_augmentations
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig, ModelConfig
from tokenshards.stem_adaptors.models.classifier import TokenClassifier, build_classifier
from tokenshards.stem_adaptors.objectives.base import Blueprint
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective

MODEL = ModelConfig(name="vit_nano", width=16, depth=1, heads=2, drop_path=0.2)
MOST_OPERATIONS = 250


class Watch(TorchDispatchMode):
    """Counts operations that are no views, and fails where a float64 would come to lie on a device that is not the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.counts[func.overloadpacket.__name__] += 1
        return result


class NoDoubles(TorchDispatchMode):
    """Fails where a number of 64 bits would come to lie on a device that is not the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            doubled = isinstance(value, torch.Tensor) and value.device.type != "cpu" and value.dtype == torch.float64
            assert not doubled, f"{func} makes float64, which Apple's GPUs do not have"
        return result


def model_for(spec: TokenizerSpec, transform: TokenTransform, config: ModelConfig = MODEL) -> TokenClassifier:
    return build_classifier(spec, tables_of(spec), None, config, 5, transform.out_grid)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("layout", [*LAYOUTS.values(), grid(12, 10, 2)], ids=str)
def test_nothing_waits_for_a_value_and_nothing_needs_float64(layout: Layout, learned: bool) -> None:
    """Torch's meta device has no values, and is neither a CPU nor CUDA, as Apple's GPU: whoever asks for a value gets an error."""
    spec = spec_of(layout)
    config = dataclasses.replace(EVERYTHING, cutmix_labels="attention" if learned else "area")
    transform = transform_of(spec, allowed_augmentations(spec, config))
    model = model_for(spec, transform, dataclasses.replace(MODEL, learned_codebook=learned)).to("meta")
    batch = batch_of(spec, 8).to("meta")
    with pytest.raises(RuntimeError, match="item"):
        batch.labels_B[0].item()
    with pytest.raises(AssertionError, match="float64"), NoDoubles():
        torch.zeros(2, device="meta", dtype=torch.float64)
    transform.loss(model, batch)  # constants are made and moved in the first step
    with NoDoubles():
        transform.loss(model, batch).backward()


@pytest.mark.parametrize("levels", [1, 2])
def test_operations_of_the_default_augmentation_are_few(levels: int) -> None:
    """Each operation that is no view is a kernel to launch. Before all random numbers were drawn together there were 875 of them."""
    spec = spec_of(grid(32, 32, levels), codes=391, width=32)
    transform = transform_of(spec, AugmentConfig(mix_group=16))
    model, batch = model_for(spec, transform).to("meta"), batch_of(spec, 128).to("meta")
    transform(model, batch)
    with Watch() as watch:
        transform(model, batch)
    print(f"{levels} levels: {watch.counts.total()} operations")
    assert 150 < watch.counts.total() <= MOST_OPERATIONS, watch.counts.most_common()


@pytest.mark.usefixtures("no_recompilation")
@pytest.mark.parametrize("labels", ["area", "attention"])
def test_one_graph_trains_and_one_measures_for_all_steps_and_epochs(labels: str) -> None:
    spec = spec_of(grid(6, 6, 2))

    def objective() -> ClassifyObjective:
        blueprint = Blueprint(
            spec=spec,
            tables=tables_of(spec),
            statistics=None,
            classes=tuple(range(5)),
            model=MODEL,
            augment=dataclasses.replace(EVERYTHING, mix_group=4, cutmix_labels=labels),
            label_smoothing=0.1,
            draws=DRAWS,
        )
        return ClassifyObjective.build(blueprint)

    expected, compiled = objective(), objective()
    compiled.compile_model(backend="aot_eager")
    batch = batch_of(spec, 8)
    batch = dataclasses.replace(batch, ids_BLQ=batch.ids_BLQ.to(torch.uint16))
    for epoch in range(2):
        for step in range(2):
            part = dataclasses.replace(batch, epoch=epoch, positions_B=torch.arange(8) + 8 * step)
            losses = []
            for one in (expected, compiled):
                one.train()
                loss_B, _ = one(part)
                loss_B.mean().backward()
                losses.append(loss_B.detach())
            torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
            for found, other in zip(compiled.parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(found.grad, other.grad, rtol=1e-4, atol=1e-5)
        with torch.inference_mode():
            answers = [one.eval().answers(batch) for one in (expected, compiled)]
        torch.testing.assert_close(answers[1].outputs, answers[0].outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("no_recompilation")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.timeout(300)
def test_the_compiler_of_torch_makes_the_same_of_the_default_augmentation() -> None:
    """The operations alone: the C++ compiler is slow. tests/gpu has it all, on a GPU."""
    spec = spec_of(grid(6, 6))
    transform, compiled = (transform_of(spec, AugmentConfig(mix_group=4)) for _ in range(2))
    compiled.compile()
    model, batch = embedded(spec), batch_of(spec, 8)
    with inductor.patch({"cpp.simdlen": 0, "aot_inductor.debug_compile": True}):  # plain C++ without optimisation compiles fastest
        for epoch in range(2):
            part = dataclasses.replace(batch, epoch=epoch)
            found, expected = compiled(model, part), transform(model, part)
            torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-6)
