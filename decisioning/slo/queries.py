"""The statements behind the promises, each under the row security of the caller."""

# ruff: noqa: S608 - every statement is made of constants of this file

from datetime import datetime, timedelta
from typing import Any

from gates.engine.policy import DEFAULT_BODY
from telemetry.freshness import LATENCIES_SQL
from telemetry.hours import in_range

WINDOW = timedelta(days=30)
TELEMETRY_WINDOW = timedelta(hours=24)
TELEMETRY_TARGET_S = 15 * 60
DECISION_TARGET_S = 24 * 3600
CALM = ("open", "collecting")
"""Codes of a hold that is an answer: the data is good, units or days are missing. `collecting` that lacks anything else is called by it."""


def row(cursor: Any, sql: str, asked: dict[str, Any]) -> tuple[Any, ...]:
    cursor.execute(sql, asked)
    row: tuple[Any, ...] = cursor.fetchone()
    return row


def _mine(team: str) -> str:
    return f"(%(team)s::bigint IS NULL OR {team} = %(team)s)"


def parameters(now: datetime, team_id: int | None) -> dict[str, Any]:
    return {
        "now": now,
        "team": team_id,
        "since": now - WINDOW,
        "day": now - TELEMETRY_WINDOW,
        "telemetry_target": TELEMETRY_TARGET_S,
        "decision_target": DECISION_TARGET_S,
        "calm": list(CALM),
        **{name: DEFAULT_BODY[name] for name in ("slot_s", "min_units", "min_days", "max_days")},
    }


# A minute that is over and was not counted to its end lost at most the ten seconds since the last telling: as many reads as the sixth of
# an ordinary minute, all taken as failed.
READS = """
SELECT coalesce(sum(asked + lost), 0)::bigint, coalesce(sum(failed + lost), 0)::bigint, coalesce(sum(stale), 0)::bigint,
       coalesce(sum(lost), 0)::bigint
FROM (SELECT asked, failed, stale,
             CASE WHEN done OR minute > %(now)s::timestamptz - interval '3 minutes' THEN 0
                  ELSE ceil(greatest(1, asked, avg(asked) OVER ()) / 6) END AS lost
      FROM audit.reads WHERE minute > %(since)s) AS r
"""

TELEMETRY = (
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
        sparse="k.sparse",
        began="greatest(e.started_at, e.created_at)",
        since="greatest(%(day)s::timestamptz, e.started_at, e.created_at)",
        now="%(now)s::timestamptz",
    )
    + f""") AS l
WHERE e.status = 'running' AND {_mine("e.team_id")}
"""
)

# What cannot be judged is tried again at each slot, so its next one is never late.
_UNJUDGED_SINCE = "coalesce((c.unjudgeable ->> 'since')::timestamptz, c.due_at)"
CURSORS = f"""
SELECT coalesce(sum(missed_slots), 0), count(*) FILTER (WHERE unjudgeable IS NOT NULL) FROM metadata.cursors WHERE {_mine("team_id")}
"""

# What a slot would propose is not known before it is judged: one that is late has whoever is not proposed yet wait for as long.
DECISION = f"""
SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY waited_s), count(*), count(*) FILTER (WHERE waited_s > %(decision_target)s),
       count(*) FILTER (WHERE NOT judged)
FROM (SELECT greatest(extract(epoch FROM r.proposed_at - r.knowable_at), 0)::float8 AS waited_s, true AS judged
      FROM metadata.recommendations r WHERE r.proposed_at > %(since)s AND r.knowable_at IS NOT NULL AND {_mine("r.team_id")}
      UNION ALL
      SELECT extract(epoch FROM %(now)s - {_UNJUDGED_SINCE})::float8, false
      FROM metadata.cursors c LEFT JOIN metadata.policy_versions v ON v.id = c.policy_version_id
      WHERE {_UNJUDGED_SINCE} < %(now)s::timestamptz - make_interval(secs => coalesce((v.body ->> 'slot_s')::int, %(slot_s)s)) AND {_mine("c.team_id")}
        AND NOT EXISTS (SELECT FROM metadata.recommendations r WHERE r.experiment_id = c.experiment_id
                        AND r.answered_at IS NULL AND r.superseded_at IS NULL AND r.withdrawn_at IS NULL)) AS w
"""

