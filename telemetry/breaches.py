"""Which feeds running experiments wait for: one alarm a feed, told when it begins and when it is over (`freshness.breached`,
`freshness.recovered`). A feed is a source of the team and all it feeds, or a metric that none feeds."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from django.db import connection

from decisioning.ledger.alarms import STEADY_AFTER, Condition, reconcile
from decisioning.ledger.models import Alarm
from decisioning.literals import rfc3339
from experiments.models import Experiment
from telemetry.freshness import FRESHNESS_SQL, WATERMARK_SQL

MOST_NAMED = 50
"""So many experiments a message names; how many there are it counts."""

# An experiment is as fresh as its worst KPI, a KPI as its worst variant. Before the first row age counts from the start.
_STALE = f"""
SELECT e.team_id, e.id, e.key, m.key, n.watermark, f.stale_at, k.role,
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
  CROSS JOIN LATERAL (SELECT {WATERMARK_SQL.format(experiment="e.id", metric="m.key", variant="v.key", temporality="m.temporality")} AS ts) AS x
  WHERE v.experiment_id = e.id AND v.dropped_at IS NULL) AS n
CROSS JOIN LATERAL {FRESHNESS_SQL.format(experiment="e.id", metric="m.key", watermark="n.watermark", every_s="m.expected_every_s", target_s="m.freshness_target_s", at="%s")} AS f
WHERE e.status = 'running' AND f.overdue
ORDER BY e.id, k.position
"""  # noqa: S608 - constants


def tell_changes(*, now: datetime) -> int:
    """Tell, in the caller's transaction, which feeds have begun or ceased to be waited for. Returns the messages told."""
    return reconcile(
        "freshness.breached",
        lambda: breached(now=now),
        now=now,
        hold_for=STEADY_AFTER,
        keep_firing_for=STEADY_AFTER,
        on_resolved=("freshness.recovered", _recovered),
    )


def breached(*, now: datetime) -> list[Condition]:
    """Every feed of which a running experiment has a stale KPI, or one that had no row in the time its first was due."""
    groups: dict[tuple[int, str], list[_Late]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_STALE, [now])
        for team, pk, key, metric, watermark, stale_at, role, source, waits, proposals in cursor.fetchall():
            kpi = {"metric": metric, "data_watermark": rfc3339(watermark), "stale_at": rfc3339(stale_at), "role": role}
            feed = f"source {source}" if source else f"metric {metric}"
            groups.setdefault((team, feed), []).append(_Late(pk, key, source, kpi, waits, proposals))
    return [_condition(team, feed, late) for (team, feed), late in groups.items()]


class _Late(NamedTuple):
    experiment: int
    key: str
    source: str | None
    kpi: dict[str, object]
    waits: bool
    proposals: int


def _condition(team: int, feed: str, late: Sequence[_Late]) -> Condition:
    """`experiment` and `kpis` are those of the first; the other fields are of the whole feed."""
    first, keys = late[0], list(dict.fromkeys(one.key for one in late))
    waiting = {one.key: one.proposals for one in late if one.waits}
    data = {
        "experiment": first.key,
        "kpis": [one.kpi for one in late if one.key == first.key],
        "feed": {"source": first.source, "metrics": sorted({str(one.kpi["metric"]) for one in late})},
        "experiments": keys[:MOST_NAMED],
        "experiments_late": len(keys),
        "experiments_waiting": len(waiting),
        "proposals_suspended": sum(waiting.values()),
    }
    return Condition(team, first.experiment if len(keys) == 1 else None, feed, data)


def _recovered(alarms: Sequence[Alarm]) -> Mapping[int, Mapping[str, object]]:
    """Of feeds of which an experiment still runs: one that was paused or has ended did not get its data back."""
    told = {alarm.pk: alarm for alarm in alarms if "experiments" in alarm.data}
    running = set(
        Experiment.objects.filter(
            key__in={key for alarm in told.values() for key in alarm.data["experiments"]},
            status=Experiment.Status.RUNNING,
        ).values_list("key", flat=True)
    )
    return {
        pk: {
            "experiment": alarm.data["experiment"],
            "since": rfc3339(alarm.began_at),
            "metrics": alarm.data["feed"]["metrics"],
            "feed": alarm.data["feed"],
            "experiments": alarm.data["experiments"],
        }
        for pk, alarm in told.items()
        if running.intersection(alarm.data["experiments"])
    }
