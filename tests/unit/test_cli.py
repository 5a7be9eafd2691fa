"""The command line: what it prints, and when it refuses."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from agent_memory import AgentMemory
from agent_memory.cli import main
from tests.support.api import wait_for
from tests.support.postgres import PostgresServer
from tests.support.read_only import make_read_only
from tests.support.server import ROOT, ServerProcess, child_environment, free_port
from tests.support.stores import BUCKET_URL
from tests.support.strict_s3 import StrictS3


def run(*arguments: str, code: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    start = ["-m", "agent_memory.cli"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=ROOT, env=child_environment(**variables), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def store(folder: Path, blobs: str | None = None) -> Path:
    path = folder / "memory.db"
    with AgentMemory(str(path), application="shop", blobs=blobs) as memory:
        memory.app_state.set("small", 1)
        memory.app_state.set("large", b"x" * 200_000)
    return path


def test_it_says_which_version_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])

    assert re.fullmatch(r"agent-memory \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "command",
    ["serve", "token", "sweep", "check", "backup", "migrate", "index-vectors", "copy", "import-langgraph"],
)
def test_the_help_of_a_command_says_what_it_does_and_explains_each_argument(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # an argument a line
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])

    usage, description, *arguments = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: agent-memory {command} ")
    assert description.endswith(".")
    lines = [line for part in arguments for line in part.splitlines()[1:]]
    assert [line for line in lines if not re.match(r" +\S.*  +\S", line)] == []


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["check", "--data", "memory.db"]], ids=" ".join)
def test_what_a_terminal_cannot_show_is_spelled_out(tmp_path: Path, arguments: list[str]) -> None:
    path = store(tmp_path)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("UPDATE entry SET key = 'caf\u00e9', value = x'00' WHERE key = 'small'")

    done = run(*(str(path) if one == "memory.db" else one for one in arguments), PYTHONIOENCODING="ascii")

    assert done.stderr == ""
    assert "postgresql://\\u2026" in done.stdout or "caf\\xe9" in done.stdout


def test_a_new_token_opens_what_it_was_made_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "acme", "shop"]) == 0
    printed = capsys.readouterr().out
    token = printed.splitlines()[0].rpartition(" ")[2]
    line = printed.splitlines()[1].partition(": ")[2]
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{line}\n")
    tokens.chmod(0o600)

    assert line == f"sha256:{hashlib.sha256(token.encode()).hexdigest()} acme shop"
    with (
        ServerProcess(tmp_path, "--token-file", str(tokens)) as server,
        AgentMemory(server.url, application="shop", namespace="acme", token=token) as memory,
    ):
        memory.app_state.set("key", 1)
        assert memory.app_state.get("key") == 1


def test_beyond_this_machine_it_does_not_serve_without_tokens(tmp_path: Path) -> None:
    done = run("serve", "--data", str(tmp_path / "m.db"), "--host", "0.0.0.0", "--port", "0")

    assert done.returncode == 2
    assert "--token-file" in done.stderr
    assert not (tmp_path / "m.db").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("the-secret\n", "line 1 "),
        ("# comment\n\nthe-secret acme shop more\n", "line 3 "),
        ("the-secret acme/shop\n", "line 1 "),
        ("sha256:the-secret acme\n", "line 1 "),
        (f"sha256:{'0' * 64}the-secret acme\n", "line 1 "),
        ("the-sécret acme\n", "line 1 "),
        ("# nothing\n", "no token"),
    ],
)
def test_a_bad_token_file_is_refused_by_line_and_not_repeated(tmp_path: Path, content: str, complaint: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(content)

    done = run("serve", "--data", str(tmp_path / "m.db"), "--port", "0", "--token-file", str(tokens))

    assert done.returncode == 2
    assert complaint in done.stderr
    assert "cret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "options", [["--database", "store.db"], ["--data", "memory://"], ["--data", "postgresql://x"]], ids=" ".join
)
def test_an_address_of_another_kind_makes_no_file(tmp_path: Path, options: list[str]) -> None:
    done = run("serve", "--port", "0", *options)

    assert done.returncode == 2
    assert options[0] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_import_without_a_source_makes_no_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target.db"

    assert main(["import-langgraph", str(tmp_path), "--to", str(target), "--application", "a"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not target.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--port", "99999"],
        ["--host", "no.such.host.invalid"],
        ["--host", "no..host"],
        ["--public-url", "ftp://x"],
        ["--public-url", "http://["],
        ["--allowed-host", "http://memory.local"],
        ["--allowed-host", "memory.local:8420"],
        ["--token-file", "absent"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_served_is_refused_in_one_line(tmp_path: Path, options: list[str]) -> None:
    if "--host" in options:
        options = [*options, "--token-file", str(tmp_path / "tokens")]
        (tmp_path / "tokens").write_text("token acme\n")
        (tmp_path / "tokens").chmod(0o600)

    done = run(
        "serve", "--data", str(tmp_path / "m.db"), *(["--port", "0"] if "--port" not in options else []), *options
    )

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_is_no_database_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    path.write_bytes(b"not a database at all" * 1000)

    done = run("serve", "--data", str(path), "--port", "0")

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_without_the_servers_packages_it_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['uvicorn'] = None\nfrom agent_memory.cli import main\n"
        "sys.exit(main(['serve', '--port', '0']))"
    )
    done = run(code=code)

    assert done.returncode == 2
    assert "pip install 'agent-memory[server]'" in done.stderr


def test_a_public_url_is_the_address_of_chunks(tmp_path: Path) -> None:
    import httpx

    with ServerProcess(tmp_path, "--public-url", "https://memory.example/base/") as server:
        url = f"{server.url}/v1/namespaces/a/applications/b/app_state/prepare_write"
        blob = httpx.post(url, json={"state_key": "k", "size": 1}, trust_env=False).json()["blob"]

    assert blob["chunks"][0]["uri"].startswith("https://memory.example/base/v1/blobs/")


def test_check_finds_nothing_in_a_sound_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--data", str(store(tmp_path))]) == 0
    assert capsys.readouterr().out == "2 values, 1 files, 0 problems\n"


def test_check_fails_where_a_file_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store(tmp_path)
    for file in path.with_name("memory.db.blobs").rglob("*.0"):
        file.unlink()

    assert main(["check", "--data", str(path), "--fix"]) == 1
    assert capsys.readouterr().out.startswith("missing: ")


def test_a_copy_to_a_disk_that_is_read_only_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store(tmp_path)
    make_read_only(monkeypatch)
    assert main(["copy", str(path), str(tmp_path / "copy.db")]) == 2
    assert "Read-only file system" in capsys.readouterr().err


def test_a_backup_is_a_store_of_its_own(tmp_path: Path) -> None:
    path, copy = store(tmp_path), tmp_path / "copy.db"

    assert main(["backup", "--data", str(path), str(copy)]) == 0
    assert main(["backup", "--data", str(path), str(copy)]) == 2
    with AgentMemory(str(copy), application="shop") as memory:
        assert memory.app_state.get("large") == b"x" * 200_000


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "postgresql://memory:the-secret@host/x", "copy.db"],
        ["--data", "http://memory:the-secret@host", "copy.db"],
        ["--data", "memory.db", "postgresql://memory:the-secret@host/x"],
        ["--data", "memory.db", "s3://bucket/the-secret"],
    ],
    ids=" ".join,
)
def test_a_backup_from_or_to_an_address_names_the_command_that_does_it(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store(tmp_path)
    before = sorted(tmp_path.iterdir())

    assert main(["backup", *arguments]) == 2
    assert "the command copy brings" in (error := capsys.readouterr().err)
    assert "the-secret" not in error
    assert sorted(tmp_path.iterdir()) == before


def test_a_sweep_says_what_it_took_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--data", str(store(tmp_path))]) == 0
    assert re.fullmatch(r"([a-z ]+: \d+(, )?)+\n", capsys.readouterr().out)


def make_garbage(path: Path) -> None:
    """Let go of the large value, so long ago that a sweep takes it away."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("DELETE FROM entry WHERE key = 'large'")
        connection.execute("UPDATE blob SET state = 'garbage', at_us = 0")


