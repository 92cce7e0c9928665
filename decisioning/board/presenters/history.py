"""How an effect got where it is: its always-valid interval day by day, from the hour sums that charts are made of.

For the eye only: no verdict reads it. The statistics are the gates' own; days are UTC.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from django.db import connection

from decisioning.board.charts import Point
from experiments.models import Metric
from gates.statistics import effects, moments, planning, sequences

# What came before the start is shown as a value and never adds to what is known.
_DAYS = """
SELECT h.experiment_id, h.metric, h.variant, (date_trunc('day', h.hour, 'UTC') AT TIME ZONE 'UTC')::date AS day,
       (array_agg(h.value ORDER BY h.hour DESC))[1], (array_agg(h.n ORDER BY h.hour DESC))[1],
       (array_agg(h.variance ORDER BY h.hour DESC))[1],
       CASE WHEN sum(h.n) > 0 THEN sum(h.n * h.value) / sum(h.n) ELSE avg(h.value) END, sum(h.n)::bigint,
       sum(h.n) FILTER (WHERE judged)::bigint, sum(h.n * h.value) FILTER (WHERE judged),
       sum(h.n * h.value * h.value) FILTER (WHERE judged),
       sum(greatest(h.n - 1, 0) * coalesce(h.variance, 0)) FILTER (WHERE judged)
FROM (SELECT k.*, k.hour >= date_trunc('hour', e.started_at) AS judged
      FROM unnest(%s::bigint[], %s::text[]) AS w(experiment_id, metric)
      JOIN kpi_hours k ON k.experiment_id = w.experiment_id AND k.metric = w.metric
      JOIN experiments e ON e.id = w.experiment_id) AS h
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""


@dataclass(frozen=True)
class Day:
    """One series on one day: its value that day, and everything known up to its end."""

    day: date
    value: float
    n: int | None
    state: moments.Moments


Series = dict[tuple[int, str, str], list[Day]]


def series(wanted: Iterable[tuple[int, str]], metrics: Mapping[str, Metric]) -> Series:
    """Daily values of every variant of the wanted (experiment, metric) pairs; one query."""
    pairs = list(dict.fromkeys(wanted))
    found: Series = defaultdict(list)
    if not pairs:
        return found
    with connection.cursor() as cursor:
        cursor.execute(_DAYS, [[e for e, _ in pairs], [m for _, m in pairs]])
        for experiment, metric, variant, day, last, last_n, last_variance, value, n, *judged in cursor.fetchall():
            days = found[experiment, metric, variant]
            known = metrics.get(metric)
            if known is not None and known.temporality == Metric.Temporality.CUMULATIVE:
                days.append(Day(day, last, last_n, moments.of_mean(last_n or 0, last, last_variance or 0.0)))
            else:
                before = days[-1].state if days else moments.NOTHING
                days.append(Day(day, value, n, moments.merge(before, _bucket(*judged))))
    return found


def _bucket(n: int | None, total: float | None, squares: float | None, within: float | None) -> moments.Moments:
    if not n or total is None or squares is None:
        return moments.NOTHING
    return moments.Moments(n, total / n, (within or 0.0) + max(squares - total * total / n, 0.0))


@dataclass(frozen=True)
class Lens:
    """How wide the interval is drawn: the gate's alpha and the number of units it is tuned to."""

    alpha: float
    t_opt: float
    relative: bool = True
    turned: bool = False


def lens(
    body: Mapping[str, Any], metric: Metric, *, worthwhile: float, baseline: tuple[float, float] | None, arms: int
) -> Lens:
    """The lens of one goal: GATES.md section 3, with alpha shared among the treatments."""
    t_opt = float(body.get("planned_units") or 100_000)
    if baseline and worthwhile:
        t_opt = 2 * planning.planned_units(baseline[1], worthwhile * abs(baseline[0]) or worthwhile)
    alpha = float(body.get("alpha") or 0.05) / max(arms, 1)
    return Lens(alpha, t_opt, turned=metric.direction == Metric.Direction.DECREASE)


def effect(control: Sequence[Day], treatment: Sequence[Day], lens: Lens, *, kind: str) -> list[tuple[date, Point, int]]:
    """The effect at the end of each day on which both arms are known: (day, interval, units of both arms)."""
    rho2 = sequences.tuning(lens.t_opt, lens.alpha)
    known = {d.day: d.state for d in control}
    out: list[tuple[date, Point, int]] = []
    for d in treatment:
        base = known.get(d.day)
        if base is None or base.n < 2 or d.state.n < 2 or base.mean == 0:
            continue
        arm = moments.proportion_arm if kind == Metric.Kind.PROPORTION else moments.mean_arm
        c, t = arm(base), arm(d.state)
        estimate, se = effects.relative_uplift(t, c) if lens.relative else effects.difference(t, c)
        if se <= 0:
            continue
        if lens.turned:
            estimate = -estimate
        half = sequences.half_width(se, c.n + t.n, rho2, lens.alpha)
        out.append((d.day, Point(estimate - half, estimate, estimate + half), c.n + t.n))
    return out


def day_text(day: date) -> str:
    """
    >>> day_text(date(2026, 11, 8))
    '8 Nov'
    """
    return f"{day.day} {datetime(day.year, day.month, day.day, tzinfo=UTC):%b}"
