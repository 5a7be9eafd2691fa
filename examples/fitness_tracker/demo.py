"""The demo: three users talk to the coach at once, each in a process of their own, on two days.

Between the days every process ends; what the second day knows of the first comes from the store alone. At the end the
store is compared with what the script says must be remembered: the coach's own words count for nothing.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date, datetime
from multiprocessing import forkserver, get_all_start_methods, get_context
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any, Final, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent_memory import AgentMemory

from .agent import Conversation, choose_model, club_of
from .checking import Check, verify
from .importing import add_activities, read_activities
from .models import Note, NotEmptyError, Preferences, Profile, UnusableError, Workout
from .opening import open_memory
from .script import DAY_ONE, DAY_TWO, SCRIPT, Line, expectations, export_of

LAPS: Final = 50
"""Laps of the charity run that each process counts, one update each, at the same time as the others."""


class Day(NamedTuple):
    """What a process needs to know to live through a user's day."""

    memory: AgentMemory  # pickled to the process, which opens the store anew
    user: str
    today: date
    lines: list[Line]
    model: str | None


class Diary(NamedTuple):
    """What happened to a user on a day."""

    user: str
    pid: int
    imported: int | None
    exchanges: list[tuple[str, str]]


def run_demo(options: argparse.Namespace) -> int:
    """Run both days, show what happened and what is remembered, and check it. Returns 1 if anything was lost."""
    from .report import read_report, save_chart, week_bars

    console = Console(highlight=False, width=min(100, Console().width))
    started = time.monotonic()
    name = f"demo-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = options.output / name
    # A store that is not new may hold an earlier demo: unless told otherwise, every run has an application of its own.
    given = options.url or options.data
    store = argparse.Namespace(**vars(options))
    store.application = options.application or (name if given else "fitness")
    store.data = options.data or str(folder / "fitness.db")
    place = ["--url", options.url] if options.url else ["--data", store.data]
    place += ["--namespace", options.namespace] if options.namespace != "default" else []
    place += ["--application", store.application] if store.application != "fitness" else []
    coach = options.model or "a stand-in that works by rules; --model takes a real one"
    console.print("[bold]Fitness tracker: three users, three processes, one store[/]")
    _say(console, "Store", given or store.data)
    _say(console, "Coach", coach)
    console.print()
    with _new_folder(folder), open_memory(store) as memory:
        if next(memory.app_state.keys(), None) is not None:
            raise NotEmptyError(
                f"the demo needs an application that holds nothing yet; {store.application!r} is not empty"
            )
        for title, day in (("Day one", DAY_ONE), ("Day two", DAY_TWO)):
            # On a terminal only, and of ASCII.
            with console.status(f"{title}: three processes start, and talk to the coach", spinner="line"):
                diaries = _live(memory, day, options.model)
            _print_day(console, title, day, diaries)
        users = list(SCRIPT[DAY_ONE])
        reports = [read_report(memory.entity("user", user), DAY_TWO) for user in users]
        _print_remembered(console, memory, users)
        console.print(f"[bold]Ada's {reports[0].units} per week[/]")
        console.print(week_bars(console, reports[0]))
        save_chart(folder / "weekly.png", reports)
        checks = verify(memory, expectations(), laps=len(SCRIPT) * len(users) * LAPS)
    _print_checks(console, checks)
    console.print()
    _say(console, "Chart", str(folder / "weekly.png"))
    ada = ["--user", "ada", *place]
    _say(console, "Go on", shlex.join([_python(), "-m", "examples.fitness_tracker", "chat", *ada]))
    # The demo's days may be long past: seen from today, there could be nothing in the weeks that a report shows.
    seen = ["--today", DAY_TWO.isoformat()]
    _say(console, "", shlex.join([_python(), "-m", "examples.fitness_tracker", "report", *ada, *seen]))
    lost = [check for check in checks if not check.ok]
    verdict = "[bold red]Something was lost.[/]" if lost else "[bold green]Nothing was lost.[/]"
    console.print(f"\n{verdict} {time.monotonic() - started:.0f} seconds.")
    return 1 if lost else 0


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and take it away again if nothing came of it: a demo that is refused leaves nothing behind."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UnusableError(f"--output: the folder {folder} cannot be made: {error.strerror or error}") from None
    try:
        yield
    except BaseException:
        with suppress(OSError):  # something is in it
            folder.rmdir()
        raise


# -- a day ------------------------------------------------------------------------------------------------------------


