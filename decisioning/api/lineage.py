"""OpenLineage: where pipelines report their runs. /api/v1/lineage is where its clients post by default."""

from typing import ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from decisioning.api.parsers import FacetedJSONParser
from telemetry import lineage


class Lineage(PortalView):
    """POST /api/v1/lineage: one event."""

    scopes: ClassVar = {"POST": Scope.LINEAGE}
    parameters: ClassVar = {"POST": frozenset({"team"})}
    parser_classes = (FacetedJSONParser,)
    batch: ClassVar = False

    def post(self, request: Request) -> Response:
        """Merge run events into the refresh log; job and dataset events are accepted and ignored."""
        team = self.team(request.query_params.get("team"), Scope.LINEAGE)
        payload = request.data
        found = lineage.read(payload, batch=self.batch, now=self.now)
        lineage.merge(found.events, team=team)
        return self.answer(found)

    def answer(self, found: lineage.Batch) -> Response:
        return Response({"status": "success"})


class LineageBatch(Lineage):
    """POST /api/v1/lineage/batch: up to 1,000 events; a bad one refuses itself alone."""

    batch = True

    def answer(self, found: lineage.Batch) -> Response:
        """As OpenLineage's BatchResponse has it; 207 when some were refused."""
        failed = len(found.faults)
        body = {
            "status": "partial_success" if failed else "success",
            "summary": {
                "received": found.received,
                "successful": found.received - failed,
                "failed": failed,
                "retriable": 0,
                "non_retriable": failed,
            },
            "failed_events": [
                {"index": index, "reason": " ".join(fault.detail for fault in wrong), "retriable": False}
                for index, wrong in found.faults.items()
            ],
        }
        if failed:
            body["errors"] = [
                {"pointer": fault.pointer, "code": fault.code, "detail": fault.detail}
                for wrong in found.faults.values()
                for fault in wrong
            ]
        return Response(body, status=207 if failed else 200)
