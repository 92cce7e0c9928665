"""The portal's promises about itself: each with its target, its budget and what it leaves out.

Counted from what is stored, under the row security of the caller: a team sees its own figures, an admin all of them. A tick, which
sees every team, tells each team when a promise to it is broken (`slo.burning`).
"""

# ruff: noqa: S608 - every statement is made of constants of this file

import threading
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from django.db import connection, transaction

from decisioning.ledger.alarms import Unknown, Wrong, reconcile
from decisioning.ledger.items import alone
from experiments.models import Experiment
from gates.engine.policy import DEFAULT_BODY
from telemetry.freshness import LATENCIES_SQL
from telemetry.hours import in_range
from telemetry.models import Source
from telemetry.refresh import missed

WINDOW = timedelta(days=30)
TELEMETRY_WINDOW = timedelta(hours=24)
TELEMETRY_TARGET_S = 15 * 60
DECISION_TARGET_S = 24 * 3600
WITHIN_TARGET = 0.80
FAILURE_TARGET = 0.01
READS_TARGET = 0.999
BURNS_OVER = (timedelta(hours=1), timedelta(hours=6), timedelta(days=3))
CALM = ("open", "collecting")
"""Codes of a hold that is an answer: the data is good, units or days are missing. `collecting` that lacks anything else is called by it."""


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
class Burn:
    """How fast the budget of reads was used over the last `over`: 1 uses it up in exactly the window; None when nothing was asked."""

    over: timedelta
    rate: float | None


@dataclass(frozen=True)
class Blocked:
    """Experiments whose read is not stable, by what blocks them."""

    code: str
    experiments: tuple[str, ...]


@dataclass(frozen=True)
class Calm:
    """An experiment that is held for units or days alone. units: still needed, of control and treatment together, if the effect
    stays, else whatever it is. about_at: when the hold ends at the present units a day, never before min_days; at max_days a person
    is asked, whatever is lacking then. None: cannot be said, or it does not run."""

    experiment: str
    units: int | None
    about_at: datetime | None


