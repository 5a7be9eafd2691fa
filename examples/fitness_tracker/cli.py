"""The commands: chat, report, import, demo."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent_memory import AgentMemoryError

from .importing import FIELDS, UnreadableFileError, add_activities, read_activities
from .models import NotEmptyError, UnknownModelError, UnusableError, Workout
from .opening import open_memory
from .summary import printable

SHOWN_LINES: Final = 20
LEAVING: Final = ("quit", "exit", "bye")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns 0 if it did all it should, 1 if something was left out or lost, 2 if it could not be done.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a test's stream, not a real one
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (AgentMemoryError, UnreadableFileError, UnknownModelError, NotEmptyError, UnusableError) as error:
        print(f"fitness_tracker: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130


def _chat(options: argparse.Namespace) -> int:
    from .agent import Conversation, choose_model
    from .coach import WHAT_IT_READS

    console = Console(highlight=False)
    model = choose_model(options.model)
    with open_memory(options) as memory:
        conversation = Conversation(memory, options.user, model)
        if sys.stdin.isatty():
            reads = WHAT_IT_READS if options.model is None else "I am your coach."
            place = f"{options.url or options.data} keeps what I learn of {options.user}; quit ends the chat."
            console.print(f"{reads} {place}", style="dim", markup=False)
        for text in _said(console):
            line = Table.grid(padding=(0, 1))
            line.add_row("coach", Text(printable(conversation.say(text).answer)))
            console.print(line)
    return 0


def _said(console: Console) -> Iterator[str]:
    """Yield what the user types until they leave; from a pipe, its lines, which nobody has seen yet."""
    for text in filter(None, map(str.strip, _lines(console))):
        if not sys.stdin.isatty():
            console.print(f"you   {text}", markup=False)
        if text.lower().rstrip(" .!") in LEAVING:
            return
        yield text


def _lines(console: Console) -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from sys.stdin
    try:
        while sys.stdin.isatty():
            yield console.input("[bold]you[/]   ")
    except EOFError:  # Ctrl-D, which ends no line
        console.print()


def _report(options: argparse.Namespace) -> int:
    from .report import read_report, render_report, save_chart

    if options.png:
        _check_picture(options.png)
    if not options.url and not Path(options.data).exists():
        raise UnusableError(f"there is no store at {options.data}: import or chat makes one")
    console = Console(highlight=False)
    with open_memory(options) as memory:
        user = memory.entity("user", options.user)
        if next(memory.app_state.keys(user.prefix), None) is None:
            raise UnusableError(f"nothing is remembered of a user {options.user!r} in {options.url or options.data}")
        report = read_report(user, options.today)
    console.print(render_report(console, report))
    if options.png:
        save_chart(options.png, [report])
        console.print(f"The chart is in {options.png}", markup=False, soft_wrap=True)
    return 0


def _check_picture(path: Path) -> None:
    if path.is_dir():
        raise UnusableError(f"{path} is a folder: name the file that the chart is to be written to")
    if path.suffix.lower() not in ("", ".png"):
        raise UnusableError(f"the chart is a PNG: {path} has the name of something else")


def _import(options: argparse.Namespace) -> int:
    found = read_activities(options.file, columns=dict(options.column), date_format=options.date_format)
    with open_memory(options) as memory:
        workouts = memory.entity("user", options.user).collection(Workout)
        imported = add_activities(workouts, found.workouts)
    print(f"{len(imported.added)} added, {len(imported.known)} already there, {len(found.bad_rows)} could not be read")
    if imported.differing:
        print(f"{len(imported.differing)} were changed on Strava since and are left as they were imported:")
        _print_some(imported.differing)
    _print_some([f"{options.file}:{row.line}: {row.reason}" for row in found.bad_rows], file=sys.stderr)
    return 1 if found.bad_rows else 0


def _demo(options: argparse.Namespace) -> int:
    from .agent import choose_model
    from .demo import run_demo

    choose_model(options.model)  # fail here rather than in three processes
    return run_demo(options)


def _print_some(lines: Sequence[str], file: TextIO | None = None) -> None:
    for line in lines[:SHOWN_LINES]:
        print(f"  {line}", file=file)
    if len(lines) > SHOWN_LINES:
        print(f"  … and {len(lines) - SHOWN_LINES} more", file=file)


# -- arguments -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.fitness_tracker", description="A fitness coach that remembers."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    chat = commands.add_parser("chat", help="talk to the coach; lines from a pipe will do")
    _add_store(chat)
    _add_user(chat)
    _add_model(chat)
    chat.set_defaults(run=_chat)

    report = commands.add_parser("report", help="show what is remembered, as tables and a chart")
    _add_store(report)
    _add_user(report)
    report.add_argument("--png", type=Path, metavar="FILE", help="also draw the chart into this file")
    report.add_argument(
        "--today",
        type=_day,
        default=date.today(),
        metavar="YYYY-MM-DD",
        help="the day the report is made for (default: today)",
    )
    report.set_defaults(run=_report)

    importing = commands.add_parser("import", help="add the activities.csv of a Strava export")
    _add_store(importing)
    _add_user(importing)
    importing.add_argument("file", type=Path, metavar="FILE.csv")
    importing.add_argument(
        "--column",
        type=_column,
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help=f"what a column is called here, if the file is not in English: {', '.join(FIELDS)}",
    )
    importing.add_argument("--date-format", help="how dates are written, for example '%%d.%%m.%%Y, %%H:%%M:%%S'")
    importing.set_defaults(run=_import)

    demo = commands.add_parser("demo", help="three users, three processes, two days: see that nothing is lost")
    _add_store(demo, data=None, application=None)
    _add_model(demo)
    demo.add_argument(
        "--output", type=Path, default=Path("demo-output"), metavar="FOLDER", help="(default: demo-output)"
    )
    demo.set_defaults(run=_demo)
    return parser


def _add_store(
    parser: argparse.ArgumentParser, data: str | None = "fitness.db", application: str | None = "fitness"
) -> None:
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--data", default=data, metavar="FILE", help=f"the store (default: {data or 'a new one'})")
    place.add_argument("--url", type=_http_url, help="a server instead: http://127.0.0.1:8420, from agent-memory serve")
    parser.add_argument(
        "--token",
        default=os.environ.get("AGENT_MEMORY_TOKEN"),
        help="what the server asks for (default: AGENT_MEMORY_TOKEN)",
    )
    parser.add_argument("--namespace", default="default", help="the tenant that the token is for (default: default)")
    parser.add_argument("--application", default=application, help=f"(default: {application or 'a new one'})")


def _add_user(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", required=True, type=_user, help="whose memory it is: any name will do")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="PROVIDER:NAME",
        help="a chat model for LangChain's init_chat_model; without it, a stand-in that works by rules",
    )


def _user(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("a user needs a name")
    return text


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day: write 2026-04-19") from None
    if day.year <= 1970:  # the weeks before it are looked at, too, and no workout is older
        raise argparse.ArgumentTypeError(f"{text} is too long ago")
    return day


def _http_url(text: str) -> str:
    if not text.lower().startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} does not start with http:// or https://")
    return text


def _column(text: str) -> tuple[str, str]:
    name, _, column = (part.strip() for part in text.partition("="))
    if not column:
        raise argparse.ArgumentTypeError("write NAME=COLUMN, such as 'Activity Date=Aktivitätsdatum'")
    if name not in FIELDS:
        raise argparse.ArgumentTypeError(f"{name!r} is not among the columns that are read: {', '.join(FIELDS)}")
    return name, column
