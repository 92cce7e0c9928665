"""The refresh log, sources and quarantine in the Django admin."""

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import URLPattern, path
from django.utils import timezone

from decisioning.access.admin import Dated, ReadOnly
from decisioning.access.middleware import has_room
from experiments.models import Metric
from telemetry import outages
from telemetry.admin_import import import_rows
from telemetry.admin_metrics import MetricAdmin
from telemetry.models import Outage, QuarantinedEvent, RefreshRun, Source, SourcePlace
from telemetry.refresh import failure_shares
from telemetry.sources.definition import check
from telemetry.sources.preview import preview
from telemetry.sources.refusals import SourceFailed, SourceRefused

admin.site.register(Metric, MetricAdmin)


@admin.register(RefreshRun)
class RefreshRunAdmin(ReadOnly):
    list_display = (
        "id",
        "job_name",
        "status",
        "rows",
        "refused",
        "ignored",
        "started_at",
        "finished_at",
        "source",
        "error",
    )
    list_filter = ("status", "team")
    list_select_related = ("team",)
    search_fields = ("job_name", "source", "error")
    date_hierarchy = "finished_at"


class SourceForm(forms.ModelForm):  # type: ignore[type-arg]
    """A source is checked here as it is at the API."""

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if not self.errors:
            try:
                check(self.instance)
            except SourceRefused as refusal:
                for fault in refusal.errors:
                    name = fault.pointer.split("/")[1]
                    self.add_error(name if name in self.fields else None, fault.detail)


class OutageForm(forms.ModelForm):  # type: ignore[type-arg]
    """An outage is checked here as it is at the API."""

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if not self.errors:
            self.instance.metrics = sorted(set(self.instance.metrics))
            self.instance.sources = sorted(set(self.instance.sources))
            try:
                outages.check(self.instance, now=timezone.now())
            except outages.OutageRefused as refusal:
                names = {"from": "begins_at", "to": "ends_at"}
                for fault in refusal.errors:
                    name = fault.pointer.split("/")[1]
                    self.add_error(names.get(name, name), fault.detail)


@admin.register(Outage)
class OutageAdmin(Dated):
    form = OutageForm
    list_display = ("id", "team", "begins_at", "ends_at", "metrics", "sources", "reason", "created_at")
    list_filter = ("team",)
    list_select_related = ("team",)
    search_fields = ("reason",)
    date_hierarchy = "begins_at"

    def get_readonly_fields(self, request: HttpRequest, obj: Outage | None = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), *(["team"] if obj else [])]


@admin.register(SourcePlace)
class SourcePlaceAdmin(Dated):
    """Only admins of the installation bind: the database holds whoever is not to that as well."""

    list_display = ("name", "kind", "team", "created_at")
    list_filter = ("kind", "team")
    list_select_related = ("team",)
    search_fields = ("name",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_superuser)

    def has_change_permission(self, request: HttpRequest, obj: SourcePlace | None = None) -> bool:
        return bool(request.user.is_superuser)

    def has_delete_permission(self, request: HttpRequest, obj: SourcePlace | None = None) -> bool:
        return bool(request.user.is_superuser)


@admin.register(Source)
class SourceAdmin(Dated):
    form = SourceForm
    list_display = (
        "key",
        "team",
        "kind",
        "enabled",
        "schedule_s",
        "last_refresh_at",
        "read_to",
        "due_at",
        "failures",
        "failure_share",
    )
    list_filter = ("kind", "enabled", "team")
    list_select_related = ("team",)
    search_fields = ("key", "lineage_job", "query")
    readonly_fields = ("failures", "read_to", "again_from", "last_refresh_at")
    actions = ("try_out",)

    def get_urls(self) -> list[URLPattern]:
        view = has_room("files")(self.admin_site.admin_view(lambda request: import_rows(request, self.admin_site)))
        return [path("import/", view, name="telemetry_import"), *super().get_urls()]

    def save_model(self, request: HttpRequest, obj: Source, form: Any, change: bool) -> None:  # noqa: FBT001 - Django's signature
        obj.due_at = obj.due_at or timezone.now()
        super().save_model(request, obj, form, change)
        _try(request, obj)

    @admin.display(description="failed or missed in 7 days")
    def failure_share(self, source: Source) -> str:
        share = failure_shares([source], now=timezone.now())[source.pk]
        return "none due" if share is None else f"{share:.1%}"

    @admin.action(description="Try out: what a run would do")
    def try_out(self, request: HttpRequest, chosen: QuerySet[Source]) -> None:
        for source in chosen.select_related("team"):
            _try(request, source)

    def get_readonly_fields(self, request: HttpRequest, obj: Source | None = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), *(["key", "team"] if obj else [])]


def _try(request: HttpRequest, source: Source) -> None:
    """A dry run, told to the person: what its first rows are understood as, and what looks wrong."""
    try:
        shown = preview(source, now=timezone.now())
    except (SourceRefused, SourceFailed) as refusal:
        messages.error(request, f"{source.key}: {refusal}")
        return
    told = shown.stored
    rows = (
        f"{told.accepted} new, {told.changed} changed, {told.duplicates} duplicate and {told.refused} refused rows"
        + (f", {told.ignored} of experiments that are not here" if told.ignored else "")
        + (", in the first part alone" if shown.more else "")
    )
    said = [f"{source.key} since {shown.since:%Y-%m-%d %H:%MZ}: {rows}."]
    said += [
        f"{of.metric}: {of.rows} rows, n {_cell(of.n)}, mean {of.mean:.6g}, standard deviation "
        f"{'empty' if of.sd is None else f'{of.sd:.6g}'}, newest {_cell(of.newest)}."
        for of in shown.summaries
    ]
    if shown.ignored_columns:
        said.append(f"Left out: {', '.join(shown.ignored_columns)}.")
    said += [*shown.warnings, *told.problems[:3]]
    first = "; ".join(", ".join(f"{k} {_cell(v)}" for k, v in row.items()) for row in shown.rows[:3])
    level = messages.WARNING if shown.warnings or told.refused else messages.INFO
    messages.add_message(request, level, f"{' '.join(said)} First: {first}"[:2_000])


def _cell(value: object) -> str:
    return "empty" if value is None else f"{value:%Y-%m-%d %H:%MZ}" if isinstance(value, datetime) else str(value)


@admin.register(QuarantinedEvent)
class QuarantinedEventAdmin(ReadOnly):
    list_display = ("id", "type", "source", "event_id", "reason", "received_at", "replayed_at")
    list_filter = ("type", "team", ("replayed_at", admin.EmptyFieldListFilter))
    list_select_related = ("team",)
    search_fields = ("type", "source", "event_id", "reason")
    date_hierarchy = "received_at"
