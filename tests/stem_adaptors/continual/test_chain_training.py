"""Chains: what each step learns from, what is kept of it, and that a killed chain ends as one that was never stopped."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.datasets import convert
from tests.inline import InlineRunner
from tests.stem_adaptors.continual.chains import CLASSES, chain_of, count_steps, write_both
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.comparison.paired import unpacked
from tokenshards.stem_adaptors.continual import chain_training
from tokenshards.stem_adaptors.continual.chain import Chain
from tokenshards.stem_adaptors.continual.chain_training import train_chain
from tokenshards.stem_adaptors.continual.class_groups import class_groups
from tokenshards.stem_adaptors.continual.kept_steps import KeptSteps
from tokenshards.stem_adaptors.continual.replay_memory import quotas
from tokenshards.stem_adaptors.curves.measured_images import labelled_ids
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.selection import Selection, labels_of

Whole = tuple[Path, list[dict[str, Any]], list[Any]]
TIMES = ("seconds", "cpu_seconds", "process", "run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("chains")
    write_both(found)
    return found


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("TOKENSHARDS_CACHE", str(folder / "cache"))
    count_steps(monkeypatch)


def trained(folder: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = train_chain(str(out), {}, chain_of(folder, **changes))["steps"]
    return [{name: value for name, value in step.items() if name not in TIMES} for step in steps]


def memories(out: Path) -> list[dict[str, list[str]]]:
    """The memory of each step that has one, as images by class, the smallest step first."""
    found = [json.loads(path.read_text())["classes"] for path in out.glob("steps/*.memory.json")]
    return sorted((dict(one) for one in found), key=len)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A chain from its start to its end, and the data that each step learned from."""
    out, seen = tmp_path_factory.mktemp("whole"), []
    made = chain_training.made_trainer

    def watched(kind: Any, data: Any, *more: Any, **settings: Any) -> Any:
        seen.append(data)
        return made(kind, data, *more, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENSHARDS_CACHE", str(folder / "cache"))
        patch.setattr(chain_training, "made_trainer", watched)
        count_steps(patch)
        return out, trained(folder, out), seen


def test_a_step_learns_new_classes_and_images_of_earlier_ones(folder: Path, whole: Whole) -> None:
    _, steps, seen = whole
    groups, dataset = class_groups(CLASSES, 3, 0), open_dataset(f"{folder}/train.tokens")
    names_N = np.array([dataset.classes[label] for label in labels_of(dataset)])
    assert [step["new"] for step in steps] == [24, 24, 12] and [step["memory"] for step in steps] == [0, 7, 7]
    assert isinstance(seen[0], Selection) and [type(data) for data in seen[1:]] == [Mix, Mix]
    for step, data in enumerate(seen):
        new, *old = data.parts if isinstance(data, Mix) else (data,)
        assert set(names_N[new.rows_n]) == set(groups.names_of(step)) and new.classes == groups.names, "all classes from the start"
        for part in old:
            assert set(names_N[part.rows_n]) == set(groups.names[: groups.seen(step - 1)])
            assert data.weights == [(1, 1), (1, 4)][step - 1], "as many draws as classes"
    drawn = Counter(int(label) for batch in TokenLoader(seen[1], batch_size=28) for label in batch.labels_B)
    assert sorted(drawn) == [0, 1, 2, 3] and sum(drawn[label] for label in (0, 1)) == 14, "every class as often, of 28 images"


def test_a_memory_holds_what_was_there_and_shrinks_to_prefixes(folder: Path, whole: Whole) -> None:
    out, _, _ = whole
    groups, dataset = class_groups(CLASSES, 3, 0), open_dataset(f"{folder}/train.tokens")
    classes = {f"{dataset.sample(name).sample_id}": dataset.sample(name).label for name in labelled_ids(dataset)}
    first, second = memories(out)
    assert [len(ids) for ids in first.values()] == list(quotas(7, 2)) and [len(ids) for ids in second.values()] == list(quotas(7, 4))
    assert tuple(first) == groups.names[:2] and tuple(second) == groups.names[:4]
    assert all(second[name] == ids[: len(second[name])] for name, ids in first.items())
    assert all(classes[one] == name for memory in (first, second) for name, ids in memory.items() for one in ids)


def test_measured_are_classes_seen_so_far(folder: Path, whole: Whole) -> None:
    _, steps, _ = whole
    groups, val = class_groups(CLASSES, 3, 0), open_dataset(f"{folder}/val.tokens")
    names = [val.classes[label] for label in labels_of(val)]
    right_TN = unpacked([step["right"] for step in steps], steps[0]["images"])
    for step in range(3):
        unseen = [name in groups.names[groups.seen(step) :] for name in names]
        assert not right_TN[step, unseen].any() and right_TN.shape == (3, 20)
    assert right_TN.sum() > 0


def test_weights_go_from_step_to_step_and_only_those_of_the_first_stay(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    kind = chain_training.SeenTrainer

    class Watched(kind):  # type: ignore[valid-type, misc]
        def train(self) -> None:
            begun.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
            super().train()
            begun.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})

    monkeypatch.setattr(chain_training, "SeenTrainer", Watched)
    trained(folder, tmp_path)
    for end, start in ((1, 2), (3, 4)):
        assert all((begun[end][name] == tensor).all() for name, tensor in begun[start].items())
    assert any((begun[0][name] != tensor).any() for name, tensor in begun[1].items())
    (path,) = tmp_path.glob("steps/*.safetensors")
    kept = load_file(path)
    assert all((kept[name] == tensor).all() for name, tensor in begun[1].items())
    assert (begun[1]["backbone.head.weight"][2:] - begun[0]["backbone.head.weight"][2:]).abs().max() < 1e-3, "only weight decay"


