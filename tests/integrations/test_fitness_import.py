"""Importing a Strava export into a user's memory."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent_memory import AgentMemory, Collection, item_id
from examples.fitness_tracker.importing import UnreadableFileError, add_activities, read_activities
from examples.fitness_tracker.models import Workout

# The first columns of a real export: Elapsed Time and Distance occur twice.
HEADER = (
    "Activity ID,Activity Date,Activity Name,Activity Type,Activity Description,Elapsed Time,Distance,"
    "Max Heart Rate,Filename,Elapsed Time,Moving Time,Distance,Max Speed"
)
RUN = '101,"Nov 3, 2025, 6:12:33 AM",Morning Run,Run,,1710,5.02,171,activities/101.gpx.gz,1710.0,1700.0,5020.1,4.1'
SWIM = '102,"Nov 4, 2025, 7:00:00 PM",Pool,Swim,,2400,"1,500",150,,2400.0,2300.0,1500.0,1.2'


@pytest.fixture
def workouts() -> Iterator[Collection[Workout]]:
    with AgentMemory("memory://", application="fitness") as memory:
        yield memory.entity("user", "ada").collection(Workout)


def export(tmp_path: Path, *rows: str, header: str = HEADER, encoding: str = "utf-8") -> Path:
    path = tmp_path / "activities.csv"
    path.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
    return path


def only_workout(path: Path, **options: object) -> Workout:
    found = read_activities(path, **options)  # type: ignore[arg-type]
    assert found.bad_rows == []
    [workout] = found.workouts.values()
    return workout


def test_a_row_becomes_a_workout_with_the_activity_id_in_its_own(tmp_path: Path) -> None:
    assert read_activities(export(tmp_path, RUN)).workouts == {
        "strava-101": Workout(
            sport="running",
            when=datetime(2025, 11, 3, 6, 12, 33, tzinfo=UTC),
            distance_km=5.02,
            duration_s=1710,
            note="Morning Run",
            source="strava-101",
        )
    }


def test_of_two_distance_columns_the_one_in_metres_counts(tmp_path: Path) -> None:
    assert only_workout(export(tmp_path, SWIM)).distance_km == 1.5


@pytest.mark.parametrize(
    ("kind", "shown", "km"),
    [("Run", "5.02", 5.02), ("Ride", "120", 120.0), ("Swim", '"1,500"', 1.5), ("Yoga", "", None)],
)
def test_a_lone_distance_column_is_kilometres_and_in_the_water_metres(
    tmp_path: Path, kind: str, shown: str, km: float | None
) -> None:
    header = "Activity ID,Activity Date,Activity Type,Distance"
    assert only_workout(export(tmp_path, f"1,2025-11-03 06:12:33,{kind},{shown}", header=header)).distance_km == km


def test_an_export_as_short_as_four_columns_is_enough(tmp_path: Path) -> None:
    header = "Activity Type,Activity ID,Activity Date,Distance"
    workout = only_workout(export(tmp_path, "Hike,7,2025-11-03 06:12:33,11", header=header))
    assert (workout.sport, workout.duration_s, workout.note) == ("hiking", None, None)


@pytest.mark.parametrize("written", ["Nov 3, 2025, 6:12:33 AM", "Nov 3, 2025, 6:12:33\u202fAM", "3 Nov 2025, 06:12:33"])
def test_dates_are_read_as_strava_writes_them(tmp_path: Path, written: str) -> None:
    row = RUN.replace("Nov 3, 2025, 6:12:33 AM", written)
    assert only_workout(export(tmp_path, row)).when == datetime(2025, 11, 3, 6, 12, 33, tzinfo=UTC)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "activities.csv"
    path.write_bytes(("\ufeff" + "\r\n".join([HEADER, RUN, SWIM, ""])).encode())
    assert list(read_activities(path).workouts) == ["strava-101", "strava-102"]


def test_line_numbers_count_the_lines_inside_quoted_fields(tmp_path: Path) -> None:
    wordy = RUN.replace("Morning Run,Run,,", '"Morning\nRun",Run,"One line,\nand ""another""",')
    found = read_activities(export(tmp_path, wordy, SWIM.replace("Nov 4", "Nov 44")))
    assert found.workouts["strava-101"].note == "Morning\nRun"
    assert [row.line for row in found.bad_rows] == [5]


def test_decimal_commas_are_told_from_grouping_ones_column_by_column(tmp_path: Path) -> None:
    header = "Activity ID;Activity Date;Activity Type;Elapsed Time;Distance"
    rows = ["1;2025-11-03 06:12:33;Run;1.710;5,02", "2;2025-11-04 06:12:33;Ride;9000;1.020,5"]
    found = read_activities(export(tmp_path, *rows, header=header))
    assert [workout.distance_km for workout in found.workouts.values()] == [5.02, 1020.5]
    mixed = RUN.replace(",5.02,", ',"5,02",').replace("5020.1", "802.123")
    assert only_workout(export(tmp_path, mixed)).distance_km == 0.802


