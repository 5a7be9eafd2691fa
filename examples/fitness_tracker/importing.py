"""Read the activities.csv of a Strava export and add its workouts to a user's memory.

Reading and storing are apart: what cannot be read is reported by line and skipped, and what can be read is added in
transactions of a thousand, under ids made of the workout's time and ``strava-<activity id>``. Doing it again therefore
adds nothing, and the items of the collection stand in the order in which they happened.

The file as Strava makes it has names that occur twice: the first Distance is the one shown on the site (kilometres, in
the pool metres), the second is in metres. The first Elapsed Time is whole seconds. Numbers and headings follow the
language of the account.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import ValidationError

from agent_memory import Collection, item_id

from .models import Workout

REQUIRED: Final = ("Activity ID", "Activity Date", "Activity Type")
FIELDS: Final = (*REQUIRED, "Activity Name", "Elapsed Time", "Distance")
"""The columns that are read."""

_SPORTS: Final = {"run": "running", "ride": "cycling", "swim": "swimming", "walk": "walking", "hike": "hiking",
                  "row": "rowing", "rowing": "rowing", "virtual ride": "cycling", "virtual run": "running",
                  "trail run": "running", "e-bike ride": "cycling", "gravel ride": "cycling",
                  "mountain bike ride": "cycling"}  # fmt: skip
_SHOWN_IN_METRES: Final = ("swimming", "rowing")
_DATES: Final = (
    "%b %d, %Y, %I:%M:%S %p",  # Nov 3, 2025, 6:12:33 AM
    "%d %b %Y, %H:%M:%S",  # 3 Nov 2025, 06:12:33
    "%d.%m.%Y, %H:%M:%S",  # 03.11.2025, 06:12:33
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%SZ",
)
_GROUPED_BY_COMMAS: Final = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
_GROUPED_BY_DOTS: Final = re.compile(r"\d{1,3}(\.\d{3})+")
_DECIMAL_COMMA: Final = re.compile(r"\d{1,3}(\.\d{3})+,\d+|\d+,\d+")
_PLAIN: Final = re.compile(r"\d+(\.\d+)?")


class UnreadableFileError(Exception):
    """The file as a whole is not an export; nothing was imported."""


class BadRow(NamedTuple):
    """A row that was left out: the line where it starts, and why."""

    line: int
    reason: str


@dataclass
class Activities:
    """What a file holds: workouts by their ``source``, such as ``strava-991``, and the rows that could not be read."""

    workouts: dict[str, Workout] = field(default_factory=dict)
    bad_rows: list[BadRow] = field(default_factory=list)


class Imported(NamedTuple):
    """What became of the workouts of a file, by their ``source``."""

    added: list[str]
    known: list[str]
    differing: list[str]


class _BadValueError(Exception):
    """A cell that makes its row unusable."""


def read_activities(
    path: Path, *, columns: Mapping[str, str] | None = None, date_format: str | None = None
) -> Activities:
    """Read a file.

    Args:
        path: the CSV file, in UTF-8.
        columns: for exports in another language: Strava's English column names and what they are called here.
        date_format: how dates are written, in the notation of ``datetime.strptime``; without it, a few usual ways.

    Raises:
        UnreadableFileError: it is not UTF-8, or a column that is required or named is missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UnreadableFileError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"{path} is not UTF-8 text (byte {error.start})") from None
    bad_rows: list[BadRow] = []
    rows = list(_rows(text, bad_rows))
    if not rows:
        raise UnreadableFileError(f"{path} is empty" if not bad_rows else f"{path}: line 1: {bad_rows[0].reason}")
    header = _Header(path, rows[0][1], columns or {})
    found = Activities(bad_rows=bad_rows)
    decimal_commas = _with_decimal_commas(header, rows[1:])
    for line, cells in rows[1:]:
        if not any(cell.strip() for cell in cells):
            continue
        try:
            workout = _Row(header, cells, decimal_commas, date_format).workout()
            source = workout.source
            if found.workouts.get(source, workout) != workout:
                raise _BadValueError(f"activity {source.removeprefix('strava-')} is in this file twice, differently")
            found.workouts[source] = workout
        except _BadValueError as error:
            bad_rows.append(BadRow(line, str(error)))
    bad_rows.sort()
    return found


def add_activities(collection: Collection[Workout], workouts: Mapping[str, Workout]) -> Imported:
    """Add the workouts that are not there yet; those that are stay as they are, even if the file says otherwise now.

    Raises ConflictError if somebody else adds different workouts under the same ids at this very moment.
    """
    stored = {item.value.source: item.value for item in collection.list()}
    differing = [source for source, workout in workouts.items() if stored.get(source, workout) != workout]
    new = {item_id(workout.when, source): workout for source, workout in workouts.items() if source not in stored}
    # Another import at this moment may have been faster with some of them: those are not among the added.
    added = [new[name].source for name in collection.add_many(new, reason="Strava import")]
    rest = {*added, *differing}
    return Imported(added, [source for source in workouts if source not in rest], differing)


