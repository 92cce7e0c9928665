"""CloudEvents in, in all three of their HTTP modes; the schemas they follow; the quarantine of those not understood."""

import base64
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import unquote

import django_filters  # type: ignore[import-untyped]
import msgspec
from django.conf import settings
from django.http import Http404, HttpResponse
from rest_framework.exceptions import MethodNotAllowed, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.keys import rate_of
from decisioning.access.models import Team
from decisioning.access.permissions import require
from decisioning.access.scopes import Scope
from decisioning.api import parsers
from decisioning.api.base import PortalView, json_response
from decisioning.api.experiments import created
from decisioning.api.lists import PAGING, filtered, page
from decisioning.api.problems import Problem, problem_of
from decisioning.api.serializers import ExperimentIn
from decisioning.api.telemetry import atomic_asked
from decisioning.literals import MOST, rfc3339
from decisioning.refusals import Fault, Refused
from telemetry import events, schemas
from telemetry.models import QuarantinedEvent

STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
Read = tuple[list[events.Event], list[Fault]]
_SUBSCRIPTION = frozenset({"code", "key", "sig", "subscription", "token"})
"""Words that subscriptions put into the address they call. They are no key of the portal's and say nothing here."""


class _TakesEvents(PortalView):
    """What taking events in and replaying them share: events may create experiments."""

    def creator(self, team: Team) -> events.Create:
        def create(data: Mapping[str, Any]) -> None:
            require(self.principal, Scope.WRITE, team.pk)
            if data.get("team") not in (None, team.key):
                detail = f"Events sent to {team.key} create experiments of {team.key} only."
                raise Refused.of(Fault("/team", "unknown_team", detail))
            try:
                asked = ExperimentIn(data=dict(data))
                asked.is_valid(raise_exception=True)
                created(asked.validated_data, team=team, by=self.principal, now=self.now)
            except (ValidationError, Problem) as refusal:
                told = problem_of(refusal)
                errors = told.errors or [Fault("", told.code, told.text)]
                raise Refused(told.code, told.text, status=told.status_code, errors=errors) from refusal

        return create


