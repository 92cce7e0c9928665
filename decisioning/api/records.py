"""What happened: the audit, the refresh log, how fresh every tracked KPI is, and pictures of variants."""

# ruff: noqa: S608 - every statement is made of constants of this file

from collections.abc import Sequence
from typing import Any

import django_filters  # type: ignore[import-untyped]
import msgspec
from django.db import connection
from django.db.models import QuerySet, TextField
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from decisioning.api.document import instant
from decisioning.api.experiments import Words
from decisioning.api.lists import PAGING, filtered, page
from decisioning.api.series import instant_of
from decisioning.api.statements import fetch
from decisioning.ledger.models import Entry
from decisioning.literals import number_or_key, rfc3339
from experiments.models import Experiment, TargetKpi
from telemetry.freshness import FRESHNESS_SQL, LATENCIES_SQL, WATERMARK_BESIDE_SQL, WORST_LAST
from telemetry.models import RefreshRun
from telemetry.refresh import FED_SQL

_ACTIONS = ("create", "update", "delete", "refuse")
_ACCESSES = ("export", "evidence")


class Audit(PortalView):
    """The history of an experiment: one entry a change and object, one a KPI batch."""

    scopes = {"GET": Scope.READ}
    parameters = {"GET": PAGING}

    def get(self, request: Request, ref: str) -> Response:
        """Newest first."""
        entries = Entry.objects.filter(experiment_id=self.experiment(ref).pk).select_related("content_type")
        return page(request, entries, shown=_entries)


class Assets(PortalView):
    """Pictures of what the variants look like."""

    scopes = {"GET": Scope.READ}
    parameters = {"GET": PAGING}

    def get(self, request: Request, ref: str) -> Response:
        """Each with the words for people who cannot see it."""
        assets = self.experiment(ref).assets.defer("body").select_related("variant")
        return page(
            request,
            assets,
            shown=lambda found: [
                {
                    "id": a.pk,
                    "variant": a.variant.key,
                    "title": a.title,
                    "alt": a.alt,
                    "media_type": a.media_type,
                    "created_at": rfc3339(a.created_at),
                    "url": f"/assets/{a.pk}",
                }
                for a in found
            ],
        )


class RefreshLog(PortalView):
    """Every run of every job that brings data up to date."""

    scopes = {"GET": Scope.READ}
    parameters = {"GET": PAGING | {"job", "status", "from", "to"}}

    def get(self, request: Request) -> Response:
        """Newest first. from and to bound started_at, or finished_at when the start was lost."""
        runs = filtered(request, RefreshRun.objects.all(), _RunFilter).annotate(
            at=Coalesce("started_at", "finished_at")
        )
        since, until = instant_of(request, "from"), instant_of(request, "to")
        runs = runs.filter(at__gte=since) if since else runs
        runs = runs.filter(at__lte=until) if until else runs
        return page(request, runs, shown=lambda found: [_run(r) for r in found])


class Freshness(PortalView):
    """How fresh every KPI of every experiment is that runs or pauses."""

    scopes = {"GET": Scope.READ}
    parameters = {"GET": PAGING | {"experiment", "metric", "state", "team"}}

    def get(self, request: Request) -> Response:
        """One row a tracked KPI."""
        now = self.now
        kpis = TargetKpi.objects.filter(experiment__status__in=(Experiment.Status.RUNNING, Experiment.Status.PAUSED))
        if "state" in request.query_params:
            sql = f"(SELECT q.state FROM ({_TRACKED}) AS q WHERE q.id = target_kpis.id)".replace("%(now)s", "%s")
            kpis = kpis.annotate(state=RawSQL(sql, [now] * sql.count("%s"), output_field=TextField()))  # noqa: S611
        return page(
            request, filtered(request, kpis, _KpiFilter), shown=lambda found: _tracked([k.pk for k in found], now)
        )


class _RunFilter(django_filters.FilterSet):  # type: ignore[misc]
    job = django_filters.CharFilter(field_name="job_name")
    status = Words(words=RefreshRun.Status.values, lookup_expr="in")


class _KpiFilter(django_filters.FilterSet):  # type: ignore[misc]
    experiment = django_filters.CharFilter(method="of")
    metric = django_filters.CharFilter(field_name="metric__key")
    team = django_filters.CharFilter(field_name="team__key")
    state = Words(words=WORST_LAST, lookup_expr="in")

    def of(self, kpis: QuerySet[TargetKpi], _name: str, ref: str) -> QuerySet[TargetKpi]:
        """By number or key."""
        named = number_or_key(ref)
        return kpis.filter(**{"experiment_id" if isinstance(named, int) else "experiment__key": named})