def test_columns_and_dates_in_another_language_are_named_by_the_user(tmp_path: Path) -> None:
    header = "Aktivitäts-ID,Aktivitätsdatum,Aktivitätsart,Distanz"
    path = export(tmp_path, '9,"03.11.2025, 06:12:33",Run,"5,02"', header=header)
    with pytest.raises(UnreadableFileError, match=r"no column Activity ID, Activity Date, Activity Type.*--column"):
        read_activities(path)
    columns = {
        "Activity ID": "Aktivitäts-ID",
        "Activity Date": "Aktivitätsdatum",
        "Activity Type": "Aktivitätsart",
        "Distance": "Distanz",
    }
    assert only_workout(path, columns=columns).distance_km == 5.02
    assert only_workout(path, columns=columns, date_format="%d.%m.%Y, %H:%M:%S").when.month == 11


def test_a_column_that_is_named_and_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="has no column Distanz"):
        read_activities(export(tmp_path, RUN), columns={"Distance": "Distanz"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (RUN.replace("Nov 3", "Smarch 3"), "'Smarch 3, 2025, 6:12:33 AM' is not a date"),
        (RUN.replace("2025", "1965"), "'Nov 3, 1965, 6:12:33 AM' is before 1970"),
        (RUN.replace("101,", "abc,", 1), "'abc' is not an activity id"),
        (RUN.replace("5020.1", "far"), "Distance 'far' is not a number"),
        (RUN.replace("5020.1", "-3"), "Distance '-3' is not a number"),
        (RUN.replace("5020.1", "NaN"), "Distance 'NaN' is not a number"),
        (RUN.replace("5020.1", "9" * 400), f"Distance '{'9' * 39}…' is not a number"),
        (RUN.replace(",Run,", ",,"), "it has no activity type"),
        (RUN + ",one too many", "it has 14 cells where the header has 13"),
        ("101,short", "it has 2 cells where the header has 13"),
        (SWIM.replace("102", "103").replace("1500.0", "1600.0"), "activity 103 is in this file twice, differently"),
        ('104,"never closed', "unexpected end of data; nothing from here on could be read"),
    ],
)
def test_a_bad_row_is_reported_by_line_and_reason_and_the_others_are_kept(
    tmp_path: Path, row: str, reason: str
) -> None:
    found = read_activities(export(tmp_path, SWIM.replace("102", "103"), "", row))
    assert list(found.workouts) == ["strava-103"]
    assert found.bad_rows == [(4, reason)]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"a,b\n1,2\n", "has no column Activity ID"), (b"Activity ID\n\xff\xfe", "is not UTF-8 text")],
)
def test_a_file_that_is_no_export_is_refused_as_a_whole(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "activities.csv"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=message):
        read_activities(path)


def test_importing_again_adds_nothing(tmp_path: Path, workouts: Collection[Workout]) -> None:
    found = read_activities(export(tmp_path, RUN, SWIM)).workouts
    assert add_activities(workouts, found).added == ["strava-101", "strava-102"]
    again = add_activities(workouts, found)
    assert (again.added, again.known) == ([], ["strava-101", "strava-102"])
    assert [item.version for item in workouts.list()] == [1, 1]


def test_a_newer_export_adds_only_what_is_new(tmp_path: Path, workouts: Collection[Workout]) -> None:
    add_activities(workouts, read_activities(export(tmp_path, RUN)).workouts)
    assert add_activities(workouts, read_activities(export(tmp_path, RUN, SWIM)).workouts).added == ["strava-102"]


def test_an_activity_that_was_changed_on_strava_since_is_left_as_it_is_and_reported(
    tmp_path: Path, workouts: Collection[Workout]
) -> None:
    add_activities(workouts, read_activities(export(tmp_path, RUN)).workouts)
    renamed = read_activities(export(tmp_path, RUN.replace("Morning Run", "Race"), SWIM)).workouts
    imported = add_activities(workouts, renamed)
    assert (imported.added, imported.differing) == (["strava-102"], ["strava-101"])
    assert [item.value.note for item in workouts.list()] == ["Morning Run", "Pool"]


def test_an_activity_whose_time_was_changed_on_strava_is_not_imported_a_second_time(
    tmp_path: Path, workouts: Collection[Workout]
) -> None:
    add_activities(workouts, read_activities(export(tmp_path, RUN)).workouts)
    moved = read_activities(export(tmp_path, RUN.replace("6:12:33", "7:12:33"))).workouts
    assert add_activities(workouts, moved) == ([], [], ["strava-101"])
    assert len(workouts.list()) == 1


def test_workouts_stand_in_the_order_of_their_happening_whatever_the_order_of_the_file(
    tmp_path: Path, workouts: Collection[Workout]
) -> None:
    add_activities(workouts, read_activities(export(tmp_path, SWIM)).workouts)
    workouts.add(Workout(sport="yoga", when=datetime(2026, 4, 18, tzinfo=UTC)))
    add_activities(workouts, read_activities(export(tmp_path, RUN)).workouts)
    assert [item.value.sport for item in workouts.list()] == ["running", "swimming", "yoga"]
    assert workouts.list()[0].id == item_id(datetime(2025, 11, 3, 6, 12, 33, tzinfo=UTC), "strava-101")


def test_more_than_a_thousand_activities_are_imported(tmp_path: Path, workouts: Collection[Workout]) -> None:
    rows = [RUN.replace("101", str(number)) for number in range(1000, 3500)]
    assert len(add_activities(workouts, read_activities(export(tmp_path, *rows)).workouts).added) == 2500
    assert len(workouts.list()) == 2500
