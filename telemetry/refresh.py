"""The refresh log's own jobs: every run of a job the portal runs leaves a row, whatever happens."""

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from django.db import connection, transaction
from django.db.models import Count, Q, QuerySet

from experiments.models import Experiment
from telemetry.freshness import (
    FAILURES_OVER,
    FRESHNESS_SQL,
    LATENCIES_SQL,
    RANK_SQL,
    WATERMARK_SQL,
    WORST_LAST,
    State,
    failure_share,
)
from telemetry.models import RefreshRun, Source

RunState = Literal["ok", "partial", "failed", "missed", "running"]
MOST_SHOWN = 96
BROUGHT = (RefreshRun.Status.SUCCEEDED, RefreshRun.Status.PARTIAL)
"""How a run ends that refreshed what it feeds. Rows that it refused are told; they make it no failure."""
_STATES: dict[str, RunState] = {
    "succeeded": "ok",
    "partial": "partial",
    "failed": "failed",
    "aborted": "failed",
    "running": "running",
}


@dataclass
class Run:
    """What a job says of itself while it works; a run that did nothing leaves no row. `failures`: parts that went wrong.

    `told`: by team, what went wrong with something of it. The team finds it in its own log, as a failed run of the same job, since
    the portal's runs are read by every team.
    """

    rows: int = 0
    data_watermark: dt.datetime | None = None
    worked: bool = False
    failures: list[str] = field(default_factory=list)
    told: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))


@contextmanager
def logged(job_name: str, *, clock: Callable[[], dt.datetime]) -> Iterator[Run]:
    """Run a job in one transaction and log it: succeeded with its rows in that transaction, or failed with its error.

    clock: the door's clock, read at start and end.
    """
    run, started_at = Run(), clock()
    try:
        with transaction.atomic():
            yield run
            if run.worked or run.failures:
                status = RefreshRun.Status.FAILED if run.failures else RefreshRun.Status.SUCCEEDED
                _record(job_name, run, started_at, clock(), status, "; ".join(run.failures) or None)
            for team_id, parts in run.told.items():
                _record(job_name, Run(), started_at, clock(), RefreshRun.Status.FAILED, "; ".join(parts), team_id)
    except Exception as failure:
        _record(job_name, run, started_at, clock(), RefreshRun.Status.FAILED, f"{type(failure).__name__}: {failure}")
        raise


def runs_feeding(experiment: Experiment) -> QuerySet[RefreshRun]:
    """Runs of its team's sources that feed one of its KPIs."""
    kpis = list(experiment.targetkpis.values_list("metric__key", flat=True))
    feeding = Source.objects.filter(team=experiment.team_id, metrics__overlap=kpis)
    return RefreshRun.objects.filter(team=experiment.team_id, source__in=feeding.values("key"))


FED_SQL = """
  SELECT s.key AS source, max(s.last_refresh_at) OVER () AS last_refresh_at, r.run_id, r.status, r.finished_at, r.error
  FROM metadata.sources s
  LEFT JOIN LATERAL (
    SELECT r.run_id, r.status, r.finished_at, r.error FROM metadata.refresh_log r
    WHERE r.team_id = s.team_id AND r.source = s.key ORDER BY r.id DESC LIMIT 1) AS r ON true
  WHERE s.team_id = {team} AND {metric} = ANY (s.metrics)
  ORDER BY s.enabled OR s.lineage_job <> '' DESC, s.failures > 0 OR coalesce(r.status IN ('failed', 'aborted'), false) DESC,
           extract(epoch FROM {now} - coalesce(s.last_refresh_at, s.created_at)) / s.schedule_s DESC, s.id
  LIMIT 1
"""
"""Of the sources that feed a metric the one that fares worst, with its newest run: one that fails before one that does not, then
the one whose last good run is the most schedules ago; one that is off only where no other is on. `last_refresh_at` is that of all."""


def failure_shares(sources: Sequence[Source], *, now: dt.datetime) -> dict[int, float | None]:
    """Of each source, by id: failed and missed runs of the last 7 days (or since it was made) as a share of those due."""
    since = now - FAILURES_OVER
    ended = (
        RefreshRun.objects.filter(source__in=[s.key for s in sources], finished_at__gt=since)
        .values("team_id", "source")
        .annotate(
            succeeded=Count("id", filter=Q(status__in=BROUGHT)),
            failed=Count("id", filter=~Q(status__in=BROUGHT)),
        )
    )
    counted = {(row["team_id"], row["source"]): (row["succeeded"], row["failed"]) for row in ended}
    found: dict[int, float | None] = {}
    for source in sources:
        succeeded, failed = counted.get((source.team_id, source.key), (0, 0))
        length = now - max(since, source.created_at)
        due = length // dt.timedelta(seconds=source.schedule_s) if source.enabled else 0
        found[source.pk] = failure_share(due=due, succeeded=succeeded, failed=failed)
    return found


@dataclass(frozen=True)
class Fed:
    """How that which a source feeds fares: the worst state and the worst p95 latency of its KPIs, seconds."""

    state: State
    p95_s: float | None


