"""Hour sums for charts: recomputed from rows for every hour that changed, never patched. No verdict reads them."""

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

from django.db import DatabaseError, OperationalError, connection, transaction

from experiments.plan import LARGEST, SMALLEST
from telemetry.row import MOST_UNITS

MOST_COUNTED = 2**63 - 1


LARGEST_VARIANCE = 1e220
"""Of an hour; larger than that of any rows within their range."""


def in_range(number: str, *, most: float = LARGEST) -> str:
    """SQL of a stored float as sums, squares and quotients can take it, where PostgreSQL would raise: what is larger is `most`, what is
    too small is 0. Rows that came before ingest had a range hold anything; of all others it is the number itself."""
    # No least() and greatest(): of a missing number they give the bound.
    return (
        f"CASE WHEN abs({number}) < {SMALLEST:g} THEN 0 WHEN {number} > {most:g} THEN {most:g} "
        f"WHEN {number} < {-most:g} THEN {-most:g} ELSE {number} END"
    )


def units_in_range(number: str) -> str:
    """SQL of a stored n, at most what a row may count; a missing one stays missing."""
    return f"CASE WHEN {number} > {MOST_UNITS} THEN {MOST_UNITS} ELSE {number} END"


# One statement says what an hour is; the rebuild writes it and the verification compares with it.
# Delta: n-weighted mean and pooled sample variance, or the plain mean where n is unknown. Cumulative: the hour's last row.
_HOURS = f"""
SELECT k.experiment_id, k.metric, k.variant, date_bin('1 hour', k.ts - interval '1 microsecond', 'epoch') AS hour,
       CASE WHEN m.temporality = 'cumulative' THEN (array_agg(k.value ORDER BY k.ts DESC))[1]
            WHEN bool_and(k.n IS NOT NULL) AND sum(k.n) > 0 THEN sum(k.n * k.value) / sum(k.n)
            ELSE avg(k.value) END AS value,
       CASE WHEN m.temporality = 'cumulative' THEN (array_agg(k.n ORDER BY k.ts DESC))[1]
            WHEN bool_and(k.n IS NOT NULL) THEN least(sum(k.n), {MOST_COUNTED}) END AS n,
       CASE WHEN m.temporality = 'cumulative' THEN (array_agg(k.variance ORDER BY k.ts DESC))[1]
            WHEN bool_and(k.n IS NOT NULL AND (k.variance IS NOT NULL OR k.n < 2)) AND sum(k.n) > 1
            THEN greatest(0, (sum(greatest(k.n - 1, 0) * coalesce(k.variance, 0)) + sum(k.n * k.value * k.value)
                              - sum(k.n * k.value) ^ 2 / sum(k.n)) / (sum(k.n) - 1)) END AS variance,
       count(*)::int AS rows, min(k.team_id) AS team_id
FROM (SELECT experiment_id, metric, variant, ts, team_id, {in_range("value")} AS value, {units_in_range("n")} AS n,
             {in_range("variance")} AS variance
      FROM metrics.experiment_kpis) AS k
JOIN metadata.metrics m ON m.key = k.metric
"""  # noqa: S608 - constants

_CHANGED = """
WITH changed AS (
  DELETE FROM metrics.kpi_changes WHERE id IN (
    SELECT id FROM metrics.kpi_changes WHERE job = 'hours' ORDER BY id LIMIT 5000 FOR UPDATE SKIP LOCKED)
  RETURNING experiment_id, metric, variant, from_ts, to_ts, team_id)
SELECT experiment_id, metric, variant, date_bin('1 hour', min(from_ts) - interval '1 microsecond', 'epoch'),
       date_bin('1 hour', max(to_ts) - interval '1 microsecond', 'epoch') + interval '1 hour', min(team_id), count(*)
FROM changed GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""

_REBUILD = f"""
WITH spans AS MATERIALIZED (
  SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::timestamptz[], %s::timestamptz[])
    AS s(experiment_id, metric, variant, since, until)),
gone AS (
  DELETE FROM metrics.kpi_hours h USING spans s
  WHERE h.experiment_id = s.experiment_id AND h.metric = s.metric AND h.variant = s.variant AND h.hour >= s.since AND h.hour < s.until
    AND NOT EXISTS (SELECT FROM metrics.experiment_kpis k WHERE k.experiment_id = h.experiment_id AND k.metric = h.metric
                    AND k.variant = h.variant AND k.ts > h.hour AND k.ts <= h.hour + interval '1 hour')),
