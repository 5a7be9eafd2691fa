"""Tokens that change while servers run: what is added, taken away, half written, or of no use."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from agent_memory.errors import AuthenticationError, PermissionDeniedError
from agent_memory.server.auth import TokenFileError, TokenGate, is_exposed
from tests.support.api import wait_for
from tests.support.server import ServerProcess

OLD, NEW = "the-secret-old-token", "the-secret-new-token"
Statuses = Callable[[str], set[int]]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"{OLD} acme\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def server(tokens: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path, "--workers", "2", "--token-file", str(tokens)) as server:
        yield server


@pytest.fixture
def statuses(server: ServerProcess) -> Iterator[Statuses]:
    """What a token is answered with, on connections that meet all workers."""
    url = f"{server.url}/v1/namespaces/acme/applications/app/app_state/list"
    with httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)) as http:

        def ask(token: str) -> int:
            return http.post(url, json={"prefix": ""}, headers={"authorization": f"Bearer {token}"}).status_code

        yield lambda token: {ask(token) for _ in range(12)}


def replace(file: Path, text: str) -> None:
    """Give a file other contents, all at once."""
    other = file.with_name("other")
    other.write_text(text)
    other.rename(file)


def events(server: ServerProcess) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == "token_file"]


def test_every_worker_follows_the_file_and_the_successors_of_dead_ones_too(
    server: ServerProcess, statuses: Statuses, tokens: Path
) -> None:
    assert (statuses(OLD), statuses(NEW)) == ({200}, {401})
    replace(tokens, f"{OLD} acme\n{NEW} acme\n")
    wait_for(lambda: statuses(NEW) == {200})
    assert statuses(OLD) == {200}

    replace(tokens, f"{NEW} acme\n")
    wait_for(lambda: statuses(OLD) == {401})
    assert statuses(NEW) == {200}

    for worker in psutil.Process(server.process.pid).children():
        worker.kill()
    assert statuses(OLD) == {401}
    assert "secret" not in server.log


def test_a_file_of_no_use_changes_nothing_and_is_named_once_in_the_log_of_each_worker(
    server: ServerProcess, statuses: Statuses, tokens: Path
) -> None:
    replace(tokens, f"{NEW} acme\n{OLD} acme app and-a-secret-more\n")
    wait_for(lambda: len(events(server)) == 2)
    assert {event["message"].partition(" of")[0] for event in events(server)} == {"line 2"}
    assert (statuses(OLD), statuses(NEW)) == ({200}, {401})

    tokens.unlink()
    wait_for(lambda: len(events(server)) == 4)
    assert "cannot be read: No such file" in events(server)[-1]["message"]
    assert statuses(OLD) == {200}

    replace(tokens, f"{NEW} acme\n")
    wait_for(lambda: len(events(server)) == 6)
    assert events(server)[-1]["tokens"] == 1
    assert (statuses(OLD), statuses(NEW)) == ({401}, {200})
    assert "secret" not in server.log


def test_a_worker_does_not_start_with_a_file_of_no_use_nor_with_the_tokens_of_the_servers_start(
    server: ServerProcess, statuses: Statuses, tokens: Path
) -> None:
    replace(tokens, f"{NEW} acme\n")
    wait_for(lambda: len(events(server)) == 2)
    tokens.write_text("of-no-use\n")
    parent = psutil.Process(server.process.pid)
    killed = parent.children()[0].pid
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: killed not in {worker.pid for worker in parent.children()})
    assert (statuses(OLD), statuses(NEW)) == ({401}, {200})
    # Again and again, and not in silence.
    wait_for(lambda: server.log.count('"error": "TokenFileError"') > 2)
    lines = [json.loads(one) for one in server.log.splitlines() if '"event": "worker"' in one]
    assert lines[0]["message"] == "ended by signal 9"
    assert (lines[1]["error"], "line 1" in lines[1]["message"]) == ("TokenFileError", True)
    assert "of-no-use" not in server.log
    replace(tokens, f"{NEW} acme\n")
    wait_for(lambda: len(parent.children()) == 2)
    assert (statuses(OLD), statuses(NEW)) == ({401}, {200})


def test_a_file_that_hangs_keeps_no_server_from_serving_and_ending(tokens: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--token-file", str(tokens)) as server:
        tokens.unlink()
        os.mkfifo(tokens)
        # Whoever opens it to write gets in once the server has opened it to read, and is hanging.
        with open(tokens, "w"):
            assert httpx.get(f"{server.url}/readyz", trust_env=False).status_code == 200
            assert server.stop() == 0


def test_a_folder_that_is_swapped_behind_a_link_is_followed(tmp_path: Path) -> None:
    # As Kubernetes changes a secret that is mounted.
    for name, token in (("first", OLD), ("second", NEW)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens").write_text(f"{token} acme\n")
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "tokens").symlink_to(Path("..data", "tokens"))
    gate = TokenGate(tmp_path / "tokens")
    assert gate.look_again() is None
    (tmp_path / "..new").symlink_to("second")
    os.rename(tmp_path / "..new", tmp_path / "..data")
    assert [gate.look_again() for _ in range(3)] == [None, 1, None]
    assert opens(gate, NEW, "app")


def opens(gate: TokenGate, token: str, application: str, scheme: str = "Bearer") -> bool:
    try:
        gate.authorize([(b"authorization", f"{scheme} {token}".encode())], "acme", application)
    except (AuthenticationError, PermissionDeniedError):
        return False
    return True


def test_half_of_a_line_opens_nothing(tokens: Path) -> None:
    gate = TokenGate(tokens)
    # Written in place, piece by piece: so far the token is for every application.
    tokens.write_text(f"{NEW} acme")
    assert gate.look_again() is None
    assert not opens(gate, NEW, "other")
    tokens.write_text(f"{NEW} acme app\n")
    assert [gate.look_again() for _ in range(2)] == [None, 1]
    assert (opens(gate, NEW, "app"), opens(gate, NEW, "other"), opens(gate, OLD, "app")) == (True, False, False)


def test_a_file_that_is_emptied_for_a_moment_is_no_error(tokens: Path) -> None:
    gate = TokenGate(tokens)
    tokens.write_text("")
    assert gate.look_again() is None
    tokens.write_text(f"{OLD} acme\n")
    assert [gate.look_again() for _ in range(3)] == [None] * 3
    tokens.write_text("")
    assert gate.look_again() is None
    with pytest.raises(TokenFileError, match="no token"):
        gate.look_again()
    assert gate.look_again() is None
    assert opens(gate, OLD, "app")


def test_a_token_on_two_lines_opens_both(tokens: Path) -> None:
    tokens.write_text(f"{OLD} acme app\n{OLD} acme other\n")
    gate = TokenGate(tokens)
    assert [opens(gate, OLD, name) for name in ("app", "other", "another")] == [True, True, False]


def test_the_scheme_of_a_token_is_bearer_in_any_case_and_with_more_than_one_space(tokens: Path) -> None:
    gate = TokenGate(tokens)
    assert [opens(gate, OLD, "app", scheme) for scheme in ("bearer", "BEARER ", "Basic", "")] == [
        True,
        True,
        False,
        False,
    ]


def test_each_new_reason_why_a_file_is_of_no_use_is_an_error_that_holds_nothing_of_it(tokens: Path) -> None:
    gate = TokenGate(tokens)
    tokens.unlink()
    assert gate.look_again() is None
    with pytest.raises(TokenFileError, match="No such file"):
        gate.look_again()
    tokens.write_bytes(b"the-secret-\xff acme\n")
    assert gate.look_again() is None
    with pytest.raises(TokenFileError, match="it is not UTF-8") as caught:
        gate.look_again()
    assert caught.value.__context__ is None


@pytest.mark.parametrize(("mode", "exposed"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_can_read_is_exposed(tokens: Path, mode: int, exposed: bool) -> None:
    tokens.chmod(mode)
    assert is_exposed(tokens) is exposed


@pytest.mark.parametrize(("mode", "exposed"), [(0o640, False), (0o440, False), (0o644, True)])
def test_a_file_that_another_user_gives_to_the_servers_group_is_not_exposed(
    tokens: Path, mode: int, exposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: tokens.stat().st_uid + 1)
    assert is_exposed(tokens) is exposed
