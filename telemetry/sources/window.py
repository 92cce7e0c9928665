"""What a run asks for: from when to when, and which series further back."""

import datetime as dt
from dataclasses import dataclass

from django.conf import settings
from django.db import connection

from telemetry import ingest
from telemetry.models import Source
from telemetry.row import Row

LATE = dt.timedelta(days=7)
"""How far behind the others a series is waited for, and how long what was refused is read again."""


@dataclass(frozen=True)
class Reading:
    """What a run asks for: rows of (since, until]; of those up to `floor` only those of series that are behind, `late`.

    late: (number of the experiment, metric, variant).
    """

    since: dt.datetime
    until: dt.datetime
    floor: dt.datetime
    late: frozenset[tuple[int, str, str]]

    def has_read(self, target: ingest.Target, row: Row) -> bool:
        """Whether an earlier run has read this row."""
        return row.ts <= self.floor and (target.experiment_id, row.metric, row.variant) not in self.late


def window(source: Source, *, now: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """(since, until) of a run: from what was read, or from where it is to be read again, less the overlap; at first, all that may be stored."""
    oldest = now - dt.timedelta(days=settings.RETENTION_DAYS)
    if source.read_to is None:
        return oldest, now
    overlap = dt.timedelta(seconds=source.overlap_s)
    since = source.read_to - overlap
    if source.again_from is not None:  # a row of that very time is read
        since = min(since, source.again_from - max(overlap, dt.timedelta.resolution))
    return max(since, oldest), now


def everything(*, now: dt.datetime) -> Reading:
    """All that may be stored."""
    oldest = now - dt.timedelta(days=settings.RETENTION_DAYS)
    return Reading(oldest, now, oldest, frozenset())


_LATE = """
SELECT f.experiment_id, f.metric, f.variant,
       CASE WHEN f.is_new OR f.newest IS NOT NULL THEN f.reached ELSE greatest(f.reached, %(waited_for)s) END
FROM (
  SELECT e.id AS experiment_id, m.key AS metric, v.key AS variant, r.ts AS newest, coalesce(r.ts, e.started_at, e.created_at) AS reached,
         e.created_at > coalesce(
           (SELECT max(l.started_at) FROM metadata.refresh_log l
            WHERE l.team_id = %(team)s AND l.source = %(source)s AND l.heartbeat_at IS NOT NULL AND l.status IN ('succeeded', 'partial')),
           '-infinity') AS is_new
  FROM metadata.experiments e
  JOIN metadata.target_kpis k ON k.experiment_id = e.id
  JOIN metadata.metrics m ON m.id = k.metric_id AND m.key = ANY (%(metrics)s)
  JOIN metadata.variants v ON v.experiment_id = e.id AND v.dropped_at IS NULL
  LEFT JOIN LATERAL (SELECT ts FROM metrics.experiment_kpis
    WHERE experiment_id = e.id AND metric = m.key AND variant = v.key ORDER BY ts DESC LIMIT 1) AS r ON true
  WHERE e.team_id = %(team)s AND e.ended_at IS NULL) AS f
WHERE f.reached < %(floor)s + make_interval(secs => %(overlap_s)s) AND (f.reached >= %(waited_for)s OR f.is_new OR f.newest IS NULL)
"""


def reading(source: Source, *, now: dt.datetime) -> Reading:
    """What a run is to read: its window, and further back what series have missed that are behind the others.

    A series counts as behind for LATE, one that has never come for as long as its experiment runs, over the last LATE; and at the first
    run after its experiment was made from that experiment's start on.
    """
    floor, until = window(source, now=now)
    if source.read_to is None:
        return Reading(floor, until, floor, frozenset())
    overlap = dt.timedelta(seconds=source.overlap_s)
    with connection.cursor() as cursor:
        cursor.execute(
            _LATE,
            {"metrics": source.metrics, "team": source.team_id, "source": source.key, "floor": floor, "overlap_s": source.overlap_s,
             "waited_for": source.read_to - max(LATE, overlap)},
        )  # fmt: skip
        behind = cursor.fetchall()
    oldest = now - dt.timedelta(days=settings.RETENTION_DAYS)
    since = min([floor, *(max(reached - overlap, oldest) for *_, reached in behind)])
    return Reading(since, until, floor, frozenset((pk, metric, variant) for pk, metric, variant, _ in behind))
