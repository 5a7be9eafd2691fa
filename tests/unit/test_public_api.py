"""What users import, and what it takes to import it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel

import agent_memory
from agent_memory import (
    AgentMemory,
    AgentMemoryError,
    AsyncAgentMemory,
    AsyncCollection,
    AsyncDocument,
    AsyncEntity,
    AsyncRequestContext,
    AsyncRequestState,
    AsyncState,
    Collection,
    ConflictError,
    Document,
    Entity,
    InvalidKeyError,
    InvalidRequestError,
    NoRequestContextError,
    RequestContext,
    RequestState,
    SerializationError,
    State,
    errors,
    item_id,
    operations,
)
from tests.support.server import ROOT, child_environment

TWINS = [
    (AgentMemory, AsyncAgentMemory),
    (Collection, AsyncCollection),
    (Document, AsyncDocument),
    (Entity, AsyncEntity),
    (RequestContext, AsyncRequestContext),
    (RequestState, AsyncRequestState),
    (State, AsyncState),
]


def test_every_exported_name_is_there() -> None:
    assert [name for name in agent_memory.__all__ if not hasattr(agent_memory, name)] == []


def test_exports_are_sorted_and_unique() -> None:
    assert agent_memory.__all__ == sorted(set(agent_memory.__all__))


@pytest.mark.parametrize("face", [face for pair in TWINS for face in pair])
def test_the_types_in_signatures_are_there_for_who_asks_for_them(face: type[Any]) -> None:
    for _, method in inspect.getmembers(face, inspect.isfunction):
        get_type_hints(method)


def test_every_public_name_is_exported() -> None:
    public = {
        name for name, value in vars(agent_memory).items() if not name.startswith("_") and not inspect.ismodule(value)
    }

    assert public == set(agent_memory.__all__)


def test_the_operations_are_exported_with_what_they_take() -> None:
    defined = {name for name, value in vars(operations).items() if isinstance(value, type)}
    mine = {name for name in defined if getattr(operations, name).__module__ == operations.__name__}

    # To a type checker a typed package exports nothing that a module of it imported, unless it says so.
    assert set(operations.__all__) == {*mine, "Pattern"}


def test_every_error_is_exported_and_has_the_one_root() -> None:
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    raised = {name for name, value in found.items() if issubclass(value, Exception)}

    assert raised <= set(agent_memory.__all__)
    assert all(issubclass(found[name], AgentMemoryError) for name in raised)


def test_every_error_has_a_code_of_its_own() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]

    assert len({kind.code for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(("sync", "twin"), TWINS, ids=lambda face: face.__name__)
def test_both_faces_have_the_same_methods_with_the_same_arguments(sync: type, twin: type) -> None:
    assert arguments(sync) == arguments(twin)


def arguments(face: type) -> dict[str, list[tuple[str, Any, Any]]]:
    """Return the public methods of a face with the names, kinds and defaults of their arguments."""
    found = {
        name: [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]
        for name, method in inspect.getmembers(face, inspect.isfunction)
        if not name.startswith("_")
    }
    properties = {name: [] for name, _ in inspect.getmembers(face, lambda value: isinstance(value, property))}
    return {name: found for name, found in {**found, **properties}.items() if name not in ("aio", "sync")}


def test_everything_public_has_a_docstring() -> None:
    missing = [name for name in agent_memory.__all__ if not inspect.getdoc(getattr(agent_memory, name))]
    for face in [face for twins in TWINS for face in twins]:
        for name, value in inspect.getmembers(face):
            if name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
                continue
            if name not in ("namespace", "application") and not inspect.getdoc(value):
                missing.append(f"{face.__name__}.{name}")

    assert missing == []


CORE_ONLY = """
import sys

CORE = {
    "pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection", "httpx", "httpcore",
    "h11", "certifi", "idna", "anyio", "sniffio", "cloudpickle", "apsw", "agent_memory",
}


class CoreAlone:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in CORE or top in sys.stdlib_module_names or top.startswith("_"):
            return None
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, CoreAlone())
"""

EMBEDDED = """
import asyncio
from pydantic import BaseModel
from agent_memory import AgentMemory, AsyncAgentMemory


class Profile(BaseModel):
    name: str = ""


