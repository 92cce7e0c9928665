"""Webhooks, Slack channels and e-mail addresses over HTTP: what is to be told whom, and what became of it."""

from typing import Any, ClassVar

import django_filters  # type: ignore[import-untyped]
from django.http import Http404, HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.permissions import require
from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from decisioning.api.lists import PAGING, filtered, page
from decisioning.api.serializers import WebhookIn
from decisioning.ledger import channels
from decisioning.ledger.models import Channel, Delivery
from decisioning.literals import MOST, rfc3339


class DeliveryFilter(django_filters.FilterSet):  # type: ignore[misc]
    state = django_filters.ChoiceFilter(field_name="state", choices=Delivery.State.choices)


class Webhooks(PortalView):
    """The receivers of the caller's teams."""

    scopes: ClassVar = {"GET": Scope.KEYS, "POST": Scope.KEYS}
    parameters: ClassVar = {"GET": PAGING}

    def get(self, request: Request) -> Response:
        """Newest first, without secrets."""
        found = Channel.objects.select_related("team")
        if not self.principal.is_admin:
            found = found.filter(team__in=[team for team, held in self.principal.teams.items() if Scope.KEYS in held])
        return page(request, found, shown=lambda shown: [_as_json(c) for c in shown])

    def post(self, request: Request) -> Response:
        """A new one; `secret` signs its messages, is shown this once, and is null for Slack and e-mail."""
        values = self.body(WebhookIn)
        team = self.team(values.pop("team", None), Scope.KEYS)
        channel, secret = channels.open_channel(team, **values, by=self.principal.owner, now=self.now)
        headers = {"Location": f"/api/webhooks/{channel.pk}", "Cache-Control": "no-store"}
        return Response({**_as_json(channel), "secret": secret or None}, status=201, headers=headers)


class OneWebhook(PortalView):
    """One receiver."""

    scopes: ClassVar = {"GET": Scope.KEYS, "DELETE": Scope.KEYS}

    def get(self, request: Request, pk: int) -> Response:
        """Where it leads, what it gets and how it fares."""
        return Response(_as_json(_channel_or_404(self, pk)))

    def delete(self, request: Request, pk: int) -> HttpResponse:
        """Nothing more is sent to it; what waited is dropped, and its deliveries are no longer listed."""
        channels.close_channel(_channel_or_404(self, pk))
        return HttpResponse(status=204)


class TriesWebhook(PortalView):
    """POST /api/webhooks/{id}/test."""

    scopes: ClassVar = {"POST": Scope.KEYS}

    def post(self, request: Request, pk: int) -> Response:
        """202: a message of type webhook.test is on its way, once. Arrived at one that is off, it turns it on again."""
        delivery = channels.try_out(_channel_or_404(self, pk), by=self.principal.owner, now=self.now)
        return Response(_delivery_as_json(delivery), status=202, headers={"Location": f"/api/webhooks/{pk}/deliveries"})


class Deliveries(PortalView):
    """What became of the messages for one receiver."""

    scopes: ClassVar = {"GET": Scope.KEYS}
    parameters: ClassVar = {"GET": frozenset(DeliveryFilter.base_filters) | PAGING}

    def get(self, request: Request, pk: int) -> Response:
        """Newest first, 30 days back; `?state=dead` are the dead letters."""
        found = Delivery.objects.select_related("message").filter(channel=_channel_or_404(self, pk))
        return page(
            request, filtered(request, found, DeliveryFilter), shown=lambda shown: [_delivery_as_json(d) for d in shown]
        )


class Redelivery(PortalView):
    """POST /api/webhooks/{id}/deliveries/{delivery}/redeliver."""

    scopes: ClassVar = {"POST": Scope.KEYS}

    def post(self, request: Request, pk: int, delivery: int) -> Response:
        """202: it is sent once more, under the id it had."""
        channel = _channel_or_404(self, pk)
        found = (
            Delivery.objects.select_related("message", "channel")
            .filter(channel=channel, pk=min(delivery, MOST))
            .first()
        )
        if found is None:
            raise Http404
        return Response(_delivery_as_json(channels.send_again(found, now=self.now)), status=202)


def _channel_or_404(view: PortalView, pk: int) -> Channel:
    channel = Channel.objects.select_related("team").filter(pk=min(pk, MOST)).first()
    if channel is None:
        raise Http404
    require(view.principal, Scope.KEYS, channel.team_id)
    return channel


def _as_json(channel: Channel) -> dict[str, Any]:
    return {
        "id": channel.pk,
        "team": channel.team.key,
        "kind": channel.kind,
        "url": channels.address_of(channel),
        "events": channel.events,
        "enabled": channel.enabled,
        "disabled_at": rfc3339(channel.disabled_at),
        "disabled_reason": channel.disabled_reason or None,
        "failures": channel.failures,
        "failing_since": rfc3339(channel.failing_since),
        "created_by": channel.created_by,
        "created_at": rfc3339(channel.created_at),
    }


def _delivery_as_json(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.pk,
        "message": f"msg_{delivery.message_id}",
        "type": delivery.message.type,
        "experiment": delivery.message.data.get("experiment"),
        "state": delivery.state,
        "attempts": delivery.attempts,
        "created_at": rfc3339(delivery.created_at),
        "next_at": rfc3339(delivery.next_at) if delivery.state == Delivery.State.WAITING else None,
        "last_at": rfc3339(delivery.last_at),
        "last_status": delivery.last_status,
        "last_error": delivery.last_error or None,
        "delivered_at": rfc3339(delivery.delivered_at),
    }
