"""Where nothing happened: buckets of a sparse series that its goal's rows tell to be empty. Pure.

A due instant that no row of a sparse series answers is a bucket without events, of as many units as the goal's rows of that time have,
once all of them are there. It is read as a row stamped with the last instant at which a row could still have come for it, and from then
on, since until then one may come; rows of the goal that are stamped later tell nothing of it. Without the goal's rows it is missing,
as in any series.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.schedule import Schedule
from gates.engine.compiled import CompiledPlan, SeriesSpec
from gates.engine.reader import NEVER, SeriesProgress
from gates.engine.series import Series


class Completed(NamedTuple):
    """The rows of a sparse series with its empty buckets among them, and what keeps it fresh: (ts, first arrival) of its own rows
    and of the goal's."""

    series: Series
    seen: tuple[Sequence[int], Sequence[int]]


def completed(
    compiled: CompiledPlan, spec: SeriesSpec, own: Series, beside: SeriesSpec, goal: Series, progress: SeriesProgress
) -> Completed:
    """own, goal: rows behind the base of both (`needs_goal_after`)."""
    schedule, there = spec.schedule, set(map(spec.schedule.answered, own.ts))
    behind = _newest_answered(spec, progress)
    empty = []
    for due, units, received in _told(compiled, spec, beside, goal):
        if due > behind and due not in there:
            ts = _latest(schedule, due)
            empty.append((ts, units, max(received, ts + compiled.closed_after)))
    return Completed(_with(own, empty), _seen(own, goal, compiled.plan.started_at))


def needs_goal_after(spec: SeriesSpec, beside: SeriesSpec, progress: SeriesProgress) -> int:
    """The instant after which rows of the goal tell of buckets that are not settled yet."""
    before = spec.schedule.before(_newest_answered(spec, progress))
    return beside.schedule.before(beside.schedule.before(before) - 1)


def _latest(schedule: Schedule, due: int) -> int:
    """The last instant at which a row could still come for a due instant."""
    return (due + schedule.after(due)) // 2


def _newest_answered(spec: SeriesSpec, progress: SeriesProgress) -> int:
    return spec.dues.start if progress.place_before == NEVER else spec.schedule.answered(progress.place_before)


def _told(compiled: CompiledPlan, spec: SeriesSpec, beside: SeriesSpec, goal: Series) -> list[tuple[int, int, int]]:
    """(due instant, units, latest arrival) of each bucket of which all of the goal's rows are there."""
    found: dict[int, dict[int, tuple[int, int]]] = {}
    unknown: set[int] = set()
    for ts, n, received in zip(goal.ts, goal.n, goal.first_received_at, strict=True):
        if ts <= compiled.plan.started_at or n == 0:
            continue
        of_goal = beside.schedule.answered(ts)
        due = of_goal if spec.schedule.before(of_goal) == of_goal else spec.schedule.after(of_goal)
        if ts > _latest(spec.schedule, due):
            continue  # what comes later tells nothing of what was read before it
        if n is None or n < 0:
            unknown.add(due)
            continue
        units, latest = found.setdefault(due, {}).get(of_goal, (0, 0))
        found[due][of_goal] = units + n, max(latest, received)
    whole = []
    for due, rows in sorted(found.items()):
        if due not in unknown and len(rows) == beside.schedule.count(spec.schedule.before(due - 1), due):
            whole.append((due, sum(units for units, _ in rows.values()), max(latest for _, latest in rows.values())))
    return whole


def _with(own: Series, empty: Sequence[tuple[int, int, int]]) -> Series:
    """Rows and empty buckets in the order of ts: of an empty one value and variance are 0."""
    if not empty:
        return own
    rows: list[tuple[Any, ...]] = [
        *zip(own.ts, own.value, own.n, own.variance, own.first_received_at, strict=True),
        *((ts, 0.0, units, 0.0, received) for ts, units, received in empty),
    ]
    return Series(*(list(column) for column in zip(*sorted(rows, key=lambda row: row[0]), strict=True)))


def _seen(own: Series, goal: Series, started_at: int) -> tuple[list[int], list[int]]:
    known: dict[int, int] = {}
    for series in (own, goal):
        for ts, n, received in zip(series.ts, series.n, series.first_received_at, strict=True):
            if n != 0 and ts > started_at:
                known[ts] = min(received, known.get(ts, received))
    stamps = sorted(known)
    return stamps, [known[ts] for ts in stamps]
