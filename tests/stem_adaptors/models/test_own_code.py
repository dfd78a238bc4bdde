"""Own models and stems by name: trained, measured and used like ours; permission for what a file names."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenshards
from tests.datasets import call_cli, call_json
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tests.stem_adaptors.training.small_runs import tokenize_pair
from tokenshards.pipeline import named_code
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.config import ModelConfig

HERE = "tests.stem_adaptors.models.own_modules"
ALLOW = named_code.ALLOW_PYTHON


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tokenize_pair(tmp_path_factory.mktemp("own"))


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers a model and a stem."""
    points = {
        "tokenshards.models": [EntryPoint("my_net", f"{HERE}:make", "tokenshards.models")],
        "tokenshards.stems": [EntryPoint("my_stem", f"{HERE}:make_stem", "tokenshards.stems")],
    }
    monkeypatch.setattr(named_code.importlib.metadata, "entry_points", lambda group: points.get(group, []))
    named_code.offered.cache_clear()
    yield
    named_code.offered.cache_clear()


def trained(pair: tuple[Path, Path], run: Path, **options: Any) -> tokenshards.TrainReport:
    given = {"val": pair[1], "epochs": 2, "batch_size": 16, "device": "cpu", "cache_dir": run.parent / "cache", **options}
    report: tokenshards.TrainReport = tokenshards.train(pair[0], run, **given)
    return report


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (f"python:{HERE}:make", {"model.width": 4}),
        (f"python:{HERE}:WithHead", {}),
        (f"python:{HERE}:registered_with_timm", {}),
        ("vit_nano", {"model.stem": f"python:{HERE}:make_stem"}),
    ],
    ids=["function", "class", "timm", "stem"],
)
def test_own_code_trains_and_is_measured_where_it_is_allowed(
    model: str, settings: dict[str, Any], pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_torchvision()
    run = tmp_path / "run"
    report = trained(pair, run, model=model, set=settings)
    _, error = call_cli("evaluate", str(run), str(pair[1]), "--device", "cpu", expect=2)
    assert f"this run runs Python code that is installed here, {HERE}:" in error and f"{ALLOW} is not set" in error
    monkeypatch.setenv(ALLOW, HERE)
    measured = call_json("evaluate", str(run), str(pair[1]), "--device", "cpu", "--weights", "last")
    assert measured["top1"] == pytest.approx(report.record["val_top1"])
    image = next(pair[0].parent.joinpath("val_images").rglob("*.png"))
    assert call_json("predict", str(run), str(image), "--device", "cpu")["classes"][0]["class"].startswith("class_")
    assert trained(pair, run, model=model, set=settings, resume=True).record == report.record


def test_a_linear_probe_needs_a_head_that_can_be_found(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert trained(pair, tmp_path / "probe", model=f"python:{HERE}:WithHead", train_part="head").record["epoch"]
    with pytest.raises(ConfigError, match="no head that can be found"):
        trained(pair, tmp_path / "none", model=f"python:{HERE}:make", train_part="head")


def test_an_entry_point_needs_no_permission(offers: None, pair: tuple[Path, Path], tmp_path: Path) -> None:
    report = trained(pair, tmp_path / "run", model="my_net")
    measured = call_json("evaluate", str(tmp_path / "run"), str(pair[1]), "--device", "cpu", "--weights", "last")
    assert measured["top1"] == pytest.approx(report.record["val_top1"])
    model, _ = tokenshards.build(ModelConfig(name="vit_nano", stem="my_stem"), tokenshards.open_dataset(pair[0]))
    assert model.backbone.patch_embed.grid == (1,)
    with pytest.raises(ConfigError, match="expected one of vit_nano, .*, my_net, timm:NAME, or python"):
        tokenshards.build("no_such", tokenshards.open_dataset(pair[0]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("python:no_such_module:make", "importing no_such_module raised ModuleNotFoundError.*expected it in a folder of PYTHONPATH"),
        (f"python:{HERE}:nothing", f"{HERE} has no callable nothing, but None"),
        (f"python:{HERE}:NUMBER", "has no callable NUMBER, but 7"),
        (f"python:{HERE}", "names no callable; expected python:package.module:callable"),
        (f"python:{HERE}:pixels_alone", r"its module on \[2, 3, 4, 4\] raised RuntimeError|its module on \[2, .*\] raised RuntimeError"),
        (f"python:{HERE}:wrong_count", r"gives \[2, 4\] for 2 samples; expected logits \[2, 3\]"),
        (f"python:{HERE}:no_module", "expected a torch.nn.Module"),
    ],
)
def test_what_is_wrong_with_own_code_is_a_sentence(name: str, words: str, pair: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=words):
        tokenshards.build(name, tokenshards.open_dataset(pair[0]))


def test_options_that_the_callable_does_not_take_are_a_sentence(pair: tuple[Path, Path]) -> None:
    dataset = tokenshards.open_dataset(pair[0])
    with pytest.raises(ConfigError, match="raised TypeError: .*depth"):
        tokenshards.build(ModelConfig(name=f"python:{HERE}:WithHead", depth=2), dataset)
    with pytest.raises(ConfigError, match="has a stem of its own"):
        tokenshards.build(ModelConfig(name=f"python:{HERE}:make", stem="conv"), dataset)
    with pytest.raises(ConfigError, match="auto, conv"):
        ModelConfig(stem="fancy")


def test_weights_depend_on_the_seed_alone_and_the_global_generator_stays(pair: tuple[Path, Path]) -> None:
    dataset, name = tokenshards.open_dataset(pair[0]), f"python:{HERE}:WithHead"
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (tokenshards.build(name, dataset, seed=seed)[0].backbone.head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(torch.get_rng_state(), before)
