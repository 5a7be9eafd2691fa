"""The commands of the fitness tracker as users run them, and the demo's verdict."""

import io
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console

from agent_memory import AgentMemory
from examples.fitness_tracker import cli, demo, opening
from examples.fitness_tracker.agent import club_of
from examples.fitness_tracker.checking import Expected, Fact, NoteAbout, Ran, verify
from examples.fitness_tracker.cli import main
from examples.fitness_tracker.models import Club, Note, Preferences, Profile, Workout
from examples.fitness_tracker.report import read_report, save_chart, week_bars
from examples.fitness_tracker.summary import weekly
from tests.support.server import ROOT, WARNINGS_ARE_ERRORS, ServerProcess, child_environment

DAY = date(2026, 4, 18)
PNG = b"\x89PNG\r\n\x1a\n"


def run(*arguments: str | Path, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *WARNINGS_ARE_ERRORS, "-m", "examples.fitness_tracker", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=child_environment(PYTHONIOENCODING="utf-8"), input=said, capture_output=True, text=True,
        encoding="utf-8", timeout=100, check=False,
    )  # fmt: skip


# -- the demo's verdict ----------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[AgentMemory]:
    """What two users would leave behind who told everything that ``expected`` says."""
    with AgentMemory("memory://", application="fitness") as memory:
        now = datetime(2026, 4, 18, tzinfo=UTC)
        ada, bob = memory.entity("user", "ada"), memory.entity("user", "bob")
        ada.document(Profile).set(Profile(name="Ada", goals=["run a half marathon"]))
        ada.collection(Workout).add(Workout(sport="running", when=now, distance_km=5.0, duration_s=1710))
        ada.collection(Workout).add(Workout(sport="running", when=now, source="strava-1"))
        bob.collection(Workout).add(Workout(sport="cycling", when=now, distance_km=42.195))
        bob.collection(Note).add(Note(text="my knee hurts", when=now))
        club_of(memory).set(Club(metres=47_195, workouts=2, laps=20))
        yield memory


def expected() -> dict[str, Expected]:
    ada, bob = Expected(imported=1), Expected()
    for fact in (Fact("name", "Ada"), Fact("goals", "half marathon"), Ran("running", DAY, 5.0, 1710)):
        ada.add(fact)
    bob.add(Ran("cycling", DAY, 42.195, None))
    bob.add(NoteAbout("knee"))
    return {"ada": ada, "bob": bob}


def problems(memory: AgentMemory, wanted: dict[str, Expected], laps: int = 20) -> list[str]:
    return [problem for check in verify(memory, wanted, laps=laps) for problem in check.problems]


def test_nothing_is_missed_where_everything_is_there(memory: AgentMemory) -> None:
    assert problems(memory, expected()) == []


def test_what_was_forgotten_is_not_counted_as_remembered(memory: AgentMemory) -> None:
    wanted = expected()
    assert "2 facts" in verify(memory, wanted, laps=20)[0].text
    wanted["ada"].add(Fact("weight_kg", None))
    assert "2 facts" in verify(memory, wanted, laps=20)[0].text


@pytest.mark.parametrize(
    ("fact", "problem"),
    [
        (Ran("swimming", DAY, 1.0, None), "lost workout: Ran(sport='swimming'"),
        (Ran("running", DAY, 5.0, 1710), "lost workout: Ran(sport='running'"),
        (Fact("weight_kg", 61.0), "weight_kg is None instead of 61.0"),
        (Fact("goals", "triathlon"), "goals without 'triathlon'"),
        (NoteAbout("hip"), "notes without 'hip'"),
    ],
)
def test_a_fact_that_was_told_and_is_not_there_is_found(
    memory: AgentMemory, fact: Fact | Ran | NoteAbout, problem: str
) -> None:
    wanted = expected()
    wanted["ada"].add(fact)
    assert problems(memory, wanted)[0].startswith(problem)


