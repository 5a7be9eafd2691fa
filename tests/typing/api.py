"""User code that is only type-checked, never run: it proves what the generics promise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, assert_type

from pydantic import BaseModel

from agent_memory import (
    AgentMemory,
    AsyncAgentMemory,
    AsyncCollection,
    AsyncDocument,
    AsyncRequestContext,
    AsyncRequestState,
    Collection,
    Document,
    Entry,
    RequestContext,
    RequestState,
    Snapshot,
)
from agent_memory.operations import Delete, Get, Hit, Parents, Pattern, Search, Set


class Profile(BaseModel):
    name: str = ""
    goals: list[str] = []


class Draft(BaseModel):
    text: str = ""


def app_state(memory: AgentMemory) -> None:
    state = memory.app_state
    assert_type(state.set("key", {"any": "thing"}, ttl=60, reason="why"), Entry)
    assert_type(state.get("key", as_type=Profile), Profile | None)
    assert_type(state.get("key", as_type=Profile, default=0), Profile | int)
    assert_type(state.get("key", as_type=Profile, default=Profile()), Profile)
    assert_type(state.delete("key"), Entry | None)
    assert_type(state.raw("key"), Snapshot[bytes] | None)
    assert_type(state.keys(prefix="user_"), Iterator[str])
    assert_type(state.get_many(["a", "b"]), dict[str, Any])
    assert_type(state.key("key", Profile), Document[Profile])
    assert_type(state.key("key", list[int]), Document[list[int]])
    assert_type(state.key("key", list[int]).get(default=[]), list[int])
    assert_type(state.key("key", int | None), Document[int | None])
    assert_type(state.get("key", as_type=Profile | None), Profile | None)
    assert_type(state.get("key", as_type=Annotated[int | str, "a mark"], default=0), int | str)
    assert_type(state.snapshot("key"), Snapshot[Any] | None)
    assert_type(state.snapshot("key", as_type=Profile), Snapshot[Profile] | None)
    assert_type(state.get_many(["a", "b"], as_type=Profile), dict[str, Profile])
    state.key("key", 5)  # pyright: ignore[reportArgumentType]


def batches(memory: AgentMemory) -> None:
    written = [Set("key", Profile(), Profile, expected=None), Delete("old")]
    assert_type(memory.app_state.batch([*written, Get("key", Profile)]), list[Any])
    assert_type(memory.app_state.batch([Search("user/"), Parents("user/", patterns=[Pattern(("user",))])]), list[Any])
    assert_type(memory.app_state.search("user/"), list[Hit[Any]])


def documents(memory: AgentMemory) -> None:
    profile = memory.entity("user", "123").document(Profile)
    assert_type(profile, Document[Profile])
    assert_type(profile.get(), Profile | None)
    assert_type(profile.get(default=Profile()), Profile)
    assert_type(profile.get(default="nobody"), Profile | str)
    assert_type(profile.set(Profile()), Entry)
    assert_type(profile.create(Profile()), Entry)
    assert_type(profile.raw(), Snapshot[bytes] | None)
    assert_type(profile.update(lambda value: value), Snapshot[Profile])
    assert_type(profile.update(lambda value: value.goals.append("5k")), Snapshot[Profile])
    assert_type(profile.update(weight_kg=61, reason="measured"), Snapshot[Profile])
    assert_type(profile.update(lambda value: value, default=Profile), Snapshot[Profile])
    assert_type(profile.delete(expected="etag"), Entry | None)

    snapshot = profile.snapshot()
    assert_type(snapshot, Snapshot[Profile] | None)
    if snapshot is not None:
        assert_type(snapshot.value, Profile)
        assert_type(snapshot.version, int)
        assert_type(snapshot.etag, str)
        assert_type(snapshot.entry, Entry)
    assert_type(profile.replace(Profile(), expected=snapshot), Entry)

    with profile.edit() as draft:
        assert_type(draft, Profile)
    profile.edit().name = "Ada"  # pyright: ignore[reportAttributeAccessIssue]

    either = memory.entity("user", "123").document(Profile | Draft, name="either")
    assert_type(either, Document[Profile | Draft])
    assert_type(memory.entity("user", "123").collection(Profile | Draft, name="either"), Collection[Profile | Draft])

    profile.set("not a profile")  # pyright: ignore[reportArgumentType]
    profile.update(lambda _: "not a profile")  # pyright: ignore[reportArgumentType, reportCallIssue]


def collections(memory: AgentMemory) -> None:
    profiles = memory.entity("user", "123").collection(Profile, name="drafts")
    assert_type(profiles, Collection[Profile])
    assert_type(profiles.add(Profile()), str)
    assert_type(profiles.add_many([Profile()]), list[str])
    assert_type(profiles.add_many({"id": Profile()}), list[str])
    assert_type(profiles.get("id"), Profile | None)
    assert_type(profiles.item("id"), Document[Profile])
    assert_type(profiles.list(limit=20, reverse=True), list[Snapshot[Profile]])
    assert_type(memory.entities("user"), Iterator[str])

    profiles.add("not a profile")  # pyright: ignore[reportArgumentType]


def requests(memory: AgentMemory) -> None:
    with memory.request("req-1", agent="coach") as context:
        assert_type(context, RequestContext)
        assert_type(context.state, RequestState)
        assert_type(context.request_id, str)
        assert_type(context.memory, AgentMemory)
        assert_type(context.aio, AsyncRequestContext)
        assert_type(context.state.clear(), int)
    assert_type(RequestContext.get(), RequestContext)


async def the_async_face(memory: AsyncAgentMemory) -> None:
    async with memory as same:
        assert_type(same, AsyncAgentMemory)
    profile = memory.entity("user", "123").document(Profile)
    assert_type(profile, AsyncDocument[Profile])
    assert_type(await profile.get(), Profile | None)
    assert_type(await profile.get(default=Profile()), Profile)
    assert_type(await profile.snapshot(), Snapshot[Profile] | None)
    assert_type(await profile.update(lambda value: value), Snapshot[Profile])

    async def change(value: Profile) -> Profile:
        return value

    assert_type(await profile.update(change), Snapshot[Profile])
    async with profile.edit() as draft:
        assert_type(draft, Profile)
    profile.edit().name = "Ada"  # pyright: ignore[reportAttributeAccessIssue]

    profiles = memory.entity("user", "123").collection(Profile)
    assert_type(profiles, AsyncCollection[Profile])
    assert_type(await profiles.list(), list[Snapshot[Profile]])
    assert_type(await profiles.add(Profile()), str)

    assert_type(memory.app_state.keys(), AsyncIterator[str])
    assert_type(await memory.app_state.get("key", as_type=Profile), Profile | None)
    assert_type(await memory.app_state.get("key", as_type=Profile | Draft), Profile | Draft | None)
    assert_type(await memory.app_state.snapshot("key", as_type=Profile), Snapshot[Profile] | None)
    assert_type(await memory.app_state.get_many(["a"], as_type=Profile), dict[str, Profile])
    assert_type(await memory.app_state.key("key", list[int]).get(default=[]), list[int])
    with memory.request("req-1") as context:
        assert_type(context, AsyncRequestContext)
        assert_type(context.state, AsyncRequestState)
    assert_type(memory.sync, AgentMemory)
