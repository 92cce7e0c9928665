"""Planned outages of a team's feeds: what there is, a new one, another end, and one taken back."""

from typing import Any, ClassVar

import django_filters  # type: ignore[import-untyped]
from django.http import Http404
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.permissions import require
from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from decisioning.api.lists import PAGING, filtered, page
from decisioning.api.serializers import OutageChange, OutageIn
from decisioning.literals import rfc3339
from telemetry import outages
from telemetry.models import Outage

_NAMES = {"from": "begins_at", "to": "ends_at"}


class OutageFilter(django_filters.FilterSet):  # type: ignore[misc]
    team = django_filters.CharFilter(field_name="team__key")


class Outages(PortalView):
    """The outages of the caller's teams."""

    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.TELEMETRY}
    parameters: ClassVar = {"GET": frozenset(OutageFilter.base_filters) | PAGING}

    def get(self, request: Request) -> Response:
        """The newest first."""
        return page(
            request,
            filtered(request, Outage.objects.select_related("team"), OutageFilter),
            shown=lambda found: [_told(outage) for outage in found],
            ordering="-begins_at",
            orderings=("begins_at", "ends_at", "id"),
        )

    def post(self, request: Request) -> Response:
        """One more, ahead or afterwards: what is due from its beginning to its end is not expected."""
        values = self.body(OutageIn)
        team = self.team(values.pop("team", None), Scope.TELEMETRY)
        made = outages.plan(outages.NewOutage(**_named(values)), team=team, now=self.now)
        return Response(_told(made), status=201, headers={"Location": f"/api/outages/{made.pk}"})


class OneOutage(PortalView):
    """One outage."""

    scopes: ClassVar = {"GET": Scope.READ, "PATCH": Scope.TELEMETRY, "DELETE": Scope.TELEMETRY}

    def get(self, request: Request, pk: int) -> Response:
        """When, of what, and why."""
        return Response(_told(_found(pk)))

    def patch(self, request: Request, pk: int) -> Response:
        """Another end, or whatever else is given."""
        outage = _found(pk)
        require(self.principal, Scope.TELEMETRY, outage.team_id)
        return Response(_told(outages.change(outage, _named(self.body(OutageChange)), now=self.now)))

    def delete(self, request: Request, pk: int) -> Response:
        """As if it had never been planned."""
        outage = _found(pk)
        require(self.principal, Scope.TELEMETRY, outage.team_id)
        outages.take_back(outage)
        return Response(status=204)


def _named(values: dict[str, Any]) -> dict[str, Any]:
    return {_NAMES.get(name, name): value for name, value in values.items()}


def _found(pk: int) -> Outage:
    outage = Outage.objects.select_related("team").filter(pk=pk).first() if pk < 2**63 else None
    if outage is None:
        raise Http404
    return outage


def _told(outage: Outage) -> dict[str, Any]:
    return {
        "id": outage.pk,
        "team": outage.team.key,
        "from": rfc3339(outage.begins_at),
        "to": rfc3339(outage.ends_at),
        "metrics": outage.metrics,
        "sources": outage.sources,
        "reason": outage.reason,
        "created_at": rfc3339(outage.created_at),
    }
