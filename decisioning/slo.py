"""The PRD's figures about the portal itself: each with its target, its budget and what it leaves out.

Counted from what is stored, under the row security of the caller: a team sees its own figures, an admin all of them.
"""

# ruff: noqa: S608 - every statement is made of constants of this file

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from telemetry.freshness import LATENCIES_SQL

WINDOW = timedelta(days=28)
TELEMETRY_WINDOW = timedelta(hours=24)
TELEMETRY_TARGET_S = 15 * 60
DECISION_TARGET_S = 24 * 3600
WITHIN_TARGET = 0.80
FAILURE_TARGET = 0.01
CALM = ("open", "collecting")
"""Codes of a hold that is an answer: the data is good, units or days are missing."""


@dataclass(frozen=True)
class Latency:
    """p95_s: None when there was nothing to count. counted: how many; late: how many were over the target."""

    p95_s: float | None
    target_s: int
    counted: int
    late: int

    @property
    def holds(self) -> bool | None:
        return None if self.p95_s is None else self.p95_s <= self.target_s

    @property
    def budget_left(self) -> float | None:
        """Of the 5% that may be late, the fraction that is not used up; below 0 when the promise is broken."""
        return None if not self.counted else 1 - self.late / (0.05 * self.counted)


@dataclass(frozen=True)
class Share:
    """part of whole; `at_least` says on which side of the target the promise lies."""

    part: int
    whole: int
    target: float
    at_least: bool

    @property
    def share(self) -> float | None:
        return self.part / self.whole if self.whole else None

    @property
    def holds(self) -> bool | None:
        if self.share is None:
            return None
        return self.share >= self.target if self.at_least else self.share <= self.target

    @property
    def budget_left(self) -> float | None:
        """Of the misses that are allowed, the fraction that is not used up; below 0 when the promise is broken."""
        if not self.whole:
            return None
        allowed = (1 - self.target if self.at_least else self.target) * self.whole
        missed = self.whole - self.part if self.at_least else self.part
        return 1 - missed / allowed


@dataclass(frozen=True)
class Blocked:
    """Experiments whose read is not stable, by what blocks them."""

    code: str
    experiments: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """People's own promise: proposals answered in the team's time. p95_s from proposal to answer."""

    p95_s: float | None
    answered: int
    open: int
    overdue: int


@dataclass(frozen=True)
class Figures:
    """telemetry: rows and missing buckets of the last 24 h. decision: from the moment a stable read could be known to its
    proposal; what is not proposed yet counts as its wait so far. recommended: experiments with a recommendation within 24 h, of
    which `decisive` (scale, delete, review) and `calm` (hold for units or days). failures: runs of telemetry jobs."""

    as_of: datetime
    telemetry: Latency
    decision: Latency
    recommended: Share
    decisive: int
    calm: int
    blocked: tuple[Blocked, ...]
    failures: Share
    answers: Answers
    missed_slots: int


def figures(*, now: datetime) -> Figures:
    """Every promise, as of now."""
    with connection.cursor() as cursor:
        telemetry = _row(cursor, _TELEMETRY, now)
        decision = _row(cursor, _DECISION, now)
        in_time, decisive, calm, whole = _row(cursor, _RECOMMENDED, now)
        cursor.execute(_BLOCKED, _parameters(now))
        blocked = tuple(Blocked(code, tuple(keys)) for code, keys in cursor.fetchall())
        failed, runs = _row(cursor, _FAILURES, now)
        answers = _row(cursor, _ANSWERS, now)
        cursor.execute("SELECT coalesce(sum(missed_slots), 0) FROM metadata.cursors")
        (missed_slots,) = cursor.fetchone() or (0,)
    return Figures(
        as_of=now,
        telemetry=Latency(telemetry[0], TELEMETRY_TARGET_S, telemetry[1], telemetry[2]),
        decision=Latency(decision[0], DECISION_TARGET_S, decision[1], decision[2]),
        recommended=Share(in_time, whole, WITHIN_TARGET, at_least=True),
        decisive=decisive,
        calm=calm,
        blocked=blocked,
        failures=Share(failed, runs, FAILURE_TARGET, at_least=False),
        answers=Answers(*answers),
        missed_slots=int(missed_slots),
    )


