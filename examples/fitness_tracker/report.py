"""What the coach's memory of a user looks like: tables and a chart in the terminal, and the chart as a PNG."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Final, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, OverflowMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent_memory import Entity

from .models import Profile, Units, UnusableError, Workout
from .summary import Training, Week, clock, counted, day_of, in_units, printable, read_training

_COLOURS: Final = ("#2a6f97", "#e08e45", "#7a9e56", "#8e6c9f")
_OTHERS: Final = "#a9aeb4"


class UserReport(NamedTuple):
    """Everything that the tables and charts show, read once."""

    user: str
    profile: Profile
    training: Training

    @property
    def workouts(self) -> list[Workout]:
        return self.training.workouts

    @property
    def weeks(self) -> list[Week]:
        return self.training.weeks

    @property
    def units(self) -> Units:
        return self.training.units

    @property
    def title(self) -> str:
        return self.profile.name or self.user


def read_report(user: Entity, today: date) -> UserReport:
    """Read what is remembered of a user."""
    return UserReport(user.id, user.document(Profile).get(default=Profile()), read_training(user, today))


# -- in the terminal -------------------------------------------------------------------------------------------------


def render_report(console: Console, report: UserReport) -> RenderableType:
    """Return the whole report for a terminal."""
    parts: list[RenderableType] = [_said(f"{report.title}: {counted(len(report.workouts), 'workout')}", style="bold")]
    if report.profile.goals:
        parts.append(_said("Goals: " + "; ".join(report.profile.goals)))
    if report.workouts:
        parts += [Text(), sports_table(report), Text("Latest workouts", style="bold"), latest_table(report)]
        parts.append(Text(f"Distance per week ({report.units})", style="bold"))
        silence = report.training.silence
        parts.append(week_bars(console, report) if silence is None else Padding(_sentence(silence), (0, 0, 0, 2)))
    else:
        parts.append(Text("Nothing to show yet: tell the coach about a workout, or import some."))
    return Group(*parts)


def sports_table(report: UserReport) -> Table:
    """Return one row per sport: how often, how far, how long."""
    table = _table(("Sport", "left"), ("Workouts", "right"), (f"Distance, {report.units}", "right"), ("Time", "right"))
    for sport in _by_distance(report.workouts):
        mine = [workout for workout in report.workouts if workout.sport == sport]
        distance = sum(workout.distance_km or 0.0 for workout in mine)
        seconds = sum(workout.duration_s or 0 for workout in mine)
        table.add_row(_said(sport), str(len(mine)), _distance(distance, report.units), clock(seconds))
    return table


def latest_table(report: UserReport, limit: int = 5) -> Table:
    """Return the last workouts, newest first."""
    table = _table(
        ("Day", "right"), ("Sport", "left"), (f"Distance, {report.units}", "right"), ("Time", "right"), ("Note", "left")
    )
    for workout in reversed(report.workouts[-limit:]):
        table.add_row(
            day_of(workout.when.date(), report.training.today),
            _said(workout.sport),
            _distance(workout.distance_km, report.units),
            clock(workout.duration_s),
            _said(" ".join((workout.note or "").split()), overflow="ellipsis", no_wrap=True),
        )
    return table


def week_bars(console: Console, report: UserReport) -> RenderableType:
    """Return a bar per week, scaled to the longest; ASCII where the terminal knows nothing else."""
    block, nothing = "#." if console.options.ascii_only else "█·"
    width = min(48, max(10, console.width - 24))
    longest = max(week.total_km for week in report.weeks) or 1.0
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column()
    for week in report.weeks:
        length = round(width * week.total_km / longest)
        bar = Text(block * max(length, 1 if week.total_km else 0), style="cyan")
        bar.append(f" {_distance(week.total_km, report.units)}" if week.total_km else nothing, style="default")
        table.add_row(Text(day_of(week.monday, report.training.today), style="dim"), bar)
    return Padding(table, (0, 0, 0, 2))


# -- as a picture ----------------------------------------------------------------------------------------------------


def save_chart(path: Path, reports: Sequence[UserReport]) -> None:
    """Draw the weekly distance of each user, one panel each, and write it as a PNG."""
    figure = Figure(figsize=(8, 1.3 + 2.2 * len(reports)), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(reports), 1, squeeze=False)[:, 0]
    sports = _by_distance([workout for report in reports for workout in report.workouts if workout.distance_km])
    colours = dict(zip(sports, _COLOURS, strict=False))
    for panel, report in zip(panels, reports, strict=True):
        _draw_weeks(panel, report, colours)
    panels[-1].set_xlabel("week, by its Monday")
    shown = [sport for sport in colours if any(sport in week.km for report in reports for week in report.weeks)]
    others = any(sport not in colours for report in reports for week in report.weeks for sport in week.km)
    handles = [Patch(color=colours[sport], label=sport) for sport in shown]
    if others:
        handles.append(Patch(color=_OTHERS, label="other sports"))
    if handles:
        legend = figure.legend(
            handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # The box that is drawn for a character says enough.
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            figure.savefig(path, format="png")  # without a format, matplotlib adds an ending to a name that has none
    except OSError as error:
        raise UnusableError(f"the chart cannot be written to {path}: {error.strerror or error}") from None


def _draw_weeks(panel: Axes, report: UserReport, colours: Mapping[str, str]) -> None:
    positions = range(len(report.weeks))
    bottoms = [0.0] * len(report.weeks)
    everything = {sport for week in report.weeks for sport in week.km}
    for sport in [*colours, *sorted(everything - set(colours))]:
        heights = [in_units(week.km.get(sport, 0.0), report.units) for week in report.weeks]
        panel.bar(positions, heights, bottom=bottoms, width=0.72, color=colours.get(sport, _OTHERS))
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    panel.set_title(report.title, loc="left", fontsize=11, fontweight="bold", parse_math=False)
    panel.set_ylabel(f"{report.units} per week")
    panel.set_ylim(0, max(max(bottoms) * 1.12, 1.0))
    panel.set_xlim(-0.6, len(report.weeks) - 0.4)
    panel.set_xticks(positions[::-2], [day_of(week.monday, report.training.today) for week in report.weeks[::-2]])
    panel.tick_params(axis="both", length=0, labelsize=9)
    panel.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    panel.yaxis.grid(color="#e4e6e8", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color("#9aa0a6")
    silence = report.training.silence
    if silence is not None:
        panel.set_yticks([])
        panel.text(0.5, 0.5, silence, transform=panel.transAxes, ha="center", color="#6b7075")
    elif bottoms[-1]:
        label = _distance(report.weeks[-1].total_km, report.units)
        panel.annotate(label, (positions[-1], bottoms[-1]), (0, 3), textcoords="offset points",
                       ha="center", fontsize=9)  # fmt: skip


# -- words and numbers -----------------------------------------------------------------------------------------------


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _said(text: str, *, style: str = "", overflow: OverflowMethod | None = None, no_wrap: bool | None = None) -> Text:
    """Return what somebody said for a terminal, where none of it is markup."""
    return Text(printable(text), style=style, overflow=overflow, no_wrap=no_wrap)


def _distance(km: float | None, units: Units) -> str:
    return f"{in_units(km, units):.1f}" if km else "–"


def _by_distance(workouts: Sequence[Workout]) -> list[str]:
    """Return the sports, the one with the longest distance first."""
    km: dict[str, float] = {}
    for workout in workouts:
        km[workout.sport] = km.get(workout.sport, 0.0) + (workout.distance_km or 0.0)
    return sorted(km, key=lambda sport: (-km[sport], sport))


def _table(*columns: tuple[str, Literal["left", "right"]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=True, header_style="dim")
    for name, justify in columns:
        table.add_column(name, justify=justify)
    return table