# In the experiment's own time, so that history brought in late counts as it ran.
DAYS = f"""
SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY days), percentile_disc(0.95) WITHIN GROUP (ORDER BY days), count(*),
       count(*) FILTER (WHERE waits)
FROM (SELECT (extract(epoch FROM coalesce(p.slot, e.ended_at, %(now)s) - c.readable_at) / 86400)::float8 AS days, p.slot IS NULL AS waits
      FROM metadata.cursors c JOIN metadata.experiments e ON e.id = c.experiment_id
      LEFT JOIN LATERAL (
        SELECT r.slot, r.proposed_at FROM metadata.recommendations r WHERE r.experiment_id = e.id AND r.slot >= c.readable_at
        ORDER BY r.slot LIMIT 1) AS p ON true
      WHERE c.readable_at <= coalesce(e.ended_at, %(now)s) AND coalesce(p.proposed_at, e.ended_at, %(now)s) > %(since)s
        AND {_mine("e.team_id")}) AS d
"""

# Of the experiments that were judged in the window and have run for a day: proposed in time, or calmly held. More units and days bring
# neither missing buckets nor an estimate to rely on, so a hold that lacks those goes by their name; what it said a day ago says nothing.
_JUDGED = f"""
SELECT e.id, e.key, p.proposed, p.in_time,
       CASE WHEN c.unjudgeable IS NOT NULL OR c.due_at < %(now)s::timestamptz - make_interval(secs => %(decision_target)s) THEN 'not_judged'
            ELSE coalesce(g.lacks, said.code) END AS code
FROM metadata.experiments e
LEFT JOIN metadata.cursors c ON c.experiment_id = e.id
CROSS JOIN LATERAL (SELECT coalesce(c.shown #>> '{{recommendation,code}}', 'no_data') AS code) AS said
CROSS JOIN LATERAL (
  SELECT coalesce(min(kind) FILTER (WHERE kind = 'density' AND verdict <> 'pass'),
                  min(limits ->> 'why') FILTER (WHERE limits ->> 'why' NOT IN ('', 'units', 'young'))) AS lacks
  FROM jsonb_to_recordset(CASE WHEN said.code = 'collecting' THEN c.shown -> 'gates' END)
    AS gate(kind text, verdict text, limits jsonb)) AS g
CROSS JOIN LATERAL (
  SELECT count(*) > 0 AS proposed,
         coalesce(bool_and(r.proposed_at - r.knowable_at <= make_interval(secs => %(decision_target)s)), false) AS in_time
  FROM metadata.recommendations r WHERE r.experiment_id = e.id AND r.proposed_at > %(since)s AND r.knowable_at IS NOT NULL) AS p
WHERE e.status <> 'draft' AND coalesce(e.ended_at, %(now)s) > %(since)s
  AND greatest(e.created_at, e.started_at) < coalesce(e.ended_at, %(now)s) - make_interval(secs => %(decision_target)s)
  AND {_mine("e.team_id")}
"""
_CALM = "NOT proposed AND code = ANY (%(calm)s)"
RECOMMENDED = f"""
SELECT count(*) FILTER (WHERE in_time OR ({_CALM})), count(*) FILTER (WHERE in_time), count(*) FILTER (WHERE {_CALM}), count(*)
FROM ({_JUDGED}) AS j
"""


def _days(setting: str) -> str:
    """SQL of a number of days in a policy's body `v.body`, which may be whole and yet written as 7.0, and of any size."""
    return f"least(coalesce((v.body ->> '{setting}')::numeric, %({setting})s), 36500)::int"


