"""How busy a run was: the used shares of its capacity, and the stage that needs more resources."""

from __future__ import annotations

import pytest

from tokenshards.pipeline.runners.stage_usage import RunUsage


def usage(fetch: float = 0, decode: float = 0, encode: float = 0, write: float = 0, *, workers: float = 0, decoders: float = 0) -> RunUsage:
    found = RunUsage(worker_seconds=workers, lane_seconds=workers, decode_seconds=decoders)
    found.add({"fetch": fetch / 2, "decode": decode, "encode": encode, "write": write})
    found.add({"fetch": fetch / 2, "decode": 0.0, "encode": 0.0, "write": 0.0})
    return found


def test_stages_of_a_worker_that_does_one_after_the_other_share_its_time() -> None:
    found = usage(10, 60, 20, 5, workers=100)
    assert found.busy_shares() == {"fetch": 0.1, "decode": 0.6, "encode": 0.2, "write": 0.05}
    assert found.bottleneck() == "decode: 60% of the workers' time"
    assert found.rows() == [
        ("busy", "fetch 10%, decode 60%, encode 20%, write 5% of its workers' time"),
        ("bottleneck", "decode: 60% of the workers' time"),
    ]


def test_threads_that_decode_beside_the_encoder_have_time_of_their_own() -> None:
    found = usage(40, 320, 25, 5, workers=100, decoders=400)
    assert found.busy_shares() == {"fetch": 0.4, "decode": 0.8, "encode": 0.25, "write": 0.05}
    assert found.bottleneck() == "decode: the encoder waits 75% of the time and could take 4.0 times as many images"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (usage(1, 2, 90, workers=100, decoders=400), "encode: 90% of the workers' time"),
        (usage(90, 20, 50, workers=100, decoders=400), "fetch: the encoder waits 50% of the time and could take 2.0 times as many images"),
        (usage(0, 100, 0, workers=100, decoders=400), "decode"),
        (usage(0, 10, 10, 80, workers=100), "write: 80% of the workers' time"),
        (usage(0, 0, 0, 0, workers=100, decoders=100), "fetch"),
    ],
)
def test_the_bottleneck_is_the_busiest_stage(found: RunUsage, says: str) -> None:
    assert found.bottleneck() == says


def test_work_for_which_no_time_was_counted_divides_by_nothing() -> None:
    assert RunUsage().rows() == [] and RunUsage().bottleneck() and set(RunUsage().busy_shares().values()) == {0.0}
    found = usage(1, 2, 3, 4, decoders=10)
    assert found.busy_shares()["encode"] == 0.0 and found.bottleneck() == "decode"


def test_shares_end_at_one_and_notes_follow() -> None:
    found = usage(0, 500, 1, workers=100, decoders=100)
    found.notes.append("images are decoded beside the tokenizer")
    assert found.busy_shares()["decode"] == 1.0
    assert found.rows()[-1] == ("note", "images are decoded beside the tokenizer")


def test_shards_side_by_side_share_the_tokenizer_and_the_decoders() -> None:
    found = RunUsage()
    found.count_worker(50.0, lanes=2, decode_threads=4)
    found.count_worker(50.0, lanes=2, decode_threads=4)
    assert (found.worker_seconds, found.lane_seconds, found.decode_seconds) == (100.0, 200.0, 400.0)
    found.add({"fetch": 20.0, "decode": 200.0, "encode": 40.0, "write": 10.0})
    assert found.busy_shares() == {"fetch": 0.1, "decode": 0.5, "encode": 0.4, "write": 0.05}


def test_shards_side_by_side_on_one_cpu_take_turns() -> None:
    found = RunUsage()
    found.count_worker(100.0, lanes=2)
    found.add({"fetch": 20.0, "decode": 60.0, "encode": 40.0, "write": 10.0})
    assert found.busy_shares() == {"fetch": 0.1, "decode": 0.6, "encode": 0.4, "write": 0.05}
