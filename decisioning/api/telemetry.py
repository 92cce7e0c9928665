"""The door telemetry comes in by: bytes are decoded straight into typed rows, past DRF's parsers and serializers."""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
from django.http import Http404, HttpResponse
from rest_framework.request import Request

from decisioning.access.permissions import require
from decisioning.access.scopes import Scope
from decisioning.api import parsers
from decisioning.api.base import PortalView, json_response
from decisioning.api.problems import bad_parameter
from decisioning.literals import number_or_key, rfc3339
from decisioning.refusals import Fault
from telemetry.ingest import Ingested, Target, ingest, targets
from telemetry.row import Checked, check, decode, names_stand_once


class TakesRows(PortalView):
    """POST .../kpis: a batch of rows for one experiment, all or nothing unless `?atomic=false`."""

    scopes: ClassVar = {"POST": Scope.TELEMETRY}
    parameters: ClassVar = {"POST": frozenset({"atomic"})}

    def post(self, request: Request, ref: str) -> HttpResponse:
        """Store rows: all or nothing, with ?atomic=false the good ones."""
        target = self._target(ref)
        atomic = atomic_asked(request)
        body = parsers.read(request._request)
        rows = decode(body)
        if rows is not None and not names_stand_once(body, rows):
            parsers.refuse_duplicates(body)
        found = check(parsers.decode(body)) if rows is None else Checked(list(enumerate(rows)), [], ())
        return _response(ingest(target, found.good, now=self.now, bad=found.bad, atomic=atomic), found.ignored)

    def _target(self, ref: str) -> Target:
        """As `experiment`, in one statement: rows come often."""
        named = number_or_key(ref)
        target = targets([named]).get(named)
        if target is None:
            raise Http404
        require(self.principal, Scope.TELEMETRY, target.team_id)
        return target


def _response(done: Ingested, ignored: Sequence[str]) -> HttpResponse:
    body: dict[str, Any] = {
        "accepted": done.accepted,
        "changed": done.changed,
        "duplicates": done.duplicates,
        "last_ts": rfc3339(done.last_ts),
    }
    if ignored:
        body["ignored"] = ignored
    if done.refused:
        body["errors"] = [_as_json(bad) for bad in done.refused]
    return json_response(msgspec.json.encode(body), status=207 if done.refused else 200)


def _as_json(bad: Fault) -> dict[str, Any]:
    return {"index": bad.index, "pointer": bad.pointer, "code": bad.code, "detail": bad.detail}


def atomic_asked(request: Request) -> bool:
    """Whether one bad row refuses all: `?atomic=`, true by default."""
    asked = request.query_params.get("atomic", "true").lower()
    if asked not in ("true", "false"):
        raise bad_parameter("atomic", f"is {asked!r}; it must be true or false")
    return asked == "true"