@pytest.mark.parametrize(("finished", "chosen"), [(1, True), (2, False)])
def test_a_killed_chain_ends_as_one_that_was_never_stopped(folder: Path, whole: Whole, tmp_path: Path, finished: int, chosen: bool) -> None:
    """The kill comes before or after the memory of the next step is chosen. Results, weights and memories are bit-equal."""
    out, steps, _ = whole
    stop, count = KeptSteps.finish if chosen else KeptSteps.keep_memory, [0]

    def killed(self: KeptSteps, *given: Any) -> None:
        count[0] += 1
        if count[0] == finished + chosen:
            raise KeyboardInterrupt
        stop(self, *given)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(KeptSteps, "finish" if chosen else "keep_memory", killed)
        trained(folder, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert len(KeptSteps(Store(str(tmp_path)), chain_of(folder)).results) == finished and not list(tmp_path.glob("chains/*"))
    assert len(memories(tmp_path)) == finished - 1 + chosen
    for path in tmp_path.glob("steps/*.memory.json") if finished == 2 else ():
        if path.with_name(path.name.replace(".memory", "")) in before:  # of a finished step: the next one would not know what it held
            path.unlink()
            assert len(KeptSteps(Store(str(tmp_path)), chain_of(folder)).results) == 1
            path.write_bytes(before[path])
    assert trained(folder, tmp_path) == steps and memories(tmp_path) == memories(out)
    assert {path: path.read_bytes() for path in before} == before, "nothing that was finished is made again"


def test_steps_whose_weights_are_lost_are_made_again(folder: Path, whole: Whole, tmp_path: Path) -> None:
    chain = chain_of(folder)
    train_chain(str(tmp_path), {}, chain.first)
    (weights,) = tmp_path.glob("steps/*.safetensors")
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert KeptSteps(Store(str(tmp_path)), chain).results == KeptSteps(Store(str(tmp_path)), chain.first).results == []
    assert trained(folder, tmp_path) == whole[1]


def test_other_memories_share_the_first_step(folder: Path, tmp_path: Path) -> None:
    herding, chance, nothing, everything = (
        trained(folder, tmp_path, steps=2, until=2, **changes)
        for changes in ({}, {"choice": "random"}, {"images": 0}, {"images": None})
    )  # fmt: skip
    assert herding[0] == chance[0] == nothing[0] == everything[0] and len(list(tmp_path.glob("steps/*.safetensors"))) == 1
    assert [step["memory"] for step in nothing] == [0, 0] and [step["memory"] for step in everything] == [0, 36]
    assert len(list(tmp_path.glob("steps/*.memory.json"))) == 2 and herding[1]["weights"] != chance[1]["weights"]


def test_images_of_the_memory_come_from_its_own_dataset(folder: Path, tmp_path: Path) -> None:
    """Another dataset of the same images, in another order; one image is not in it, and is never chosen."""
    left_out = folder / "train" / class_groups(CLASSES, 2, 0).names[0]
    one = sorted(left_out.iterdir())[0]
    data = one.read_bytes()
    one.unlink()
    try:
        convert(folder / "train", tmp_path / "kept", tokenizer=f"{folder}/train.tokens", shard_rows=5, runner=InlineRunner())
    finally:
        one.write_bytes(data)
    steps = trained(folder, tmp_path / "out", memory_url=str(tmp_path / "kept"), memory_data="k", images=48, steps=2, until=2)
    assert [step["memory"] for step in steps] == [0, 35]
    assert f"{one.parent.name}/{one.name}" not in {name for memory in memories(tmp_path / "out") for ids in memory.values() for name in ids}


def test_names_depend_on_all_that_a_result_depends_on(folder: Path) -> None:
    chain = chain_of(folder)
    changes: dict[str, Any] = {
        "data": "e", "memory_data": "m", "classes": CLASSES[1:], "steps": 4, "images": 8, "choice": "random", "seed": 1,
        "step_seconds": 7.0, "device": "cuda",
    }  # fmt: skip
    others = [replace(chain, **{name: value}) for name, value in changes.items()]
    assert len({one.key for one in (chain, chain.first, *others)}) == len(others) + 2
    assert len({one.step_key(1, "b") for one in (chain, *others)} | {chain.step_key(1, "c"), chain.step_key(2, "b")}) == len(others) + 3
    shared = {"memory_data", "images", "choice"}
    assert {name for name, one in zip(changes, others, strict=True) if one.step_key(0, "") == chain.step_key(0, "")} == shared
    moved = replace(chain, train_url="/t", val_url="/v", memory_url="/m", classes=CLASSES[::-1])
    assert moved.key == chain.key and moved.step_key(2, "b") == chain.step_key(2, "b"), "the same data at another place"
    assert isinstance(chain, Chain) and chain.seconds == 12 and chain.first.seconds == 6
