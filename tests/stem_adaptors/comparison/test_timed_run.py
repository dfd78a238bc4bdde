"""Names of results: what decides them, and what does not."""

from __future__ import annotations

from dataclasses import replace

from tokenshards.stem_adaptors.comparison.timed_run import Run
from tokenshards.stem_adaptors.data.subsets import Subset

WHOLE = Run(side="sides/k", data="d", seed=1, seconds=60.0)


def test_a_training_on_all_images_keeps_the_name_that_it_had_before_there_were_subsets() -> None:
    assert WHOLE.key == "462500452a8b6757"


def test_a_subset_has_its_own_results_wherever_its_data_lie() -> None:
    part = replace(WHOLE, subset=Subset(choice="random", images=9))
    others = [replace(part, seed=2), replace(part, data="e"), replace(part, subset=Subset(choice="stratified", images=9)), WHOLE]
    others.append(replace(part, subset=Subset(choice="random", images=10)))
    assert len({run.path for run in [part, *others]}) == 6
    assert replace(part, train_url="/data/train.tokens", val_url="/data/val.tokens").key == part.key
