"""Several server processes behind one socket, and the cores that they stay on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from agent_memory.server.workers import _cores
from tests.support.api import wait_for
from tests.support.server import ROOT, ServerProcess, child_environment

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process says which cores it may use")


@pytest.fixture
def two_cores() -> Iterator[list[int]]:
    """Two of this machine's cores, or the only one; what is started meanwhile may use no others."""
    allowed = os.sched_getaffinity(0)
    cores = sorted(allowed)[:2]
    os.sched_setaffinity(0, cores)
    yield cores
    os.sched_setaffinity(0, allowed)


@on_linux
def test_where_there_is_a_worker_for_every_core_each_stays_on_one_and_so_does_its_successor(
    tmp_path: Path, two_cores: list[int]
) -> None:
    with ServerProcess(tmp_path, "--workers", "2") as server:
        parent = psutil.Process(server.process.pid)

        def places() -> list[list[int]]:
            try:
                return sorted(worker.cpu_affinity() for worker in parent.children())
            except psutil.NoSuchProcess:
                return []

        expected = sorted([core] for core in (two_cores * 2)[:2])
        wait_for(lambda: places() == expected)
        killed = parent.children()[0].pid
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: killed not in {worker.pid for worker in parent.children()} and places() == expected)


@on_linux
def test_with_fewer_workers_than_cores_none_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    assert _cores(3) == [None, None, None]
    assert _cores(5) == [0, 1, 2, 5, 0]


def test_workers_end_with_their_parent_however_it_ends(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--workers", "2") as server:
        workers = psutil.Process(server.process.pid).children()
        assert len(workers) == 2
        server.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []


def test_a_worker_that_hangs_does_not_keep_the_server_from_ending() -> None:
    done = run(
        "import os, signal, sys, threading, time\n"
        "from agent_memory.server import workers\n"
        "workers._STOP_SECONDS = 0.5\n"
        "def work(role):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    time.sleep(60)\n"
        "threading.Timer(1, os.kill, [os.getpid(), signal.SIGTERM]).start()\n"
        "began = time.monotonic()\n"
        "workers.run_workers(2, work)\n"
        "print(time.monotonic() - began < 5)"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_a_successor_that_the_system_does_not_let_start_yet_is_started_later() -> None:
    done = run("""
import errno, os, signal, time
from agent_memory.server import workers

workers._PAUSE_SECONDS = 0.1
really_fork, forks = os.fork, []

def fork():
    forks.append(1)
    if len(forks) == 2:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return really_fork()

def work(role):
    if role is workers.Role.SUCCESSOR:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)

os.fork = fork
workers.run_workers(1, work)
print(len(forks))
""")
    assert (done.stdout, done.returncode) == ("3\n", 0)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == [
        "ended by signal 9",
        f"not started: {os.strerror(errno.EAGAIN)}",
    ]


def test_a_server_that_can_start_no_thread_ends_when_it_is_told_to() -> None:
    done = run("""
import os, signal, threading, time
from agent_memory.server.workers import run_workers

def refuse(thread):
    raise RuntimeError("can't start new thread")

parent, really_start = os.getpid(), threading.Thread.start

def work(role):
    os.kill(parent, signal.SIGTERM)
    time.sleep(60)

threading.Thread.start = lambda thread: (refuse if os.getpid() == parent else really_start)(thread)
run_workers(1, work)
""")
    assert (done.stderr, done.returncode) == ("", 0)


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code that starts workers, in processes of which none is left."""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("fork", [1, 2, 3], ids=["the first", "the last", "a successor"])
def test_a_signal_that_comes_while_a_worker_is_started_ends_that_one_too_and_starts_no_other(fork: int) -> None:
    done = run(f"""
import os, signal, time
from agent_memory.server.workers import Role, run_workers

really_fork, forks = os.fork, []

def fork():
    worker = really_fork()
    forks.append(worker)
    if worker and len(forks) == {fork}:
        os.kill(os.getpid(), signal.SIGTERM)
    return worker

os.fork = fork
run_workers(2, lambda role: None if role is Role.FIRST else time.sleep(60))
print(len(forks))
""")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{fork}\n", "")


def test_a_worker_that_fails_says_what_failed_and_where_and_repeats_no_value() -> None:
    done = run("""
import os, signal
from agent_memory.server.workers import Role, run_workers

def fail(role):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getppid(), signal.SIGTERM)
    raise KeyError("the value")

run_workers(1, fail)
""")

    line = json.loads(done.stderr)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {"event": "worker", "error": "KeyError", "at": "<string>:8"}
