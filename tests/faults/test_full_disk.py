"""A disk that takes no writes: a typed error at once, the old value as it was, and all works again when it does."""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from agent_memory import AgentMemory, UnavailableError
from agent_memory.cli import main
from tests.faults.processes import Child, MiB, Report, value
from tests.support.server import ServerProcess

SMALL, LARGE = 20_000, 300_000
Start = Callable[..., Child]


def fill_up(memory: AgentMemory, size: int) -> tuple[dict[str, bytes], UnavailableError]:
    """Overwrite keys until the disk is full; return what was acknowledged, and the error."""
    known: dict[str, bytes] = {}
    for counter in range(1, 10_000):
        key, data = f"k{counter % 7}", value(counter, size)
        began = time.monotonic()
        try:
            memory.app_state.set(key, data)
        except UnavailableError as error:
            assert time.monotonic() - began < 2, "a full disk is not waited for"
            return known, error
        known[key] = data
    raise AssertionError("the disk did not become full")


def check_values(memory: AgentMemory, known: dict[str, bytes]) -> None:
    for key, data in known.items():
        assert memory.app_state.get(key) == data, f"{key} is not what was acknowledged"
    assert memory.check().ok


def write_until_a_file_is_too_large(report: Report, database: Path, size: int, limit: int) -> None:
    with AgentMemory(database, application="faults") as memory:
        memory.app_state.set("before", value(1, size))
        memory.app_state.set("small", 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        known, error = fill_up(memory, size)
        known["before"] = value(1, size)
        check_values(memory, known)
        assert memory.app_state.get("small") == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for counter in range(20):
            memory.app_state.set("again", value(counter, size))
        known["again"] = value(19, size)
        check_values(memory, known)
        report(error.code, known)


def sign_where_a_part_of_a_key_fits(report: Report, database: Path) -> None:
    with AgentMemory(database, application="faults") as memory:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        with pytest.raises(UnavailableError):
            memory.app_state.set("pickle", {1, 2})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        memory.app_state.set("pickle", {1, 2})
    report("done")


def test_a_part_of_a_signing_key_is_none(database: Path, start: Start) -> None:
    assert start(sign_where_a_part_of_a_key_fits, database).report() == ("done",)
    with AgentMemory(database, application="faults") as memory:
        assert memory.app_state.get("pickle") == {1, 2}


@pytest.mark.parametrize(("size", "limit"), [(SMALL, 400_000), (LARGE, 250_000)], ids=["small", "large"])
def test_a_write_that_the_disk_refuses_leaves_the_old_value_and_the_next_one_works(
    database: Path, start: Start, size: int, limit: int
) -> None:
    code, known = start(write_until_a_file_is_too_large, database, size, limit).report()
    assert code in ("disk_full", "disk_failed")
    with AgentMemory(database, application="faults") as memory:
        check_values(memory, known)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_a_full_disk_is_a_typed_error_and_room_makes_it_work_again(small_disk: Path, size: int) -> None:
    ballast = small_disk / "ballast"
    with AgentMemory(small_disk / "store.db", application="faults") as memory:
        memory.app_state.set("before", value(1, size))
        ballast.write_bytes(bytes(2 * MiB))
        known, error = fill_up(memory, size)
        known["before"] = value(1, size)
        assert error.code == "disk_full"
        check_values(memory, known)
        ballast.unlink()
        memory.app_state.set("again", value(2, size))
        known["again"] = value(2, size)
        check_values(memory, known)
    with AgentMemory(small_disk / "store.db", application="faults") as memory:
        check_values(memory, known)


def test_an_upload_that_did_not_fit_leaves_no_file(small_disk: Path) -> None:
    with AgentMemory(small_disk / "store.db", application="faults") as memory:
        memory.app_state.set("k", 1)
        with pytest.raises(UnavailableError):
            memory.app_state.set("k", value(1, 5 * MiB))
        assert [path for path in (small_disk / "store.db.blobs").rglob("*") if path.is_file()] == []
        assert memory.app_state.get("k") == 1


def test_a_server_is_not_ready_while_the_disk_of_its_database_is_full_or_read_only(
    small_disk: Path, tmp_path: Path
) -> None:
    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments, str(small_disk)], check=True)

    with ServerProcess(small_disk, "--blobs", str(tmp_path / "blobs")) as server:

        def readiness() -> tuple[int, str | None]:
            answer = httpx.get(f"{server.url}/readyz")
            return answer.status_code, answer.json().get("code")

        assert readiness() == (200, None)
        with open(small_disk / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
            ballast.writelines([bytes(MiB // 4)] * 100)
        assert readiness() == (503, "disk_full")
        (small_disk / "ballast").unlink()
        assert readiness() == (200, None)
        mount("--bind", str(small_disk))
        try:
            mount("-o", "remount,bind,ro")
            assert readiness() == (503, "read_only")
        finally:
            subprocess.run(["umount", "-l", str(small_disk)], check=True)
        assert readiness() == (200, None)
        assert [path.name for path in small_disk.iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def source(tmp_path: Path) -> Path:
    database = tmp_path / "source.db"
    with AgentMemory(database, application="faults") as memory:
        # So many that SQLite writes a journal of the copy before it is whole.
        for number in range(200):
            memory.app_state.set(f"k{number}", value(number, 8_000))
    return database


def fill_but(disk: Path, room: int) -> Path:
    """Leave so many bytes of a small disk; return the file that takes the others."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(4 * MiB - room))
    return ballast


@pytest.mark.parametrize("room", [0, 4_096, 12_288, 36_864, MiB])
@pytest.mark.parametrize("command", ["copy", "backup"])
def test_a_copy_that_does_not_fit_leaves_no_empty_store_and_the_next_one_succeeds(
    small_disk: Path, source: Path, command: str, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(small_disk / "target.db")
    arguments = ["copy", str(source), target] if command == "copy" else ["backup", "--data", str(source), target]
    ballast = fill_but(small_disk, room)
    assert main(arguments) == 2
    begun = command == "copy" and room >= MiB
    assert ("no whole copy" in capsys.readouterr().err) == begun
    assert begun or list(small_disk.iterdir()) == [ballast]
    ballast.unlink()
    assert main(arguments) == 0
    with AgentMemory(target, application="faults") as memory:
        assert len(list(memory.app_state.keys())) == 200
        assert memory.check().ok