def _entries(found: Sequence[Entry]) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, 'sha256:' || encode(sha256(convert_to(to_jsonb(e)::text, 'UTF8')), 'hex') FROM audit.entries e WHERE id = ANY (%s)",
            [[e.pk for e in found]],
        )
        hashes = dict(cursor.fetchall())
    return [
        {
            "id": e.pk,
            "at": rfc3339(e.timestamp),
            "actor": {"kind": e.actor_kind, "name": e.actor_name},
            "address": e.remote_addr,
            "action": "access" if e.content_type.model in _ACCESSES else _ACTIONS[e.action],
            "object": {
                "type": f"{e.content_type.app_label}.{e.content_type.model}",
                "id": e.object_pk,
                "name": e.object_repr,
            },
            "before": _side(e.changes, 0),
            "after": _side(e.changes, 1),
            "hash": hashes[e.pk],
        }
        for e in found
    ]


def _side(changes: Any, side: int) -> dict[str, Any] | None:
    """What the changed fields were (0) or became (1); None when the object was not there."""
    values = {name: pair[side] for name, pair in (changes or {}).items() if isinstance(pair, list) and len(pair) == 2}
    return values if any(value is not None for value in values.values()) else None


def _run(run: RefreshRun) -> dict[str, Any]:
    return {
        "id": str(run.run_id),
        "job_name": run.job_name,
        "source": run.source or None,
        "status": run.status,
        "started_at": rfc3339(run.started_at),
        "finished_at": rfc3339(run.finished_at),
        "rows": run.rows,
        "refused": run.refused,
        "ignored": run.ignored,
        "error": run.error,
        "data_watermark": rfc3339(run.data_watermark),
    }


_LATENCY = LATENCIES_SQL.format(
    experiment="e.id",
    metric="m.key",
    variant="a.key",
    every_s="m.expected_every_s",
    target_s="m.freshness_target_s",
    sparse="t.sparse",
    began="greatest(e.started_at, e.created_at)",
    since="greatest(%(now)s::timestamptz - interval '24 hours', e.started_at, e.created_at)",
    now="%(now)s::timestamptz",
)
_WATERMARK = WATERMARK_BESIDE_SQL.format(
    row="r", experiment="e.id", metric="m.key", variant="a.key", temporality="m.temporality", sparse="k.sparse"
)
_FRESHNESS = FRESHNESS_SQL.format(
    experiment="e.id",
    metric="m.key",
    watermark="v.watermark",
    every_s="m.expected_every_s",
    target_s="m.freshness_target_s",
    at="%(now)s::timestamptz",
)
_TRACKED = f"""
  SELECT k.id, e.key AS experiment, m.key AS metric, v.*, f.state, f.due_at, CASE WHEN v.watermark IS NOT NULL THEN f.stale_at END AS stale_at,
         e.id AS experiment_id, k.team_id
  FROM metadata.target_kpis k
  JOIN metadata.metrics m ON m.id = k.metric_id
  JOIN metadata.experiments e ON e.id = k.experiment_id
  CROSS JOIN LATERAL (
    SELECT CASE WHEN bool_and(news.ts IS NOT NULL) THEN min(news.ts) END AS watermark, max(r.received_at) AS last_received_at
    FROM metadata.variants a
    LEFT JOIN LATERAL (
      SELECT r.ts, r.n, r.received_at FROM metrics.experiment_kpis r
      WHERE r.experiment_id = e.id AND r.metric = m.key AND r.variant = a.key ORDER BY r.ts DESC LIMIT 1) AS r ON true
    CROSS JOIN LATERAL (SELECT {_WATERMARK} AS ts) AS news
    WHERE a.experiment_id = e.id AND a.dropped_at IS NULL) AS v
  CROSS JOIN LATERAL {_FRESHNESS} AS f
"""
_SHOWN = f"""
SELECT json_build_object(
  'experiment', q.experiment, 'metric', q.metric, 'source', s.source, 'state', q.state, 'data_watermark', {instant("q.watermark")},
  'due_at', {instant("q.due_at")}, 'stale_at', {instant("q.stale_at")},
  'telemetry_p95_s', (SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY l.latency_s)
                      FROM metadata.experiments e JOIN metadata.metrics m ON m.key = q.metric
                      JOIN metadata.target_kpis t ON t.experiment_id = e.id AND t.metric_id = m.id
                      JOIN metadata.variants a ON a.experiment_id = e.id AND a.dropped_at IS NULL
                      CROSS JOIN LATERAL ({_LATENCY}) AS l WHERE e.id = q.experiment_id),
  'last_refresh_at', {instant("greatest(q.last_received_at, s.last_refresh_at)")},
  'last_run', CASE WHEN s.run_id IS NOT NULL THEN
                json_build_object('id', s.run_id, 'status', s.status, 'finished_at', {instant("s.finished_at")}, 'error', s.error) END)::text
FROM unnest(%(ids)s::bigint[]) WITH ORDINALITY AS wanted (id, place)
JOIN ({_TRACKED}) AS q ON q.id = wanted.id
LEFT JOIN LATERAL ({FED_SQL.format(team="q.team_id", metric="q.metric", now="%(now)s::timestamptz")}) AS s ON true
ORDER BY wanted.place
"""


def _tracked(ids: Sequence[int], now: Any) -> list[Any]:
    return [msgspec.json.decode(text) for (text,) in fetch(_SHOWN, {"ids": list(ids), "now": now})]
