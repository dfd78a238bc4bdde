"""News of workers reach the terminal in order, and its wish to stop reaches them."""

from __future__ import annotations

import threading

import pytest

from stem_adaptors.board import Board, BoardReporter

SECONDS = 30


def test_news_arrive_in_order_and_only_the_last_of_waiting_steps() -> None:
    board = Board({"the": "job"})
    with BoardReporter(board.exchange) as reporter:
        reporter.say("hello")
    with BoardReporter(board.exchange) as reporter:
        for step in range(3):
            reporter.tell("step", step=step)
        reporter.epoch({"epoch": 0})
        reporter.tell("done")
    news = board.take()
    assert [item["kind"] for item in news if item["kind"] != "step"] == ["say", "epoch", "done"]
    assert [item["step"] for item in news if item["kind"] == "step"][-1] == 2
    assert news[0] == {"kind": "say", "message": "hello"} and board.take() == [] and board.job() == {"the": "job"}


def test_a_stop_is_passed_on_once() -> None:
    board, heard, stopped = Board({}), list[int](), threading.Event()

    def stop(number: int) -> None:
        heard.append(number)
        stopped.set()

    with BoardReporter(board.exchange) as reporter:
        reporter.on_stop = stop
        board.stop(15)
        assert stopped.wait(SECONDS)
    assert heard == [15]


def test_news_are_sent_when_the_worker_fails() -> None:
    board = Board({})
    with pytest.raises(ValueError), BoardReporter(board.exchange) as reporter:
        reporter.say("last words")
        raise ValueError
    assert [item["message"] for item in board.take()] == ["last words"]