class TakesEvents(_TakesEvents):
    """POST /api/events: one event (structured or binary mode) or a batch of them."""

    scopes: ClassVar = {"POST": Scope.TELEMETRY}
    parameters: ClassVar = {
        "POST": frozenset({"atomic", "team"}) | _SUBSCRIPTION,
        "OPTIONS": frozenset({"team"}) | _SUBSCRIPTION,
    }

    def check_permissions(self, request: Request) -> None:
        """Whoever wants to send events asks first, without a key."""
        if request.method != "OPTIONS":
            super().check_permissions(request)

    def options(self, request: Request, *args: Any, **kwargs: Any) -> Response:  # type: ignore[override]
        """The validation handshake of CloudEvents' webhooks: whether events of an origin are taken, and how many a minute."""
        origin = request.headers.get("WebHook-Request-Origin", "").strip().lower()
        if not origin:
            raise MethodNotAllowed("OPTIONS", detail="OPTIONS asks for an origin: send WebHook-Request-Origin.")
        if origin not in settings.EVENT_ORIGINS:
            raise Problem(
                403,
                "origin_not_allowed",
                "No events of this origin are taken here. The operator names it in DECISIONING_EVENT_ORIGINS.",
            )
        limit, window_s = rate_of(settings.KEY_RATE)
        return Response(
            status=200,
            headers={
                "Allow": "POST, OPTIONS",
                "WebHook-Allowed-Origin": origin,
                "WebHook-Allowed-Rate": str(max(1, limit * 60 // window_s)),
            },
        )

    def post(self, request: Request) -> HttpResponse:
        """Take events in, each once. 202 when some are not understood and wait in quarantine, 207 when some were refused."""
        team = self.team(request.query_params.get("team"), Scope.TELEMETRY)
        atomic = atomic_asked(request)
        batch = (request.content_type or "").partition(";")[0].strip().lower() == BATCH
        found, bad = _read(request, batch=batch)
        received = events.receive(
            found, team=team, create=self.creator(team), now=self.now, bad=bad, atomic=atomic, single=not batch
        )
        return _response(received)


def _read(request: Request, *, batch: bool) -> Read:
    media = (request.content_type or "").partition(";")[0].strip().lower()
    if batch or media == STRUCTURED:
        body = parsers.read(request._request)
        quick = events.decode(body, batch=batch)
        if quick is not None:
            parsers.refuse_duplicates(body)
        return (quick, []) if quick is not None else events.check(parsers.decode(body), batch=batch)
    told = {name[3:].lower(): value for name, value in request.headers.items() if name.lower().startswith("ce-")}
    # A web server hands on what is not ASCII as nothing, or as other letters.
    if strange := sorted(name for name, value in told.items() if not value or not value.isascii()):
        detail = "came empty or with other letters than ASCII. Percent-encode them (%C3%BC for ü), as CloudEvents over HTTP asks."
        raise events.EventsRefused(
            "invalid",
            f"ce-{strange[0]} {detail}",
            errors=[Fault(f"ce-{name}", "invalid_text", f"ce-{name} {detail}") for name in strange],
        )
    attributes = {name: unquote(value) for name, value in told.items()}
    if not attributes:
        raise Problem(
            415,
            "unsupported_media_type",
            f"Send one event as {STRUCTURED}, several as {BATCH}, or its data as application/json with ce- headers.",
        )
    # Some servers put text/plain where a client sent no Content-Type.
    attributes["datacontenttype"] = "application/json" if media in ("", "text/plain") else str(request.content_type)
    is_json = events.is_json(attributes["datacontenttype"])
    body = parsers.read(request._request, nests=is_json)
    quick = events.decode_binary(attributes, body) if is_json else None
    if quick is not None:
        return quick, []
    payload: dict[str, Any] = dict(attributes)
    if body and is_json:
        payload["data"] = parsers.decode(body)
    elif body:
        payload["data_base64"] = base64.b64encode(body).decode()
    return events.check(payload, batch=False, binary=True)


def _response(received: events.Received) -> HttpResponse:
    last = received.last_ts
    body: dict[str, Any] = {
        "accepted": received.accepted,
        "duplicates": received.duplicates,
        "quarantined": received.quarantined,
        "rows": {
            "accepted": received.new_rows,
            "changed": received.changed_rows,
            "duplicates": received.duplicate_rows,
            "last_ts": rfc3339(last),
            **({"ignored": received.ignored} if received.ignored else {}),
        },
    }
    if received.refused:
        body["errors"] = [
            {"index": bad.index, "pointer": bad.pointer, "code": bad.code, "detail": bad.detail}
            for bad in received.refused
        ]
    status = 207 if received.refused else 202 if received.quarantined else 200
    return json_response(msgspec.json.encode(body), status=status)


class _Public(PortalView):
    """Schemas are no secret."""

    def check_permissions(self, request: Request) -> None:
        """Anyone may read."""


class Schemas(_Public):
    """GET /api/schemas: the types of events that are understood."""

    def get(self, request: Request) -> Response:
        """Every type with the address of its schema."""
        return Response({"results": [{"type": type_, "schema": f"/api/schemas/{type_}"} for type_ in schemas.TYPES]})


class Schema(_Public):
    """GET /api/schemas/{type}: the shape of one type's data."""

    def get(self, request: Request, type_: str) -> HttpResponse:
        """JSON Schema, 2020-12."""
        if type_ not in schemas.TYPES:
            raise Http404
        return HttpResponse(msgspec.json.encode(schemas.schema(type_)), content_type="application/schema+json")


class QuarantineFilter(django_filters.FilterSet):  # type: ignore[misc]
    type = django_filters.CharFilter(field_name="type")
    source = django_filters.CharFilter(field_name="source")
    replayed = django_filters.BooleanFilter(field_name="replayed_at", lookup_expr="isnull", exclude=True)


class Quarantine(PortalView):
    """GET /api/quarantine: events that were not understood when they came."""

    scopes: ClassVar = {"GET": Scope.READ}
    parameters: ClassVar = {"GET": frozenset(QuarantineFilter.base_filters) | PAGING}

    def get(self, request: Request) -> Response:
        """List them, newest first, each with why it was not understood and the whole event."""
        held = filtered(request, QuarantinedEvent.objects.all(), QuarantineFilter)
        return page(
            request,
            held,
            shown=lambda found: [
                {
                    "id": event.pk,
                    "source": event.source,
                    "event_id": event.event_id,
                    "type": event.type,
                    "reason": event.reason,
                    "received_at": event.received_at,
                    "replayed_at": event.replayed_at,
                    "event": event.body,
                }
                for event in found
            ],
            orderings=("id", "received_at", "type"),
        )


class Replay(_TakesEvents):
    """POST /api/quarantine/{id}/replay: try again, after an upgrade."""

    scopes: ClassVar = {"POST": Scope.TELEMETRY}

    def post(self, request: Request, pk: int) -> HttpResponse:
        """Take the event in now; 409 `not_understood` while it still is not."""
        held = QuarantinedEvent.objects.select_related("team").filter(pk=pk).first() if pk <= MOST else None
        if held is None:
            raise Http404
        require(self.principal, Scope.TELEMETRY, held.team_id)
        return _response(events.replay(held, create=self.creator(held.team), now=self.now))
