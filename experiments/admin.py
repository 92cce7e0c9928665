"""The metric registry in the Django admin. Experiments themselves join three apps and are in `decisioning.board.admin`."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone

from decisioning.access.admin import Dated
from experiments import feeds
from experiments.models import Metric, MetricSchedule


class Schedules(admin.TabularInline):  # type: ignore[type-arg]
    """When its buckets are due, from when on; to read."""

    model = MetricSchedule
    fields = readonly_fields = ("since", "expected")
    can_delete = False
    extra = 0

    def has_add_permission(self, request: HttpRequest, obj: Metric | None = None) -> bool:
        return False


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

    inlines = (Schedules,)

    def get_readonly_fields(self, request: HttpRequest, obj: Metric | None = None) -> list[str]:
        """What a key and a kind mean is fixed by the rows that were sent under it; schedules are dated, and changed over HTTP."""
        fixed = ["key", "kind", "temporality"] if obj else []
        scheduled = ["expected_every_s"] if obj and obj.schedules.exists() else []
        return [*super().get_readonly_fields(request, obj), *fixed, *scheduled]

    def save_model(self, request: HttpRequest, obj: Metric, form: Any, change: bool) -> None:  # noqa: FBT001 - Django's
        """Other seconds hold from now on."""
        every_s = obj.expected_every_s
        if change and "expected_every_s" in form.changed_data:
            obj.expected_every_s = form.initial["expected_every_s"]
        super().save_model(request, obj, form, change)
        if every_s != obj.expected_every_s:
            now = timezone.now()
            feeds.set_out(obj, {"every_s": every_s}, since=now, now=now)

    def has_delete_permission(self, request: HttpRequest, obj: Metric | None = None) -> bool:
        return False