_FED_MOST = 100
_FRESHNESS = FRESHNESS_SQL.format(
    experiment="e.id",
    metric="m.key",
    watermark="v.watermark",
    every_s="m.expected_every_s",
    target_s="m.freshness_target_s",
    at="%(now)s::timestamptz",
)
_WATERMARK = WATERMARK_SQL.format(
    experiment="e.id", metric="m.key", variant="a.key", temporality="m.temporality", sparse="k.sparse"
)
_LATENCIES = LATENCIES_SQL.format(
    experiment="f.experiment_id",
    metric="f.key",
    variant="a.key",
    every_s="f.expected_every_s",
    target_s="f.freshness_target_s",
    sparse="f.sparse",
    began="f.began",
    since="greatest(%(now)s::timestamptz - interval '24 hours', f.began)",
    now="%(now)s::timestamptz",
)
_FED = f"""
WITH fed AS (
  SELECT s.id, e.id AS experiment_id, m.key, m.expected_every_s, m.freshness_target_s, k.sparse, greatest(e.started_at, e.created_at) AS began,
         fresh.state, row_number() OVER (PARTITION BY s.id ORDER BY v.watermark NULLS FIRST) AS place
  FROM metadata.sources s
  JOIN metadata.target_kpis k ON k.team_id = s.team_id
  JOIN metadata.metrics m ON m.id = k.metric_id AND m.key = ANY (s.metrics)
  JOIN metadata.experiments e ON e.id = k.experiment_id AND e.status IN ('running', 'paused')
  CROSS JOIN LATERAL (
    SELECT CASE WHEN bool_and(r.ts IS NOT NULL) THEN min(r.ts) END AS watermark
    FROM metadata.variants a
    CROSS JOIN LATERAL (SELECT {_WATERMARK} AS ts) AS r
    WHERE a.experiment_id = e.id AND a.dropped_at IS NULL) AS v
  CROSS JOIN LATERAL {_FRESHNESS} AS fresh
  WHERE s.id = ANY (%(ids)s))
SELECT f.id, max({RANK_SQL.format(state="f.state")}), max(p.p95_s)
FROM fed f
CROSS JOIN LATERAL (
  SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY l.latency_s) AS p95_s
  FROM metadata.variants a CROSS JOIN LATERAL ({_LATENCIES}) AS l
  WHERE f.place <= {_FED_MOST} AND a.experiment_id = f.experiment_id AND a.dropped_at IS NULL) AS p
GROUP BY f.id
"""  # noqa: S608 - constants


def fed(sources: Sequence[Source], *, now: dt.datetime) -> dict[int, Fed]:
    """Of each source that feeds KPIs of running or paused experiments, by id.

    A source may feed thousands: p95 is looked for among the hundred whose data is oldest.
    """
    with connection.cursor() as cursor:
        cursor.execute(_FED, {"ids": [source.pk for source in sources], "now": now})
        return {pk: Fed(WORST_LAST[rank - 1], p95_s) for pk, rank, p95_s in cursor.fetchall()}


def newest_runs(sources: Sequence[Source], *, now: dt.datetime) -> dict[int, list[RunState]]:
    """Of each source, by id: what came of the runs of the last day, oldest first, at most the newest `MOST_SHOWN`.

    A run that was due and left no trace is `missed`: a gap between two runs, or since the last, half a schedule wider than it
    should be.
    """
    since = now - dt.timedelta(days=1)
    runs: dict[tuple[int | None, str], list[tuple[dt.datetime, str]]] = defaultdict(list)
    for team, key, began, status in (
        RefreshRun.objects.filter(source__in=[s.key for s in sources], started_at__gt=since, started_at__lte=now)
        .order_by("started_at")
        .values_list("team_id", "source", "started_at", "status")
    ):
        if began is not None:
            runs[team, key].append((began, status))
    found: dict[int, list[RunState]] = {}
    for source in sources:
        before, width = max(since, source.created_at), dt.timedelta(seconds=source.schedule_s)
        states: list[RunState] = []
        for began, status in [*runs[source.team_id, source.key], (now, "")]:
            if source.enabled:
                lost = (began - before + width / 2) // width - 1
                states += ["missed"] * min(max(lost, 0), MOST_SHOWN)
            if status:
                states.append(_STATES[status])
            before = began
        found[source.pk] = states[-MOST_SHOWN:]
    return found


def missed(sources: Iterable[Source], *, since: dt.datetime, now: dt.datetime) -> int:
    """Runs of these sources that were due since then (or since the source was made) and left no trace."""
    found = [source for source in sources if source.enabled]
    ended = (
        RefreshRun.objects.filter(source__in=[source.key for source in found], finished_at__gt=since)
        .values("team_id", "source")
        .annotate(runs=Count("id"))
    )
    counted = {(row["team_id"], row["source"]): row["runs"] for row in ended}
    return sum(
        max(
            0,
            (now - max(since, source.created_at)) // dt.timedelta(seconds=source.schedule_s)
            - counted.get((source.team_id, source.key), 0),
        )
        for source in found
    )


def _record(
    job_name: str,
    run: Run,
    started_at: dt.datetime,
    finished_at: dt.datetime,
    status: str,
    error: str | None,
    team_id: int | None = None,
) -> None:
    RefreshRun.objects.create(
        run_id=uuid.uuid4(),
        team_id=team_id,
        job_name=job_name,
        started_at=started_at,
        finished_at=finished_at,
        status=status,
        rows=run.rows if run.worked else None,
        error=error,
        data_watermark=run.data_watermark,
    )
