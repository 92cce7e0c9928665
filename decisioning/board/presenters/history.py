"""How figures got where they are, day by day: values from the hour sums, effects from what the gates read. Days are UTC.

Values are for the eye only: no verdict reads them. An effect is the gates' own reading, from the facts stored at each look.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

import msgspec
from django.db import connection

from decisioning.board.charts import Point
from experiments.plan import LARGEST
from gates.engine.compiled import Comparison, CompiledPlan
from gates.engine.facts import MetricLook, Sums
from gates.engine.measuring import measure
from gates.engine.plan import Kpi
from telemetry.hours import in_range, units_in_range

# Of an exposure KPI what counts is n. What came before the start is shown as a value and never adds to what is known.
_DAYS = f"""
SELECT h.experiment_id, h.metric, h.variant, (date_trunc('day', h.hour, 'UTC') AT TIME ZONE 'UTC')::date AS day,
       (array_agg(h.value ORDER BY h.hour DESC))[1], (array_agg(h.n ORDER BY h.hour DESC))[1],
       CASE WHEN bool_or(h.counts) AND sum(h.n) > 0 THEN sum(h.n)::float8 WHEN sum(h.n) > 0 THEN sum(h.n * h.value) / sum(h.n) ELSE avg(h.value) END,
       sum(h.n) FILTER (WHERE judged)::float8, sum(h.n * h.value) FILTER (WHERE judged), sum(h.n) FILTER (WHERE judged)::float8
FROM (SELECT k.experiment_id, k.metric, k.variant, k.hour, {in_range("k.value")} AS value, k.n, w.counts, k.hour >= date_trunc('hour', e.started_at) AS judged
      FROM unnest(%(experiments)s::bigint[], %(metrics)s::text[], %(counts)s::boolean[]) AS w(experiment_id, metric, counts)
      JOIN kpi_hours k ON k.experiment_id = w.experiment_id AND k.metric = w.metric
      JOIN experiments e ON e.id = w.experiment_id) AS h
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""  # noqa: S608 - constants
# A ratio's value is its numerator by its denominator, and the hour sums hold no denominator: its rows are read.
_RATIO_DAYS = f"""
SELECT k.experiment_id, k.metric, k.variant, (date_trunc('day', k.ts - interval '1 microsecond', 'UTC') AT TIME ZONE 'UTC')::date AS day,
       (array_agg(k.value / nullif(k.denominator_value, 0) ORDER BY k.ts DESC))[1], (array_agg(k.n ORDER BY k.ts DESC))[1],
       sum(k.n * k.value) / nullif(sum(k.n * k.denominator_value), 0),
       sum(k.n) FILTER (WHERE k.ts > e.started_at)::float8, sum(k.n * k.value) FILTER (WHERE k.ts > e.started_at),
       sum(k.n * k.denominator_value) FILTER (WHERE k.ts > e.started_at)
FROM unnest(%(experiments)s::bigint[], %(metrics)s::text[]) AS w(experiment_id, metric)
JOIN (SELECT experiment_id, metric, variant, ts, {units_in_range("n")} AS n, {in_range("value")} AS value,
             {in_range("denominator_value")} AS denominator_value
      FROM experiment_kpis) AS k ON k.experiment_id = w.experiment_id AND k.metric = w.metric
JOIN experiments e ON e.id = w.experiment_id
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""  # noqa: S608 - constants


@dataclass(frozen=True)
class Day:
    """One series on one day: its value that day, and from the start up to its end the units and their mean (or ratio)."""

    day: date
    value: float
    units: int
    so_far: float | None


Series = dict[tuple[int, str, str], list[Day]]


def series(wanted: Iterable[tuple[int, Kpi]]) -> Series:
    """Daily values of every variant of the wanted (experiment, KPI) pairs; one query, and one more where there are ratios."""
    pairs = {(pk, kpi.metric): kpi for pk, kpi in wanted}
    found: Series = defaultdict(list)
    for query, of in ((_DAYS, False), (_RATIO_DAYS, True)):
        mine = [pair for pair, kpi in pairs.items() if (kpi.kind == "ratio") is of]
        if not mine:
            continue
        with connection.cursor() as cursor:
            counts = [pairs[pair].role == "exposure" for pair in mine]
            experiments, metrics = [pk for pk, _ in mine], [metric for _, metric in mine]
            cursor.execute(query, {"experiments": experiments, "metrics": metrics, "counts": counts})
            totals: dict[tuple[int, str, str], tuple[float, float, float]] = {}
            for pk, metric, variant, day, last, last_n, value, n, above, below in cursor.fetchall():
                key = (pk, metric, variant)
                if pairs[pk, metric].temporality == "cumulative":
                    if last is not None:
                        found[key].append(Day(day, last, last_n or 0, last))
                    continue
                units, over, under = totals.get(key, (0.0, 0.0, 0.0))
                totals[key] = now = (units + (n or 0), over + (above or 0), under + (below or 0))
                if value is not None:
                    whole = now[0] if pairs[pk, metric].role == "exposure" else now[1] / now[2] if now[2] else None
                    found[key].append(Day(day, value, int(now[0]), whole))
    return found


# Effects ---------------------------------------------------------------------------------------------------------------

MOST_DAYS = 90

# The newest looks of each day. A step between looks tells of freshness alone; the one after the end may lie off the grid.
_LOOKS = """
SELECT w.id, d.day::date, s.body
FROM unnest(%(ids)s::bigint[], %(look_s)s::bigint[], %(most)s::int[]) AS w(id, look_s, most)
JOIN experiments e ON e.id = w.id
CROSS JOIN LATERAL (SELECT least(%(now)s, coalesce(e.ended_at + interval '1 day', %(now)s)) AS until) AS u
CROSS JOIN LATERAL generate_series(
  date_trunc('day', greatest(e.started_at, u.until - %(days)s * interval '1 day'), 'UTC') AT TIME ZONE 'UTC',
  u.until AT TIME ZONE 'UTC', interval '1 day') AS d(day)
