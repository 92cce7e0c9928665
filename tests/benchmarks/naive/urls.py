"""What one writes first: a serializer for each row, then bulk_create."""

from typing import Any, ClassVar

from django.db import transaction
from django.http import HttpResponse
from django.urls import path
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from telemetry.models import ExperimentKpi


class _Row(serializers.Serializer[Any]):
    metric = serializers.CharField(max_length=63)
    variant = serializers.CharField(max_length=63)
    ts = serializers.DateTimeField()
    value = serializers.FloatField()
    n = serializers.IntegerField(min_value=0)
    variance = serializers.FloatField(min_value=0)


class NaiveRows(PortalView):
    """POST .../kpis of a portal that took the obvious way."""

    scopes: ClassVar = {"POST": Scope.TELEMETRY}

    def post(self, request: Request, ref: str) -> HttpResponse:
        """Store rows, all or nothing."""
        experiment = self.experiment(ref)
        sent: Any = request.data
        parsed = _Row(data=sent["rows"], many=True)
        parsed.is_valid(raise_exception=True)
        now = self.now
        known: dict[str, Any] = {"experiment_id": experiment.pk, "team_id": experiment.team_id, "received_at": now}
        with transaction.atomic():
            stored = ExperimentKpi.objects.bulk_create(
                [ExperimentKpi(**known, first_received_at=now, **row) for row in parsed.validated_data],
                update_conflicts=True,
                unique_fields=["experiment_id", "metric", "variant", "ts"],
                update_fields=["value", "n", "variance", "received_at"],
            )
        return Response({"accepted": len(stored)})


urlpatterns = [path("api/experiments/<ref>/kpis", NaiveRows.as_view())]
