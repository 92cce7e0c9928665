"""OpenLineage: where pipelines report their runs. /api/v1/lineage is where its clients post by default."""

from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.scopes import Scope
from decisioning.api.door import Door
from decisioning.api.problems import Problem
from telemetry import lineage


class Lineage(Door):
    """POST /api/v1/lineage: one event."""

    scopes: ClassVar = {"POST": Scope.LINEAGE}
    parameters: ClassVar = {"POST": frozenset({"team"})}
    batch: ClassVar = False

    def post(self, request: Request) -> Response:
        """Merge run events into the refresh log; job and dataset events are accepted and ignored."""
        team = self.team(request.query_params.get("team"), Scope.LINEAGE)
        payload = request.data
        try:
            lineage.merge(lineage.read(payload, batch=self.batch, now=self.now), team=team)
        except lineage.LineageRefused as refusal:
            raise Problem(refusal.status, refusal.code, str(refusal), errors=refusal.errors) from refusal
        return Response(self.answer(payload))

    def answer(self, payload: Any) -> dict[str, Any]:
        return {"status": "success"}


class LineageBatch(Lineage):
    """POST /api/v1/lineage/batch: up to 1,000 events, all or none."""

    batch = True

    def answer(self, payload: Any) -> dict[str, Any]:
        """As OpenLineage's BatchResponse has it."""
        received = len(payload)
        summary = {"received": received, "successful": received, "failed": 0, "retriable": 0, "non_retriable": 0}
        return {"status": "success", "summary": summary, "failed_events": []}
