"""``agent-memory``: the command line, and what becomes of errors; ``commands`` does what it says."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, cast

from . import commands
from .errors import AgentMemoryError
from .keys import shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if it did what it says, 1 if a check found problems, 2 if it could not."""
    if hasattr(sys.stdout, "reconfigure"):
        # As stderr is: a key may hold what a terminal cannot show.
        cast(TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
        # Where it was closed before Python started, there is none.
        if hasattr(sys.stdout, "flush"):
            sys.stdout.flush()
        return code
    except ImportError as error:
        if error.name is not None:
            raise
        # Our own errors have no name: they say what to install.
        print(f"agent-memory: {error}", file=sys.stderr)
        return 2
    except AgentMemoryError as error:
        print(f"agent-memory: {shown(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        # Nobody reads on, as behind `| head`, or the disk that takes the output is full.
        if not isinstance(error, BrokenPipeError):
            print(f"agent-memory: {error.strerror}", file=sys.stderr)
        # What is left to print would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except KeyboardInterrupt:
        return 130


class _ShowVersion(argparse.Action):
    """Shows the version. It is looked up only then: code that runs without being installed has none."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"agent-memory {version('agent-memory')}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, of an address its kind alone: the rest may hold a password."""
        super().error(re.sub(r"://[^\s']*", "://…", message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="agent-memory", description="Typed, durable memory for agents.")
    parser.add_argument("--version", action=_ShowVersion, help="show the version and exit")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does: str) -> argparse.ArgumentParser:
        return subparsers.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")

    serve = command("serve", "serve a store over HTTP")
    store = serve.add_mutually_exclusive_group()
    store.add_argument(
        "--data", default="memory.db", metavar="FILE", help="the database file, made if absent (default: memory.db)"
    )
    store.add_argument("--database", metavar="URL", help="postgresql://…, instead of a file")
    serve.add_argument(
        "--blobs",
        metavar="PLACE",
        help="where large values lie: a folder, s3://, gs:// or az://; needed with --database",
    )
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="server processes (default: 1)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8420, metavar="N", help="port, 0 for any (default: 8420)")
    serve.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="lines as the command token prints them; needed beyond this machine",
    )
    serve.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="HOST",
        help="a further Host to answer without tokens; may be repeated",
    )
    serve.add_argument(
        "--public-url", metavar="URL", help="the address clients see, if it is not the one they connect to"
    )
    serve.add_argument(
        "--metrics-port", type=int, metavar="N", help="serve metrics for Prometheus at /metrics on this port"
    )
    serve.add_argument(
        "--metrics-host",
        default="127.0.0.1",
        metavar="HOST",
        help="address of the metrics, which need no token (default: 127.0.0.1)",
    )
    serve.set_defaults(run=commands.serve)

    token = command("token", "make a token for a namespace, or one application of it")
    token.add_argument("namespace", help="the tenant that it opens")
    token.add_argument("application", nargs="?", help="the only application that it opens (default: all of them)")
    token.set_defaults(run=commands.token)

    sweep = command("sweep", "take away what nobody can reach any more")
    _add_data(sweep, or_database=True)
    sweep.set_defaults(run=commands.sweep)

    check = command("check", "compare the database with the stored bytes")
    _add_data(check, or_database=True)
    check.add_argument("--fix", action="store_true", help="mend what can be mended")
    check.set_defaults(run=commands.check)

    backup = command("backup", "copy a store in files while others use it")
    _add_data(backup)
    backup.add_argument("target", help="the new database file")
    backup.set_defaults(run=commands.backup)

    migrate = command("migrate", "bring a PostgreSQL database up to date")
    migrate.add_argument("--database", required=True, metavar="URL", help="postgresql://…")
    migrate.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    migrate.set_defaults(run=commands.migrate)

    index = command("index-vectors", "make semantic search in PostgreSQL fast, and approximate")
    index.add_argument("--database", required=True, metavar="URL", help="postgresql://…")
    index.add_argument(
        "--dimensions", type=int, required=True, metavar="N", help="how many numbers the vectors have, up to 2,000"
    )
    index.add_argument("--drop", action="store_true", help="drop the index: search is exact again")
    index.set_defaults(run=commands.index_vectors)

    copy = command("copy", "copy a store: between files, PostgreSQL and object stores")
    copy.add_argument("source", help="a database file, or postgresql://…")
    copy.add_argument("target", help="a database file, or postgresql://…; what is there already is not copied again")
    copy.add_argument(
        "--source-blobs", metavar="PLACE", help="where the source's large values lie, if not beside its file"
    )
    copy.add_argument(
        "--target-blobs", metavar="PLACE", help="where the target's are to lie: a folder, s3://, gs:// or az://"
    )
    copy.set_defaults(run=commands.copy)

    langgraph = command("import-langgraph", "copy the items of a LangGraph store into an application")
    langgraph.add_argument("source", help="the file of a SqliteStore, or the DSN of a PostgresStore")
    langgraph.add_argument(
        "--to", required=True, metavar="STORE", help="a database file, postgresql://…, or a server's http:// address"
    )
    langgraph.add_argument("--application", required=True, metavar="NAME", help="the application that gets the items")
    langgraph.add_argument("--namespace", default="default", metavar="NAME", help="its tenant (default: default)")
    langgraph.add_argument("--blobs", metavar="PLACE", help="where large values lie; needed with postgresql://")
    langgraph.add_argument("--overwrite", action="store_true", help="write over keys that hold another value")
    langgraph.set_defaults(run=commands.import_langgraph)
    return parser


def _add_data(parser: argparse.ArgumentParser, *, or_database: bool = False) -> None:
    store = parser.add_mutually_exclusive_group(required=True)
    store.add_argument("--data", metavar="FILE", help="the database file")
    if or_database:
        store.add_argument("--database", metavar="URL", help="postgresql://…, instead of a file")
    parser.set_defaults(database=None)
    places = "a folder, s3://, gs:// or az://" if or_database else "a folder"
    parser.add_argument("--blobs", metavar="PLACE", help=f"where its large values lie, if not beside it: {places}")


if __name__ == "__main__":
    sys.exit(main())
