"""Work is done in order, from copies, and its errors come back."""

from __future__ import annotations

import threading

import pytest
import torch

from tokenshards.stem_adaptors.training.background_writer import BackgroundWriter
from tokenshards.stem_adaptors.training.checkpoints import Checkpoint


def test_work_is_done_in_order_beside_the_caller_and_one_piece_waits() -> None:
    done: list[int] = []
    gate, writer = threading.Event(), BackgroundWriter()

    def first() -> None:
        assert gate.wait(10)
        done.append(1)

    writer.submit(first)
    assert done == []  # the caller goes on meanwhile
    gate.set()
    writer.submit(lambda: done.append(2))
    assert 1 in done
    writer.close()
    assert done == [1, 2]


def test_an_error_of_the_work_is_raised_by_the_next_call_once() -> None:
    def fail() -> None:
        raise OSError("disk full")

    writer = BackgroundWriter()
    writer.submit(fail)
    with pytest.raises(OSError, match="disk full"):
        writer.submit(lambda: None)
    writer.submit(fail)
    with pytest.raises(OSError, match="disk full"):
        writer.close()


def test_a_copied_checkpoint_does_not_follow_the_training() -> None:
    weight, state = torch.ones(3), {"metrics": [{"epoch": 0}]}
    copied = Checkpoint(model={"w": weight}, optimizer={}, state=state).copied()
    weight.zero_()
    state["metrics"].append({"epoch": 1})
    assert copied.model["w"].tolist() == [1.0] * 3 and copied.state["metrics"] == [{"epoch": 0}]