def test_large_values_that_lie_elsewhere_are_checked_copied_and_swept_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blobs, copy = tmp_path / "elsewhere", tmp_path / "copy.db"
    path = store(tmp_path, str(blobs))
    there = ["--data", str(path), "--blobs", str(blobs)]

    assert main(["check", *there]) == 0
    assert capsys.readouterr() == ("2 values, 1 files, 0 problems\n", "")
    assert main(["backup", *there, str(copy)]) == 0
    with AgentMemory(str(copy), application="shop") as memory:
        assert memory.app_state.get("large") == b"x" * 200_000
    make_garbage(path)
    assert main(["sweep", *there]) == 0
    assert not list(blobs.rglob("*.0"))


def test_a_sweep_and_a_backup_where_the_large_values_do_not_lie_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blobs, copy = tmp_path / "elsewhere", tmp_path / "copy.db"
    path = store(tmp_path, str(blobs))

    assert main(["backup", "--data", str(path), str(copy)]) == 2
    make_garbage(path)
    assert main(["sweep", "--data", str(path)]) == 2
    assert capsys.readouterr().err.count("memory.db.blobs': say with --blobs where they lie\n") == 2
    with closing(apsw.Connection(str(path))) as connection:
        assert connection.execute("SELECT state FROM blob").fetchall() == [("garbage",)], "a sweep can still find it"


def test_a_backup_of_what_lies_in_an_object_store_names_the_command_that_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StrictS3() as s3:
        for name, text in s3.environment().items():
            monkeypatch.setenv(name, text)
        path, copy = store(tmp_path, BUCKET_URL), tmp_path / "copy.db"
        assert main(["backup", "--data", str(path), "--blobs", BUCKET_URL, str(copy)]) == 2
        assert "the command copy" in capsys.readouterr().err
        assert main(["copy", str(path), "--source-blobs", BUCKET_URL, str(copy)]) == 0
    with AgentMemory(str(copy), application="shop") as memory:
        assert memory.app_state.get("large") == b"x" * 200_000


