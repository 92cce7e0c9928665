"""Sources that the portal pulls rows from: what there is, a new one, a dry run, a run now."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, ClassVar

import django_filters  # type: ignore[import-untyped]
from django.http import Http404
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.middleware import has_room
from decisioning.access.permissions import require
from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from decisioning.api.lists import PAGING, filtered, page
from decisioning.api.serializers import SourceIn
from decisioning.api.series import instant_of
from decisioning.literals import rfc3339
from telemetry.models import Source
from telemetry.refresh import Fed, failure_shares, fed
from telemetry.sources import definition, runs
from telemetry.sources.preview import Preview, preview


class SourceFilter(django_filters.FilterSet):  # type: ignore[misc]
    team = django_filters.CharFilter(field_name="team__key")
    kind = django_filters.ChoiceFilter(field_name="kind", choices=Source.Kind.choices)
    enabled = django_filters.BooleanFilter(field_name="enabled")


@has_room("files")
class Sources(PortalView):
    """The sources of the caller's teams."""

    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.WRITE}
    parameters: ClassVar = {
        "GET": frozenset(SourceFilter.base_filters) | PAGING,
        "POST": frozenset({"dry_run"}),
    }

    def get(self, request: Request) -> Response:
        """List them by key, each with how it fares."""
        return page(
            request,
            filtered(request, Source.objects.select_related("team"), SourceFilter),
            shown=lambda found: _all_as_json(found, self.now),
            ordering="key",
            orderings=("key", "id", "due_at", "created_at"),
        )

    def post(self, request: Request) -> Response:
        """A new source, due at once. `?dry_run=true` shows what its first run would do and keeps nothing."""
        values, now = self.body(SourceIn), self.now
        team = self.team(values.pop("team", None), Scope.WRITE)
        source = Source(**values, team=team, created_at=now, due_at=now)
        if self.dry_run:
            definition.check_new(source)
            return Response(_previewed(preview(source, now=now)))
        definition.create(source)
        return Response(_all_as_json([source], now)[0], status=201, headers={"Location": f"/api/sources/{source.key}"})


class OneSource(PortalView):
    """One source."""

    scopes: ClassVar = {"GET": Scope.READ}

    def get(self, request: Request, key: str) -> Response:
        """How it is set up, and how it fares."""
        return Response(_all_as_json([_source_or_404(key)], self.now)[0])


@has_room("files")
class Refresh(PortalView):
    """POST /api/sources/{key}/refresh: a run now."""

    scopes: ClassVar = {"POST": Scope.TELEMETRY}
    parameters: ClassVar = {"POST": frozenset({"dry_run", "since"})}

    def post(self, request: Request, key: str) -> Response:
        """202 and the run that will carry it out; with `?dry_run=true` what a run would do, without doing it.

        since: read again from there, for rows that were mended or that came later than the overlap.
        """
        source, since = _source_or_404(key), instant_of(request, "since")
        require(self.principal, Scope.TELEMETRY, source.team_id)
        if self.dry_run:
            source.again_from = min(filter(None, (source.again_from, since)), default=None)
            return Response(_previewed(preview(source, now=self.now)))
        run = runs.queue(source, now=self.now, since=since)
        told = {"run": str(run.run_id), "source": source.key, "status": run.status}
        return Response(told, status=202, headers={"Location": f"/api/refresh-log?job={run.job_name}"})


def _source_or_404(key: str) -> Source:
    source = Source.objects.select_related("team").filter(key=key).first()
    if source is None:
        raise Http404
    return source


def _all_as_json(found: Sequence[Source], now: datetime) -> list[dict[str, Any]]:
    shares, feeds = failure_shares(found, now=now), fed(found, now=now)
    return [
        {**_as_json(source), "failure_share": shares[source.pk], "freshness": _freshness(feeds.get(source.pk))}
        for source in found
    ]


def _freshness(of: Fed | None) -> dict[str, Any] | None:
    return None if of is None else {"state": of.state, "telemetry_p95_s": of.p95_s}


def _as_json(source: Source) -> dict[str, Any]:
    return {
        "key": source.key,
        "team": source.team.key,
        "kind": source.kind,
        "url_env": source.url_env or None,
        "token_env": source.token_env or None,
        "path": source.path or None,
        "query": source.query,
        "rows_pointer": source.rows_pointer or None,
        "step_s": source.step_s,
        "schedule_s": source.schedule_s,
        "overlap_s": source.overlap_s,
        "time_limit_s": source.time_limit_s,
        "date_format": source.date_format or None,
        "time_zone": source.time_zone or None,
        "time_format": source.time_format or None,
        "columns": source.columns,
        "null_words": source.null_words,
        "delimiter": source.delimiter or None,
        "decimal_comma": source.decimal_comma,
        "encoding": source.encoding or None,
        "metrics": source.metrics,
        "lineage_job": source.lineage_job or None,
        "enabled": source.enabled,
        "due_at": rfc3339(source.due_at),
        "data_watermark": rfc3339(source.read_to),
        "last_refresh_at": rfc3339(source.last_refresh_at),
        "failures": source.failures,
    }


def _previewed(preview: Preview) -> dict[str, Any]:
    stored = preview.stored
    return {
        "since": rfc3339(preview.since),
        "until": rfc3339(preview.until),
        "accepted": stored.accepted,
        "changed": stored.changed,
        "duplicates": stored.duplicates,
        "refused": stored.refused,
        "ignored": stored.ignored,
        "ignored_experiments": list(stored.strangers),
        "problems": list(stored.problems),
        "summaries": [{**asdict(of), "newest": rfc3339(of.newest)} for of in preview.summaries],
        "ignored_columns": list(preview.ignored_columns),
        "warnings": list(preview.warnings),
        "rows": [{name: _shown(value) for name, value in row.items()} for row in preview.rows],
        "more": preview.more,
    }


def _shown(value: object) -> object:
    plain = value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)[:200]
