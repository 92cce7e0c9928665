"""Which running experiments wait for data: told when it begins and when it is over (`freshness.breached`, `freshness.recovered`)."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from django.db import connection

from decisioning.ledger.alarms import STEADY_AFTER, Condition, reconcile
from decisioning.ledger.models import Alarm
from decisioning.literals import rfc3339
from experiments.models import Experiment
from telemetry.freshness import FRESHNESS_SQL, WATERMARK_SQL

# An experiment is as fresh as its worst KPI, a KPI as its worst variant. Before the first row age counts from the start.
_STALE = f"""
SELECT e.team_id, e.id, e.key, m.key, n.watermark, f.stale_at
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
    """Tell, in the caller's transaction, which experiments have begun or ceased to wait for data. Returns the messages told."""
    return reconcile(
        "freshness.breached",
        lambda: breached(now=now),
        now=now,
        hold_for=STEADY_AFTER,
        keep_firing_for=STEADY_AFTER,
        on_resolved=("freshness.recovered", _recovered),
    )


def breached(*, now: datetime) -> list[Condition]:
    """Every running experiment with a stale KPI, or with one that had no row in the time its first was due."""
    found: dict[int, Condition] = {}
    kpis: dict[int, list[dict[str, object]]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_STALE, [now])
        for team, pk, key, metric, watermark, stale_at in cursor.fetchall():
            kpis.setdefault(pk, []).append(
                {
                    "metric": metric,
                    "data_watermark": rfc3339(watermark),
                    "stale_at": rfc3339(stale_at),
                }
            )
            found[pk] = Condition(team, pk, key, {"experiment": key, "kpis": kpis[pk]})
    return list(found.values())


def _recovered(alarms: Sequence[Alarm]) -> Mapping[int, Mapping[str, object]]:
    """Of experiments that still run: one that was paused or has ended did not get its data back."""
    running = set(
        Experiment.objects.filter(
            pk__in=[alarm.experiment_id for alarm in alarms], status=Experiment.Status.RUNNING
        ).values_list("pk", flat=True)
    )
    return {
        alarm.pk: {
            "experiment": alarm.subject,
            "since": rfc3339(alarm.began_at),
            "metrics": [kpi["metric"] for kpi in alarm.data["kpis"]],
        }
        for alarm in alarms
        if alarm.experiment_id in running
    }