# What the gates that are still open lack, the one that lacks most: A of docs/gates.md section 6, else B, and the floor of the smaller arm.
CALM_HOLDS = f"""
SELECT j.key, CASE WHEN runs AND lack.units IS NOT NULL THEN ceil(least(lack.units, 1e18))::bigint END AS units,
       CASE WHEN runs THEN least(greatest(c.judged_to + make_interval(secs => least(lack.days, span.most) * 86400),
                                          began + make_interval(days => span.least)), began + make_interval(days => span.most)) END AS about_at
FROM ({_JUDGED}) AS j
JOIN metadata.experiments e ON e.id = j.id
JOIN metadata.cursors c ON c.experiment_id = e.id
LEFT JOIN metadata.policy_versions v ON v.id = c.policy_version_id
CROSS JOIN LATERAL (
  SELECT e.status = 'running' AS runs, e.started_at + coalesce(sum(p.resumed_at - p.paused_at), interval '0') AS began
  FROM metadata.pauses p WHERE p.experiment_id = e.id) AS ran
CROSS JOIN LATERAL (
  SELECT {_days("min_days")} AS least, {_days("max_days")} AS most) AS span
CROSS JOIN LATERAL (
  SELECT CASE WHEN bool_and(needs.units IS NOT NULL) THEN max(needs.units) END AS units,
         CASE WHEN bool_and(needs.days IS NOT NULL) IS NOT FALSE THEN coalesce(max(needs.days), 0) ELSE span.most END AS days
  FROM jsonb_to_recordset(c.shown -> 'gates') AS gate(kind text, verdict text, limits jsonb)
  CROSS JOIN LATERAL (
    SELECT {in_range("(limits ->> 'units_per_day')::float8")} AS daily,
           {in_range("coalesce(limits ->> 'days_left', limits ->> 'days_left_at_most')::float8")} AS days,
           CASE WHEN limits ->> 'why' = 'units' THEN
             (SELECT nullif(greatest(coalesce((v.body ->> 'min_units')::numeric, %(min_units)s) - min(n::numeric), 0), 0) * sum(n::numeric)
                     / nullif(min(n::numeric), 0)
              FROM jsonb_array_elements_text(limits -> 'arms') AS n)::float8 END AS floor) AS known
  CROSS JOIN LATERAL (
    SELECT greatest(known.days * daily, known.floor) AS units, greatest(known.days, known.floor / nullif(daily, 0)) AS days) AS needs
  WHERE verdict = 'inconclusive' AND (kind IN ('uplift', 'guard') OR (kind = 'target' AND j.code = 'open'))) AS lack
WHERE {_CALM} ORDER BY about_at NULLS LAST, e.id
"""
BLOCKED = f"""
SELECT CASE WHEN proposed THEN 'proposed_late' ELSE code END, array_agg(key ORDER BY id)
FROM ({_JUDGED}) AS j WHERE NOT in_time AND NOT ({_CALM}) GROUP BY 1 ORDER BY count(*) DESC, 1
"""

# The portal's own jobs belong to no team: they run by the minute, have the watchdog, and would water down what fails. A job that no
# source names is somebody's own matter: a failing test, a try that is repeated.
FAILURES = f"""
SELECT count(*) FILTER (WHERE status IN ('failed', 'aborted')), count(*)
FROM metadata.refresh_log WHERE status <> 'running' AND team_id IS NOT NULL AND source <> '' AND finished_at > %(since)s AND {_mine("team_id")}
"""

ANSWERS = f"""
SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM d.at - r.proposed_at)::float8) FILTER (WHERE d.id IS NOT NULL),
       count(d.id), count(*) FILTER (WHERE d.id IS NULL),
       count(*) FILTER (WHERE d.id IS NULL AND r.proposed_at < %(now)s - make_interval(hours => t.answer_within_h))
FROM metadata.recommendations r
JOIN metadata.teams t ON t.id = r.team_id
LEFT JOIN metadata.decisions d ON d.recommendation_id = r.id
WHERE r.proposed_at > %(since)s AND (d.id IS NOT NULL OR (r.superseded_at IS NULL AND r.withdrawn_at IS NULL))
  AND {_mine("r.team_id")}
"""