with AgentMemory("memory://", application="app") as memory:
    memory.entity("user", "1").document(Profile).update(name="Ada")
    memory.app_state.set("pickle", (1, 2))
    memory.app_state.set("large", b"x" * 200_000)
    assert memory.app_state.get("pickle") == (1, 2)


async def main():
    async with AsyncAgentMemory("memory://", application="app") as memory:
        await memory.app_state.set("key", 1)


asyncio.run(main())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_embedded_store_works_with_the_core_dependencies_alone() -> None:
    done = run(CORE_ONLY + EMBEDDED)

    assert done.returncode == 0, done.stderr


def test_a_server_without_its_packages_says_which_extra_is_missing() -> None:
    done = run(
        CORE_ONLY + "from agent_memory.cli import main\nsys.exit(main(['serve', '--data', '/nonexistent/x.db']))"
    )

    assert done.returncode == 2
    assert "agent-memory[server]" in done.stderr


def test_postgresql_without_its_driver_says_which_extra_is_missing(tmp_path: Path) -> None:
    open_it = f"AgentMemory('postgresql://localhost/x', application='a', blobs={str(tmp_path)!r})"
    done = run(f"{CORE_ONLY}from agent_memory import AgentMemory\n{open_it}")

    assert done.returncode == 1
    assert "agent-memory[postgres]" in done.stderr


def test_a_migration_without_the_driver_says_which_extra_is_missing() -> None:
    migrate = "from agent_memory.cli import main\nsys.exit(main(['migrate', '--database', 'postgresql://localhost/x']))"
    done = run(CORE_ONLY + migrate)

    assert done.returncode == 2
    assert done.stderr == "agent-memory: PostgreSQL needs psycopg: pip install 'agent-memory[postgres]'\n"


def test_the_adapter_without_langchain_says_which_extra_is_missing() -> None:
    adapter = "CORE.add('agent_memory_langchain')\nfrom agent_memory_langchain import "
    for name in ("MemoryMiddleware", "AgentMemoryStore"):
        done = run(f"{CORE_ONLY}{adapter}{name}")

        assert done.returncode == 1
        assert "agent-memory[langchain]" in done.stderr


def test_the_example_without_its_packages_says_which_extra_is_missing() -> None:
    done = run(f"{CORE_ONLY}CORE.add('examples')\nimport runpy\nrunpy.run_module('examples.fitness_tracker')")

    assert done.returncode == 1
    assert "agent-memory[examples]" in done.stderr


def test_importing_the_package_loads_no_http_client() -> None:
    done = run("import sys, agent_memory\nprint('httpx' in sys.modules, 'starlette' in sys.modules)")

    assert done.stdout == "False False\n", done.stderr


def test_the_first_use_of_a_store_imports_nothing() -> None:
    """A child that is forked while another thread imports something waits for it for ever."""
    done = run(
        "import sys\n"
        "from agent_memory import AgentMemory\n"
        "with AgentMemory('memory://', application='a') as memory:\n"
        "    before = set(sys.modules)\n"
        "    memory.app_state.key('count', int).update(lambda count: count + 1, default=0)\n"
        "    memory.app_state.set('pickled', {1, 2})\n"
        "    memory.app_state.get('pickled')\n"
        "    print(sorted(set(sys.modules) - before))\n"
    )
    assert done.stdout == "[]\n", done.stderr


def test_what_is_set_on_a_store_as_if_it_were_the_value_is_refused_not_lost() -> None:
    with AgentMemory("memory://", application="fitness") as memory, memory.request("r") as context:
        faces: list[Any] = []
        for root in (memory, memory.aio):
            entity = root.entity("user", "ada")
            faces += [root.app_state, entity, entity.document(int), entity.collection(int)]
            faces.append(entity.document(int).edit())
        faces += [context, context.state, context.aio, context.aio.state]

        for face in faces:
            with pytest.raises(AttributeError):
                face.name = "Ada"


def test_an_edit_is_one_block() -> None:
    with AgentMemory("memory://", application="fitness") as memory:
        edit = memory.app_state.key("runs", list[int]).edit(default=[])
        with edit as draft:
            draft.append(5)
            # Another copy would take the place of the first one.
            with pytest.raises(InvalidRequestError, match="one block"), edit:
                pass
        assert memory.app_state.get("runs") == [5]


