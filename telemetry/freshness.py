"""How old data may be. Pure where it is Python; the SQL beside each function says the same to the database.

With e = expected_every_s, t = freshness_target_s and age = now - data watermark: `fresh` (age <= e), `due` (<= e + t/2),
`late` (<= e + t), `stale` (beyond), `unknown` (no row). The watermark of a KPI is the least over its variants of the newest ts.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

State = Literal["fresh", "due", "late", "unknown", "stale"]
WORST_LAST: tuple[State, ...] = ("fresh", "due", "late", "unknown", "stale")
"""From best to worst: an experiment is as fresh as its worst KPI."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def state(watermark: datetime | None, *, every_s: int, target_s: int, now: datetime) -> State:
    """The freshness of one KPI.

    >>> at = datetime(2026, 11, 24, 6, tzinfo=UTC)
    >>> [state(at, every_s=900, target_s=900, now=at + timedelta(seconds=s)) for s in (900, 1350, 1800, 1801)]
    ['fresh', 'due', 'late', 'stale']
    """
    if watermark is None:
        return "unknown"
    age_s = (now - watermark).total_seconds()
    if age_s <= every_s:
        return "fresh"
    if age_s <= every_s + target_s / 2:
        return "due"
    return "late" if age_s <= every_s + target_s else "stale"


def due_at(watermark: datetime, *, every_s: int) -> datetime:
    """When the next bucket is expected; after it the state is `due`."""
    return watermark + timedelta(seconds=every_s)


def stale_at(watermark: datetime, *, every_s: int, target_s: int) -> datetime:
    """The last instant at which the state is not yet `stale`."""
    return watermark + timedelta(seconds=every_s + target_s)


def worst(states: Iterable[State]) -> State:
    """Of several KPIs; none at all is unknown."""
    return max(states, key=WORST_LAST.index, default="unknown")


def latencies_s(
    arrivals: Sequence[tuple[datetime, datetime]],
    *,
    every_s: int,
    target_s: int,
    began: datetime,
    since: datetime,
    now: datetime,
) -> list[float]:
    """One latency for each bucket of one series that ended in (since, now], and for the oldest that is missing since its newest row.

    arrivals: (ts, first_received_at) of its rows. A bucket that is there counts first_received_at - ts. One that is missing
    counts its age so far, once that is more than the target, so that data which never comes cannot flatter the figure. The first
    that is missing since the newest row, or since `began`, counts wherever it ended: else a feed of one bucket a day or a week
    would be good again as soon as what is missing is a day old.
    Buckets lie on the UTC grid of `every_s`; a row belongs to the bucket in which its ts falls.
    """
    there = {_bucket(ts, every_s) for ts, _ in arrivals}
    found = [(received - ts).total_seconds() for ts, received in arrivals if since < ts <= now]
    first, last = _next_bucket(since, every_s), _bucket(now, every_s)
    newest = max((_bucket(ts, every_s) for ts, _ in arrivals if ts <= now), default=0)
    oldest_missing = max(newest + 1, _next_bucket(began, every_s))
    for bucket in sorted({oldest_missing, *range(first, last + 1)}):
        age_s = (now - _EPOCH).total_seconds() - bucket * every_s
        if age_s > target_s and bucket not in there:
            found.append(age_s)
    return found


def p95(values: Sequence[float]) -> float | None:
    """The least value that at least 95% of the values do not exceed (PostgreSQL's percentile_disc); None of none.

    >>> p95([float(n) for n in range(1, 101)]), p95([])
    (95.0, None)
    """
    if not values:
        return None
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


FAILURES_OVER = timedelta(days=7)


def failure_share(*, due: int, succeeded: int, failed: int) -> float | None:
    """Failed and missed runs, as a share of those that should have been; None when none should.

    due: runs the schedule asked for. A run that was due and left no trace is missed, so that a schedule that has stopped counts as failing.

    >>> failure_share(due=100, succeeded=97, failed=1), failure_share(due=4, succeeded=4, failed=4), failure_share(due=0, succeeded=0, failed=0)
    (0.03, 0.5, None)
    """
    missed = max(0, due - succeeded - failed)
    counted = succeeded + failed + missed
    return (failed + missed) / counted if counted else None


def _bucket(ts: datetime, every_s: int) -> int:
    return math.ceil((ts - _EPOCH).total_seconds() / every_s)


def _next_bucket(at: datetime, every_s: int) -> int:
    return math.floor((at - _EPOCH).total_seconds() / every_s) + 1


# The same for the database. Parameter: %(now)s ----------------------------------------------------------------------------

WATERMARK_SQL = "metrics.watermark({experiment}, {metric}, {variant}, {temporality})"
"""ts of the newest row of one series that said something new: rows with n = 0 do not, nor do those that repeat a cumulative row."""
WATERMARK_BESIDE_SQL = f"CASE WHEN {{row}}.n IS DISTINCT FROM 0 AND {{temporality}} <> 'cumulative' THEN {{row}}.ts ELSE {WATERMARK_SQL} END"
"""The same where the newest row of any kind is at hand as {row}: most are what is looked for. Null where there is none."""

STATE_SQL = """CASE WHEN {watermark} IS NULL THEN 'unknown'
  WHEN {now} - {watermark} <= make_interval(secs => {every_s}) THEN 'fresh'
  WHEN {now} - {watermark} <= make_interval(secs => {every_s} + {target_s} / 2.0) THEN 'due'
  WHEN {now} - {watermark} <= make_interval(secs => {every_s} + {target_s}) THEN 'late'
  ELSE 'stale' END"""
"""`state`, for expressions named by str.format."""

RANK_SQL = "array_position('{{fresh,due,late,unknown,stale}}'::text[], {state})"
"""The place of a state in WORST_LAST, from 1."""

LATENCIES_SQL = """
  WITH r AS MATERIALIZED (
    SELECT r.ts, extract(epoch FROM r.first_received_at - r.ts)::float8 AS latency_s,
           ceil(extract(epoch FROM r.ts) / {every_s})::bigint AS bucket
    FROM metrics.experiment_kpis r
    WHERE r.experiment_id = {experiment} AND r.metric = {metric} AND r.variant = {variant}
      AND r.ts > {since} - make_interval(secs => {every_s}) AND r.ts <= {now})
  SELECT r.latency_s FROM r WHERE r.ts > {since}
  UNION ALL
  SELECT (extract(epoch FROM {now}) - k * {every_s}::bigint)::float8
  FROM generate_series(floor(extract(epoch FROM {since}) / {every_s})::bigint + 1,
                       ceil((extract(epoch FROM {now}) - {target_s}) / {every_s})::bigint - 1) AS k
  WHERE NOT EXISTS (SELECT FROM r WHERE r.bucket = k)
  UNION ALL
  SELECT (extract(epoch FROM {now}) - o.k * {every_s}::bigint)::float8
  FROM (SELECT greatest(ceil(extract(epoch FROM (
                 SELECT r.ts FROM metrics.experiment_kpis r
                 WHERE r.experiment_id = {experiment} AND r.metric = {metric} AND r.variant = {variant} AND r.ts <= {now}
                 ORDER BY r.ts DESC LIMIT 1)) / {every_s})::bigint,
               floor(extract(epoch FROM {began}) / {every_s})::bigint) + 1 AS k
        WHERE NOT EXISTS (SELECT FROM r)) AS o
  WHERE o.k * {every_s}::bigint <= extract(epoch FROM {since}) AND extract(epoch FROM {now}) - o.k * {every_s}::bigint > {target_s}
"""
"""`latencies_s` of one series, as a query; what is missing from before `since` is looked for only where there is no row since."""
