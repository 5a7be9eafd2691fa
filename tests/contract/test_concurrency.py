"""Concurrent writers lose nothing: conditions are linearizable per key, and read-modify-write counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from agent_memory import ConflictError
from agent_memory.operations import Get, Search, Set
from tests.support.models import Counter, Profile


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work`` on so many threads that start together; return what each gave, or the conflict it met."""
    results: list[Any] = [None] * count
    failures: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait(20)
        try:
            results[number] = work(number)
        except ConflictError as error:
            results[number] = error
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if failures:
        raise failures[0]
    return results


def test_concurrent_updates_lose_no_increment(store: Any) -> None:
    counters = [store.open().app_state.key("counter", Counter) for _ in range(2)]

    def increment(number: int) -> None:
        for _ in range(10):
            counters[number % 2].update(lambda value: Counter(count=value.count + 1))

    at_once(4, increment)
    assert counters[0].get() == Counter(count=40)
    assert counters[0].snapshot().version == 40


def test_one_of_several_concurrent_creations_succeeds(store: Any) -> None:
    documents = [store.open().entity("user", "1").document(Profile) for _ in range(4)]
    results = at_once(4, lambda number: documents[number].create(Profile(name=str(number))))

    winners = [number for number, result in enumerate(results) if not isinstance(result, ConflictError)]
    assert len(winners) == 1
    assert documents[0].get() == Profile(name=str(winners[0]))


def test_one_of_several_concurrent_replacements_succeeds(store: Any) -> None:
    documents = [store.open().entity("user", "1").document(Profile) for _ in range(4)]
    documents[0].set(Profile(name="old"))
    old = documents[0].snapshot()
    results = at_once(4, lambda number: documents[number].replace(Profile(name=str(number)), expected=old))

    winners = [number for number, result in enumerate(results) if not isinstance(result, ConflictError)]
    assert len(winners) == 1
    assert (documents[0].get(), documents[0].snapshot().version) == (Profile(name=str(winners[0])), 2)


def test_a_deletion_and_a_replacement_of_the_same_version_do_not_both_succeed(store: Any) -> None:
    documents = [store.open().entity("user", "1").document(Profile) for _ in range(2)]
    for _ in range(5):
        documents[0].set(Profile(name="old"))
        old = documents[0].snapshot()

        def work(number: int, old: Any = old) -> Any:
            if number:
                return documents[1].delete(expected=old)
            return documents[0].replace(Profile(name="new"), expected=old)

        results = at_once(2, work)
        assert sum(isinstance(result, ConflictError) for result in results) == 1


def test_concurrent_large_writes_leave_one_of_them_whole(store: Any) -> None:
    clients = [store.open(chunk_size=65_536) for _ in range(4)]
    values = [bytes([number]) * (200_000 + number) for number in range(4)]
    entries = at_once(4, lambda number: clients[number].app_state.set("key", values[number]))

    last = max(entries, key=lambda entry: entry.version)
    assert clients[0].app_state.get("key") == values[entries.index(last)]
    assert sorted(entry.version for entry in entries) == [1, 2, 3, 4]


def test_readers_see_old_or_new_values_whole(store: Any) -> None:
    writer, reader = store.open(chunk_size=65_536), store.open(chunk_size=65_536)
    values = [bytes([number]) * (60_000 + 40_000 * number) for number in range(5)]
    writer.app_state.set("key", values[0])
    done = threading.Event()

    def work(number: int) -> list[bytes]:
        if number == 0:
            try:
                for round in range(25):
                    writer.app_state.set("key", values[round % 5])
            finally:
                done.set()
            return []
        seen = [reader.app_state.get("key")]
        while not done.is_set():
            seen.append(reader.app_state.get("key"))
        return seen

    assert all(value in values for value in at_once(3, work)[1])


def test_a_batch_reads_one_moment(store: Any) -> None:
    writer, reader = store.open(), store.open()
    writer.app_state.batch([Set("note/1", {"n": 0}), Set("note/2", {"n": 0})])
    done = threading.Event()

    def work(number: int) -> list[int]:
        if number == 0:
            try:
                for n in range(300):
                    writer.app_state.batch([Set("note/1", {"n": n}), Set("note/2", {"n": n})])
            finally:
                done.set()
            return []
        ahead: list[int] = []
        while not done.is_set():
            first, hits, second = reader.app_state.batch([Get("note/1"), Search("note/2"), Get("note/2")])
            ahead += [hits[0].value["n"] - first.value["n"], second.value["n"] - first.value["n"]]
        return ahead

    ahead = at_once(2, work)[1]
    assert ahead
    assert set(ahead) == {0}


def test_concurrent_additions_are_all_there(store: Any) -> None:
    collections = [store.open().entity("user", "1").collection(Counter) for _ in range(2)]
    added = at_once(4, lambda number: [collections[number % 2].add(Counter(count=n)) for n in range(10)])

    assert sorted(found.id for found in collections[0].list()) == sorted(item_id for ids in added for item_id in ids)


def test_processes_lose_no_increment(store: Any) -> None:
    memory = store.open()
    code = (
        "from tests.support.models import Counter\n"
        "counter = memory.app_state.key('counter', Counter)\n"
        "for _ in range(15): counter.update(lambda value: Counter(count=value.count + 1))\n"
        "memory.close()\n"
    )
    at_once(2, lambda _: store.run_child(code))

    assert memory.app_state.get("counter") == {"count": 30}
