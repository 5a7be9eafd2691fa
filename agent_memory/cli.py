"""``agent-memory``: serve a store, make tokens, look after a store."""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from io import TextIOWrapper
from os.path import isfile, samefile
from pathlib import Path
from typing import cast

from .copying import copy
from .errors import AgentMemoryError, InvalidRequestError, UnavailableError
from .keys import check_scope_name
from .maintenance import lie_here, remove_database
from .memory import AgentMemory
from .messages import Backup, Check
from .opening import HTTP_SCHEMES, POSTGRES_SCHEMES, not_here, open_service, scheme_of
from .service import StateService

_NEEDS_SERVER = "the server needs packages that are not installed: pip install 'agent-memory[server]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if it did what it says, 1 if a check found problems, 2 if it could not."""
    if hasattr(sys.stdout, "reconfigure"):
        # As stderr is: a key may hold what a terminal cannot show.
        cast(TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except ImportError as error:
        if error.name is not None:
            raise
        # Our own errors have no name: they say what to install.
        print(f"agent-memory: {error}", file=sys.stderr)
        return 2
    except AgentMemoryError as error:
        print(f"agent-memory: {error}", file=sys.stderr)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent-memory", description="Typed, durable memory for agents.")
    parser.add_argument("--version", action=_ShowVersion, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")

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
    serve.set_defaults(run=_serve)

    token = command("token", "make a token for a namespace, or one application of it")
    token.add_argument("namespace", help="the tenant that it opens")
    token.add_argument("application", nargs="?", help="the only application that it opens (default: all of them)")
    token.set_defaults(run=_token)

    sweep = command("sweep", "take away what nobody can reach any more")
    _add_data(sweep, or_database=True)
    sweep.set_defaults(run=_sweep)

    check = command("check", "compare the database with the stored bytes")
    _add_data(check, or_database=True)
    check.add_argument("--fix", action="store_true", help="mend what can be mended")
    check.set_defaults(run=_check)

    backup = command("backup", "copy a store in files while others use it")
    _add_data(backup)
    backup.add_argument("target", type=Path, help="the new database file")
    backup.set_defaults(run=_backup)

    migrate = command("migrate", "bring a PostgreSQL database up to date")
    migrate.add_argument("--database", required=True, metavar="URL", help="postgresql://…")
    migrate.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    migrate.set_defaults(run=_migrate)

    index = command("index-vectors", "make semantic search in PostgreSQL fast, and approximate")
    index.add_argument("--database", required=True, metavar="URL", help="postgresql://…")
    index.add_argument(
        "--dimensions", type=int, required=True, metavar="N", help="how many numbers the vectors have, up to 2,000"
    )
    index.add_argument("--drop", action="store_true", help="drop the index: search is exact again")
    index.set_defaults(run=_index_vectors)

    copy = command("copy", "copy a store: between files, PostgreSQL and object stores")
    copy.add_argument("source", help="a database file, or postgresql://…")
    copy.add_argument("target", help="a database file, or postgresql://…; what is there already is not copied again")
    copy.add_argument(
        "--source-blobs", metavar="PLACE", help="where the source's large values lie, if not beside its file"
    )
    copy.add_argument(
        "--target-blobs", metavar="PLACE", help="where the target's are to lie: a folder, s3://, gs:// or az://"
    )
    copy.set_defaults(run=_copy)

    langgraph = command("import-langgraph", "copy the items of a LangGraph store into an application")
    langgraph.add_argument("source", help="the file of a SqliteStore, or the DSN of a PostgresStore")
    langgraph.add_argument(
        "--to", required=True, metavar="STORE", help="a database file, postgresql://…, or a server's http:// address"
    )
    langgraph.add_argument("--application", required=True, metavar="NAME", help="the application that gets the items")
    langgraph.add_argument("--namespace", default="default", metavar="NAME", help="its tenant (default: default)")
    langgraph.add_argument("--blobs", metavar="PLACE", help="where large values lie; needed with postgresql://")
    langgraph.add_argument("--overwrite", action="store_true", help="write over keys that hold another value")
    langgraph.set_defaults(run=_import_langgraph)
    return parser


@contextmanager
def progress_bar(unit: str) -> Generator[Callable[[int, int | None], object]]:
    """Give a function that shows how many are done, and of how many; on a terminal, if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _done, _total: None
        return
    # disable=None: not where the output goes to a file.
    with tqdm(unit=f" {unit}", disable=None) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _add_data(parser: argparse.ArgumentParser, *, or_database: bool = False) -> None:
    store = parser.add_mutually_exclusive_group(required=True)
    store.add_argument("--data", metavar="FILE", help="the database file")
    if or_database:
        store.add_argument("--database", metavar="URL", help="postgresql://…, instead of a file")
    parser.set_defaults(database=None)
    parser.add_argument(
        "--blobs", metavar="PLACE", help="where its large values lie, if not beside it: a folder, s3://, gs:// or az://"
    )


def _serve(options: argparse.Namespace) -> int:
    try:
        from .server.run import Options, serve

        if options.metrics_port is not None and find_spec("prometheus_client") is None:
            # Looked for, not imported: where it keeps its counts is decided by the first import, in each worker.
            raise ImportError(name="prometheus_client")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "httptools", "prometheus_client"):
            raise
        print(f"agent-memory: {_NEEDS_SERVER}", file=sys.stderr)
        return 2
    serve(
        Options(
            _store(options),
            options.blobs,
            options.workers,
            options.host,
            options.port,
            options.token_file,
            tuple(options.allowed_host),
            options.public_url,
            options.metrics_host,
            options.metrics_port,
        )
    )
    return 0


def _token(options: argparse.Namespace) -> int:
    scope = check_scope_name(options.namespace, "a namespace")
    if options.application is not None:
        scope += f" {check_scope_name(options.application, 'an application')}"
    token = secrets.token_urlsafe(32)
    print(f"token, shown only now:   {token}")
    print(f"line for the token file: sha256:{hashlib.sha256(token.encode()).hexdigest()} {scope}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    with closing(_open(options)) as service:
        _refuse_other_blobs(service, options)
        report = service.sweep()
    print(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in report._asdict().items()))
    return 0


def _check(options: argparse.Namespace) -> int:
    with closing(_open(options)) as service:
        report = service.check(Check(options.fix))
        lost = not lie_here(service.catalog, service.blobs)
    for problem in report.problems:
        print(f"{problem.kind}: {problem.place}: {problem.detail}{' (fixed)' if problem.fixed else ''}")
    print(f"{report.values} values, {report.objects} files, {len(report.problems)} problems")
    if lost:
        print(f"agent-memory: {not_here(_store(options), options.blobs)}", file=sys.stderr)
    return 0 if report.ok else 1


def _backup(options: argparse.Namespace) -> int:
    with closing(_open(options)) as service:
        _refuse_other_blobs(service, options)
        service.backup(Backup(str(options.target)))
    print(f"copied to {options.target}")
    return 0


def _migrate(options: argparse.Namespace) -> int:
    from .storage.postgres.migrations import migrate

    steps = migrate(options.database, dry_run=options.dry_run)
    for step in steps:
        print(f"{'would take' if options.dry_run else 'took'} {step}")
    if not steps:
        print("the database is up to date")
    return 0


def _index_vectors(options: argparse.Namespace) -> int:
    from .storage.postgres.vector_index import create_index, drop_index

    what = f"the index of vectors with {options.dimensions} numbers"
    if options.drop:
        dropped = drop_index(options.database, options.dimensions)
        print(f"dropped {what}" if dropped else f"there is no index of vectors with {options.dimensions} numbers")
        return 0
    with progress_bar("parts") as progress:
        made = create_index(options.database, options.dimensions, progress=progress)
    print(f"made {what}" if made else f"{what} is there already")
    return 0


def _copy(options: argparse.Namespace) -> int:
    _refuse_missing(options.source)
    with ExitStack() as stack:
        source = open_service(options.source, options.source_blobs)
        stack.callback(source.close)
        target = _open_target(options)
        stack.callback(target.close)
        try:
            with progress_bar("keys") as progress:
                report = copy(source, target, progress=progress)
        except UnavailableError:
            print("agent-memory: the target is no whole copy; the next one goes on where this stopped", file=sys.stderr)
            raise
    print(f"{report.keys} keys, {report.copied} of them copied now, {report.bytes} bytes; {report.verified} compared")
    for place in report.strays:
        print(f"only in the target: {place}", file=sys.stderr)
    if report.strays:
        print(
            "agent-memory: the source may have deleted these, and others like them, since an earlier copy; delete them "
            "here too, or copy into an empty store",
            file=sys.stderr,
        )
    if scheme_of(options.target) in POSTGRES_SCHEMES:
        from .storage.postgres.copy import analyze

        analyze(options.target)
    return 0


def _open_target(options: argparse.Namespace) -> StateService:
    """Open what is copied to; if that fails, no empty store stays behind."""
    is_new = scheme_of(options.target) is None and not os.path.lexists(options.target)
    try:
        return open_service(options.target, options.target_blobs)
    except AgentMemoryError:
        if is_new:
            remove_database(Path(options.target))
        raise


def _import_langgraph(options: argparse.Namespace) -> int:
    try:
        from agent_memory_langchain.importing import import_langgraph
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("langgraph", "langchain_core"):
            raise
        print("agent-memory: this needs pip install 'agent-memory[langchain]'", file=sys.stderr)
        return 2
    # Before the target is opened, which makes a new file.
    _refuse_missing(options.source)
    if all(map(isfile, (options.source, options.to))) and samefile(options.source, options.to):
        raise InvalidRequestError("the items go into another file than their own, which stays as it is")
    # A token on the command line would stand in the process list.
    token = os.environ.get("AGENT_MEMORY_TOKEN") if scheme_of(options.to) in HTTP_SCHEMES else None
    with (
        AgentMemory(
            options.to, application=options.application, namespace=options.namespace, blobs=options.blobs, token=token
        ) as memory,
        progress_bar("items") as progress,
    ):
        report = import_langgraph(
            options.source, memory, overwrite=options.overwrite, progress=lambda now: progress(now.seen, None)
        )
    for problem in report.problems:
        print(f"refused: {problem}", file=sys.stderr)
    counts = ("copied", "unchanged", "kept", "expired", "refused")
    print(", ".join(f"{name}: {getattr(report, name)}" for name in counts))
    if report.copied and not report.times_kept:
        print("the server keeps its own times; import beside its database to carry them over", file=sys.stderr)
    return 1 if report.refused else 0


def _store(options: argparse.Namespace) -> str:
    """Return the store that --data or --database names."""
    if options.database is not None and scheme_of(options.database) not in POSTGRES_SCHEMES:
        raise InvalidRequestError("--database is a postgresql:// address; --data names a file")
    if options.database is None and scheme_of(options.data) is not None:
        raise InvalidRequestError("--data is the path of a database file; --database takes postgresql://")
    return options.database or options.data


def _refuse_missing(address: str) -> None:
    if "://" not in address and not isfile(address):
        # Opening would make a new, empty store, and all would seem well.
        raise AgentMemoryError(f"there is no database {address!r}")


def _open(options: argparse.Namespace) -> StateService:
    store = _store(options)
    _refuse_missing(store)
    return open_service(store, options.blobs)


def _refuse_other_blobs(service: StateService, options: argparse.Namespace) -> None:
    if not lie_here(service.catalog, service.blobs):
        raise InvalidRequestError(not_here(_store(options), options.blobs))


if __name__ == "__main__":
    sys.exit(main())
