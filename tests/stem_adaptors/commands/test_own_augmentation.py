"""Augmentations by name and as text through the command line: trained, printed, resumed, measured; permission for what a file names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tokenshards
from tests.datasets import call_cli
from tests.stem_adaptors.training.small_runs import tokenize_pair
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.named_code import ALLOW_PYTHON
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment import PRESETS
from tokenshards.stem_adaptors.training.run_directory import load_run

HERE = "tests.stem_adaptors.augment.own_operations"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tokenize_pair(tmp_path_factory.mktemp("own"))


def trained(pair: tuple[Path, Path], run: Path, **options: Any) -> tokenshards.TrainReport:
    given = {"epochs": 1, "batch_size": 16, "device": "cpu", "cache_dir": run.parent / "cache", "set": {"model.depth": 1}, **options}
    report: tokenshards.TrainReport = tokenshards.train(pair[0], run, **given)
    return report


def test_a_list_with_code_of_ones_own_trains_and_is_measured_where_it_is_allowed(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    text = f'.25*swap(), rrc(share=0.5), one_of(.5*noise(),.25*python("{HERE}:Fade",amount=.5)), cutmix()'
    report = trained(pair, run, augment=text)
    canonical = f'one_of(0.25*swap()), rrc(share=0.5), one_of(0.5*noise(), 0.25*python("{HERE}:Fade", amount=0.5)), cutmix()'
    assert any(canonical in line for line in report.said)
    recorded = load_run(Store(str(run))).augment
    assert (recorded.ops, recorded.mix_group) == (text, 16)
    assert trained(pair, run, augment=text, resume=True, epochs=1).settings["augment"].ops == text
    monkeypatch.delenv(ALLOW_PYTHON, raising=False)
    _, err = call_cli("evaluate", str(run), str(pair[1]), expect=2)
    assert f"export {ALLOW_PYTHON}={HERE}:Fade" in err
    monkeypatch.setenv(ALLOW_PYTHON, HERE)
    assert "top-1" in call_cli("evaluate", str(run), str(pair[1]))[0]


def test_presets_are_chosen_by_name(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("seitpp", "none"):
        assert trained(pair, tmp_path / name, augment=name).settings["augment"] == PRESETS[name]
    assert trained(pair, tmp_path / "off", no_augment=True).settings["augment"] == PRESETS["none"]
    assert trained(pair, tmp_path / "usual").settings["augment"] == PRESETS["mild"]
    with pytest.raises(ConfigError, match="--augment seit and --no-augment were both given"):
        trained(pair, tmp_path / "both", augment="seit", no_augment=True)
    with pytest.raises(ConfigError, match="expected one of seit, seitpp, seitpp_small, mild, mtm, none"):
        trained(pair, tmp_path / "other", augment="harder")
