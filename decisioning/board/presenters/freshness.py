"""How old the data is: by the newest row's own time, never by when a job last ran (docs/api.md, Habits)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection
from django.urls import reverse

from decisioning.board import charts, words
from decisioning.board.presenters.gates import svg
from decisioning.board.presenters.records import FRESHNESS, RESULTS
from gates.engine.figures import span
from telemetry.freshness import FRESHNESS_SQL, LATENCIES_SQL, WATERMARK_BESIDE_SQL, WORST_LAST
from telemetry.refresh import FED_SQL

STATES = WORST_LAST

# Least over the variants that are still in: one arm without rows leaves the KPI without data.
_NEWS = WATERMARK_BESIDE_SQL.format(
    row="newest", experiment="e.id", metric="m.key", variant="v.key", temporality="m.temporality", sparse="t.sparse"
)
_FRESHNESS = FRESHNESS_SQL.format(
    experiment="k.experiment_id",
    metric="k.metric",
    watermark="k.watermark",
    every_s="k.every_s",
    target_s="k.target_s",
    at="%(now)s::timestamptz",
)
_AGES = f"""
SELECT k.*, f.age_s, f.state, f.due_at, f.stale_at, f.overdue
FROM (
SELECT e.id AS experiment_id, e.key, e.name, m.key AS metric, m.name AS metric_name, m.expected_every_s AS every_s,
       m.freshness_target_s AS target_s, t.role, CASE WHEN count(*) = count(news.ts) THEN min(news.ts) END AS watermark,
       max(newest.received_at), t.position, e.team_id
FROM experiments e JOIN target_kpis t ON t.experiment_id = e.id JOIN metrics m ON m.id = t.metric_id
JOIN variants v ON v.experiment_id = e.id AND v.dropped_at IS NULL
LEFT JOIN LATERAL (
  SELECT k.ts, k.n, k.received_at FROM experiment_kpis k
  WHERE k.experiment_id = e.id AND k.metric = m.key AND k.variant = v.key ORDER BY k.ts DESC LIMIT 1) AS newest ON true
CROSS JOIN LATERAL (SELECT {_NEWS} AS ts) AS news
WHERE {{which}}
GROUP BY e.id, m.id, t.id) AS k
CROSS JOIN LATERAL {_FRESHNESS} AS f
ORDER BY k.experiment_id, k.position
"""  # noqa: S608 - constants
_NEWEST = """
SELECT m.key, v.key, newest.ts
FROM target_kpis t JOIN metrics m ON m.id = t.metric_id JOIN variants v ON v.experiment_id = t.experiment_id
CROSS JOIN LATERAL (
  SELECT k.ts FROM experiment_kpis k
  WHERE k.experiment_id = t.experiment_id AND k.metric = m.key AND k.variant = v.key ORDER BY k.ts DESC LIMIT 1) AS newest
WHERE t.experiment_id = %s
"""
_LATENCY = """
SELECT w.experiment_id, w.metric, percentile_disc(0.95) WITHIN GROUP (ORDER BY l.latency_s)
FROM unnest(%(ids)s::bigint[], %(metrics)s::text[]) AS w(experiment_id, metric)
JOIN experiments e ON e.id = w.experiment_id JOIN metrics m ON m.key = w.metric
JOIN target_kpis t ON t.experiment_id = e.id AND t.metric_id = m.id
JOIN variants a ON a.experiment_id = e.id AND a.dropped_at IS NULL
CROSS JOIN LATERAL ({latencies}) AS l GROUP BY 1, 2
""".format(
    latencies=LATENCIES_SQL.format(
        experiment="e.id",
        metric="m.key",
        variant="a.key",
        every_s="m.expected_every_s",
        target_s="m.freshness_target_s",
        sparse="t.sparse",
        began="greatest(e.started_at, e.created_at)",
        since="greatest(%(now)s::timestamptz - interval '24 hours', e.started_at, e.created_at)",
        now="least(%(now)s::timestamptz, e.ended_at)",
    )
)

_REFRESHED = f"""
SELECT w.experiment_id, w.metric, greatest(w.received_at, f.last_refresh_at), f.source, f.status, f.error
FROM unnest(%(ids)s::bigint[], %(metrics)s::text[], %(received)s::timestamptz[]) AS w(experiment_id, metric, received_at)
JOIN experiments e ON e.id = w.experiment_id
LEFT JOIN LATERAL ({FED_SQL.format(team="e.team_id", metric="w.metric", now="%(now)s::timestamptz")}) AS f ON true
"""  # noqa: S608 - constants


@dataclass(frozen=True)
class Refreshed:
    """When a KPI's data last came, by a row or by a job, and what came of the newest run of its source, if one feeds it."""

    at: datetime | None
    source: str | None
    status: str | None
    error: str | None


@dataclass(frozen=True)
class Age:
    """One KPI of one experiment: how far its rows reach and what that means now. age_s: of running time, pauses do not count; limit_s: the age
    beyond which it is stale. overdue: it is stale, or had no row in the time its first was due."""

    experiment_id: int
    experiment_key: str
    experiment_name: str
    metric: str
    name: str
    expected_every_s: int
    freshness_target_s: int
    role: str
    watermark: datetime | None
    received_at: datetime | None
    age_s: float | None
    state: str
    due_at: datetime | None
    stale_at: datetime | None
    limit_s: float
    overdue: bool
    team_id: int

    @property
    def badness(self) -> tuple[int, float]:
        return STATES.index(self.state), (self.age_s or 0) / self.limit_s


