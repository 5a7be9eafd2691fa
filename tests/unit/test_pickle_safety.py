"""A pickle is loaded only if somebody who holds a key signed these bytes for this place; see ``signing.py``."""

from __future__ import annotations

import base64
import hashlib
import os
import pickle
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
import respx

from agent_memory import (
    AgentMemory,
    IntegrityError,
    InvalidRequestError,
    ProtocolError,
    SerializationError,
    UnavailableError,
)
from agent_memory.ids import uuid7
from agent_memory.messages import BYTES, PICKLE, CommitWrite, Entry, Scope
from agent_memory.signing import Keyring
from tests.faults.processes import Child, Report
from tests.support.read_only import make_read_only

KEY = b"0123456789abcdef0123456789abcdef"
SCOPE = Scope("default", "app")


class Payload:
    """Makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class Plain:
    """A value that only a pickle can hold."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]  # compared in tests, never a key


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """What exists once the payload was loaded."""
    return tmp_path / "loaded"


@pytest.fixture
def memory(tmp_path: Path) -> Any:
    with AgentMemory(tmp_path / "store.db", application="app", signing_keys=[KEY]) as memory:
        yield memory


def plant(
    memory: AgentMemory, key: str, data: bytes, signature: str | None, *, scope: Scope = SCOPE,
    content_type: str = PICKLE,
) -> None:  # fmt: skip
    """Store bytes as somebody who can write to the store but has no key would."""
    commit = CommitWrite(scope, key, uuid7(), data, None, content_type, hashlib.sha256(data).hexdigest(), signature)
    memory._client.transport().send(commit, time.monotonic() + 5)


def sign(data: bytes, key: str = "k", *, scope: Scope = SCOPE, content_type: str = PICKLE, secret: bytes = KEY) -> str:
    return Keyring([secret]).sign(scope, key, content_type, hashlib.sha256(data).hexdigest())


def test_the_payload_is_a_real_one(trap: Path) -> None:
    pickle.loads(pickle.dumps(Payload(trap)))
    assert trap.exists()


def test_a_signed_pickle_is_loaded(memory: AgentMemory, trap: Path) -> None:
    data = pickle.dumps(Payload(trap))
    plant(memory, "k", data, sign(data))
    memory.app_state.get("k")
    assert trap.exists(), "the helper of these tests signs as the store does"


OTHER_BYTES = pickle.dumps([1, 2, 3])

BAD_SIGNATURES: dict[str, Callable[[bytes], str | None]] = {
    "missing": lambda _: None,
    "empty": lambda _: "",
    "not one": lambda _: "trust me",
    "of zeros": lambda data: sign(data)[:-64] + "0" * 64,
    "not hexadecimal": lambda data: sign(data)[:-64] + "é" * 64,
    "without the hash": lambda data: sign(data).rpartition(":")[0] + ":",
    "cut short": lambda data: sign(data)[:-1],
    "with a bit changed": lambda data: sign(data)[:-1] + ("0" if sign(data)[-1] != "0" else "1"),
    "in upper case": lambda data: sign(data)[:-64] + sign(data)[-64:].upper(),
    "of another version": lambda data: "v2" + sign(data)[2:],
    "by another key": lambda data: sign(data, secret=b"x" * 32),
    "by another key with this one's id": lambda data: sign(data)[:20] + sign(data, secret=b"x" * 32)[20:],
    "for another key": lambda data: sign(data, "other"),
    "for a longer key": lambda data: sign(data, "kk"),
    "for another application": lambda data: sign(data, scope=Scope("default", "other")),
    "for another namespace": lambda data: sign(data, scope=Scope("other", "app")),
    "for the names the other way round": lambda data: sign(data, scope=Scope("app", "default")),
    "for a request": lambda data: sign(data, scope=Scope("default", "app", "r")),
    "for other bytes": lambda _: sign(OTHER_BYTES),
    "for another content type": lambda data: sign(data, content_type=BYTES),
}


@pytest.mark.parametrize("forge", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES.keys())
def test_a_pickle_whose_signature_does_not_fit_is_never_loaded(
    memory: AgentMemory, trap: Path, forge: Callable[[bytes], str | None]
) -> None:
    data = pickle.dumps(Payload(trap))
    plant(memory, "k", data, forge(data))
    for read in (
        lambda: memory.app_state.get("k"),
        lambda: memory.app_state.get("k", default=1),
        lambda: memory.app_state.get("k", as_type=dict),
        lambda: memory.app_state.snapshot("k"),
        lambda: memory.app_state.get_many(["k"]),
    ):
        with pytest.raises(IntegrityError):
            read()
    assert not trap.exists()


