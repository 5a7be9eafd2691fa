"""What the commands of ``agent-memory`` do, and what they print; each returns the exit code.

What only some of them need is imported when they run, so that the others work without it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from os.path import getsize, isfile, samefile
from pathlib import Path

from . import copying
from .errors import AgentMemoryError, InvalidRequestError
from .keys import check_scope_name, shown
from .maintenance import lie_here, remove_database, signing_key_file
from .memory import AgentMemory
from .messages import Backup, Check
from .opening import HTTP_SCHEMES, POSTGRES_SCHEMES, not_here, open_service, scheme_of
from .service import StateService

_NEEDS_SERVER = "the server needs packages that are not installed: pip install 'agent-memory[server]'"
_LEAST_BYTES = 512
"""The smallest page of SQLite: it takes an empty file for an empty database."""


def serve(options: argparse.Namespace) -> int:
    try:
        from .server import run

        if options.metrics_port is not None and find_spec("prometheus_client") is None:
            # Looked for, not imported: where it keeps its counts is decided by the first import, in each worker.
            raise ImportError(name="prometheus_client")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "httptools", "prometheus_client"):
            raise
        print(f"agent-memory: {_NEEDS_SERVER}", file=sys.stderr)
        return 2
    run.serve(
        run.Options(
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


def token(options: argparse.Namespace) -> int:
    scope = check_scope_name(options.namespace, "a namespace")
    if options.application is not None:
        scope += f" {check_scope_name(options.application, 'an application')}"
    token = secrets.token_urlsafe(32)
    print(f"token, shown only now:   {token}")
    print(f"line for the token file: sha256:{hashlib.sha256(token.encode()).hexdigest()} {scope}")
    return 0


def sweep(options: argparse.Namespace) -> int:
    with closing(_open(options)) as service:
        _refuse_other_blobs(service, options)
        report = service.sweep()
    print(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in report._asdict().items()))
    return 0


def check(options: argparse.Namespace) -> int:
    with closing(_open(options)) as service:
        report = service.check(Check(options.fix))
        lost = not lie_here(service.catalog, service.blobs)
    for problem in report.problems:
        print(f"{problem.kind}: {shown(problem.place)}: {problem.detail}{' (fixed)' if problem.fixed else ''}")
    print(f"{report.values} values, {report.objects} files, {len(report.problems)} problems")
    if lost:
        print(f"agent-memory: {not_here(_store(options), options.blobs)}", file=sys.stderr)
    return 0 if report.ok else 1


def backup(options: argparse.Namespace) -> int:
    if scheme_of(options.data) is not None:
        raise InvalidRequestError(
            "backup copies a store in files; the command copy brings one in PostgreSQL into files, and pg_dump backs "
            "its database up"
        )
    with closing(_open(options)) as service:
        _refuse_other_blobs(service, options)
        service.backup(Backup(options.target))
    print(f"copied to {options.target}")
    return 0


def migrate(options: argparse.Namespace) -> int:
    from .storage.postgres import migrations

    left_out: list[migrations.Step] = []
    steps = migrations.migrate(options.database, dry_run=options.dry_run, left_out=left_out.append)
    for step in steps:
        print(f"{'would take' if options.dry_run else 'took'} {step}")
    if not steps:
        print("the database is up to date")
    for step in left_out:
        print(f"left out {step.name}: {step.needs}")
    return 0


def index_vectors(options: argparse.Namespace) -> int:
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


def copy(options: argparse.Namespace) -> int:
    _refuse_missing(options.source)
    for address, blobs, option in (
        (options.source, options.source_blobs, "--source-blobs"),
        (options.target, options.target_blobs, "--target-blobs"),
    ):
        if scheme_of(address) in POSTGRES_SCHEMES and blobs is None:
            raise InvalidRequestError(f"say with {option} where large values lie: a folder, or s3://bucket/prefix")
    with ExitStack() as stack:
        source = open_service(options.source, options.source_blobs)
        stack.callback(source.close)
        if not lie_here(source.catalog, source.blobs):
            raise InvalidRequestError(not_here(options.source, options.source_blobs, "--source-blobs"))
        target = _open_target(options)
        stack.callback(target.close)
        try:
            with progress_bar("keys", "keys compared") as progress:
                report = copying.copy(source, target, progress=progress)
        except (AgentMemoryError, KeyboardInterrupt):
            print("agent-memory: the target is no whole copy; the next one begins where this stopped", file=sys.stderr)
            raise
    print(f"{report.keys} keys, {report.copied} of them copied now, {report.bytes} bytes; {report.verified} compared")
    for place in report.strays:
        print(f"only in the target: {shown(place)}", file=sys.stderr)
    if report.strays:
        print(
            "agent-memory: the source may have deleted these, and others like them, since an earlier copy; delete them "
            "here too, or copy into an empty store",
            file=sys.stderr,
        )
    if scheme_of(options.source) is None and (key := signing_key_file(Path(options.source))).exists():
        print(
            f"agent-memory: {str(key)!r}, with which pickles are read, was not copied: keep it, and give its text to "
            "who opens the target, as signing_keys or AGENT_MEMORY_SIGNING_KEYS",
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


def import_langgraph(options: argparse.Namespace) -> int:
    try:
        from agent_memory_langchain import importing
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("langgraph", "langchain_core"):
            raise
        print("agent-memory: this needs pip install 'agent-memory[langchain]'", file=sys.stderr)
        return 2
    _refuse_missing(options.source)
    if all(map(isfile, (options.source, options.to))) and samefile(options.source, options.to):
        raise InvalidRequestError("the items go into another file than their own, which stays as it is")
    # A token on the command line would stand in the process list.
    token = os.environ.get("AGENT_MEMORY_TOKEN") if scheme_of(options.to) in HTTP_SCHEMES else None
    # The source first: opening the target makes a new file.
    with (
        importing.opened(options.source) as items,
        AgentMemory(
            options.to, application=options.application, namespace=options.namespace, blobs=options.blobs, token=token
        ) as memory,
        progress_bar("items") as progress,
    ):
        report = importing.import_items(
            items, memory, overwrite=options.overwrite, progress=lambda now: progress(now.seen, None)
        )
    for problem in report.problems:
        print(f"refused: {shown(str(problem))}", file=sys.stderr)
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
    if "://" not in address and getsize(address) < _LEAST_BYTES:
        raise AgentMemoryError(f"the file {address!r} is empty or cut off: restore the database from a backup")


def _open(options: argparse.Namespace) -> StateService:
    store = _store(options)
    _refuse_missing(store)
    return open_service(store, options.blobs)


def _refuse_other_blobs(service: StateService, options: argparse.Namespace) -> None:
    if not lie_here(service.catalog, service.blobs):
        raise InvalidRequestError(not_here(_store(options), options.blobs))


@contextmanager
def progress_bar(unit: str, again: str = "") -> Generator[Callable[[int, int | None], object]]:
    """Give a function that shows how many are done, and of how many; on a terminal, if tqdm is installed.

    Where fewer are done than before, they are gone over once more, and counted as ``again``.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _done, _total: None
        return
    # disable=None: not where the output goes to a file.
    with tqdm(unit=f" {unit}", disable=None) as bar:

        def show(done: int, total: int | None) -> None:
            if again and done <= bar.n:
                bar.unit = f" {again}"
                bar.reset()
            bar.total = total
            bar.update(done - bar.n)

        yield show