@dataclass(frozen=True)
class Days:
    """From the first look that could be read to the first proposal from there on, or to now while there is none (`waiting`)."""

    median: float | None
    p95: float | None
    counted: int
    waiting: int


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
    proposal; `not_judged` of them are experiments without one whose next slot is late, counted as late as it is. days: the second
    clock, since the first begins at a settled answer and says nothing of how long it took to settle. recommended: experiments with a
    recommendation within 24 h, of which `decisive` (scale, delete, review) and `calm` (hold for units or days; `calm_holds` are those
    one by one). failures: runs of the teams' telemetry jobs that failed, and of scheduled sources those that were due and never came
    (`missed`). reads: of the whole portal, whoever asks; `stale` of the good ones came from a copy, `unknown` are those a process was
    cut off before it could count, taken as failed. unjudgeable: experiments that cannot be judged now, which count as not judged."""

    as_of: datetime
    reads: Share
    stale: int
    unknown: int
    burns: tuple[Burn, ...]
    telemetry: Latency
    decision: Latency
    not_judged: int
    days: Days
    recommended: Share
    decisive: int
    calm: int
    calm_holds: tuple[Calm, ...]
    blocked: tuple[Blocked, ...]
    failures: Share
    missed_runs: int
    answers: Answers
    missed_slots: int
    unjudgeable: int


def figures(*, now: datetime, team_id: int | None = None) -> Figures:
    """Every promise, as of now; of one team, or of all the caller sees."""
    asked = _parameters(now, team_id)
    with connection.cursor() as cursor:
        read, failed_reads, stale, unknown = _row(cursor, _READS, asked)
        burns = tuple(_burn(cursor, over, asked) for over in BURNS_OVER)
        telemetry = _row(cursor, _TELEMETRY, asked)
        decision = _row(cursor, _DECISION, asked)
        days = _row(cursor, _DAYS, asked)
        in_time, decisive, calm, whole = _row(cursor, _RECOMMENDED, asked)
        cursor.execute(_CALM_HOLDS, asked)
        calm_holds = tuple(Calm(*hold) for hold in cursor.fetchall())
        cursor.execute(_BLOCKED, asked)
        blocked = tuple(Blocked(code, tuple(keys)) for code, keys in cursor.fetchall())
        failed, runs = _row(cursor, _FAILURES, asked)
        sources = Source.objects.all() if team_id is None else Source.objects.filter(team=team_id)
        missed_runs = missed(sources, since=now - WINDOW, now=now)
        answers = _row(cursor, _ANSWERS, asked)
        missed_slots, unjudgeable = _row(cursor, _CURSORS, asked)
    return Figures(
        as_of=now,
        reads=Share(read - failed_reads, read, READS_TARGET, at_least=True),
        stale=stale,
        unknown=unknown,
        burns=burns,
        telemetry=Latency(telemetry[0], TELEMETRY_TARGET_S, telemetry[1], telemetry[2]),
        decision=Latency(decision[0], DECISION_TARGET_S, decision[1], decision[2]),
        not_judged=decision[3],
        days=Days(*days),
        recommended=Share(in_time, whole, WITHIN_TARGET, at_least=True),
        decisive=decisive,
        calm=calm,
        calm_holds=calm_holds,
        blocked=blocked,
        failures=Share(failed + missed_runs, runs + missed_runs, FAILURE_TARGET, at_least=False),
        missed_runs=missed_runs,
        answers=Answers(*answers),
        missed_slots=int(missed_slots),
        unjudgeable=unjudgeable,
    )


_DEAR_S, _SHARE, _LONGEST_S = 1.0, 20, 300.0
_kept: dict[Hashable, tuple[float, float, Figures]] = {}
_counting = threading.Lock()
_counted: set[Hashable] = set()


def recent(whose: Hashable, *, now: datetime, at_least_s: float = 0) -> Figures:
    """`figures` of all that the caller sees, whom `whose` names; `as_of` says when they were counted.

    What is cheap is counted anew each time unless it is younger than `at_least_s`; what is dear is kept so long that counting takes at
    most a twentieth of the time, and while one counts the others read what there is. Before the first row nothing is kept.
    """
    held = _kept.get(whose)
    if held and monotonic() < held[0] + max(at_least_s, held[1]):
        return held[2]
    with _counting:
        if held and whose in _counted:
            return held[2]
        _counted.add(whose)
    try:
        began = monotonic()
        found = figures(now=now)
        took = monotonic() - began
    finally:
        _counted.discard(whose)
    if found.telemetry.counted or found.failures.whole:
        _kept[whose] = (monotonic(), min(took * _SHARE, _LONGEST_S) if took > _DEAR_S else 0, found)
    return found


SETTLED = timedelta(minutes=15)
"""How long a promise must be broken before it is told, and be kept before it can be told anew."""
_NAMES = {
    "reads": "reads answered",
    "telemetry_latency": "telemetry latency, p95",
    "decision_latency": "decision latency, p95",
    "recommended_within_24h": "recommended within 24 h",
    "telemetry_failures": "telemetry failures",
}


def tell_broken(*, now: datetime) -> int:
    """`slo.burning` for every promise to a team whose budget is used up, once until it has held again. Returns the messages told."""

    def look() -> Iterator[Wrong | Unknown]:
        # Without the model's own order, which would make every experiment distinct.
        running = Experiment.objects.exclude(status=Experiment.Status.DRAFT).order_by("team_id")
        for team in running.values_list("team_id", flat=True).distinct():
            found: list[Wrong | Unknown] = [Unknown(team)]
            with alone(f"Counting what was promised to team {team}"), transaction.atomic():
                found = [*_broken(figures(now=now, team_id=team), team)]
            yield from found

    return reconcile("slo.burning", look, now=now, after=SETTLED, until=SETTLED)


def _broken(found: Figures, team: int) -> list[Wrong]:
    promises: dict[str, Latency | Share] = {
        "reads": found.reads,
        "telemetry_latency": found.telemetry,
        "decision_latency": found.decision,
        "recommended_within_24h": found.recommended,
        "telemetry_failures": found.failures,
    }
    return [
        Wrong(
            team,
            None,
            promise,
            {"promise": promise, "name": _NAMES[promise], "budget_left": kept.budget_left, **_figure(kept)},
        )
        for promise, kept in promises.items()
        if kept.holds is False
    ]


def _figure(kept: Latency | Share) -> dict[str, object]:
    """The figure and its target, in seconds or as a fraction, and both in words."""
    if isinstance(kept, Latency):
        said = {"figure": f"{kept.p95_s:,.0f} s", "target": f"at most {kept.target_s:,} s"}
        return {"p95_s": kept.p95_s, "target_s": kept.target_s, **said}
    side = "at least" if kept.at_least else "at most"
    said = {"figure": f"{kept.part:,} of {kept.whole:,}", "target": f"{side} {kept.target * 100:g}%"}
    return {"share": kept.share, "target_share": kept.target, **said}


def _burn(cursor: Any, over: timedelta, asked: dict[str, Any]) -> Burn:
    read, failed, _, _ = _row(cursor, _READS, asked | {"since": asked["now"] - over})
    return Burn(over, failed / read / (1 - READS_TARGET) if read else None)


def _row(cursor: Any, sql: str, asked: dict[str, Any]) -> tuple[Any, ...]:
    cursor.execute(sql, asked)
    row: tuple[Any, ...] = cursor.fetchone()
    return row


def _mine(team: str) -> str:
    return f"(%(team)s::bigint IS NULL OR {team} = %(team)s)"


def _parameters(now: datetime, team_id: int | None) -> dict[str, Any]:
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
_READS = """
SELECT coalesce(sum(asked + lost), 0)::bigint, coalesce(sum(failed + lost), 0)::bigint, coalesce(sum(stale), 0)::bigint,
       coalesce(sum(lost), 0)::bigint