def test_a_pickle_of_another_key_that_a_server_says_was_in_the_way_is_never_loaded(
    trap: Path, respx_mock: respx.MockRouter
) -> None:
    data = pickle.dumps(Payload(trap))
    entry = {
        "key": "other", "version": 1, "etag": "1-a", "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
        "content_type": PICKLE, "signature": sign(data, "other"), "created_at": "2026-01-02T03:04:05Z",
        "updated_at": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    chunk = {"uri": "data:;base64," + base64.b64encode(data).decode(), "size": len(data)}
    problem = {"status": 412, "code": "condition_failed", "entry": entry, "blob": {"id": "b", "chunks": [chunk]}}
    respx_mock.post(url__regex="commit_write$").respond(412, json=problem, content_type="application/problem+json")
    with (
        AgentMemory("http://127.0.0.1:1", application="app", signing_keys=[KEY]) as memory,
        pytest.raises(ProtocolError),
    ):
        memory.app_state.key("k", dict[str, Any]).create({})
    assert not trap.exists()


@pytest.mark.parametrize("request_id", ["other", "", None], ids=["another request", "an empty name", "no request"])
def test_a_pickle_of_one_request_is_not_loaded_in_another(
    memory: AgentMemory, trap: Path, request_id: str | None
) -> None:
    data = pickle.dumps(Payload(trap))
    scope = SCOPE._replace(request_id="r")
    plant(memory, "k", data, sign(data, scope=SCOPE._replace(request_id=request_id)), scope=scope)
    with memory.request("r") as context, pytest.raises(IntegrityError):
        context.state.get("k")
    assert not trap.exists()


def test_a_signature_does_not_move_from_one_field_to_the_next() -> None:
    data = OTHER_BYTES
    places = [
        (Scope("a", "b", "c"), "d"),
        (Scope("a", "b", None), "cd"),
        (Scope("a", "b", "cd"), ""),
        (Scope("a", "bc", None), "d"),
        (Scope("ab", "c", None), "d"),
        (Scope("a", "b", ""), "cd"),
    ]
    assert len({sign(data, key, scope=scope) for scope, key in places}) == len(places)


def test_bytes_that_claim_to_be_a_pickle_by_their_look_are_given_as_bytes(memory: AgentMemory, trap: Path) -> None:
    data = pickle.dumps(Payload(trap))
    memory.app_state.set("k", data)
    assert memory.app_state.get("k") == data
    assert not trap.exists()


def test_a_pickle_is_checked_before_it_is_loaded_even_if_its_hash_in_the_entry_was_changed(
    memory: AgentMemory, trap: Path, tmp_path: Path
) -> None:
    plant(memory, "k", OTHER_BYTES, sign(OTHER_BYTES))
    data = pickle.dumps(Payload(trap))
    connection = apsw.Connection(str(tmp_path / "store.db"))
    connection.execute("UPDATE entry SET value = ?, size = ? WHERE key = 'k'", (data, len(data))).fetchall()
    with pytest.raises(IntegrityError):
        memory.app_state.get("k")
    connection.execute("UPDATE entry SET sha256 = ?", (hashlib.sha256(data).hexdigest(),)).fetchall()
    connection.close()
    with pytest.raises(IntegrityError):
        memory.app_state.get("k")
    assert not trap.exists()


def test_an_unsigned_pickle_can_still_be_read_as_bytes(memory: AgentMemory, trap: Path) -> None:
    data = pickle.dumps(Payload(trap))
    plant(memory, "k", data, None)
    snapshot = memory.app_state.key("k", dict).raw()
    assert snapshot is not None
    assert snapshot.value == data
    assert not trap.exists()


# -- keys ------------------------------------------------------------------------------------------------------------


def test_any_of_several_keys_verifies_and_the_first_signs(tmp_path: Path) -> None:
    old, new = b"o" * 16, b"n" * 16
    database = tmp_path / "store.db"
    with AgentMemory(database, application="app", signing_keys=[old]) as memory:
        memory.app_state.set("k", Plain(1))
    with AgentMemory(database, application="app", signing_keys=[new, old]) as memory:
        assert memory.app_state.get("k") == Plain(1)
        memory.app_state.set("k2", Plain(2))
    with AgentMemory(database, application="app", signing_keys=[new]) as memory:
        assert memory.app_state.get("k2") == Plain(2)
        with pytest.raises(IntegrityError):
            memory.app_state.get("k")


def test_the_text_of_a_key_file_is_a_key_for_what_was_signed_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "store.db"
    with AgentMemory(database, application="app") as memory:
        memory.app_state.set("k", Plain(1))
    # As a client of a server does that has no such file.
    monkeypatch.setenv("AGENT_MEMORY_SIGNING_KEYS", (tmp_path / "store.db.key").read_text())
    with AgentMemory(database, application="app") as memory:
        assert memory.app_state.get("k") == Plain(1)
        memory.app_state.set("k2", Plain(2))
    monkeypatch.delenv("AGENT_MEMORY_SIGNING_KEYS")
    with AgentMemory(database, application="app") as memory:
        assert memory.app_state.get("k2") == Plain(2)


def test_a_key_below_sixteen_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="16 bytes"):
        AgentMemory(tmp_path / "store.db", application="app", signing_keys=[b"short"])