# -- rows and cells --------------------------------------------------------------------------------------------------


def _rows(text: str, bad_rows: list[BadRow]) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line it starts at; a quote that is never closed ends the file and is reported."""
    first_line = text.partition("\n")[0]
    delimiter = ";" if first_line.count(";") > first_line.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        bad_rows.append(BadRow(line, f"{error}; nothing from here on could be read"))


class _Header:
    """Where each column is. A name may occur several times."""

    def __init__(self, path: Path, names: list[str], columns: Mapping[str, str]) -> None:
        self.width = len(names)
        self._at: dict[str, list[int]] = {}
        for position, name in enumerate(names):
            self._at.setdefault(name.strip(), []).append(position)
        self._columns = columns
        missing = [name for name in dict.fromkeys([*REQUIRED, *columns]) if not self.positions(name)]
        if missing:
            wanted = ", ".join(columns.get(name, name) for name in missing)
            present = ", ".join(list(self._at)[:6])
            raise UnreadableFileError(
                f"{path} has no column {wanted}. It starts with: {present}. "
                "If it is in another language, name the columns: --column 'Activity Date=Aktivitätsdatum'"
            )

    def positions(self, name: str) -> list[int]:
        return self._at.get(self._columns.get(name, name), [])


class _Row:
    def __init__(self, header: _Header, cells: list[str], decimal_commas: set[int], date_format: str | None) -> None:
        if len(cells) != header.width:
            raise _BadValueError(f"it has {len(cells)} cells where the header has {header.width}")
        self._header = header
        self._cells = cells
        self._decimal_commas = decimal_commas
        self._dates = _DATES if date_format is None else (date_format,)

    def workout(self) -> Workout:
        """Return the workout of this row."""
        activity_id = self._text("Activity ID")
        if not activity_id.isascii() or not activity_id.isdigit():
            raise _BadValueError(f"{_quoted(activity_id)} is not an activity id")
        kind = self._text("Activity Type")
        if not kind:
            raise _BadValueError("it has no activity type")
        sport = _SPORTS.get(kind.lower(), kind.lower())
        seconds = self._number("Elapsed Time")
        try:
            return Workout(
                sport=sport,
                when=self._date(),
                distance_km=self._distance_km(sport),
                duration_s=None if seconds is None else round(seconds),
                note=self._text("Activity Name") or None,
                source=f"strava-{activity_id}",
            )
        except ValidationError as error:
            problem = error.errors()[0]
            raise _BadValueError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None

    def _text(self, name: str, occurrence: int = 0) -> str:
        positions = self._header.positions(name)
        return self._cells[positions[occurrence]].strip() if len(positions) > occurrence else ""

    def _date(self) -> datetime:
        # Recent exports have a narrow no-break space before AM and PM.
        text = " ".join(self._text("Activity Date").split())
        for date_format in self._dates:
            try:
                when = datetime.strptime(text, date_format).replace(tzinfo=UTC)  # Strava exports times in UTC
            except ValueError:
                continue
            if when.year < 1970:
                raise _BadValueError(f"{_quoted(text)} is before 1970")
            return when
        raise _BadValueError(f"{_quoted(text)} is not a date")

    def _distance_km(self, sport: str) -> float | None:
        metres = self._number("Distance", 1)
        if metres is None:
            shown = self._number("Distance")
            if shown is None:
                return None
            metres = shown if sport in _SHOWN_IN_METRES else shown * 1000
        return round(metres / 1000, 3)

    def _number(self, name: str, occurrence: int = 0) -> float | None:
        text = self._text(name, occurrence)
        if not text:
            return None
        plain = text
        if self._header.positions(name)[occurrence] in self._decimal_commas:
            if _DECIMAL_COMMA.fullmatch(text) or _GROUPED_BY_DOTS.fullmatch(text):
                plain = text.replace(".", "").replace(",", ".")
        elif _GROUPED_BY_COMMAS.fullmatch(text):
            plain = text.replace(",", "")
        # So many digits that they make an infinity are none of a workout.
        if _PLAIN.fullmatch(plain) and isfinite(float(plain)):
            return float(plain)
        raise _BadValueError(f"{name} {_quoted(text)} is not a number")


def _with_decimal_commas(header: _Header, rows: list[tuple[int, list[str]]]) -> set[int]:
    """Return the columns that write 5,02 for five and a bit: some number in them can mean nothing else.

    Decided by column, because exports write some numbers as the site shows them and others as computers do.
    """
    positions = {at for name in ("Distance", "Elapsed Time") for at in header.positions(name)}
    texts = {(at, cells[at].strip()) for _, cells in rows for at in positions if at < len(cells)}
    return {at for at, text in texts if _DECIMAL_COMMA.fullmatch(text) and not _GROUPED_BY_COMMAS.fullmatch(text)}


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
