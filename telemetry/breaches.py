"""Which feeds running experiments wait for: one alarm a feed, told when it begins, as it spreads and when it is over (`freshness.breached`,
`freshness.recovered`). A feed is a source of the team and all it feeds, or a metric that none feeds. What did not come because the
portal took nothing in at that time is one alarm in all, whatever the feed."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import connection

from decisioning.ledger.alarms import STEADY_AFTER, Condition, reconcile
from decisioning.ledger.models import Alarm
from decisioning.literals import rfc3339
from experiments.models import Experiment
from telemetry.freshness import FRESHNESS_SQL, WATERMARK_SQL

EVENT = "freshness.breached"
AWAY_AFTER = timedelta(minutes=5)
"""For longer than that nobody took anything in: the portal was away. A shorter while is a restart."""
_LOOKED_BACK = timedelta(days=2)
_PORTAL = "portal "
MOST_NAMED = 50
"""So many experiments a message names; how many there are it counts."""

# An experiment is as fresh as its worst KPI, a KPI as its worst variant. Before the first row age counts from the start.
_STALE = f"""
SELECT e.team_id, e.id, e.key, m.key, n.watermark, f.stale_at - make_interval(secs => m.freshness_target_s) AS due_at, f.stale_at, k.role,
       (SELECT min(s.key) FROM metadata.sources s WHERE s.team_id = e.team_id AND m.key = ANY (s.metrics)) AS source,
       k.role <> 'shown' OR EXISTS (SELECT FROM metadata.cursors c CROSS JOIN LATERAL jsonb_array_elements(c.shown -> 'gates') AS g
                                    WHERE c.experiment_id = e.id AND g ->> 'metric' = m.key) AS waits,
       (SELECT count(*) FROM metadata.recommendations r WHERE r.experiment_id = e.id AND r.action = 'scale'
          AND r.answered_at IS NULL AND r.superseded_at IS NULL AND r.withdrawn_at IS NULL) AS proposals
FROM metadata.experiments e
JOIN metadata.target_kpis k ON k.experiment_id = e.id
JOIN metadata.metrics m ON m.id = k.metric_id
CROSS JOIN LATERAL (
  SELECT CASE WHEN count(*) = count(x.ts) THEN min(x.ts) END AS watermark
  FROM metadata.variants v
  CROSS JOIN LATERAL (SELECT {WATERMARK_SQL.format(experiment="e.id", metric="m.key", variant="v.key", temporality="m.temporality", sparse="k.sparse")} AS ts) AS x
  WHERE v.experiment_id = e.id AND v.dropped_at IS NULL) AS n
CROSS JOIN LATERAL {FRESHNESS_SQL.format(experiment="e.id", metric="m.key", watermark="n.watermark", every_s="m.expected_every_s", target_s="m.freshness_target_s", at="%s")} AS f
WHERE e.status = 'running' AND f.overdue
ORDER BY e.id, k.position
"""  # noqa: S608 - constants

# A web server leaves a row for each minute in which it lives and reaches the database (decisioning.availability.read_counter), one in which
# it answered nothing well is as good as none. Stretches without, and what is missing since the newest.
_AWAY = """
SELECT r.minute + interval '1 minute' AS since, r.next AS until
FROM (SELECT m.minute, lead(m.minute) OVER (ORDER BY m.minute) AS next
      FROM (SELECT DISTINCT minute FROM audit.reads
            WHERE minute > %(since)s AND minute <= %(now)s AND (asked = 0 OR failed + stale < asked)) AS m) AS r
WHERE coalesce(r.next, %(now)s) - r.minute > make_interval(secs => %(after_s)s)
ORDER BY 1
"""


def tell_changes(*, now: datetime) -> int:
    """Tell, in the caller's transaction, which feeds have begun or ceased to be waited for. Returns the messages told."""
    return reconcile(
        EVENT,
        lambda: breached(now=now),
        now=now,
        hold_for=STEADY_AFTER,
        keep_firing_for=STEADY_AFTER,
        on_resolved=("freshness.recovered", _recovered),
        spread=_spread,
    )


class _Away(NamedTuple):
    """A stretch in which the portal took nothing in; until: None, it goes on."""

    since: datetime
    until: datetime | None


class _Late(NamedTuple):
    experiment: int
    key: str
    source: str | None
    kpi: dict[str, object]
    waits: bool
    proposals: int
    due_at: datetime
    stale_at: datetime

    @property
    def feed(self) -> str:
        return f"source {self.source}" if self.source else f"metric {self.kpi['metric']}"

    def fell_into(self, away: _Away) -> bool:
        """Whether its row would have come, from when it was due until it was stale, while the portal was away."""
        return self.stale_at > away.since and (away.until is None or self.due_at < away.until)