def test_an_embedded_store_makes_a_key_that_only_its_owner_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with AgentMemory(tmp_path / "store.db", application="app") as memory:
            memory.app_state.set("json", {"a": 1})
            assert not (tmp_path / "store.db.key").exists(), "no pickle, no key"
            memory.app_state.set("k", Plain(1))
            assert memory.app_state.get("k") == Plain(1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "store.db.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.glob("store.db.key*")) == ["store.db.key"]


def test_no_key_can_be_made_on_a_disk_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        # As the system makes it when the disk fails.
        make_read_only(monkeypatch)
        with pytest.raises(UnavailableError, match=r"store\.db\.key.*Read-only"):
            memory.app_state.set("key", (1, 2))


def test_a_damaged_key_file_is_an_error_and_is_not_replaced(tmp_path: Path) -> None:
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        memory.app_state.set("k", Plain(1))
    (tmp_path / "store.db.key").write_text("not hexadecimal")
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        with pytest.raises(IntegrityError):
            memory.app_state.get("k")
        with pytest.raises(IntegrityError):
            memory.app_state.set("k", Plain(2))
    assert (tmp_path / "store.db.key").read_text() == "not hexadecimal"


@pytest.mark.parametrize("content", ["", "\n", "00" * 8], ids=["empty", "blank", "short"])
def test_a_key_file_that_was_cut_short_is_not_a_key(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.db.key").write_text(content)
    with AgentMemory(tmp_path / "store.db", application="app") as memory, pytest.raises(IntegrityError):
        memory.app_state.set("k", Plain(1))


def test_a_key_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        memory.app_state.set("k", Plain(1))
    (tmp_path / "store.db.key").unlink()
    (tmp_path / "store.db.key").mkdir()
    with AgentMemory(tmp_path / "store.db", application="app") as memory:
        with pytest.raises(UnavailableError, match=r"'store\.db\.key' cannot be read"):
            memory.app_state.get("k")
        with pytest.raises(UnavailableError, match=r"'store\.db\.key' cannot be read"):
            memory.app_state.set("k", Plain(2))


def store_a_pickle(report: Report, database: Path, number: int, moment: float) -> None:
    with AgentMemory(database, application="app") as memory:
        time.sleep(max(0.0, moment - time.monotonic()))
        report(memory.app_state.set(f"k{number}", Plain(number)).signature)


def test_processes_that_store_their_first_pickle_at_once_agree_on_the_key(tmp_path: Path) -> None:
    for attempt in range(15):
        database = tmp_path / f"store{attempt}.db"
        AgentMemory(database, application="app").close()
        moment = time.monotonic() + 0.04
        children = [Child(store_a_pickle, database, number, moment) for number in range(4)]
        try:
            signatures = [child.join()[0][0] for child in children]
        finally:
            for child in children:
                child.close()
        assert len({signature.split(":")[1] for signature in signatures}) == 1
        with AgentMemory(database, application="app") as memory:
            assert [memory.app_state.get(f"k{number}") for number in range(4)] == [Plain(n) for n in range(4)]
        assert len(list(tmp_path.glob(f"store{attempt}.db.key*"))) == 1


def test_without_a_key_a_pickle_is_refused_and_the_error_names_the_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AGENT_MEMORY_SIGNING_KEYS", raising=False)
    # Nothing listens there: the value is refused before anything is sent.
    with (
        AgentMemory("http://127.0.0.1:9", application="app", timeout=1) as memory,
        pytest.raises(SerializationError) as caught,
    ):
        memory.app_state.set("k", Plain(1))
    for way in ("signing_keys", "AGENT_MEMORY_SIGNING_KEYS", "JSON", "Pydantic"):
        assert way in str(caught.value)


def test_without_a_key_no_pickle_is_loaded(trap: Path) -> None:
    data = pickle.dumps(Payload(trap))
    sha256 = hashlib.sha256(data).hexdigest()
    entry = Entry("k", 1, "1-x", len(data), sha256, PICKLE, sign(data), None, None, 0, 0, None, None)
    with pytest.raises(IntegrityError):
        Keyring().load(data, SCOPE, entry)
    assert not trap.exists()


def test_no_error_of_a_signature_shows_the_key_or_the_value(memory: AgentMemory) -> None:
    data = pickle.dumps("a very private value")
    plant(memory, "k", data, "v1:" + "0" * 16 + ":" + "0" * 64)
    with pytest.raises(IntegrityError) as caught:
        memory.app_state.get("k")
    text = f"{caught.value!s} {caught.value!r} {caught.value.args!r}"
    assert "private" not in text
    assert KEY.decode() not in text
