"""News of workers reach the terminal in order, and its wish to stop reaches them."""

from __future__ import annotations

import threading

import pytest

from tokenshards.stem_adaptors.cluster.board import Board, BoardReporter, News

SECONDS = 30


def test_news_arrive_in_order_and_only_the_last_of_waiting_steps() -> None:
    board = Board({"the": "job"})
    with BoardReporter(board.exchange) as reporter:
        reporter.say("hello")
    waiting = BoardReporter(board.exchange)
    for step in range(3):
        waiting.tell("step", step=step)
    waiting.epoch({"epoch": 0})
    waiting.tell("done")
    waiting._send()
    expected = [{"kind": "say", "message": "hello"}, {"kind": "step", "step": 2}, {"kind": "epoch", "record": {"epoch": 0}}]
    assert board.take() == [*expected, {"kind": "done"}]
    assert board.take() == [] and board.job() == {"the": "job"}


def test_a_stop_is_passed_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenshards.stem_adaptors.cluster.board.SEND_SECONDS", 0.01)
    board, heard, again = Board({}), list[int](), threading.Semaphore(0)

    def exchange(news: list[News]) -> int | None:
        if heard:
            again.release()
        return board.exchange(news)

    with BoardReporter(exchange) as reporter:
        reporter.on_stop = heard.append
        board.stop(15)
        for _ in range(5):
            assert again.acquire(timeout=SECONDS)
    assert heard == [15]


def test_news_are_sent_when_the_worker_fails() -> None:
    board = Board({})
    with pytest.raises(ValueError), BoardReporter(board.exchange) as reporter:
        reporter.say("last words")
        raise ValueError
    assert [item["message"] for item in board.take()] == ["last words"]
