"""A store outlives its clients, and is shared by processes."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent_memory import AgentMemory, AsyncAgentMemory, InvalidRequestError, SerializationError, UnavailableError
from tests.support.blocking import unwrap
from tests.support.models import Point, Profile
from tests.support.server import child_environment


def test_what_was_written_is_there_when_the_store_is_opened_again(store: Any) -> None:
    with store.open() as memory:
        memory.app_state.set("small", 1)
        memory.app_state.set("large", b"x" * 200_000)
        memory.app_state.set("pickle", Point(1, 2))

    found = store.open().app_state.get_many(["small", "large", "pickle"])
    assert found == {"small": 1, "large": b"x" * 200_000, "pickle": Point(1, 2)}


def test_versions_go_on_when_the_store_is_opened_again(store: Any) -> None:
    with store.open() as memory:
        memory.app_state.set("key", 1)
        memory.app_state.delete("key")

    assert store.open().app_state.set("key", 2).version == 3


def test_two_open_clients_see_each_others_writes(store: Any) -> None:
    first, second = store.open(), store.open()
    first.app_state.set("key", 1)
    assert second.app_state.get("key") == 1

    second.app_state.delete("key")
    assert first.app_state.get("key") is None


def test_another_process_reads_and_writes_the_same_store(memory: Any, store: Any) -> None:
    memory.app_state.set("key", "parent")
    memory.app_state.set("pickle", Point(1, 2))
    printed = store.run_child(
        "print(memory.app_state.get('key'), memory.app_state.get('pickle').y)\n"
        "memory.app_state.set('key', 'child')\n"
        "memory.close()\n"
    )

    assert printed == "parent 2\n"
    assert memory.app_state.snapshot("key").version == 2


def test_a_pickled_client_opens_the_store_again_in_another_process(memory: Any, store: Any) -> None:
    memory.app_state.set("key", (1, 2))
    client = unwrap(memory) if store.face == "sync" else unwrap(memory).sync
    printed = store.run_child(
        "again, = given\nprint(again.app_state.get('key'))\nagain.app_state.set('key', (3, 4))\nagain.close()\n"
        "memory.close()\n",
        client,
    )

    assert printed == "(1, 2)\n"
    assert memory.app_state.get("key") == (3, 4)


def test_documents_and_collections_are_pickled_with_their_client(memory: Any, store: Any) -> None:
    user = memory.entity("user", "1")
    user.document(Profile).set(Profile(name="Ada"))
    if store.face == "async":
        user = memory.sync.entity("user", "1")
    again = pickle.loads(pickle.dumps(unwrap(user.document(Profile))))

    assert again.get() == Profile(name="Ada")
    again._values.client.close()


def test_a_forked_child_and_its_parent_go_on_working(memory: Any, store: Any) -> None:
    memory.app_state.set("large", b"x" * 200_000)
    store.run_child(
        "import os, traceback\n"
        "memory.app_state.set('key', 'parent')\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        assert memory.app_state.get('key') == 'parent'\n"
        "        assert len(memory.app_state.get('large')) == 200_000\n"
        "        memory.app_state.set('child', (1, 2))\n"
        "        memory.close()\n"
        "    except BaseException:\n"
        "        traceback.print_exc()\n"
        "        os._exit(1)\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert memory.app_state.get('child') == (1, 2)\n"
        "memory.app_state.set('key', 'after')\n"
        "memory.close()\n"
    )

    assert memory.app_state.get_many(["key", "child"]) == {"key": "after", "child": (1, 2)}


def test_a_forked_child_opens_connections_of_its_own(store: Any) -> None:
    store.run_child(
        "import os\n"
        "memory.app_state.set('key', 'parent')\n"
        "inherited = memory._client.transport()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(memory._client.transport() is inherited)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert memory._client.transport() is inherited\n"
        "memory.close()\n"
    )


def test_several_forked_children_write_at_once(memory: Any, store: Any) -> None:
    store.run_child(
        "import os, traceback\n"
        "from tests.support.models import Counter\n"
        "counter = memory.app_state.key('counter', Counter)\n"
        "counter.set(Counter())\n"
        "children = []\n"
        "for _ in range(3):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        try:\n"
        "            for _ in range(5): counter.update(lambda value: Counter(count=value.count + 1))\n"
        "        except BaseException:\n"
        "            traceback.print_exc()\n"
        "            os._exit(1)\n"
        "        os._exit(0)\n"
        "    children.append(pid)\n"
        "for pid in children: assert os.waitpid(pid, 0)[1] == 0\n"
        "memory.close()\n"
    )

    assert memory.app_state.get("counter") == {"count": 15}


def test_closing_one_face_closes_the_other(memory: Any, store: Any) -> None:
    other = memory.aio if store.face == "sync" else memory.sync
    memory.close()

    read = partial(store.portal.call, other.app_state.get) if store.face == "sync" else other.app_state.get
    with pytest.raises(UnavailableError):
        read("key")


def test_closing_one_client_leaves_the_others_open(store: Any) -> None:
    first, second = store.open(), store.open()
    first.close()
    second.app_state.set("key", 1)

    assert second.app_state.get("key") == 1


def test_a_volatile_store_refuses_to_be_pickled() -> None:
    with AgentMemory("memory://", application="app") as memory, pytest.raises(SerializationError):
        pickle.dumps(memory)


def test_two_volatile_stores_share_nothing() -> None:
    with AgentMemory("memory://", application="app") as first, AgentMemory("memory://", application="app") as second:
        first.app_state.set("key", 1)

        assert second.app_state.get("key") is None


def test_a_volatile_store_says_that_it_has_no_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match="cannot make a folder for memory://: No such file"):
        AgentMemory("memory://", application="processes")


def test_a_volatile_store_leaves_nothing_behind() -> None:
    with AgentMemory("memory://", application="app") as memory:
        memory.app_state.set("key", b"x" * 200_000)
        folder = Path(memory._client.config.url).parent
        assert folder.exists()

    assert not folder.exists()


@pytest.mark.parametrize(
    "arguments", ["application='app'", "application='no name'", "application='a', signing_keys=['x']"]
)
def test_a_volatile_store_that_nobody_closes_goes_with_its_process(tmp_path: Path, arguments: str) -> None:
    code = f"from agent_memory import AgentMemory\nmemory = AgentMemory('memory://', {arguments})"
    environment = child_environment(TMPDIR=str(tmp_path))
    subprocess.run([sys.executable, "-c", f"{code}\nmemory.app_state.set('key', 1)"], env=environment, check=False)

    assert not list(tmp_path.iterdir())


async def _use_async() -> Any:
    async with AsyncAgentMemory("memory://", application="app") as memory:
        await memory.app_state.set("key", 1)
        listed = memory.app_state.keys()
        return [key async for key in listed]


def test_the_async_api_works_without_any_proxy(portal: Any) -> None:
    assert portal.call(_use_async) == ["key"]


def test_the_environment_names_the_store(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store.open().app_state.set("key", 1)
    for name, text in store.environment.items():
        monkeypatch.setenv(name, text)
    with AgentMemory.from_env() as memory:
        assert memory.app_state.get("key") == 1


def test_an_environment_without_a_place_for_large_values_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_MEMORY_URL", "postgresql://127.0.0.1:1/none")
    monkeypatch.delenv("AGENT_MEMORY_BLOBS", raising=False)
    with pytest.raises(InvalidRequestError, match="AGENT_MEMORY_BLOBS"):
        AgentMemory.from_env(application="app")


def test_an_environment_that_names_no_store_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENT_MEMORY_URL", raising=False)
    with pytest.raises(ValueError, match="AGENT_MEMORY_URL"):
        AgentMemory.from_env(application="app")
