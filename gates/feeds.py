"""When what feeds the KPIs of experiments is due, put into their plans: schedules, outages, and the goal beside a sparse guardrail."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from django.db import connection

from experiments.feeds import parts_of, schedules_of
from gates.engine.plan import to_us
from telemetry.models import Source
from telemetry.outages import windows

_ASKED = """
SELECT e.id, e.team_id, coalesce(e.started_at, e.created_at), m.id, m.key, t.sparse
FROM metadata.experiments e
JOIN metadata.target_kpis t ON t.experiment_id = e.id
JOIN metadata.metrics m ON m.id = t.metric_id
WHERE e.id = ANY (%(ids)s) AND (
  t.sparse OR EXISTS (SELECT FROM metadata.metric_schedules s WHERE s.metric_id = m.id)
  OR EXISTS (SELECT FROM metadata.outages o WHERE o.team_id = e.team_id AND o.ends_at > coalesce(e.started_at, e.created_at)))
"""


class _Fed(NamedTuple):
    team: int
    started_at: datetime
    metric: int
    sparse: bool


def with_feeds(texts: Mapping[int, str]) -> dict[int, str]:
    """Plans as JSON, by experiment, with what feeds them; most have nothing but seconds, and stay as they are."""
    with connection.cursor() as db:
        db.execute(_ASKED, {"ids": list(texts)})
        asked: dict[int, dict[str, _Fed]] = defaultdict(dict)
        for experiment, team, started_at, metric, key, sparse in db.fetchall():
            asked[experiment][key] = _Fed(team, started_at, metric, sparse)
    if not asked:
        return dict(texts)
    fed = [one for of in asked.values() for one in of.values()]
    schedules = schedules_of(one.metric for one in fed)
    outages = windows({one.team for one in fed}, since=min(one.started_at for one in fed))
    sources: dict[int, list[Collection[str]]] = defaultdict(list)
    for of_team, metrics in Source.objects.filter(team__in={one.team for one in fed if one.sparse}).values_list(
        "team_id", "metrics"
    ):
        sources[of_team].append(set(metrics))
    found = dict(texts)
    for pk, of in asked.items():
        plan = msgspec.json.decode(texts[pk])
        for kpi in plan["kpis"]:
            if (one := of.get(kpi["metric"])) is None:
                continue
            parts = parts_of(schedules.get(one.metric, ()), around=one.started_at)
            kpi["expected"] = [msgspec.to_builtins(part) for part in parts]
            kpi["outages"] = [
                (to_us(o.begins_at), to_us(o.ends_at))
                for o in outages.get((one.team, kpi["metric"]), ())
                if o.ends_at > one.started_at
            ]
            kpi["sparse_beside"] = _goal_beside(kpi, plan["kpis"], sources[one.team]) if one.sparse else ""
        found[pk] = msgspec.json.encode(plan).decode()
    return found


def _goal_beside(kpi: Mapping[str, Any], kpis: Sequence[Mapping[str, Any]], sources: Sequence[Collection[str]]) -> str:
    """The first goal that counts units bucket by bucket and comes from where the KPI comes from; empty: none does."""
    feeding = [metrics for metrics in sources if kpi["metric"] in metrics]
    for goal in kpis:
        key, counts = goal["metric"], goal["temporality"] == "delta" and goal["kind"] != "gauge"
        together = any(key in metrics for metrics in feeding) if feeding else all(key not in of for of in sources)
        if goal["role"] == "goal" and counts and together:
            return str(key)
    return ""