def breached(*, now: datetime) -> list[Condition]:
    """Every feed of which a running experiment has a stale KPI, or one that had no row in the time its first was due."""
    late: dict[int, list[_Late]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_STALE, [now])
        for team, pk, key, metric, watermark, due_at, stale_at, role, source, waits, proposals in cursor.fetchall():
            kpi = {"metric": metric, "data_watermark": rfc3339(watermark), "stale_at": rfc3339(stale_at), "role": role}
            late.setdefault(team, []).append(_Late(pk, key, source, kpi, waits, proposals, due_at, stale_at))
    away = _away(now) if late else []
    groups: dict[tuple[int, str], list[_Late]] = {}
    fell: dict[tuple[int, str], _Away] = {}
    for team, found in late.items():
        for one in found:
            into = next((stretch for stretch in away if one.fell_into(stretch)), None)
            subject = one.feed if into is None else f"{_PORTAL}{rfc3339(into.since)}"
            groups.setdefault((team, subject), []).append(one)
            if into is not None:
                fell[team, subject] = into
    return [_condition(of[0], of[1], found, fell.get(of)) for of, found in groups.items()]


def _away(now: datetime) -> list[_Away]:
    """Stretches in which the portal took nothing in: those of the newest days, and those whose alarms are not over."""
    with connection.cursor() as cursor:
        cursor.execute(_AWAY, {"since": now - _LOOKED_BACK, "now": now, "after_s": AWAY_AFTER.total_seconds()})
        found = {since: _Away(since, until) for since, until in cursor.fetchall()}
    for alarm in Alarm.objects.filter(type=EVENT, subject__startswith=_PORTAL):
        if told := alarm.data.get("portal_away"):
            since, until = (told[name] and datetime.fromisoformat(told[name]) for name in ("from", "to"))
            if since <= now - _LOOKED_BACK:
                found.setdefault(since, _Away(since, until))
    return sorted(found.values())


def _condition(team: int, subject: str, late: Sequence[_Late], away: _Away | None) -> Condition:
    """`experiment` and `kpis` are those of the first; the other fields are of the whole feed."""
    first, keys = late[0], list(dict.fromkeys(one.key for one in late))
    waiting = {one.key: one.proposals for one in late if one.waits}
    data = {
        "experiment": first.key,
        "kpis": [one.kpi for one in late if one.key == first.key],
        "feed": {
            "source": first.source if away is None else None,
            "metrics": sorted({str(one.kpi["metric"]) for one in late})[: None if away is None else MOST_NAMED],
        },
        "feeds_late": len({one.feed for one in late}),
        "experiments": keys[:MOST_NAMED],
        "experiments_late": len(keys),
        "experiments_waiting": len(waiting),
        "proposals_suspended": sum(waiting.values()),
        "portal_away": None if away is None else {"from": rfc3339(away.since), "to": rfc3339(away.until)},
    }
    return Condition(team, first.experiment if len(keys) == 1 else None, subject, data)


def _spread(told: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether more experiments or feeds, or other metrics of a feed, are late than was told."""
    more = any(found[name] > told.get(name, 1) for name in ("experiments_late", "feeds_late"))
    return more or not set(found["feed"]["metrics"]) <= set(told.get("feed", found["feed"])["metrics"])


def _recovered(alarms: Sequence[Alarm]) -> Mapping[int, Mapping[str, object]]:
    """Of feeds of which an experiment still runs: one that was paused or has ended did not get its data back."""
    told = {alarm.pk: alarm for alarm in alarms if "experiments" in alarm.data}
    named = {
        pk: list(dict.fromkeys([*alarm.told.get("experiments", ()), *alarm.data["experiments"]]))
        for pk, alarm in told.items()
    }
    running = set(
        Experiment.objects.filter(
            key__in={key for keys in named.values() for key in keys}, status=Experiment.Status.RUNNING
        ).values_list("key", flat=True)
    )
    return {
        pk: {
            "experiment": alarm.data["experiment"],
            "since": rfc3339(alarm.began_at),
            "metrics": alarm.data["feed"]["metrics"],
            "feed": alarm.data["feed"],
            "experiments": named[pk][:MOST_NAMED],
            "portal_away": alarm.data.get("portal_away"),
        }
        for pk, alarm in told.items()
        if running.intersection(named[pk])
    }
