"""What tenants share: nobody takes all of it, whoever else is there."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import ExitStack, suppress

import pytest

from agent_memory import UnavailableError
from agent_memory.server.shares import Shares


def _takes(shares: Shares, stack: ExitStack, tenant: str) -> int:
    """Return how many places a tenant gets that wants as many as it can get."""
    taken = 0
    with suppress(UnavailableError):
        while True:
            stack.enter_context(shares.place(tenant, "requests"))
            taken += 1
    return taken


@pytest.mark.parametrize(("places", "most"), [(4, 3), (12, 8), (64, 43), (192, 128)])
def test_one_tenant_gets_two_thirds_of_all_places(places: int, most: int) -> None:
    with ExitStack() as stack:
        assert _takes(Shares(places), stack, "acme") == most


def test_beside_tenants_that_take_all_they_can_get_there_is_room_for_another() -> None:
    shares = Shares(192)
    with ExitStack() as stack:
        assert [_takes(shares, stack, f"t{number}") > 0 for number in range(4)] == [True] * 4


def test_places_that_are_given_back_can_be_taken_again() -> None:
    shares = Shares(4)
    for _ in range(3):
        with suppress(ZeroDivisionError), ExitStack() as stack:
            assert _takes(shares, stack, "acme") == 3
            raise ZeroDivisionError


def test_a_turn_goes_to_whoever_waits_and_has_room_for_it() -> None:
    async def go() -> list[str]:
        shares, order, over = Shares(4), list[str](), asyncio.Event()

        async def work(tenant: str) -> None:
            async with shares.turn(tenant, "searches", 5):
                order.append(tenant)
                await over.wait()

        tasks = [asyncio.create_task(work(tenant)) for tenant in ("acme",) * 6 + ("other",)]
        await asyncio.sleep(0)
        before = list(order)
        over.set()
        await asyncio.gather(*tasks)
        assert len(order) == 7
        return before

    assert asyncio.run(go()) == ["acme", "acme", "acme", "other"]


def test_a_turn_of_who_has_none_comes_before_those_that_others_wait_for() -> None:
    async def go() -> list[str]:
        shares, order = Shares(4), list[str]()

        async def work(tenant: str) -> None:
            async with shares.turn(tenant, "searches", 5):
                order.append(tenant)
                await asyncio.sleep(0)

        await asyncio.gather(*(work(tenant) for tenant in ("acme", "other") * 20 + ("late",)))
        return order

    assert "late" in asyncio.run(go())[4:8]


def test_a_turn_that_does_not_come_in_time_is_too_much() -> None:
    async def go() -> None:
        shares = Shares(1)
        with shares.place("acme", "searches"), pytest.raises(UnavailableError, match="too many searches at once"):
            async with shares.turn("acme", "searches", 0.01):
                pass
        async with shares.turn("acme", "searches", 0.01):
            pass

    asyncio.run(go())


def test_a_turn_that_is_given_up_the_moment_it_comes_is_free_again() -> None:
    async def go() -> None:
        shares = Shares(1)

        async def work() -> None:
            async with shares.turn("acme", "searches", 5):
                pass

        with shares.place("acme", "searches"):
            waiting = asyncio.create_task(work())
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with shares.place("acme", "searches"):
            pass

    asyncio.run(go())


def test_who_wants_many_places_gets_all_of_them_or_none_and_leaves_a_third() -> None:
    async def go() -> None:
        shares = Shares(9)
        with pytest.raises(UnavailableError):
            async with shares.turn("acme", "bytes", 0, 8):
                pass
        async with shares.turn("acme", "bytes", 0, 6):
            with pytest.raises(UnavailableError):
                async with shares.turn("acme", "bytes", 0):
                    pass
            async with shares.turn("other", "bytes", 0, 2):
                pass

    asyncio.run(go())


def test_places_that_are_given_back_within_a_turn_go_to_whoever_waits() -> None:
    async def go() -> None:
        shares = Shares(9)

        async def work() -> None:
            async with shares.turn("acme", "bytes", 5, 6):
                pass

        async with shares.turn("acme", "bytes", 0, 6) as change:
            waiting = asyncio.create_task(work())
            await asyncio.sleep(0)
            change(1)
            with pytest.raises(UnavailableError):
                change(9)
        await waiting
        async with shares.turn("acme", "bytes", 0, 6):
            pass

    asyncio.run(go())


@pytest.mark.parametrize("seed", range(30))
def test_whoever_comes_leaves_waits_and_changes_its_mind_every_place_is_given_back(seed: int) -> None:
    """Against a count of what each tenant has: never too much, nobody waits for what is free, and none is left."""
    chance = random.Random(seed)
    places = chance.choice([1, 2, 3, 4, 9, 64, 1000])
    shares, held, wishes = Shares(places), Counter[str](), dict[int, tuple[str, int]]()

    def may(tenant: str, count: int) -> bool:
        return held[tenant] + count - 1 < 2 * (places - held.total() - count + 1)

    async def work(number: int) -> None:
        tenant, count = chance.choice("abcd"), chance.choice([1, 1, 2, places // 3 + 1, places])
        wishes[number] = tenant, count
        try:
            async with shares.turn(tenant, "places", chance.choice([0, 0.001, 0.01]), count) as change:
                del wishes[number]
                held[tenant] += count
                try:
                    for wanted in chance.choices([0, 1, count, 2 * count], k=2):
                        await asyncio.sleep(chance.random() / 300)
                        change(wanted)
                        held[tenant] += wanted - count
                        count = wanted
                finally:
                    held[tenant] -= count
        finally:
            wishes.pop(number, None)

    async def go() -> None:
        tasks: list[asyncio.Task[None]] = []
        for number in range(100):
            tasks.append(asyncio.create_task(work(number)))
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
            if chance.random() < 0.4:
                chance.choice(tasks).cancel()
            # Who got a turn finds out some steps later.
            for _ in range(100):
                await asyncio.sleep(0)
                if not any(may(*wish) for wish in wishes.values()):
                    break
            else:
                pytest.fail("somebody waits for what is free")
            assert held.total() <= places
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, UnavailableError | asyncio.CancelledError)

    asyncio.run(go())
    assert held.total() == 0
    assert not shares._taken, "nothing is kept of tenants that have gone"
    with ExitStack() as stack:
        assert _takes(shares, stack, "acme") == (2 * places + 2) // 3