def test_a_server_warns_where_the_large_values_do_not_lie(tmp_path: Path) -> None:
    store(tmp_path, str(tmp_path / "elsewhere")).rename(tmp_path / "server.db")
    warning = f"agent-memory: warning: none of the store's large values lies in '{tmp_path}/server.db.blobs': "

    for options, expected in (([], 1), (["--blobs", str(tmp_path / "elsewhere")], 0)):
        with ServerProcess(tmp_path, *options) as server:
            wait_for(lambda server=server, expected=expected: server.log.count(warning) >= expected)
        assert server.log.count(warning) == expected


def test_what_lies_in_postgresql_is_checked_and_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PostgresServer() as server:
        address = server.database()
        there = ["--database", address, "--blobs", str(tmp_path / "blobs")]
        with AgentMemory(address, application="shop", blobs=str(tmp_path / "blobs")) as memory:
            memory.app_state.set("large", b"x" * 200_000)
        assert main(["check", *there]) == 0
        assert main(["sweep", *there]) == 0
        assert main(["sweep", *there[:2], "--blobs", str(tmp_path / "other")]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("1 values, 1 files, 0 problems\nblobs: 0, ")
    assert "say with --blobs where they lie" in err


@pytest.mark.parametrize(
    "arguments",
    [["serve", "postgresql://me:hush@db/memory"], ["postgresql://me:hush@db/memory"], ["serve", "--port", "s3://hush"]],
    ids=["too many", "no command", "no number"],
)
def test_a_mistyped_line_is_refused_without_the_password_in_it(arguments: list[str]) -> None:
    refused = run(*arguments)
    assert refused.returncode == 2
    assert "://…" in refused.stderr
    assert "hush" not in refused.stdout + refused.stderr


@pytest.mark.parametrize("address", ["postgresql://memory:the-secret@host/x", "https://memory:the-secret@host/x"])
@pytest.mark.parametrize(
    "command", [["check", "--data"], ["sweep", "--data"], ["backup", "x.db", "--data"], ["copy", "x.db"]]
)
def test_an_address_where_a_file_belongs_is_refused_without_its_password(
    command: list[str],
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    store(tmp_path, None).rename(tmp_path / "x.db")

    assert main([*command, address]) == 2
    assert "the-secret" not in "".join(capsys.readouterr())


def test_a_check_that_finds_none_of_the_large_values_asks_for_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store(tmp_path, str(tmp_path / "elsewhere"))

    assert main(["check", "--data", str(path)]) == 1
    assert "--blobs" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sweep", "check"])
def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, command: str) -> None:
    for name in ("absent.db", "a" * 300):
        assert main([command, "--data", str(tmp_path / name)]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["sweep", "check"])
def test_a_file_that_was_emptied_is_no_sound_store(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store(tmp_path)
    path.write_bytes(b"")

    assert main([command, "--data", str(path)]) == 2
    assert "memory.db' is empty or cut off" in capsys.readouterr().err
    assert path.stat().st_size == 0


def test_a_key_cannot_write_lines_of_its_own_or_move_the_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "memory.db"
    with AgentMemory(str(path), application="shop") as memory:
        memory.app_state.set("a\n\x1b[2Jb", 1)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("UPDATE entry SET value = x'00'")

    assert main(["check", "--data", str(path)]) == 1
    assert main(["copy", str(path), str(tmp_path / "copy.db")]) == 2
    printed = capsys.readouterr()
    for line in (printed.out.splitlines()[0], printed.err.splitlines()[-1]):
        assert r"default/shop a\n\x1b[2Jb" in line


def test_a_check_whose_output_nobody_reads_on_ends_quietly_and_not_as_one_that_found_problems(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "agent_memory.cli", "check", "--data", str(store(tmp_path))],
            cwd=ROOT, env=child_environment(), stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=30, check=False,
        )  # fmt: skip

    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here is always full")
def test_a_check_whose_output_finds_no_room_does_not_say_that_something_is_wrong_with_the_store(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent_memory.cli", "check", "--data", str(store(tmp_path))]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command,
            cwd=ROOT, env=child_environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "agent-memory: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here is always full")
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("output", ["full", "closed"])
def test_a_server_whose_output_goes_nowhere_serves(tmp_path: Path, output: str, workers: str) -> None:
    port = free_port()
    where = ">/dev/full 2>&1" if output == "full" else ">&- 2>&-"
    server = f"-m agent_memory.cli serve --data {tmp_path / 'store.db'} --port {port} --workers {workers}"
    command = ["sh", "-c", f"exec {sys.executable} {server} {where}"]
    with subprocess.Popen(command, cwd=ROOT, env=child_environment(), stdin=subprocess.DEVNULL) as process:
        try:
            with AgentMemory(f"http://127.0.0.1:{port}", application="app", timeout=20) as memory:
                memory.app_state.set("k", 1)
                assert memory.app_state.get("k") == 1
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
