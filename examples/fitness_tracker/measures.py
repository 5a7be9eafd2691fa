"""Distances, times and days in what somebody says, and whatever else in it looks like one.

What is understood is taken out of the text: a number counts once, and what is left over can be looked at. A number or a
date that no rule reads must not be passed over, or the workout would be stored with another distance or on another day.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Final, NamedTuple

from .models import KM_PER_MILE, Units

_ALONE: Final = r"(?<![\w.,:/+−–-])"  # no part of a longer number, and without a sign
NUMBER: Final = rf"{_ALONE}(?:[1-9]\d{{0,2}}(?:,\d{{3}}){{1,3}}(?:\.\d+)?|\d{{1,9}}(?:[.,]\d+)?)"
_GROUPED: Final = re.compile(r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?")


class Distance(NamedTuple):
    km: float
    units: Units
    """Those in which it was told."""


class Measures(NamedTuple):
    """What a text names, and what is left of it. A day is None if it is named but cannot be told."""

    distances: list[Distance]
    durations_s: list[int]
    days: list[date | None]
    rest: str


def measure(text: str, today: date) -> Measures:
    """Find the distances, durations and days in a text."""
    rest = _Rest(" ".join(text.lower().split()))
    days = _days(rest, today)
    for pattern in (_PACE, _SPEED, _TIME_OF_DAY):
        rest.take(pattern)
    spans = _spans(rest)
    clocks = rest.take(_CLOCK)
    distances = [_distance(match) for match in rest.take(_DISTANCE)]
    distances += [Distance(_RACES[match[1].replace("-", " ")], "km") for match in rest.take(_RACE)]
    km = distances[0].km if distances else None
    return Measures(distances, spans + [_clock_s(match, km) for match in clocks], days, rest.text)


def number(text: str) -> float:
    """Read 1,000 as a thousand, and 10,5 and 10.5 as ten and a half."""
    return float(text.replace(",", "") if _GROUPED.fullmatch(text) else text.replace(",", "."))


class _Rest:
    """The text that nothing has been made of yet."""

    def __init__(self, text: str) -> None:
        self.text = text

    def take(self, pattern: re.Pattern[str]) -> list[re.Match[str]]:
        """Take out and return what fits a pattern; a mark keeps apart what stood on either side."""
        found = list(pattern.finditer(self.text))
        self.text = pattern.sub(" | ", self.text)
        return found


# -- distances -------------------------------------------------------------------------------------------------------

_DISTANCE: Final = re.compile(rf"({NUMBER})[ -]?(k(?:m|ms|ilomet(?:re|er)s?)?|mi(?:les?)?|m(?:et(?:re|er)s?)?)\b")
_RACE: Final = re.compile(r"\b(?<!ultra[ -])(?<!quarter )(half[ -]marathon|marathon)\b")
_RACES: Final = {"half marathon": 21.0975, "marathon": 42.195}
_SPEED: Final = re.compile(
    rf"(?:\bat )?{NUMBER} ?(?:km/h|kmh|kph|mi/h|mph|m/s|(?:km|kilomet(?:re|er)s|miles) (?:per|an) hour(?! ago))\b"
)


def _distance(match: re.Match[str]) -> Distance:
    unit = match[2]
    if unit.startswith("mi"):
        return Distance(round(number(match[1]) * KM_PER_MILE, 3), "miles")
    return Distance(round(number(match[1]) * (1 if unit.startswith("k") else 0.001), 3), "km")


# -- durations -------------------------------------------------------------------------------------------------------

TOO_FAST_KM_H: Final = 70.0
_PACE: Final = re.compile(
    r"(?:\bat )?(?<![\d:])\d{1,2}:[0-5]\d(?: ?min(?:utes?)?)? ?(?:/ ?|per |an? )(?:km?|kilomet(?:re|er)|mi(?:le)?)\b"
)
_TIME_OF_DAY: Final = re.compile(
    rf"\bat (?:[01]?\d|2[0-3]):[0-5]\d(?: ?[ap]m\b)?(?![\d:])|(?:\bat )?{_ALONE}(?:0?\d|1[0-2])(?::[0-5]\d)? ?[ap]m\b"
)
_CLOCK: Final = re.compile(
    rf"{_ALONE}(?<!\bat )(\d{{1,2}}):([0-5]\d)(?::([0-5]\d))?(?![\d:])(?:( ?h(?:ours?)?\b)| ?min(?:ute)?s?\b)?"
)
_SPAN_UNITS: Final = (
    (rf"({NUMBER})[ -]?h(?:ours?|rs?)?\b", 3600),
    (rf"({NUMBER})[ -]?min(?:ute)?s?\b", 60),
    (rf"({NUMBER})[ -]?s(?:ec(?:ond)?s?)?\b", 1),
)
_SPANS: Final = [
    (re.compile(first + "".join(rf"(?: (?:and )?{pattern})?" for pattern, _ in smaller)), [factor, *factors])
    for (first, factor), smaller, factors in (
        (_SPAN_UNITS[at], _SPAN_UNITS[at + 1 :], [other for _, other in _SPAN_UNITS[at + 1 :]]) for at in range(3)
    )
]
"""1 h 20 min, 28 minutes and 30 seconds: each part follows a larger one. Ten seconds elsewhere are another matter."""
_HOURS_AND_MINUTES: Final = re.compile(rf"{_ALONE}(\d{{1,2}})h(?: ?([0-5]?\d)m(?:in)?|([0-5]\d))\b")  # 1h20, 1h 20m
_SPOKEN: Final = (
    (re.compile(r"\bhalf[ -](?:an? )?hour\b"), "30 min"),
    (re.compile(r"\ban hour and a half\b"), "90 min"),
    (re.compile(r"\ban hour\b"), "1 h"),
)


def _spans(rest: _Rest) -> list[int]:
    for pattern, written in _SPOKEN:
        rest.text = pattern.sub(written, rest.text)
    found = [int(match[1]) * 3600 + int(match[2] or match[3]) * 60 for match in rest.take(_HOURS_AND_MINUTES)]
    for pattern, factors in _SPANS:
        for match in rest.take(pattern):
            parts = zip(match.groups(), factors, strict=True)
            found.append(round(sum(number(part) * factor for part, factor in parts if part)))
    return found


def _clock_s(match: re.Match[str], distance_km: float | None) -> int:
    first, second, third = int(match[1]), int(match[2]), match[3]
    if third is not None:
        return first * 3600 + second * 60 + int(third)
    seconds = first * 60 + second
    # 50 km in 2:10 is hours and minutes, as nobody rides that fast.
    too_fast = distance_km is not None and distance_km * 3600 > TOO_FAST_KM_H * seconds
    return seconds * 60 if match[4] or too_fast else seconds


# -- days ------------------------------------------------------------------------------------------------------------

_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH: Final = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\b"
)
_ISO: Final = re.compile(r"(?:\bon )?(?<![\w./-])(\d{4})-(\d\d)-(\d\d)(?![\w/-])")
_DAY_MONTH: Final = re.compile(
    rf"(?:\bon )?(?:\bthe )?{_ALONE}(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH})(?:,? (\d{{4}})\b)?"
)
_MONTH_DAY: Final = re.compile(
    rf"(?:\bon )?\b({_MONTH}) (?:the )?(\d{{1,2}})(?:st|nd|rd|th)?\b(?![.,:/]\d)(?:,? (\d{{4}})\b)?"
)
_DAYS_AGO: Final = re.compile(rf"{_ALONE}(\d{{1,5}}) days? ago\b")
_DAYS_BACK: Final = (
    (re.compile(r"\b(?:the )?day before yesterday\b"), 2),
    (re.compile(r"\byesterday\b|\blast night\b"), 1),
    (re.compile(r"\btoday\b|\btonight\b|\bthis (?:morning|afternoon|evening)\b"), 0),
)
_WEEKDAY: Final = re.compile(
    rf"(?<!last )(?<!next )(?:\b({'|'.join(_WEEKDAYS)})\b|\bon (mon|tues?|wed|thu(?:rs?)?|fri|sat|sun)\b)"
)
_SOME_DAY: Final = re.compile(
    rf"\b(?:tomorrow|last|ago|next|weekends?|recently|other day|days? (?:before|after)|this (?:week|month|year)"
    rf"|(?:{'|'.join(_WEEKDAYS)})s?|{_MONTH}|christmas|easter|new year)\b"
)
_NO_EARLIER: Final = date(1970, 1, 1)


def _days(rest: _Rest, today: date) -> list[date | None]:
    found = [_date(match[1], match[2], match[3], today) for match in rest.take(_ISO)]
    found += [_date(match[3], match[2], match[1], today) for match in rest.take(_DAY_MONTH)]
    found += [_date(match[3], match[1], match[2], today) for match in rest.take(_MONTH_DAY)]
    found += [_past(today - timedelta(days=int(match[1]))) for match in rest.take(_DAYS_AGO)]
    for pattern, back in _DAYS_BACK:
        found += [today - timedelta(days=back) for _ in rest.take(pattern)]
    for match in rest.take(_WEEKDAY):
        weekday = next(at for at, name in enumerate(_WEEKDAYS) if name.startswith((match[1] or match[2])[:3]))
        found.append(today - timedelta(days=(today.weekday() - weekday) % 7 or 7))
    found += [None for _ in rest.take(_SOME_DAY)]
    return found


def _date(year: str | None, month: str, day: str, today: date) -> date | None:
    """Return a date that is not still to come; without a year it is the last such day."""
    number = int(month) if month.isdecimal() else _MONTHS.index(month[:3]) + 1
    for candidate in [int(year)] if year else [today.year, today.year - 1]:
        try:
            found = date(candidate, number, int(day))
        except ValueError:
            continue
        if found <= today:
            return _past(found)
    return None


def _past(day: date) -> date | None:
    return day if day >= _NO_EARLIER else None