CROSS JOIN LATERAL (
  SELECT body FROM steps
  WHERE experiment_id = w.id AND slot > d.day AT TIME ZONE 'UTC' AND slot <= d.day AT TIME ZONE 'UTC' + interval '1 day'
    AND (extract(epoch FROM slot)::bigint %% w.look_s = 0 OR slot > e.ended_at)
  ORDER BY slot DESC LIMIT w.most) AS s
"""


class Reading(NamedTuple):
    """What a gate read at the last look of a day: the effect with its always-valid interval, and the units of both arms."""

    day: date
    point: Point
    n: int


class _Looks(msgspec.Struct):
    """The part of a stored step (gates.engine.facts.SlotFacts) that effects are read from."""

    looks: dict[str, MetricLook] = {}


_step = msgspec.msgpack.Decoder(_Looks)

Effects = dict[tuple[int, str], list[Reading]]


def effects(
    compiled_plans: Mapping[int, CompiledPlan], *, now: datetime, of: Mapping[int, Comparison] | None = None
) -> Effects:
    """By experiment and treatment: its first goal (or the comparison `of` names) at the last look of each day, the newest
    MOST_DAYS; two queries at most.
    """
    goals = of or {pk: goal for pk, compiled in compiled_plans.items() if (goal := goal_of(compiled)) is not None}
    found: Effects = defaultdict(list)
    if not goals:
        return found
    days = _last_looks(compiled_plans, goals, now)
    if behind := {
        pk: goals[pk] for (pk, _), look in days.items() if look is None
    }:  # rows came more rarely than expected
        days |= _last_looks(compiled_plans, behind, now, whole_days=True)
    for (pk, day), look in sorted(days.items(), key=lambda item: item[0]):
        compiled, goal = compiled_plans[pk], goals[pk]
        control = look.states.get(compiled.control or "") if look else None
        if look is None or control is None:
            continue
        for treatment in compiled.judged_variants:
            state = look.states.get(treatment)
            if state is not None and (read := _read(goal, control, state)):
                found[pk, treatment].append(Reading(day, *read))
    return found


def goal_of(compiled: CompiledPlan) -> Comparison | None:
    """The gate of the first goal that compares treatments with the control."""
    return next((c for c in compiled.comparisons if c.goal), None) if compiled.control else None


def _last_looks(
    compiled_plans: Mapping[int, CompiledPlan],
    goals: Mapping[int, Comparison],
    now: datetime,
    *,
    whole_days: bool = False,
) -> dict[tuple[int, date], MetricLook | None]:
    """By experiment and day, the goal's newest look: of the steps that hold a bucket when rows come as expected, or of all."""
    look_s = {pk: compiled_plans[pk].policy.look_s for pk in goals}
    wide_s = {pk: 86_400 if whole_days else goal.kpi.expected_every_s for pk, goal in goals.items()}
    found: dict[tuple[int, date], MetricLook | None] = {}
    with connection.cursor() as cursor:
        given: dict[str, Any] = {
            "ids": list(goals),
            "look_s": list(look_s.values()),
            "most": [min(wide_s[pk] // look_s[pk], 96) + 2 for pk in goals],
            "now": now,
            "days": MOST_DAYS - 1,
        }
        cursor.execute(_LOOKS, given)
        for pk, day, body in cursor.fetchall():  # newest first within a day
            if found.get((pk, day)) is None:
                found[pk, day] = _step.decode(body).looks.get(goals[pk].kpi.metric)
    return found


def _read(comparison: Comparison, control: Sums, treatment: Sums) -> tuple[Point, int] | None:
    """A gate's reading of two states; None where it has none, or none with two ends that can be drawn."""
    with suppress(ArithmeticError, ValueError):  # states of rows from before they had a range
        found = measure(comparison, control, treatment)
        if found is not None and max(abs(found.lower), abs(found.upper)) <= LARGEST:
            return Point(found.lower, found.estimate, found.upper), int(control[0]) + int(treatment[0])
    return None


def day_text(day: date) -> str:
    """
    >>> day_text(date(2026, 11, 8))
    '8 Nov'
    """
    return f"{day.day} {datetime(day.year, day.month, day.day, tzinfo=UTC):%b}"
