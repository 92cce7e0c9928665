"""Experiments in the Django admin: one list with status, gates, recommendation and freshness, from all three apps."""

from collections.abc import Callable
from typing import Any, cast

from django.contrib import admin, messages
from django.contrib.admin.utils import lookup_field
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html, strip_tags
from django.utils.safestring import SafeString

from decisioning.access.admin import ModelAdmin, ReadOnly, TabularInline, confirmed
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.downloads import MOST, spreadsheet
from decisioning.board.presenters import freshness
from experiments import lifecycle, plan
from experiments.models import Asset, Experiment, TargetKpi, Variant
from gates.doubts import is_set_aside
from telemetry.models import ExperimentKpi

ROWS = 200
admin.site.site_url = None  # the way to the board stands in the header already
_COLUMNS = ("ts", "metric", "variant", "value", "n", "variance", "revision", "first_received_at", "received_at")


@admin.action(description="Download as CSV", permissions=["view"])
def as_csv(model_admin: ModelAdmin, request: HttpRequest, chosen: QuerySet[Any]) -> HttpResponse:
    """The chosen rows of any list, with the columns it shows and nothing else: what is hidden here may be a secret."""
    heads = [name for name in model_admin.get_list_display(request) if isinstance(name, str)]

    def cell(name: str, row: Any) -> object:
        _, _, value = lookup_field(name, row, model_admin)
        return strip_tags(value) if isinstance(value, SafeString) else value if value is None else str(value)

    rows = [[cell(name, row) for name in heads] for row in chosen[: MOST + 1]]
    return spreadsheet(f"{model_admin.opts.model_name}.csv", [heads, *rows])


admin.site.add_action(as_csv)


class ActionFilter(admin.SimpleListFilter):
    """By what is recommended at the newest slot."""

    title = "recommendation"
    parameter_name = "action"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, str]]:
        return [(a, a.capitalize()) for a in ("scale", "delete", "review", "hold")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Experiment]) -> QuerySet[Experiment]:
        return queryset.filter(cursor__shown__recommendation__action=self.value()) if self.value() else queryset


class FreshnessFilter(admin.SimpleListFilter):
    """By the state of the KPI that is worst off, of what runs."""

    title = "freshness"
    parameter_name = "freshness"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, str]]:
        return [(s, s.capitalize()) for s in freshness.STATES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Experiment]) -> QuerySet[Experiment]:
        wanted = self.value()
        return queryset.filter(pk__in=freshness.in_state(wanted, now=timezone.now())) if wanted else queryset


