"""The refresh log, sources and quarantine in the Django admin."""

from django.contrib import admin
from django.http import HttpRequest

from decisioning.access.admin import Dated, ReadOnly
from telemetry.models import QuarantinedEvent, RefreshRun, Source


@admin.register(RefreshRun)
class RefreshRunAdmin(ReadOnly):
    list_display = ("id", "job_name", "status", "rows", "started_at", "finished_at", "experiment_id", "source", "error")
    list_filter = ("status", "team")
    list_select_related = ("team",)
    search_fields = ("job_name", "source", "error")
    date_hierarchy = "finished_at"


@admin.register(Source)
class SourceAdmin(Dated):
    list_display = ("key", "team", "kind", "enabled", "schedule_s", "last_refresh_at", "due_at", "failures")
    list_filter = ("kind", "enabled", "team")
    list_select_related = ("team",)
    search_fields = ("key", "lineage_job", "query")
    readonly_fields = ("failures", "read_to", "last_refresh_at")

    def get_readonly_fields(self, request: HttpRequest, obj: Source | None = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), *(["key", "team"] if obj else [])]


@admin.register(QuarantinedEvent)
class QuarantinedEventAdmin(ReadOnly):
    list_display = ("id", "type", "source", "event_id", "reason", "received_at", "replayed_at")
    list_filter = ("type", "team", ("replayed_at", admin.EmptyFieldListFilter))
    list_select_related = ("team",)
    search_fields = ("type", "source", "event_id", "reason")
    date_hierarchy = "received_at"
