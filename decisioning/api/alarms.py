"""Alarms over HTTP: what is wrong now and was told, and people's answers to it: snoozed until an instant, acknowledged."""

from collections.abc import Sequence
from typing import Any, ClassVar

import django_filters  # type: ignore[import-untyped]
from django.db.models import QuerySet
from django.http import Http404
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.models import Team
from decisioning.access.permissions import require
from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from decisioning.api.lists import PAGING, filtered, page
from decisioning.api.serializers import SnoozeIn
from decisioning.ledger import snoozing
from decisioning.ledger.models import Alarm
from decisioning.literals import MOST, rfc3339


class AlarmFilter(django_filters.FilterSet):  # type: ignore[misc]
    type = django_filters.CharFilter(field_name="type")
    team = django_filters.CharFilter(method="of_team")

    def of_team(self, found: QuerySet[Alarm], _name: str, key: str) -> QuerySet[Alarm]:
        return found.filter(team_id__in=Team.objects.filter(key=key).values("pk"))


class Alarms(PortalView):
    """What is wrong with the experiments of the caller's teams, and was told."""

    scopes: ClassVar = {"GET": Scope.READ}
    parameters: ClassVar = {"GET": frozenset(AlarmFilter.base_filters) | PAGING}

    def get(self, request: Request) -> Response:
        """The newest first."""
        return page(
            request,
            filtered(request, snoozing.told(), AlarmFilter),
            shown=_told,
            ordering="-began_at",
            orderings=("began_at", "told_at", "id"),
        )


class OneAlarm(PortalView):
    """One alarm."""

    scopes: ClassVar = {"GET": Scope.READ}

    def get(self, request: Request, pk: int) -> Response:
        """What is wrong, since when, and what people have answered. 404 once it is over."""
        return Response(_told([_found(self, pk, Scope.READ)])[0])


class Snooze(PortalView):
    """POST and DELETE /api/alarms/{id}/snooze."""

    scopes: ClassVar = {"POST": Scope.WRITE, "DELETE": Scope.WRITE}

    def post(self, request: Request, pk: int) -> Response:
        """Nothing is told of it until then; then what is so. Again: another end or reason."""
        alarm = _found(self, pk, Scope.WRITE)
        values = self.body(SnoozeIn)
        return Response(_told([snoozing.snooze(alarm, **values, by=self.principal.owner, now=self.now)])[0])

    def delete(self, request: Request, pk: int) -> Response:
        """It is snoozed no longer."""
        alarm = _found(self, pk, Scope.WRITE)
        snoozing.wake(Alarm.objects.filter(pk=alarm.pk))
        return Response(status=204)


class Acknowledgement(PortalView):
    """POST and DELETE /api/alarms/{id}/acknowledgement."""

    scopes: ClassVar = {"POST": Scope.WRITE, "DELETE": Scope.WRITE}

    def post(self, request: Request, pk: int) -> Response:
        """Somebody deals with it: only its end is told from now on. A second one changes nothing."""
        alarm = _found(self, pk, Scope.WRITE)
        return Response(_told([snoozing.acknowledge(alarm, by=self.principal.owner, now=self.now)])[0])

    def delete(self, request: Request, pk: int) -> Response:
        """Nobody deals with it any more."""
        snoozing.take_back(_found(self, pk, Scope.WRITE))
        return Response(status=204)


def _found(view: PortalView, pk: int, scope: Scope) -> Alarm:
    alarm = Alarm.objects.filter(pk=min(pk, MOST)).first()
    if alarm is None:
        raise Http404
    require(view.principal, scope, alarm.team_id)
    if scope is not Scope.READ and view.principal.agent:
        raise PermissionDenied("This is an agent's key, and people answer alarms. Ask somebody of the team.")
    return alarm


def _told(alarms: Sequence[Alarm]) -> list[dict[str, Any]]:
    teams = dict(Team.objects.filter(pk__in={alarm.team_id for alarm in alarms}).values_list("pk", "key"))
    return [
        {
            "id": alarm.pk,
            "team": teams.get(alarm.team_id, ""),
            "type": alarm.type,
            "subject": alarm.subject,
            "experiment": alarm.data.get("experiment"),
            "began_at": rfc3339(alarm.began_at),
            "told_at": rfc3339(alarm.told_at),
            "ended_at": rfc3339(alarm.ended_at),
            "data": alarm.data,
            "snoozed": None
            if alarm.snoozed_until is None
            else {
                "until": rfc3339(alarm.snoozed_until),
                "reason": alarm.snoozed_because,
                "by": alarm.snoozed_by,
                "at": rfc3339(alarm.snoozed_at),
            },
            "acknowledged": None
            if alarm.acknowledged_at is None
            else {"by": alarm.acknowledged_by, "at": rfc3339(alarm.acknowledged_at)},
        }
        for alarm in alarms
    ]
