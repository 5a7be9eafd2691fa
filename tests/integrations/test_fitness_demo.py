"""The commands of the fitness tracker as users run them, and the demo's verdict."""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from agent_memory import AgentMemory
from examples.fitness_tracker import demo
from examples.fitness_tracker.agent import club_of
from examples.fitness_tracker.checking import Expected, Fact, NoteAbout, Ran, verify
from examples.fitness_tracker.cli import main
from examples.fitness_tracker.models import Club, Note, Preferences, Profile, Workout
from examples.fitness_tracker.summary import weekly
from tests.support.server import ROOT, ServerProcess, child_environment

DAY = date(2026, 4, 18)
PNG = b"\x89PNG\r\n\x1a\n"


def run(*arguments: str | Path, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "examples.fitness_tracker", *map(str, arguments)]
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
    assert max(map(len, done.stdout.splitlines()[6:-5])) <= 80
    days = re.findall(r"processes (\d+), (\d+), (\d+)", done.stdout)
    assert len({pid for day in days for pid in day}) == 6
    [chart] = tmp_path.glob("*/weekly.png")
    assert chart.read_bytes().startswith(PNG)
    assert str(chart) in done.stdout


def test_the_demo_runs_against_a_server_in_an_application_of_its_own(tmp_path: Path, server: ServerProcess) -> None:
    done = run("demo", "--output", tmp_path, "--url", server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing was lost." in done.stdout
    assert re.search(rf"--url {server.url} --application demo-[\w-]+$", done.stdout, re.M)


def test_the_demo_runs_in_an_application_that_is_named_and_empty(tmp_path: Path, server: ServerProcess) -> None:
    arguments = ("demo", "--output", tmp_path, "--url", server.url, "--application", "shop")
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--application shop" in done.stdout

    again = run(*arguments)
    assert again.returncode == 2
    assert "'shop' is not empty" in again.stderr


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


def test_report_of_somebody_unknown_says_that_there_is_nothing_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--user", "zoe", "--data", str(tmp_path / "fitness.db")]
    assert main(["report", *store, "--png", str(tmp_path / "zoe.png")]) == 0
    assert "zoe: 0 workouts\nNothing to show yet" in capsys.readouterr().out
    assert (tmp_path / "zoe.png").read_bytes().startswith(PNG)


def test_a_server_that_is_not_there_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("examples.fitness_tracker.cli.open_memory", unreachable)
        assert main(["report", "--user", "ada", "--url", "http://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.startswith("fitness_tracker: ")


def unreachable(_: object) -> AgentMemory:
    return AgentMemory("http://127.0.0.1:1", application="fitness", timeout=0.2)


def test_weeks_begin_on_monday_and_those_without_a_workout_count() -> None:
    def ran(day: int, km: float | None, sport: str = "running") -> Workout:
        return Workout(sport=sport, when=datetime(2026, 4, day, 12, tzinfo=UTC), distance_km=km)

    weeks = weekly([ran(13, 5.0), ran(19, 2.5), ran(19, 20.0, "cycling"), ran(12, 3.0), ran(14, None)], DAY, weeks=3)
    assert weeks == [
        (date(2026, 3, 30), {}),
        (date(2026, 4, 6), {"running": 3.0}),
        (date(2026, 4, 13), {"running": 7.5, "cycling": 20.0}),
    ]