FROM (SELECT asked, failed, stale,
             CASE WHEN done OR minute > %(now)s::timestamptz - interval '3 minutes' THEN 0
                  ELSE ceil(greatest(1, asked, avg(asked) OVER ()) / 6) END AS lost
      FROM audit.reads WHERE minute > %(since)s) AS r
"""

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
_CURSORS = f"""
SELECT coalesce(sum(missed_slots), 0), count(*) FILTER (WHERE unjudgeable IS NOT NULL) FROM metadata.cursors WHERE {_mine("team_id")}
"""

# What a slot would propose is not known before it is judged: one that is late has whoever is not proposed yet wait for as long.
_DECISION = f"""
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
_DAYS = f"""
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
_RECOMMENDED = f"""
SELECT count(*) FILTER (WHERE in_time OR ({_CALM})), count(*) FILTER (WHERE in_time), count(*) FILTER (WHERE {_CALM}), count(*)
FROM ({_JUDGED}) AS j
"""


def _days(setting: str) -> str:
    """SQL of a number of days in a policy's body `v.body`, which may be whole and yet written as 7.0, and of any size."""
    return f"least(coalesce((v.body ->> '{setting}')::numeric, %({setting})s), 36500)::int"


# What the gates that are still open lack, the one that lacks most: A of docs/gates.md section 6, else B, and the floor of the smaller arm.
_CALM_HOLDS = f"""
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
_BLOCKED = f"""
SELECT CASE WHEN proposed THEN 'proposed_late' ELSE code END, array_agg(key ORDER BY id)
FROM ({_JUDGED}) AS j WHERE NOT in_time AND NOT ({_CALM}) GROUP BY 1 ORDER BY count(*) DESC, 1
"""

# The portal's own jobs belong to no team. They run by the minute, have the watchdog, and would water down what fails.
_FAILURES = f"""
SELECT count(*) FILTER (WHERE status IN ('failed', 'aborted')), count(*)
FROM metadata.refresh_log WHERE status <> 'running' AND team_id IS NOT NULL AND finished_at > %(since)s AND {_mine("team_id")}
"""

_ANSWERS = f"""
SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM d.at - r.proposed_at)::float8) FILTER (WHERE d.id IS NOT NULL),
       count(d.id), count(*) FILTER (WHERE d.id IS NULL),
       count(*) FILTER (WHERE d.id IS NULL AND r.proposed_at < %(now)s - make_interval(hours => t.answer_within_h))
FROM metadata.recommendations r
JOIN metadata.teams t ON t.id = r.team_id
LEFT JOIN metadata.decisions d ON d.recommendation_id = r.id
WHERE r.proposed_at > %(since)s AND (d.id IS NOT NULL OR (r.superseded_at IS NULL AND r.withdrawn_at IS NULL))
  AND {_mine("r.team_id")}
"""
