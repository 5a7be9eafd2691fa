"""Any sequence of operations does what a dict with versions would do."""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from agent_memory import ConflictError
from agent_memory.messages import Entry
from agent_memory.operations import Delete, Get, Set
from tests.support.stores import ONE_PER_CATALOG, TimedStore

KEYS = st.sampled_from(["a", "b", "a/b", "\u00e9", "e\u0301", "\U0001f600"])
SIZES = st.sampled_from([0, 1, 65_536, 65_537, 131_072, 131_073, 200_001])


TOMBSTONE_SECONDS = 86_400


class Live(NamedTuple):
    value: Any
    entry: Entry
    expires_us: int | None


class Model(RuleBasedStateMachine):
    """``store`` is set by a subclass made for each backend."""

    store: TimedStore

    def __init__(self) -> None:
        super().__init__()
        self.memory = self.store.open(application=f"t{uuid.uuid4().hex}", chunk_size=65_536)
        self.state = self.memory.app_state
        self.live: dict[str, Live] = {}
        # Of each key, the newest version; None once nobody can know more than that it was lower than the next.
        self.newest: dict[str, int] = {}
        self.forgotten: set[str] = set()
        self.etags: dict[str, set[str]] = {}
        self.seen: dict[str, list[Entry]] = {}
        self.salt = 0

    # -- the model ---------------------------------------------------------------------------------------------------

    def current(self, key: str) -> Live | None:
        found = self.live.get(key)
        if found is not None and found.expires_us is not None and found.expires_us <= self.store.clock.us:
            del self.live[key]
            return None
        return found

    def keys(self) -> list[str]:
        return sorted((key for key in list(self.live) if self.current(key)), key=str.encode)

    def committed(self, key: str, entry: Entry) -> None:
        newest = self.newest.get(key, 0)
        if key in self.forgotten:
            assert entry.version > newest
            self.forgotten.discard(key)
        else:
            assert entry.version == newest + 1 or (newest == 0 and self.swept)
        assert entry.etag not in self.etags.setdefault(key, set())
        self.newest[key] = entry.version
        self.etags[key].add(entry.etag)
        self.seen.setdefault(key, []).append(entry)

    swept = False

    def wrote(self, key: str, value: Any, entry: Entry, ttl: float | None = None) -> None:
        self.committed(key, entry)
        expires = None if ttl is None else self.store.clock.us + round(ttl * 1_000_000)
        self.live[key] = Live(value, entry, expires)

    def deleted(self, key: str, entry: Entry | None) -> None:
        if self.current(key) is None:
            assert entry is None
            return
        assert entry is not None
        assert entry.deleted
        self.committed(key, entry)
        del self.live[key]

    def fresh(self, size: int) -> bytes:
        self.salt += 1
        return (b"%d|" % self.salt * (size // 2 + 1))[:size]

    def any_etag(self, data: st.DataObject, key: str) -> str:
        return data.draw(st.sampled_from([entry.etag for entry in self.seen.get(key, [])] or ["never"]))

    # -- what may happen ---------------------------------------------------------------------------------------------

    @rule(key=KEYS, size=SIZES, ttl=st.sampled_from([None, None, 60.0]))
    def set(self, key: str, size: int, ttl: float | None) -> None:
        value = self.fresh(size)
        self.wrote(key, value, self.state.set(key, value, ttl=ttl), ttl)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.deleted(key, self.state.delete(key))

    @rule(key=KEYS, size=SIZES)
    def create(self, key: str, size: int) -> None:
        value, document = self.fresh(size), self.state.key(key, bytes)
        if self.current(key) is None:
            self.wrote(key, value, document.create(value))
        else:
            with pytest.raises(ConflictError):
                document.create(value)

    @rule(key=KEYS, size=SIZES, data=st.data())
    def replace(self, key: str, size: int, data: st.DataObject) -> None:
        value, document, etag = self.fresh(size), self.state.key(key, bytes), self.any_etag(data, key)
        found = self.current(key)
        if found is not None and found.entry.etag == etag:
            self.wrote(key, value, document.replace(value, expected=etag))
            return
        with pytest.raises(ConflictError) as caught:
            document.replace(value, expected=etag)
        current = caught.value.current
        assert (current.value if current else None) == (found.value if found else None)

    @rule(key=KEYS, data=st.data())
    def delete_expected(self, key: str, data: st.DataObject) -> None:
        etag, found = self.any_etag(data, key), self.current(key)
        if found is not None and found.entry.etag == etag:
            self.deleted(key, self.state.delete(key, expected=etag))
            return
        with pytest.raises(ConflictError):
            self.state.delete(key, expected=etag)

    @rule(key=KEYS)
    def update(self, key: str) -> None:
        found = self.current(key)
        value = (found.value if found else b"")[-100_000:] + b"+"
        snapshot = self.state.key(key, bytes).update(lambda old: old[-100_000:] + b"+", default=b"")
        assert snapshot.value == value
        self.committed(key, snapshot.entry)
        self.live[key] = Live(value, snapshot.entry, found.expires_us if found else None)

    @rule(first=KEYS, second=KEYS, size=SIZES, data=st.data())
    def batch(self, first: str, second: str, size: int, data: st.DataObject) -> None:
        value, etag = self.fresh(size), self.any_etag(data, second)
        operations = [Set(first, value), Get(first), Delete(second, expected=etag), Get(second)]
        there = self.current(second)
        if first == second or there is None or there.entry.etag != etag:
            with pytest.raises(ConflictError):
                self.state.batch(operations)
            return
        written, read, gone, absent = self.state.batch(operations)
        self.wrote(first, value, written)
        self.deleted(second, gone)
        assert read == (value, written)
        assert absent is None

    @rule(seconds=st.sampled_from([1, 59, 61, 3_600, TOMBSTONE_SECONDS + 1, 3 * TOMBSTONE_SECONDS]))
    def wait(self, seconds: int) -> None:
        self.store.clock.advance(seconds=seconds)

    @rule()
    def sweep(self) -> None:
        self.store.sweep()
        self.swept = True
        # What of the absent keys was forgotten depends on when it went: their versions only have to rise.
        self.forgotten |= {key for key in self.newest if self.current(key) is None}

    # -- what must hold ----------------------------------------------------------------------------------------------

    @rule(key=KEYS)
    def read(self, key: str) -> None:
        found, snapshot = self.current(key), self.state.snapshot(key)
        if found is None:
            assert snapshot is None
        else:
            assert snapshot == (found.value, found.entry)

    @rule()
    def read_all(self) -> None:
        wanted = {key: self.live[key].value for key in self.keys()}
        assert self.state.get_many([*wanted, "never"]) == wanted

    @invariant()
    def lists_what_is_there(self) -> None:
        assert list(self.state.keys()) == self.keys()

    @precondition(lambda self: self.live)
    @rule(prefix=st.sampled_from(["a", "a/", "\u00e9", "e", "zz"]))
    def lists_prefixes(self, prefix: str) -> None:
        assert list(self.state.keys(prefix)) == [key for key in self.keys() if key.startswith(prefix)]

    def teardown(self) -> None:
        self.memory.close()


# The async face runs the same flows as the sync one, and the other contract tests run both: once is enough here.
@pytest.mark.parametrize("timed", ["http-sync", *ONE_PER_CATALOG], indirect=True)
def test_a_store_behaves_like_a_dict_with_versions(timed: TimedStore, soak: bool) -> None:
    class ModelOfThisStore(Model):
        store = timed

    run_state_machine_as_test(
        ModelOfThisStore,
        # A step takes five times as long where every read is a round trip to PostgreSQL.
        settings=settings(max_examples=500 if soak else 25 if timed.key_file else 8, stateful_step_count=40),
    )