def ages(ids: Iterable[int] | None, *, now: datetime) -> list[Age]:
    """Every tracked KPI of these experiments, or of all that are running or paused."""
    which = "e.id = ANY (%(ids)s)" if ids is not None else "e.status IN ('running', 'paused')"
    with connection.cursor() as cursor:
        cursor.execute(_AGES.format(which=which), {"ids": None if ids is None else list(ids), "now": now})
        return [
            Age(pk, key, name, metric, named or metric, every, target, role, watermark, received,
                None if age_s is None else max(age_s, 0.0), state, due_at, stale_at,
                _limit_s(age_s, stale_at, now, every, target), overdue, team)
            for pk, key, name, metric, named, every, target, role, watermark, received, _, team, age_s, state, due_at, stale_at, overdue
            in cursor.fetchall()
        ]  # fmt: skip


def _limit_s(age_s: float | None, stale_at: datetime | None, now: datetime, every_s: int, target_s: int) -> float:
    """The age at which it is stale, as its schedule and its outages have it; as far apart as its rows mostly are where nobody can say."""
    if age_s is not None and stale_at is not None:
        limit = age_s + (stale_at - now).total_seconds()
        if limit > target_s:  # else it has been paused or over since
            return limit
    return every_s + target_s


def newest(experiment: int) -> dict[tuple[str, str], datetime]:
    """The newest row's time of each (metric, variant) of one experiment that has any."""
    with connection.cursor() as cursor:
        cursor.execute(_NEWEST, [experiment])
        return {(metric, variant): ts for metric, variant, ts in cursor.fetchall()}


def worst(ids: Sequence[int], *, now: datetime) -> dict[int, Age]:
    """The KPI of each experiment that is worst off."""
    found: dict[int, Age] = {}
    for age in ages(ids, now=now):
        held = found.get(age.experiment_id)
        if held is None or age.badness > held.badness:
            found[age.experiment_id] = age
    return found


def in_state(wanted: str, *, now: datetime) -> list[int]:
    """Running and paused experiments whose worst KPI is in this state."""
    found: dict[int, Age] = {}
    for age in ages(None, now=now):
        held = found.get(age.experiment_id)
        if held is None or age.badness > held.badness:
            found[age.experiment_id] = age
    return [pk for pk, age in found.items() if age.state == wanted]


def text(age: Age, *, now: datetime) -> dict[str, Any]:
    """For _age.html."""
    late = age.state in ("late", "stale", "unknown")
    return {
        "late": late,
        "icon": "stale" if age.state in ("late", "stale") else "no_data" if age.state == "unknown" else "clock",
        "text": "never" if age.age_s is None else span(age.age_s),
        "state": FRESHNESS[age.state],
        "at": age.watermark.isoformat() if age.watermark else "",
        "title": f"newest row {age.watermark:%Y-%m-%d %H:%M:%SZ}" if age.watermark else "",
    }


def latencies(found: Sequence[Age], *, now: datetime) -> dict[tuple[int, str], float]:
    """p95 of the time from a row's own time to its arrival, seconds, over the last day."""
    with connection.cursor() as cursor:
        ids, metrics = [a.experiment_id for a in found], [a.metric for a in found]
        cursor.execute(_LATENCY, {"ids": ids, "metrics": metrics, "now": now})
        return {(pk, metric): max(seconds, 0.0) for pk, metric, seconds in cursor.fetchall()}


def refreshed(found: Sequence[Age], *, now: datetime) -> dict[tuple[int, str], Refreshed]:
    """Of each KPI; where several sources feed it, of the one that fares worst."""
    asked: dict[str, Any] = {
        "ids": [a.experiment_id for a in found],
        "metrics": [a.metric for a in found],
        "received": [a.received_at for a in found],
        "now": now,
    }
    with connection.cursor() as cursor:
        cursor.execute(_REFRESHED, asked)
        return {(pk, metric): Refreshed(*said) for pk, metric, *said in cursor.fetchall()}


def table(found: Sequence[Age], *, now: datetime) -> list[dict[str, Any]]:
    """One line a KPI, for the freshness page and the experiment's own."""
    seen, came = latencies(found, now=now), refreshed(found, now=now)
    rows = []
    for i, age in enumerate(found):
        p95 = seen.get((age.experiment_id, age.metric))
        last = came[age.experiment_id, age.metric]
        said = "never" if age.age_s is None else span(age.age_s)
        limit = age.limit_s
        meter = charts.meter(
            age.age_s or 0, limit=limit, full=limit * 5 / 3, uid=f"f{i}", title=f"{age.name}: {said} old",
            desc=f"stale beyond {span(limit)}",
        )  # fmt: skip
        rows.append(
            {
                "name": age.name,
                "key": age.metric,
                "experiment": age.experiment_name,
                "url": reverse("experiment", args=[age.experiment_key]),
                "pill": words.pill(age.state, FRESHNESS[age.state].capitalize()),
                "tone": "late" if age.state in ("late", "stale") else "scale",
                "age": said,
                "target": span(limit),
                "meter": svg(meter) if age.age_s is not None else svg(""),
                "p95": "none" if p95 is None else span(p95),
                "refreshed": words.instant(last.at, now),
                "source": last.source or "",
                "run": words.pill(last.status, RESULTS[last.status]) if last.status else None,
                "error": last.error or "",
                "due": words.instant(age.due_at, now) if age.due_at else "",
                "stale": words.instant(age.stale_at, now) if age.watermark and age.stale_at else "",
            }
        )
    return rows