def _live(memory: AgentMemory, today: date, model: str | None) -> list[Diary]:
    """Let each user live through a day, in fresh processes that all begin to talk at the same moment."""
    days = [Day(memory, user, today, lines, model) for user, lines in SCRIPT[today].items()]
    context = _fresh_processes()
    barrier = context.Barrier(len(days))
    with ProcessPoolExecutor(len(days), context, initializer=_meet_at, initargs=(barrier,)) as pool:
        return list(pool.map(_live_through, days))


def _fresh_processes() -> Any:
    """Return how to start processes that share nothing with this one.

    A fork server is a process of its own that imports the agent once, and opens no store. It is not for Ctrl-C, which
    reaches it too, to end that import with a traceback; ``_meet_at`` lets the processes be interrupted again.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["examples.fitness_tracker.demo"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


_barrier: Any = None


def _meet_at(barrier: Any) -> None:
    global _barrier
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _barrier = barrier


def _live_through(day: Day) -> Diary:
    with day.memory as memory:
        conversation = Conversation(memory, day.user, choose_model(day.model), today=lambda: day.today)
        _wait_for_the_others()
        imported = None
        if day.today == DAY_ONE:
            workouts = memory.entity("user", day.user).collection(Workout)
            imported = len(add_activities(workouts, read_activities(export_of(day.user)).workouts).added)
        exchanges = [(line.text, conversation.say(line.text).answer) for line in day.lines]
        _wait_for_the_others()
        club = club_of(memory)
        for _ in range(LAPS):
            club.update(_one_lap_more)
        return Diary(day.user, os.getpid(), imported, exchanges)


def _one_lap_more(club: Any) -> None:
    club.laps += 1


def _wait_for_the_others() -> None:
    try:
        _barrier.wait(timeout=60)
    except BrokenBarrierError:
        raise RuntimeError("the other processes of the demo did not come along") from None


def _python() -> str:
    """Return what starts this interpreter: the one of make's .venv has everything that is needed."""
    python, here = Path(sys.executable), Path.cwd()
    return str(python.relative_to(here) if python.is_relative_to(here) else python)


# -- what it looks like ----------------------------------------------------------------------------------------------


def _say(console: Console, label: str, text: str) -> None:
    console.print(f"[dim]{label:<6}[/] ", Text(text), sep="", soft_wrap=True)


def _print_day(console: Console, title: str, day: date, diaries: Sequence[Diary]) -> None:
    pids = ", ".join(str(diary.pid) for diary in diaries)
    console.print(f"[bold]{title}[/], {day:%A} {day.day} {day:%B}: all three at once, processes {pids}")
    for diary in diaries:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=6, no_wrap=True)
        table.add_column()
        if diary.imported is not None:
            table.add_row("", Text(f"{diary.user} imports a Strava export: {diary.imported} activities", style="dim"))
        for said, answered in diary.exchanges:
            table.add_row(Text(diary.user, style="bold cyan"), Text(said, style="cyan"))
            table.add_row("coach", Text(answered))
        console.print(table)
        console.print()


def _print_remembered(console: Console, memory: AgentMemory, users: Sequence[str]) -> None:
    table = Table(box=SIMPLE_HEAD, header_style="dim", title="What is remembered", title_justify="left",
                  title_style="bold")  # fmt: skip
    for name in ("User", "Profile", "Preferences", "Workouts", "Notes"):
        table.add_column(name, justify="right" if name == "Workouts" else "left", overflow="fold")
    for user in users:
        entity = memory.entity("user", user)
        table.add_row(
            user,
            _filled(entity.document(Profile).get()),
            _filled(entity.document(Preferences).get()),
            str(len(entity.collection(Workout).list())),
            Text("\n".join(item.value.text for item in entity.collection(Note).list())),
        )
    console.print(table)


def _filled(model: Profile | Preferences | None) -> Text:
    """Return the fields that hold something, a line each."""
    fields = {} if model is None else model.model_dump(exclude_defaults=True, mode="json")
    lines = [f"{name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in fields.items()]
    return Text("\n".join(lines))


def _print_checks(console: Console, checks: Sequence[Check]) -> None:
    console.print("\n[bold]Was anything lost?[/] What was said, counted against what the store holds:")
    tick, cross = ("ok", "LOST") if console.options.ascii_only else ("✓", "✗")
    table = Table.grid(padding=(0, 1))
    for check in checks:
        table.add_row(Text(tick, style="green") if check.ok else Text(cross, style="bold red"), Text(check.text))
        for problem in check.problems:
            table.add_row("", Text(problem, style="red"))
    console.print(table)