def _row(cursor: Any, sql: str, now: datetime) -> tuple[Any, ...]:
    cursor.execute(sql, _parameters(now))
    row: tuple[Any, ...] = cursor.fetchone()
    return row


def _parameters(now: datetime) -> dict[str, Any]:
    return {
        "now": now,
        "since": now - WINDOW,
        "day": now - TELEMETRY_WINDOW,
        "telemetry_target": TELEMETRY_TARGET_S,
        "decision_target": DECISION_TARGET_S,
        "calm": list(CALM),
    }


_TELEMETRY = (
    """
SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY l.latency_s), count(*), count(*) FILTER (WHERE l.latency_s > %(telemetry_target)s)
FROM metadata.experiments e
JOIN metadata.target_kpis k ON k.experiment_id = e.id
JOIN metadata.metrics m ON m.id = k.metric_id
JOIN metadata.variants a ON a.experiment_id = e.id AND a.dropped_at IS NULL
CROSS JOIN LATERAL ("""
    + LATENCIES_SQL.format(
        experiment="e.id",
        metric="m.key",
        variant="a.key",
        every_s="m.expected_every_s",
        target_s="m.freshness_target_s",
        since="greatest(%(day)s::timestamptz, e.started_at, e.created_at)",
        now="%(now)s::timestamptz",
    )
    + """) AS l
WHERE e.status = 'running'
"""
)

_DECISION = """
SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY waited_s), count(*), count(*) FILTER (WHERE waited_s > %(decision_target)s)
FROM (SELECT greatest(extract(epoch FROM r.proposed_at - r.knowable_at), 0)::float8 AS waited_s
      FROM metadata.recommendations r WHERE r.proposed_at > %(since)s AND r.knowable_at IS NOT NULL) AS w
"""

# Of the experiments that were judged in the window and have run for a day: proposed in time, or calmly held.
_JUDGED = """
SELECT e.id, e.key, c.shown #>> '{recommendation,action}' AS action, coalesce(c.shown #>> '{recommendation,code}', 'no_data') AS code,
       p.proposed, p.in_time
FROM metadata.experiments e
LEFT JOIN metadata.cursors c ON c.experiment_id = e.id
CROSS JOIN LATERAL (
  SELECT count(*) > 0 AS proposed,
         coalesce(bool_and(r.proposed_at - r.knowable_at <= make_interval(secs => %(decision_target)s)), false) AS in_time
  FROM metadata.recommendations r WHERE r.experiment_id = e.id AND r.proposed_at > %(since)s AND r.knowable_at IS NOT NULL) AS p
WHERE e.status <> 'draft' AND coalesce(e.ended_at, %(now)s) > %(since)s
  AND greatest(e.created_at, e.started_at) < coalesce(e.ended_at, %(now)s) - make_interval(secs => %(decision_target)s)
"""
_CALM = "NOT proposed AND code = ANY (%(calm)s)"
_RECOMMENDED = f"""
SELECT count(*) FILTER (WHERE in_time OR ({_CALM})), count(*) FILTER (WHERE in_time), count(*) FILTER (WHERE {_CALM}), count(*)
FROM ({_JUDGED}) AS j
"""
_BLOCKED = f"""
SELECT CASE WHEN proposed THEN 'proposed_late' ELSE code END, array_agg(key ORDER BY id)
FROM ({_JUDGED}) AS j WHERE NOT in_time AND NOT ({_CALM}) GROUP BY 1 ORDER BY count(*) DESC, 1
"""

_FAILURES = """
SELECT count(*) FILTER (WHERE status IN ('failed', 'aborted')), count(*)
FROM metadata.refresh_log WHERE status <> 'running' AND finished_at > %(since)s
"""

_ANSWERS = """
SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM d.at - r.proposed_at)::float8) FILTER (WHERE d.id IS NOT NULL),
       count(d.id), count(*) FILTER (WHERE d.id IS NULL),
       count(*) FILTER (WHERE d.id IS NULL AND r.proposed_at < %(now)s - make_interval(hours => t.answer_within_h))
FROM metadata.recommendations r
JOIN metadata.teams t ON t.id = r.team_id
LEFT JOIN metadata.decisions d ON d.recommendation_id = r.id
WHERE r.proposed_at > %(since)s AND (d.id IS NOT NULL OR (r.superseded_at IS NULL AND r.withdrawn_at IS NULL))
"""