class WithFreshness(ChangeList):
    """Adds the worst KPI's age to the experiments of the page, with one query."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        now = timezone.now()
        ages = freshness.worst([e.pk for e in self.result_list if e.status in ("running", "paused")], now=now)
        for e in self.result_list:
            e.worst_age = ages.get(e.pk)


class PartInline(TabularInline):
    """Parts of the plan: set when it was created, looked at here."""

    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Experiment | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Experiment | None = None) -> bool:
        return False


class VariantInline(PartInline):
    model = Variant
    fields = ("position", "key", "name", "weight", "control", "dropped_at")


class TargetKpiInline(PartInline):
    model = TargetKpi
    fields = (
        "position",
        "metric",
        "role",
        "minimum_effect",
        "max_harm",
        "plausible_to",
        "doubt",
        "baseline_mean",
        "baseline_stddev",
        "target_at_least",
        "target_at_most",
    )
    readonly_fields = ("doubt",)

    @admin.display(description="doubt in its rows")
    def doubt(self, kpi: TargetKpi) -> SafeString | str:
        """Whether it is set aside, leading to where that is done and undone."""
        if kpi.role not in (TargetKpi.Role.GOAL, TargetKpi.Role.GUARDRAIL):
            return ""
        url = reverse("doubt", args=[kpi.experiment.key, kpi.metric.key])
        return format_html('<a href="{}">{}</a>', url, "set aside" if is_set_aside(kpi) else "on")


@admin.register(Experiment)
class ExperimentAdmin(ModelAdmin):
    list_display = ("name", "team", "status", "gates", "said", "data", "on_board")
    list_filter = ("status", ActionFilter, FreshnessFilter, "team")
    list_select_related = ("team", "cursor")
    search_fields = ("key", "name", "hypothesis", "owner")
    search_help_text = "Name, key, hypothesis or owner"
    date_hierarchy = "created_at"
    list_per_page = 50
    fields = (
        "name",
        "hypothesis",
        "owner",
        "key",
        "team",
        "status",
        "created_at",
        "started_at",
        "ended_at",
        "expected_units_per_day",
        "gates",
        "said",
    )
    readonly_fields = fields[3:]
    inlines = (VariantInline, TargetKpiInline)
    actions = ("start", "pause", "stop")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Experiment]:
        return super().get_queryset(request).defer("cursor__state")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return WithFreshness

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # an experiment is created with its plan, on the board or through the API

    def has_delete_permission(self, request: HttpRequest, obj: Experiment | None = None) -> bool:
        return False  # what was decided stays readable

    def save_model(self, request: HttpRequest, obj: Experiment, form: Any, change: bool) -> None:  # noqa: FBT001 - Django's signature
        plan.revise(obj, {name: form.cleaned_data[name] for name in form.changed_data}, now=timezone.now())

    @admin.display(description="gates")
    def gates(self, e: Experiment) -> str:
        found = (_shown(e).get("gates") or []) if e.pk else []
        passed = sum(g["verdict"] == "pass" for g in found)
        worst = next(
            (g["verdict"] for v in ("fail", "invalid", "stale", "no_data") for g in found if g["verdict"] == v), ""
        )
        return (
            f"{passed} of {len(found)} pass" + (f", {words.VERDICTS[worst].lower()}" if worst else "")
            if found
            else "none read"
        )

    @admin.display(description="recommendation")
    def said(self, e: Experiment) -> str:
        found = _shown(e).get("recommendation")
        if not found:
            return "not judged"
        suspended = ", suspended" if found["state"] == "suspended" else ""
        return f"{found['action'].capitalize()}, {words.CODES.get(found['code'], found['code']).lower()}{suspended}"

    @admin.display(description="data")
    def data(self, e: Experiment) -> str:
        age = getattr(e, "worst_age", None)
        if age is None:
            return ""
        shown = freshness.text(age, now=timezone.now())
        return f"{shown['text']}, {shown['state']}"

    @admin.display(description="board")
    def on_board(self, e: Experiment) -> SafeString:
        return format_html(
            '<a href="{}">Open<span class="visually-hidden"> {} on the board</span></a>',
            reverse("experiment", args=[e.key]),
            e.name,
        )

    @admin.action(description="Start or resume", permissions=["change"])
    def start(self, request: HttpRequest, chosen: QuerySet[Experiment]) -> HttpResponse | None:
        return self._move(request, chosen, "running", "Start experiments", ["From now on their rows are judged."])

    @admin.action(description="Pause", permissions=["change"])
    def pause(self, request: HttpRequest, chosen: QuerySet[Experiment]) -> HttpResponse | None:
        return self._move(
            request, chosen, "paused", "Pause experiments", ["Rows still arrive and are kept; gates rest."]
        )

    @admin.action(description="Stop", permissions=["change"])
    def stop(self, request: HttpRequest, chosen: QuerySet[Experiment]) -> HttpResponse | None:
        return self._move(
            request, chosen, "stopped", "Stop experiments", ["They end without a winner, and cannot be started again."]
        )

    def _move(
        self, request: HttpRequest, chosen: QuerySet[Experiment], to: str, title: str, lines: list[str]
    ) -> HttpResponse | None:
        name = {"running": "start", "paused": "pause", "stopped": "stop"}[to]
        asked = confirmed(self, request, chosen, action=name, title=title, lines=lines)
        if asked is not None:
            return asked
        by, moved = cast("Principal", request.principal), 0  # type: ignore[attr-defined]
        for e in chosen:
            if not by.may(Scope.WRITE, e.team_id):
                self.message_user(request, f"{e.key}: your role in the team does not allow it.", messages.ERROR)
                continue
            try:
                lifecycle.ask(e, to, by=by, now=timezone.now())
            except lifecycle.TransitionRefused as refusal:
                self.message_user(request, refusal.message, messages.ERROR)
            else:
                moved += 1
        if moved:
            self.message_user(
                request, f"{words.plural(moved, 'experiment')} {'is' if moved == 1 else 'are'} {to}.", messages.SUCCESS
            )
        return None

    def get_urls(self) -> list[URLPattern]:
        rows = path(
            "<int:pk>/rows/",
            self.admin_site.admin_view(cast("Callable[..., HttpResponse]", self.rows)),
            name="experiments_experiment_rows",
        )
        return [rows, *super().get_urls()]

    def rows(self, request: HttpRequest, pk: int) -> HttpResponse:
        """KPI rows have a composite key, which the admin cannot register: a page of the experiment shows them."""
        e = Experiment.objects.filter(pk=pk).first()
        if e is None or not self.has_view_permission(request, e):
            raise Http404(str(pk))
        found = ExperimentKpi.objects.filter(experiment_id=pk).order_by("-ts", "metric", "variant")
        if before := _moment(request.GET.get("before", "")):
            found = found.filter(ts__lt=before)
        shown = list(found.values_list(*_COLUMNS)[: ROWS + 1])
        context = {
            **self.admin_site.each_context(request),
            "title": f"KPI rows of {e.name}",
            "original": e,
            "opts": self.opts,
            "heads": _COLUMNS,
            "rows": shown[:ROWS],
            "older": shown[ROWS - 1][0].isoformat() if len(shown) > ROWS else "",
        }
        return TemplateResponse(request, "admin/experiments/experiment/rows.html", context)


def _shown(e: Experiment) -> dict[str, Any]:
    cursor = getattr(e, "cursor", None)
    return (cursor.shown if cursor else None) or {}


def _moment(text: str) -> Any:
    try:
        found = parse_datetime(text)
    except ValueError:
        return None
    return found if found and found.tzinfo else None


@admin.register(Asset)
class AssetAdmin(ReadOnly):
    """Pictures; what they show in words can be mended here."""

    list_display = ("title", "experiment", "variant", "alt", "media_type", "created_at")
    list_select_related = ("experiment", "variant")
    search_fields = ("title", "alt", "experiment__key")
    fields = ("title", "alt", "experiment", "variant", "media_type", "created_at")
    readonly_fields = ("title", "experiment", "variant", "media_type", "created_at")

    def has_change_permission(self, request: HttpRequest, obj: Asset | None = None) -> bool:
        return bool(request.user.has_perm("experiments.change_asset"))
