"""G1 and G3: a reader sees one version, whole, while others overwrite it, at any size."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_memory import AgentMemory
from tests.faults.processes import Child, MiB, Report, counter_of, value

SIZES = (32 * MiB, 200, 0, 70_000, 32 * MiB, 3 * MiB)


def overwrite(report: Report, address: str, sizes: tuple[int, ...]) -> None:
    with AgentMemory(address, application="faults") as memory:
        for counter in itertools.count(1):
            memory.app_state.set("k", value(counter, sizes[counter % len(sizes)]))
            report(counter)


def read_while(writer: Child, address: str, seconds: float) -> set[int]:
    """Read while the writer writes, for that long and at least ten times; return the sizes that were seen."""
    newest, reads, sizes = 0, 0, set[int]()
    with AgentMemory(address, application="faults") as memory:
        writer.report()
        end = time.monotonic() + seconds
        while time.monotonic() < end or reads < 10:
            assert not writer.ended()
            newest = max([newest, *(counter for (counter,) in writer.reported())])
            data = memory.app_state.get("k")
            reads += 1
            sizes.add(len(data))
            if data:
                assert counter_of(data) >= newest, "a read gave a version older than one known before it began"
                newest = counter_of(data)
    return sizes


@pytest.fixture(params=["embedded", "http"])
def address(request: pytest.FixtureRequest, database: Path) -> str:
    if request.param == "embedded":
        return str(database)
    return request.getfixturevalue("server").url


def test_every_read_is_whole_while_another_process_overwrites_a_value_of_32_mib(
    address: str, start: Callable[..., Child], soak: bool
) -> None:
    writer = start(overwrite, address, (32 * MiB,))
    assert read_while(writer, address, 30.0 if soak else 3.0) == {32 * MiB}


def test_every_read_is_whole_while_sizes_change_from_empty_to_32_mib(
    address: str, start: Callable[..., Child], soak: bool
) -> None:
    writer = start(overwrite, address, SIZES)
    sizes = read_while(writer, address, 30.0 if soak else 3.0)
    assert len(sizes) >= 2, "the reads were to meet different sizes"


def test_a_smaller_value_over_a_larger_one_has_nothing_of_it(database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        for size in (32 * MiB, 70_000, 65_536, 200, 0, 32 * MiB, 0):
            memory.app_state.set("k", value(size % 97, size))
            assert memory.app_state.get("k") == value(size % 97, size)
