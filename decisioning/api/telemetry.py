"""The door telemetry comes in by: bytes are decoded straight into typed rows, past DRF's parsers and serializers."""

from typing import Any, ClassVar

import msgspec
from django.http import HttpResponse
from rest_framework.request import Request

from decisioning.access.scopes import Scope
from decisioning.api import parsers
from decisioning.api.door import Door, json_response
from decisioning.api.problems import Problem, bad_parameter
from experiments.models import Experiment
from telemetry.ingest import BadRow, Ingested, IngestRefused, Target, check, decode, ingest


class TakesRows(Door):
    """POST .../kpis: a batch of rows for one experiment, all or nothing unless `?atomic=false`."""

    scopes: ClassVar = {"POST": Scope.TELEMETRY}
    parameters: ClassVar = {"POST": frozenset({"atomic"})}

    def post(self, request: Request, ref: str) -> HttpResponse:
        """Store rows: all or nothing, with ?atomic=false the good ones."""
        experiment = self.experiment(ref, Scope.TELEMETRY)
        atomic = atomic_asked(request)
        body = parsers.read(request._request)
        try:
            rows = decode(body)
            bad: list[BadRow] = []
            indexed = list(enumerate(rows)) if rows is not None else None
            if indexed is None:
                indexed, bad = check(parsers.decode(body))
            done = ingest(target(experiment), indexed, now=self.now, bad=bad, atomic=atomic)
        except IngestRefused as refusal:
            raise problem(refusal) from refusal
        return _response(done)


def target(experiment: Experiment) -> Target:
    """What ingest has to know of an experiment."""
    variants = experiment.variants.values_list("key", flat=True)
    return Target(experiment.pk, experiment.team_id, frozenset(variants))


def problem(refusal: IngestRefused) -> Problem:
    """A refused batch in the contract's words."""
    return Problem(
        refusal.status,
        refusal.code,
        str(refusal),
        errors=[(bad.pointer, bad.code, bad.detail) for bad in refusal.errors],
    )


def _response(done: Ingested) -> HttpResponse:
    body: dict[str, Any] = {
        "accepted": done.accepted,
        "changed": done.changed,
        "duplicates": done.duplicates,
        "last_ts": done.last_ts.isoformat().replace("+00:00", "Z") if done.last_ts else None,
    }
    if done.refused:
        body["errors"] = [_told(bad) for bad in done.refused]
    return json_response(msgspec.json.encode(body), status=207 if done.refused else 200)


def _told(bad: BadRow) -> dict[str, Any]:
    return {"index": bad.index, "pointer": bad.pointer, "code": bad.code, "detail": bad.detail}


def atomic_asked(request: Request) -> bool:
    """Whether one bad row refuses all: `?atomic=`, true by default."""
    asked = request.query_params.get("atomic", "true").lower()
    if asked not in ("true", "false"):
        raise bad_parameter("atomic", f"is {asked!r}; it must be true or false")
    return asked == "true"
