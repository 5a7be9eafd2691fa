"""Turns of updates that meet on a key: in order, handed on, and never waited for without a bound."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agent_memory import turns as module
from agent_memory.drivers import Flow, run
from agent_memory.transports.local import ClosedTransport
from agent_memory.turns import Turn, Turns
from tests.support.api import wait_for

PLACE = "place"


def waited(turn: Turn, seconds: float = 5.0) -> bool:
    return run(turn.wait(), ClosedTransport(), time.monotonic() + seconds)


@pytest.fixture
def turns() -> Any:
    turns = Turns()
    yield turns
    assert turns._queues == {}, "nothing is kept of a place that all have left"


def wait_for_queue(turns: Turns, length: int) -> None:
    wait_for(lambda: len(turns._queues[PLACE].waiting) >= length)


def test_who_meets_nobody_does_not_wait(turns: Turns) -> None:
    turn = Turn(turns, PLACE)
    assert not turn.is_contended()
    assert not waited(turn)
    assert Turn(turns, PLACE).is_contended()
    assert not Turn(turns, "elsewhere").is_contended()
    assert not waited(turn), "it has its turn already"
    turn.end()


def test_turns_come_in_the_order_in_which_they_were_asked_for(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 30.0)
    order: list[int] = []

    def take(number: int) -> None:
        turn = Turn(turns, PLACE)
        assert waited(turn)
        order.append(number)
        turn.end()

    first = Turn(turns, PLACE)
    waited(first)
    with ThreadPoolExecutor(4) as pool:
        results = []
        for number in range(4):
            results.append(pool.submit(take, number))
            wait_for_queue(turns, number + 1)
        first.end()
        for result in results:
            result.result(5)
    assert order == [0, 1, 2, 3]


def test_a_turn_that_has_come_is_not_handed_on_at_once(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 30.0)
    first, second, third = (Turn(turns, PLACE) for _ in range(3))
    waited(first)
    flow, other = second.wait(), third.wait()
    next(flow)
    behind = next(other)
    first.end()
    with pytest.raises(StopIteration):
        flow.send(True)
    assert not behind.future.done()
    second.end()
    third.end()


def test_a_turn_that_takes_long_is_over_for_those_who_wait(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 0.02)
    slow, next_one = Turn(turns, PLACE), Turn(turns, PLACE)
    waited(slow)
    assert waited(next_one)
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(waited, slow)
        wait_for_queue(turns, 1)
        next_one.end()
        assert again.result(5), "it waits like the others for another turn"
    slow.end()


def test_who_waits_looks_again_when_the_turn_is_over_and_not_before(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST", 30.0)
    first, second = Turn(turns, PLACE), Turn(turns, PLACE)
    waited(first)
    monkeypatch.setattr(module, "_LONGEST", 60.0)
    waiting = next(second.wait())
    assert 20 < waiting.seconds <= 30
    second.end()
    first.end()


def test_a_place_in_the_queue_that_is_given_up_holds_nobody_up(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 30.0)
    first, cancelled, last = (Turn(turns, PLACE) for _ in range(3))
    waited(first)
    flow: Flow[bool] = cancelled.wait()
    next(flow)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(waited, last)
        wait_for_queue(turns, 2)
        flow.close()
        cancelled.end()
        first.end()
        assert result.result(5)
    last.end()


def test_a_wait_ends_with_the_calls_deadline(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 30.0)
    first, late = Turn(turns, PLACE), Turn(turns, PLACE)
    waited(first)
    began = time.monotonic()
    assert waited(late, 0.05)
    assert time.monotonic() - began < 2
    late.end()
    first.end()


def test_who_has_ended_its_turn_takes_no_other(turns: Turns) -> None:
    turn, other = Turn(turns, PLACE), Turn(turns, PLACE)
    waited(turn)
    turn.end()
    waited(other)
    assert not waited(turn)
    turn.end()
    assert other.is_contended(), "what is over ends nobody else's turn"
    other.end()


def test_threads_take_turns_one_at_a_time(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 30.0)
    at_once, most, counting = 0, 0, threading.Lock()

    def take() -> None:
        nonlocal at_once, most
        for _ in range(200):
            turn = Turn(turns, PLACE)
            waited(turn)
            with counting:
                at_once += 1
                most = max(most, at_once)
            with counting:
                at_once -= 1
            turn.end()

    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(take) for _ in range(8)]:
            result.result(30)
    assert most == 1


def test_a_flow_that_is_collected_while_its_thread_looks_at_the_turns_stops_nothing(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned = Turn(turns, "elsewhere")
    waited(abandoned)
    made = module._Queue.__init__

    def collecting(queue: Any, holder: Any) -> None:
        abandoned.end()
        made(queue, holder)

    monkeypatch.setattr(module._Queue, "__init__", collecting)
    turn = Turn(turns, PLACE)
    thread = threading.Thread(target=waited, args=[turn], daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    turn.end()
    turns.pass_over("elsewhere")