made AS (
  INSERT INTO metrics.kpi_hours (experiment_id, metric, variant, hour, value, n, variance, rows, team_id)
  {_HOURS}
  JOIN spans s ON s.experiment_id = k.experiment_id AND s.metric = k.metric AND s.variant = k.variant AND k.ts > s.since AND k.ts <= s.until
  GROUP BY 1, 2, 3, 4, m.temporality
  ON CONFLICT (experiment_id, metric, variant, hour) DO UPDATE SET value = excluded.value, n = excluded.n,
    variance = excluded.variance, rows = excluded.rows
  RETURNING hour)
SELECT count(*), max(hour) FROM made
"""  # noqa: S608 - no value is interpolated

_DIFFERENCES = f"""
SELECT coalesce(a.experiment_id, b.experiment_id), coalesce(a.metric, b.metric), coalesce(a.variant, b.variant), coalesce(a.hour, b.hour)
FROM ({_HOURS} GROUP BY 1, 2, 3, 4, m.temporality) AS a
FULL JOIN metrics.kpi_hours b USING (experiment_id, metric, variant, hour)
WHERE (a.value, a.n, a.variance, a.rows) IS DISTINCT FROM (b.value, b.n, b.variance, b.rows)
"""  # noqa: S608


class Span(NamedTuple):
    """The hours of one series that changed: since < ts <= until."""

    experiment_id: int
    metric: str
    variant: str
    since: dt.datetime
    until: dt.datetime
    team_id: int


class Rebuilt(NamedTuple):
    """`changes` dealt with, `hours` written, the newest of them; each series that could not be summed, and what was the matter."""

    changes: int = 0
    hours: int = 0
    newest: dt.datetime | None = None
    failed: tuple[tuple[Span, str], ...] = ()


def rebuild_changed() -> Rebuilt:
    """Recompute the hours that changed, in the caller's transaction. A series that cannot be summed costs no other its hours: it is
    told, keeps those it had, and is tried again when a row of it changes."""
    with connection.cursor() as cursor:
        cursor.execute(_CHANGED)
        found = cursor.fetchall()
    hours, newest, failed = _rebuild([Span(*of) for *of, _ in found]) if found else (0, None, [])
    return Rebuilt(sum(count for *_, count in found), hours, newest, tuple(failed))


def _rebuild(spans: Sequence[Span]) -> tuple[int, dt.datetime | None, list[tuple[Span, str]]]:
    """All at once; where that fails each half alone, down to the series that are the matter."""
    sent = [list(column) for column in zip(*spans, strict=True)][:5]
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_REBUILD, sent)
            hours, newest = cursor.fetchone() or (0, None)
    except OperationalError:  # it is the server that is the matter
        raise
    except DatabaseError as problem:
        if len(spans) == 1:
            return 0, None, [(spans[0], str(problem).partition("\n")[0])]
        halves = [_rebuild(half) for half in (spans[: len(spans) // 2], spans[len(spans) // 2 :])]
        newest = max((at for _, at, _ in halves if at), default=None)
        return sum(count for count, *_ in halves), newest, [each for *_, failed in halves for each in failed]
    return hours, newest, []


_FORGET = f"""
WITH gone AS (DELETE FROM metrics.kpi_hours WHERE hour < %(before)s RETURNING 1),
again AS (
  INSERT INTO metrics.kpi_hours (experiment_id, metric, variant, hour, value, n, variance, rows, team_id)
  {_HOURS} WHERE k.ts = %(before)s GROUP BY 1, 2, 3, 4, m.temporality
  ON CONFLICT (experiment_id, metric, variant, hour) DO UPDATE SET value = excluded.value, n = excluded.n,
    variance = excluded.variance, rows = excluded.rows)
SELECT count(*) FROM gone
"""  # noqa: S608


def forget_before(month: dt.datetime) -> int:
    """Drop the hours of rows with ts < month, which are gone; returns how many. month: its first instant.

    A row at that very instant is still there, and belongs to the hour before it.
    """
    with connection.cursor() as cursor:
        cursor.execute(_FORGET, {"before": month})
        (gone,) = cursor.fetchone() or (0,)
        return int(gone)


def differences() -> list[tuple[int, str, str, dt.datetime]]:
    """Hours (experiment, metric, variant, hour) that are not what the rows give. After a rebuild there must be none."""
    with connection.cursor() as cursor:
        cursor.execute(_DIFFERENCES)
        return [(int(e), str(m), str(v), hour) for e, m, v, hour in cursor.fetchall()]
