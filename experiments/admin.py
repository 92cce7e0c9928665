"""The metric registry in the Django admin. Experiments themselves join three apps and are in `decisioning.board.admin`."""

from django.contrib import admin
from django.http import HttpRequest

from decisioning.access.admin import Dated
from experiments.models import Metric


@admin.register(Metric)
class MetricAdmin(Dated):
    list_display = (
        "key",
        "name",
        "kind",
        "unit",
        "direction",
        "temporality",
        "expected_every_s",
        "freshness_target_s",
        "team",
    )
    list_filter = ("kind", "direction", "temporality", "team")
    list_select_related = ("team",)
    search_fields = ("key", "name", "definition")
    date_hierarchy = "created_at"

    def get_readonly_fields(self, request: HttpRequest, obj: Metric | None = None) -> list[str]:
        """What a key and a kind mean is fixed by the rows that were sent under it."""
        return [*super().get_readonly_fields(request, obj), *(["key", "kind", "temporality"] if obj else [])]

    def has_delete_permission(self, request: HttpRequest, obj: Metric | None = None) -> bool:
        return False
