"""The registry of metrics in the Django admin, and the schedule that their rows show, taken with one button.

Experiments themselves join three apps and are in `decisioning.board.admin`.
"""

import json
from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.views.decorators.http import require_POST

from decisioning.access.admin import Dated
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from experiments import expected as words
from experiments import feeds, plan, registry
from experiments.models import Metric, MetricSchedule
from telemetry.feeds import proposal


class Schedules(admin.TabularInline):  # type: ignore[type-arg]
    """When its buckets are due, from when on; to read."""

    model = MetricSchedule
    fields = readonly_fields = ("since", "expected")
    can_delete = False
    extra = 0

    def has_add_permission(self, request: HttpRequest, obj: Metric | None = None) -> bool:
        return False


class Retired(admin.SimpleListFilter):
    """Those that plans may be judged by, unless the others are asked for."""

    title, parameter_name = "retired", "retired"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Retired"), ("all", "All")]

    def choices(self, changelist: Any) -> Iterator[Any]:
        """In place of All the usual: in use."""
        first, *others = super().choices(changelist)
        yield {**first, "display": "No"}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Metric]) -> QuerySet[Metric]:
        if self.value() == "all":
            return queryset
        return queryset.filter(retired_at__isnull=self.value() != "yes")


class MetricForm(forms.ModelForm):  # type: ignore[type-arg]
    """How often data comes is asked, not assumed; what is wrong with it, with bounds or a successor, is said as over HTTP."""

    expected = forms.JSONField(
        widget=forms.Textarea(attrs={"rows": 2, "cols": 80}),
        help_text="When its buckets end; a change holds from now on. One of "
        '{"every_s": 3600}, '
        '{"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"} (or hourly, daily, weekly, monthly; "on" names the day) and '
        '{"cron": "0 6 * * 1-5", "timezone": "Europe/Berlin"}.',
    )

    class Meta:
        model = Metric
        exclude = ("expected_every_s",)  # noqa: DJ006 - of the model all but what is asked as `expected`

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        if self.instance.pk and "expected" in self.fields:
            self.initial["expected"] = feeds.expected_of(self.instance, now=timezone.now())

    def clean_expected(self) -> dict[str, Any]:
        said = self.cleaned_data["expected"]
        if not isinstance(said, dict):
            raise forms.ValidationError('Write an object, such as {"every_s": 3600}.')
        if faults := [fault.detail for fault in words.faults(said)]:
            raise forms.ValidationError(faults)
        return words.normal(said)

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        low, high = data.get("minimum"), data.get("maximum")
        said = {"min": low, "max": high}
        for fault in registry.bounds_faults(said, data.get("kind") or self.instance.kind, ""):
            self.add_error("minimum" if fault.pointer != "/max" else "maximum", fault.detail)
        if (successor := data.get("replaced_by")) is not None:
            for fault in registry.successor_faults(self.instance, successor.key):
                self.add_error("replaced_by", fault.detail)
        return data


class MetricAdmin(Dated):
    form = MetricForm
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
        "used_by",
        "replaced_by",
    )
    list_filter = (Retired, "kind", "direction", "temporality", "team")
    list_select_related = ("team", "replaced_by")
    search_fields = ("key", "name", "definition")
    date_hierarchy = "created_at"

    inlines = (Schedules,)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(require_POST(self.take_schedule))
        return [path("<int:pk>/take-schedule/", view, name="metric_take_schedule"), *super().get_urls()]

    def get_readonly_fields(self, request: HttpRequest, obj: Metric | None = None) -> list[str]:
        """What a key and a kind mean is fixed by the rows that were sent under it, and more while it is judged by; schedules are dated."""
        fixed = ["key", "kind", "temporality", "comes", "rows_show", "used_by"] if obj else []
        if obj and registry.users_of([obj])[obj.pk]:
            fixed += [name for name in registry.MEANING if name not in fixed]
        return [*super().get_readonly_fields(request, obj), *fixed]

    def has_change_permission(self, request: HttpRequest, obj: Metric | None = None) -> bool:
        """Its team, or an admin."""
        if not super().has_change_permission(request, obj):
            return False
        if obj is None:
            return True
        principal: Principal = request.principal  # type: ignore[attr-defined]
        return principal.is_admin or principal.may(Scope.WRITE, obj.team_id or 0)

    @admin.display(description="used by")
    def used_by(self, metric: Metric) -> str:
        """Started experiments that are judged by it: until they end its meaning stays."""
        found = getattr(metric, "users", None) or registry.users_of([metric])[metric.pk]
        return str(found.words)

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """With the users of all that are listed, asked once."""
        changes = super().get_changelist_instance(request)
        listed = list(changes.result_list)
        users = registry.users_of(listed)
        for metric in listed:
            metric.users = users[metric.pk]
        changes.result_list = listed
        return changes

    @admin.display(description="comes")
    def comes(self, metric: Metric) -> str:
        return words.in_words(feeds.expected_of(metric, now=timezone.now()))

    @admin.display(description="its rows show")
    def rows_show(self, metric: Metric) -> str:
        """What is found, and the button that takes just that."""
        shown = proposal(metric, now=timezone.now())
        if shown.expected is None:
            return shown.detail
        button = '<button type="submit" class="button" formnovalidate formaction="{}" name="take" value="{}">Take it: {} from now on</button>'
        there, taken = reverse("admin:metric_take_schedule", args=[metric.pk]), json.dumps(shown.expected)
        return format_html("{}<br><br>" + button, shown.detail, there, taken, words.in_words(shown.expected))

    def take_schedule(self, request: HttpRequest, pk: int) -> HttpResponse:
        """What somebody saw on the page holds from now on."""
        metric = Metric.objects.filter(pk=pk).first()
        if metric is None:
            raise Http404
        if not self.has_change_permission(request, metric):
            raise PermissionDenied
        try:
            seen = json.loads(request.POST.get("take", ""))
            new = plan.NewMetric(key=metric.key, expected=seen if isinstance(seen, dict) else {})
            plan.redefine(metric, new, now=timezone.now())
        except (ValueError, plan.PlanRefused) as refusal:
            messages.error(request, f"Nothing was taken: {refusal}")
        else:
            self.log_change(request, metric, f"Comes {words.in_words(seen)} from now on.")
            messages.success(request, f"Metric {metric.key} comes {words.in_words(seen)} from now on.")
        return redirect(reverse("admin:experiments_metric_change", args=[pk]))

    def save_model(self, request: HttpRequest, obj: Metric, form: Any, change: bool) -> None:  # noqa: FBT001 - Django's
        """Another schedule holds from now on, that of a new metric always."""
        super().save_model(request, obj, form, change)
        said, now = form.cleaned_data["expected"], timezone.now()
        if not change or said != feeds.expected_of(obj, now=now):
            feeds.set_out(obj, said, since=now if change else None, now=now)

    def has_delete_permission(self, request: HttpRequest, obj: Metric | None = None) -> bool:
        return False
