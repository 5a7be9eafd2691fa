"""Time things against each other in one run: on a noisy machine only a ratio means anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Row(NamedTuple):
    """One comparison: ours and a peer's time for one operation in microseconds, and the limit for their ratio."""

    what: str
    ours_us: float
    peer: str
    peer_us: float
    limit: str
    holds: bool

    @property
    def ratio(self) -> float:
        return self.ours_us / self.peer_us


def times_us(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 15, seconds: float = 0.08
) -> dict[str, float]:
    """Return the median over rounds of each function's mean time, in microseconds.

    The functions take turns within every round, so that what disturbs one disturbs all.
    """
    counts: dict[str, int] = {}
    for name, function in functions.items():
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            function()
            count += 1
        counts[name] = max(1, count)
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            count = counts[name]
            started = time.perf_counter()
            for _ in range(count):
                function()
            found[name].append((time.perf_counter() - started) / count * 1e6)
    return {name: statistics.median(all_times) for name, all_times in found.items()}


def at_most(what: str, ours: float, peer: str, theirs: float, limit: float) -> Row:
    """Compare: our time may be at most ``limit`` times the peer's."""
    return Row(what, ours, peer, theirs, f"≤ {limit:g} ×", ours <= limit * theirs)


def table(title: str, rows: list[Row]) -> str:
    """Return the comparisons as text."""
    lines = [
        title,
        f"{'':<34}{'ours':>10}   {'peer':<44}{'peer':>10}{'ratio':>8}  limit",
    ]
    lines += [
        f"{row.what:<34}{row.ours_us:>7.0f} µs   {row.peer:<44}{row.peer_us:>7.0f} µs{row.ratio:>8.2f}  "
        f"{row.limit:<9}{'holds' if row.holds else 'DOES NOT HOLD'}"
        for row in rows
    ]
    return "\n".join(lines)