def test_a_lost_update_of_the_club_is_found(memory: AgentMemory) -> None:
    assert problems(memory, expected(), laps=21) == ["20 laps instead of 21"]
    club_of(memory).update(metres=5_000)
    assert problems(memory, expected()) == ["5000 metres instead of 47195"]


def test_what_belongs_to_somebody_else_is_found(memory: AgentMemory) -> None:
    bob = memory.entity("user", "bob")
    bob.document(Profile).set(Profile(goals=["run a half marathon"]))
    bob.document(Preferences).set(Preferences(units="miles"))
    bob.collection(Workout).add(Workout(sport="running", when=datetime(2026, 4, 18, tzinfo=UTC), distance_km=5.0))
    assert problems(memory, expected()) == [
        "workout that nobody told: Ran(sport='running', day=datetime.date(2026, 4, 18), distance_km=5.0, "
        "duration_s=None)",
        "units is 'miles' instead of 'km'",
        "goals hold what nobody said: 'run a half marathon'",
    ]


def test_the_demo_fails_when_nothing_was_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_live", lambda *_: [])
    assert main(["demo", "--output", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "Something was lost." in out
    assert "goals without 'half marathon'" in out
    assert "0 laps instead of 300" in out


def test_the_demo_in_real_processes_loses_nothing(tmp_path: Path) -> None:
    done = run("demo", "--output", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing was lost." in done.stdout
    assert "300 of 300 laps" in done.stdout
    assert 'You said: "my knee hurts after long runs".' in done.stdout
    assert "\x1b" not in done.stdout  # no colours into a pipe
    assert max(map(len, done.stdout.splitlines()[6:-6])) <= 80
    days = re.findall(r"processes (\d+), (\d+), (\d+)", done.stdout)
    assert len({pid for day in days for pid in day}) == 6
    [chart] = tmp_path.glob("*/weekly.png")
    assert chart.read_bytes().startswith(PNG)
    assert str(chart) in done.stdout
    assert "running 3.1 miles today in 31:00 (10:00 per mile)" in " ".join(done.stdout.split())
    [line] = re.findall(r"-m examples.fitness_tracker (report .*)$", done.stdout, re.M)
    report = run(*shlex.split(line))
    assert (report.returncode, report.stderr) == (0, "")
    assert re.search(r"13 Apr [█#]+ 17\.8", report.stdout)


def test_an_interrupt_while_the_demos_processes_start_prints_no_traceback() -> None:
    code = (
        "import os, signal\n"
        "from multiprocessing import forkserver\n"
        "from examples.fitness_tracker.demo import _fresh_processes\n"
        "context = _fresh_processes()\n"
        "forkserver.ensure_running()\n"
        "os.kill(forkserver._forkserver._forkserver_pid, signal.SIGINT)\n"
        "process = context.Process(target=print, args=('it lives',))\n"
        "process.start(), process.join()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("it lives\n", "")


def test_the_demo_takes_an_application_of_its_own_in_a_server(
    tmp_path: Path, server: ServerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_live", lambda *_: [])
    main(["demo", "--output", str(tmp_path), "--url", server.url])
    assert re.search(rf"--url {server.url} --application demo-[\w-]+$", capsys.readouterr().out, re.M)


def test_the_demo_runs_against_a_server_in_an_application_that_is_named_and_empty(
    tmp_path: Path, server: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", "--output", str(tmp_path), "--url", server.url, "--application", "shop"]
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing was lost." in done.stdout
    assert "--application shop" in done.stdout

    assert main(arguments) == 2
    assert "'shop' is not empty" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1  # the folder of the first


@pytest.mark.parametrize("folder", ["a-file", "a-file/below"])
def test_a_folder_that_cannot_be_made_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    (tmp_path / "a-file").write_text("this")
    assert main(["demo", "--output", str(tmp_path / folder)]) == 2
    assert re.fullmatch(r"fitness_tracker: --output: the folder .* cannot be made: .*\n", capsys.readouterr().err)


# -- the other commands ----------------------------------------------------------------------------------------------


def test_chat_reads_lines_from_a_pipe_and_remembers_them(tmp_path: Path) -> None:
    store = ("--user", "ada", "--data", tmp_path / "fitness.db")
    first = run("chat", *store, said="My name is Ada.\n\nRan 5 km.\n")
    assert first.stdout.splitlines() == [
        "you   My name is Ada.",
        "coach Nice to meet you, Ada.",
        "you   Ran 5 km.",
        "coach Logged: running 5 km today.",
    ]
    assert run("chat", *store, said="Hello").stdout.splitlines()[1].startswith("coach Hello Ada!")


def test_a_user_without_a_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["chat", "--user", " "])

    assert "a user needs a name" in capsys.readouterr().err


def test_chat_at_a_terminal_says_where_it_remembers_and_how_it_ends(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, b"My name is Ada\nRan 5 km in 28:30, and my knee hurts after long runs.\n\x04")
    done = subprocess.run(
        [sys.executable, "-m", "examples.fitness_tracker", "chat", "--user", "ada"],
        cwd=tmp_path, env=child_environment(PYTHONIOENCODING="utf-8", COLUMNS="70"), stdin=theirs, capture_output=True,
        text=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)

    assert "fitness.db keeps what I learn of ada; quit ends the chat." in " ".join(done.stdout.split())
    assert re.search(r"coach Logged: .*\n {6}\S", done.stdout, re.M)
    assert done.stdout.endswith("\n")


@pytest.mark.parametrize("leaving", ["quit", "Bye!", "exit"])
def test_chat_ends_when_somebody_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], leaving: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Hello\n{leaving}\nRan 5 km.\n"))
    assert main(["chat", "--user", "ada", "--data", str(tmp_path / "fitness.db")]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [f"you   {leaving}"]


def test_import_reports_bad_rows_and_says_so_in_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "activities.csv"
    export.write_text(
        "Activity ID,Activity Date,Activity Type,Distance\n1,2026-04-18 08:00:00,Run,5.0\n2,soon,Run,5.0\n"
    )
    store = ["--user", "ada", "--data", str(tmp_path / "fitness.db")]
    assert main(["import", *store, str(export)]) == 1
    assert capsys.readouterr() == (
        "1 added, 0 already there, 1 could not be read\n", f"  {export}:3: 'soon' is not a date\n"
    )  # fmt: skip
    export.write_text(export.read_text().replace("soon", "2026-04-19 08:00:00"))
    assert main(["import", *store, str(export)]) == 0
    assert main(["import", *store, str(export)]) == 0
    assert capsys.readouterr().out == (
        "1 added, 1 already there, 0 could not be read\n0 added, 2 already there, 0 could not be read\n"
    )
    export.write_text(export.read_text().replace("5.0", "6.0"))
    assert main(["import", *store, str(export)]) == 0
    assert "2 were changed on Strava since and are left as they were imported:\n  strava-1\n" in capsys.readouterr().out


def test_import_of_something_else_adds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--user", "ada", "--data", str(tmp_path / "fitness.db")]
    assert main(["import", *store, str(tmp_path / "nowhere.csv")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert not (tmp_path / "fitness.db").exists()


def test_report_shows_tables_and_a_chart_and_draws_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--user", "ada", "--data", str(tmp_path / "fitness.db")]
    chart = tmp_path / "charts" / "ada.png"
    main(["import", *store, str(ROOT / "examples/fitness_tracker/exports/ada.csv")])
    assert main(["report", *store, "--today", "2026-04-19", "--png", str(chart)]) == 0
    out = capsys.readouterr().out
    assert "ada: 18 workouts" in out
    assert re.search(r"running +9 +74\.0 +7:02:14", out)
    assert re.search(r"6 Apr [█#]+ 12\.2", out)
    assert chart.read_bytes().startswith(PNG)


@pytest.fixture
def told(tmp_path: Path) -> list[str]:
    """The options of a store where ada ran on New Year's Eve of 2025, and bob said his name."""
    path = str(tmp_path / "fitness.db")
    with AgentMemory(path, application="fitness") as memory:
        ran = Workout(sport="running", when=datetime(2025, 12, 31, tzinfo=UTC), distance_km=5.0)
        memory.entity("user", "ada").collection(Workout).add(ran)
        memory.entity("user", "bob").document(Profile).set(Profile(name="Bob"))
    return ["--data", path]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that is to be refused in one line, and return that."""
    assert main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.removeprefix("fitness_tracker: ").strip()


def test_report_of_somebody_unknown_is_refused(
    tmp_path: Path, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "report", "--user", "zoe", *told, "--png", tmp_path / "zoe.png")
    assert said == f"nothing is remembered of a user 'zoe' in {told[1]}"
    assert not (tmp_path / "zoe.png").exists()


def test_report_makes_no_store_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = tmp_path / "ftiness.db"
    assert (
        refused(capsys, "report", "--user", "ada", "--data", absent)
        == f"there is no store at {absent}: import or chat makes one"
    )
    assert list(tmp_path.iterdir()) == []


def test_report_of_somebody_without_workouts_says_so(told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--user", "bob", *told]) == 0
    assert "Bob: 0 workouts\nNothing to show yet" in capsys.readouterr().out


def test_report_says_when_nothing_happened_lately(told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--user", "ada", *told, "--today", "2026-04-19"]) == 0
    assert "  No workout in the last 12 weeks; the latest was on 31 Dec 2025." in capsys.readouterr().out


def test_dates_of_another_year_carry_it(told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--user", "ada", *told, "--today", "2026-01-06"]) == 0
    out = capsys.readouterr().out
    assert "31 Dec 2025 " in out
    assert re.search(r"^ +29 Dec 2025 [█#]+ 5\.0 *$", out, re.M)
    assert re.search(r"^ +5 Jan [.·] *$", out, re.M)


@pytest.mark.parametrize("name", ["chart", "chart.PNG", "folder.d/chart.png"])
def test_the_chart_is_written_to_the_file_that_was_named(
    tmp_path: Path, told: list[str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    chart = tmp_path / "charts" / name
    assert main(["report", "--user", "ada", *told, "--png", str(chart)]) == 0
    assert capsys.readouterr().out.endswith(f"The chart is in {chart}\n")
    assert chart.read_bytes().startswith(PNG)
    assert [path for path in (tmp_path / "charts").rglob("*") if path.is_file()] == [chart]


def test_a_chart_is_not_written_under_the_name_of_something_else(
    tmp_path: Path, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text = tmp_path / "folder", tmp_path / "x.txt"
    folder.mkdir()
    assert "is a folder" in refused(capsys, "report", "--user", "ada", *told, "--png", folder)
    assert "the chart is a PNG" in refused(capsys, "report", "--user", "ada", *told, "--png", text)
    assert not text.exists()
    assert not folder.with_suffix(".png").exists()


def test_a_chart_that_cannot_be_written_is_a_clear_error(
    tmp_path: Path, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-file").write_text("this")
    assert main(["report", "--user", "ada", *told, "--png", str(tmp_path / "a-file" / "chart.png")]) == 2
    assert re.fullmatch(r"fitness_tracker: the chart cannot be written to .*\n", capsys.readouterr().err)


def test_report_shows_what_was_said_as_it_is_and_lets_none_of_it_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, chart = str(tmp_path / "fitness.db"), tmp_path / "chart.png"
    with AgentMemory(path, application="fitness") as memory:
        for sport, note in (("[/b]", "[red]\x1b[31m"), (r"$\frac{$", "two\nlines"), ("スキー", "")):
            workout = Workout(sport=sport, when=datetime(2026, 4, 18, tzinfo=UTC), distance_km=5.0, note=note)
            memory.entity("user", "ada").collection(Workout).add(workout)
    assert main(["report", "--user", "ada", "--data", path, "--today", "2026-04-19", "--png", str(chart)]) == 0
    out = capsys.readouterr().out
    assert all(said in out for said in ("[/b]", r"$\frac{$", "[red] [31m", "two lines"))
    assert "\x1b" not in out


def test_the_chart_and_the_terminal_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    console = Console(width=80)
    with AgentMemory("memory://", application="fitness") as memory:
        ada = memory.entity("user", "ada")
        for sport in ("running", "cycling", "swimming", "rowing"):
            ada.collection(Workout).add(Workout(sport=sport, when=datetime(2026, 4, 18, tzinfo=UTC), distance_km=1.04))
        report = read_report(ada, DAY)
    save_chart(tmp_path / "chart.png", [report])
    with console.capture() as shown:
        console.print(week_bars(console, report))
    assert shown.get().split()[-1] == "4.2"
    panel = figures[0].axes[0]
    assert [text.get_text() for text in panel.texts] == ["4.2"]
    assert max(bar.get_bbox().y1 for bar in panel.patches if isinstance(bar, Rectangle)) == pytest.approx(4.16)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process cannot be changed here")
@pytest.mark.parametrize("zone", ["UTC+12", "UTC-14"])  # between them it is never the same day
def test_report_is_made_for_the_day_where_the_user_is(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    try:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        before = date.today()
        assert before <= cli._parser().parse_args(["report", "--user", "ada"]).today <= date.today()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_server_that_is_not_there_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "ANSWER_SECONDS", 0.2)
    url = "http://127.0.0.1:1"
    for command in (["chat", "--user", "ada"], ["report", "--user", "ada"], ["demo", "--output", str(tmp_path)]):
        started = time.monotonic()
        assert main([*command, "--url", url]) == 2
        assert time.monotonic() - started < 5
        assert capsys.readouterr().err == f"fitness_tracker: nothing answers at {url}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_address_without_a_scheme_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["chat", "--user", "ada", "--url", "127.0.0.1:8420"])
    assert "'127.0.0.1:8420' does not start with http:// or https://" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("day", "said"), [("19.4.2026", "'19.4.2026' is not a day: write 2026-04-19"), ("0001-01-01", "is too long ago")]
)
def test_a_day_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], day: str, said: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["report", "--user", "ada", "--today", day])
    assert said in capsys.readouterr().err


def test_a_column_that_nobody_reads_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["import", "--user", "ada", "activities.csv", "--column", "Foo=Bar"])
    assert "'Foo' is not among the columns that are read: Activity ID, Activity Date" in capsys.readouterr().err


def test_a_token_of_another_namespace_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-secret-token-of-acme acme fitness\n")
    tokens.chmod(0o600)
    with ServerProcess(tmp_path, "--token-file", str(tokens)) as server:
        place = ["--user", "ada", "--url", server.url, "--token", "a-secret-token-of-acme"]
        export = str(ROOT / "examples/fitness_tracker/exports/ada.csv")
        assert main(["import", *place, export]) == 2
        assert main(["import", *place, "--namespace", "acme", export]) == 0
    assert capsys.readouterr().out.startswith("18 added")


def test_weeks_begin_on_monday_and_those_without_a_workout_count() -> None:
    def ran(day: int, km: float | None, sport: str = "running") -> Workout:
        return Workout(sport=sport, when=datetime(2026, 4, day, 12, tzinfo=UTC), distance_km=km)

    weeks = weekly([ran(13, 5.0), ran(19, 2.5), ran(19, 20.0, "cycling"), ran(12, 3.0), ran(14, None)], DAY, weeks=3)
    assert weeks == [
        (date(2026, 3, 30), {}),
        (date(2026, 4, 6), {"running": 3.0}),
        (date(2026, 4, 13), {"running": 7.5, "cycling": 20.0}),
    ]
