"""The registry of metrics: shared by all teams, changed by the team that made one or by an admin."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import django_filters  # type: ignore[import-untyped]
from django.db.models import Q, QuerySet
from django.http import Http404
from msgspec import UNSET
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.permissions import require
from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from decisioning.api.experiments import Words
from decisioning.api.lists import PAGING, filtered, page
from decisioning.api.problems import Problem
from decisioning.api.serializers import MetricChange, MetricCreate
from decisioning.literals import rfc3339
from experiments import expected as words
from experiments import feeds, plan
from experiments.models import Metric
from experiments.registry import Users, bounds_of, users_of
from telemetry.feeds import Proposal, proposal


class _MetricFilter(django_filters.FilterSet):  # type: ignore[misc]
    kind = Words(words=Metric.Kind.values, lookup_expr="in")
    retired = django_filters.BooleanFilter(field_name="retired_at", lookup_expr="isnull", exclude=True)
    search = django_filters.CharFilter(method="matching")

    def matching(self, metrics: QuerySet[Metric], _name: str, words: str) -> QuerySet[Metric]:
        """In key, name or definition."""
        return metrics.filter(Q(key__icontains=words) | Q(name__icontains=words) | Q(definition__icontains=words))


class Metrics(PortalView):
    """Metrics that plans may be judged by; with ?retired=true those that were retired."""

    scopes = {"GET": Scope.READ, "POST": Scope.WRITE}
    parameters = {"GET": PAGING | {"kind", "search", "retired"}}

    def get(self, request: Request) -> Response:
        """By key."""
        known = Metric.objects.select_related("team", "replaced_by").prefetch_related("schedules")
        if "retired" not in request.query_params:
            known = known.filter(retired_at=None)
        return page(
            request,
            filtered(request, known, _MetricFilter),
            shown=lambda found: _all_as_json(found, self.now),
            ordering="key",
            orderings=("key", "name", "created_at"),
        )

    def post(self, request: Request) -> Response:
        """A new metric of the caller's team."""
        values = self.body(MetricCreate)
        team = self.team(values.pop("team", None), Scope.WRITE)
        now, new = self.now, plan.NewMetric(**values)
        metric = plan.register(new, team=team, now=now)
        told = _as_json(metric, now, Users(), warnings=plan.warnings_of_new([new], made_at=now))
        return Response(told, status=201, headers={"Location": f"/api/metrics/{metric.key}"})


class OneMetric(PortalView):
    """One metric."""

    scopes = {"GET": Scope.READ, "PATCH": Scope.WRITE}

    def get(self, request: Request, key: str) -> Response:
        """Its definition."""
        return Response(_all_as_json([_metric_or_404(key)], self.now)[0])

    def patch(self, request: Request, key: str) -> Response:
        """Change its definition. What it means (kind, direction, temporality, what counts) stays while a started experiment is judged by it: 409
        `metric_in_use`. A schedule holds from now on, or from `expected_from`."""
        metric = _metric_or_404(key)
        if not self.principal.is_admin:
            if metric.team_id is None or metric.team_id not in self.principal.teams:
                raise Problem(
                    403, "permission_denied", f"{key} belongs to another team: only it or an admin changes it."
                )
            require(self.principal, Scope.WRITE, metric.team_id)
        values = self.body(MetricChange)
        since = values.pop("expected_from", UNSET)
        changed = plan.redefine(metric, plan.NewMetric(key=key, **values), now=self.now, since=since)
        return Response(_all_as_json([changed], self.now)[0])


class ScheduleOf(PortalView):
    """The schedule that rows of a metric show."""

    scopes = {"GET": Scope.READ}

    def get(self, request: Request, key: str) -> Response:
        """Found in the newest two weeks of the rows that the caller may read, beside what is configured. It is taken by a PATCH of the metric's
        `expected`, which holds from then on."""
        return Response(_shown(proposal(_metric_or_404(key), now=self.now)))


def _shown(of: Proposal) -> dict[str, Any]:
    finding = of.finding
    found = finding.expected and {
        "expected": finding.expected,
        "words": finding.words,
        "fit": finding.fit and finding.fit._asdict(),
        "told_by": finding.told_by,
        "others": [{"expected": other, "words": words.in_words(other)} for other in finding.others],
    }
    return {
        "metric": of.metric,
        "state": of.state,
        "detail": of.detail,
        "configured": {
            "expected": of.configured,
            "words": words.in_words(of.configured),
            "fit": of.configured_fit and of.configured_fit._asdict(),
        },
        "found": found,
        "experiment": of.experiment,
        "since": rfc3339(of.since),
        "until": rfc3339(of.until),
        "arrive_within_s": of.arrive_within_s,
    }


def _metric_or_404(key: str) -> Metric:
    metric = Metric.objects.select_related("team", "replaced_by").filter(key=key).first()
    if metric is None:
        raise Http404
    return metric


def _all_as_json(metrics: Iterable[Metric], now: datetime) -> list[dict[str, Any]]:
    found = list(metrics)
    users = users_of(found)
    return [_as_json(metric, now, users[metric.pk]) for metric in found]


def _as_json(metric: Metric, now: datetime, users: Users, *, warnings: Sequence[str] | None = None) -> dict[str, Any]:
    low, high = bounds_of(metric.kind, metric.minimum, metric.maximum)
    expected = feeds.expected_of(metric, now=now)
    warnings = plan.warnings(metric) if warnings is None else warnings
    # Another team's key is not this reader's to know, so only a team that row security lets through is named.
    return {
        "key": metric.key,
        "name": metric.name,
        "kind": metric.kind,
        "unit": metric.unit,
        "direction": metric.direction,
        "temporality": metric.temporality,
        "expected_every_s": metric.expected_every_s,
        "expected": expected,
        "expected_in_words": words.in_words(expected),
        "schedules": [
            {"since": rfc3339(s.since), "expected": s.expected, "words": words.in_words(s.expected)}
            for s in metric.schedules.all()
        ],
        "freshness_target_s": metric.freshness_target_s,
        "counts_assignment": metric.counts_assignment,
        "definition": metric.definition,
        "bounds": {"min": low, "max": high},
        "capped_at": metric.capped_at,
        "used_by": {"experiments": list(users.experiments), "others": users.others},
        "retired_at": rfc3339(metric.retired_at),
        "replaced_by": metric.replaced_by.key if metric.replaced_by else None,
        "team": metric.team.key if metric.team else None,
        "created_at": rfc3339(metric.created_at),
        **({"warnings": warnings} if warnings else {}),
    }