def test_an_update_that_never_wins_says_what_it_met() -> None:
    with AgentMemory("memory://", application="fitness", timeout=0.2) as memory:
        runs = memory.app_state.key("runs", int)
        runs.set(0)
        with pytest.raises(ConflictError, match="attempts met another write, or the function writes this key itself"):
            runs.update(lambda count: count + runs.update(lambda inner: inner + 1).version)


class Note(BaseModel):
    text: str = "the-secret"


MISTAKEN_ADDRESSES: list[tuple[Any, dict[str, Any], str]] = [
    (None, {}, "url is a str or a path, not NoneType"),
    (5, {}, "url is a str or a path, not int"),
    ("memory://", {"timeout": "30"}, "timeout is a number of seconds, not str"),
    ("memory://", {"timeout": None}, "timeout is a number of seconds, not NoneType"),
    ("memory://", {"chunk_size": "100000"}, "chunk_size is a whole number of bytes, not str"),
    ("memory://", {"chunk_size": 1e6}, "chunk_size is a whole number of bytes, not float"),
    ("memory://", {"parallelism": 2.5}, "parallelism is a whole number, not float"),
    ("memory.db", {"blobs": 5}, "blobs is a str or a path, not int"),
    ("memory://", {"signing_keys": [5]}, "a signing key is a str or bytes, not int"),
    ("http://127.0.0.1:8420", {"blob_hosts": ["https://the-secret.example/"]}, "blob_hosts names hosts"),
    ("http://127.0.0.1:8420?x=the-secret", {}, "without a password or a query"),
]


@pytest.mark.parametrize(("url", "options", "said"), MISTAKEN_ADDRESSES)
def test_what_opens_no_memory_is_refused_by_the_name_of_the_argument(url: Any, options: Any, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said) as caught:
        AgentMemory(url, application="test", **options)
    assert "the-secret" not in str(caught.value)


MISTAKES: list[tuple[Callable[[Any], object], type[AgentMemoryError], str]] = [
    (lambda user: user.document(Note()), InvalidKeyError, "not an instance of Note"),
    (lambda user: user.collection("Note"), InvalidKeyError, "not an instance of str"),
    (lambda user: user.document(list[Note]), InvalidKeyError, r"not list\[.*Note\]; .* name="),
    (lambda user: user.collection(Note).list(limit="5"), InvalidRequestError, "limit is a whole number, not str"),
    (lambda user: user.collection(Note).add_many(Note()), InvalidRequestError, "several values"),
    (lambda user: user.collection(str, name="tag").add_many("the-secret"), InvalidRequestError, "several values"),
    (lambda _: RequestContext.get(), NoRequestContextError, "in this thread or task"),
    (lambda user: user.document(Note).set(Note), SerializationError, "expected an instance of Note, not a class"),
]


@pytest.mark.parametrize(("mistake", "kind", "said"), MISTAKES)
def test_an_argument_of_the_wrong_type_is_named(
    mistake: Callable[[Any], object], kind: type[AgentMemoryError], said: str
) -> None:
    with AgentMemory("memory://", application="test") as memory, pytest.raises(kind, match=said) as caught:
        mistake(memory.entity("user", "ada"))
    assert "the-secret" not in str(caught.value)


def test_one_key_in_place_of_a_list_of_keys_is_refused() -> None:
    with (
        AgentMemory("memory://", application="test") as memory,
        pytest.raises(InvalidRequestError, match="not one key"),
    ):
        memory.app_state.get_many("key")


def test_one_operation_in_place_of_a_list_of_them_is_refused() -> None:
    with (
        AgentMemory("memory://", application="test") as memory,
        pytest.raises(InvalidRequestError, match="a list of operations, not one"),
    ):
        memory.app_state.batch(operations.Set("key", 1))  # type: ignore[arg-type]


WHEN = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(("at", "name"), [("2026-01-02", "strava-991"), (WHEN.date(), "strava-991"), (WHEN, 991)])
def test_an_items_id_is_made_of_a_datetime_and_a_name(at: Any, name: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"of an item is a (datetime|str), not (str|date|int)"):
        item_id(at, name)
