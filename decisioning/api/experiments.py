"""Experiments: create, list, the document, change, move on."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import django_filters  # type: ignore[import-untyped]
from django.db.models import F, Q, QuerySet, TextField, Value
from django.db.models.expressions import RawSQL
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Coalesce
from django.http import Http404, HttpResponse
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.limits import MOST_TEXT, MOST_WORDS
from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView, json_response
from decisioning.api.document import STATE_OF_EXPERIMENT, Document, document, rows
from decisioning.api.lists import PAGING, filtered, page
from decisioning.api.problems import Problem, bad_parameter, invalid
from decisioning.api.serializers import ExperimentIn, ExperimentPatch, TransitionIn
from decisioning.refusals import Fault
from experiments import lifecycle, plan
from experiments.models import Experiment
from gates import loading, policies
from gates.engine.forecast import forecast
from gates.engine.policy_checks import lint_plan, parse, plan_warnings
from gates.tick import show_plan
from telemetry.freshness import WORST_LAST

ACTIONS = ("scale", "delete", "review", "hold")


class Words(django_filters.BaseInFilter, django_filters.CharFilter):  # type: ignore[misc]
    """Several words, separated by commas; each must be known."""

    def __init__(self, *args: Any, words: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.words = tuple(words)

    def filter(self, qs: QuerySet[Any], value: Any) -> QuerySet[Any]:
        for word in value or ():
            if word not in self.words:
                raise bad_parameter(str(self.field_name), f"{word[:60]!r} must be one of {', '.join(self.words)}")
        filtered_: QuerySet[Any] = super().filter(qs, value)
        return filtered_


class ExperimentFilter(django_filters.FilterSet):  # type: ignore[misc]
    status = Words(words=Experiment.Status.values, lookup_expr="in")
    recommendation = Words(words=ACTIONS, lookup_expr="in")
    freshness = Words(words=WORST_LAST, lookup_expr="in")
    team = django_filters.CharFilter(field_name="team__key")
    owner = django_filters.CharFilter(field_name="owner")
    metric = django_filters.CharFilter(field_name="targetkpis__metric__key", distinct=True)
    search = django_filters.CharFilter(method="matching")

    def matching(self, experiments: QuerySet[Experiment], _name: str, words: str) -> QuerySet[Experiment]:
        """Every word somewhere in key, name, hypothesis or owner."""
        if len(words) > MOST_TEXT or len(words.split()) > MOST_WORDS:
            raise bad_parameter("search", f"at most {MOST_WORDS} words and {MOST_TEXT} characters are looked for")
        for word in words.split():
            experiments = experiments.filter(
                Q(key__icontains=word)
                | Q(name__icontains=word)
                | Q(hypothesis__icontains=word)
                | Q(owner__icontains=word)
            )
        return experiments


class Experiments(PortalView):
    """All experiments of the caller's teams."""

    scopes = {"GET": Scope.READ, "POST": Scope.WRITE}
    parameters = {"GET": frozenset(ExperimentFilter.base_filters) | PAGING}

    def get(self, request: Request) -> Response:
        """List experiments, newest first; each row is what the board shows of it."""
        now = self.now
        experiments = Experiment.objects.all()
        if "recommendation" in request.query_params:
            action = KeyTextTransform("action", KeyTextTransform("recommendation", F("cursor__shown")))
            experiments = experiments.annotate(recommendation=Coalesce(action, Value("hold"), output_field=TextField()))
        if "freshness" in request.query_params:
            sql = STATE_OF_EXPERIMENT.replace("%(now)s", "%s")
            experiments = experiments.annotate(
                freshness=RawSQL(sql, [now] * sql.count("%s"), output_field=TextField())  # noqa: S611 - no input in it
            )
        return page(
            request,
            filtered(request, experiments, ExperimentFilter),
            shown=lambda found: rows([e.pk for e in found], now=now),
            orderings=("id", "created_at", "name", "key", "status", "owner"),
        )

    def post(self, request: Request) -> HttpResponse:
        """Create an experiment. That alone gives the dashboard, the gates and the log."""
        values, now = self.body(ExperimentIn), self.now
        team = self.team(values.get("team"), Scope.WRITE)
        experiment = created(values, team=team, by=self.principal, now=now)
        warned = [*_of_new_metrics(values, now), *_warnings(experiment)]
        shown = shown_document(experiment)
        return Response(
            {**shown.value, "planning": _planning(experiment), "warnings": warned},
            status=201,
            headers={"ETag": shown.etag, "Location": f"/api/experiments/{experiment.pk}"},
        )


class OneExperiment(PortalView):
    """One experiment, by number or key."""

    scopes = {"GET": Scope.READ, "PATCH": Scope.WRITE}

    def get(self, request: Request, ref: str) -> HttpResponse:
        """The document: core, variants, KPIs with newest values and freshness, gate states, recommendation."""
        shown = shown_document(self.experiment(ref))
        if matches(request.headers.get("If-None-Match", ""), shown.etag):
            return HttpResponse(status=304, headers={"ETag": shown.etag, "Cache-Control": "private, no-cache"})
        return _sent(shown)

    def patch(self, request: Request, ref: str) -> HttpResponse:
        """Change name, hypothesis or owner; the plan only while it is a draft."""
        experiment = self.experiment(ref)
        condition = request.headers.get("If-Match")
        if condition is not None:
            Experiment.objects.select_for_update(no_key=True).get(pk=experiment.pk)  # so that what is compared stays
            current = shown_document(experiment)
            tags = [tag.strip().removeprefix("W/").strip('"').partition(".")[0] for tag in condition.split(",")]
            if condition.strip() != "*" and current.plan_tag not in tags:
                raise Problem(
                    412,
                    "precondition_failed",
                    f"{experiment.key} has changed since you read it. Read it again, then send your change.",
                    headers={"ETag": current.etag},
                )
        values = self.body(ExperimentPatch)
        for name in ("key", "team", "start"):
            if name in values:
                raise invalid([Fault(f"/{name}", "invalid", f"{name} cannot be changed.")])
        changes, now = {name: value for name, value in values.items() if name != "policy"}, self.now
        experiment = plan.revise(experiment, changes, now=now)
        if "policy" in values:
            _rebind(experiment, values["policy"])
        elif changes.keys() - {"name", "hypothesis", "owner"}:
            _check(experiment)
        show_plan(experiment)
        warned = [*_of_new_metrics(values, now), *_warnings(experiment)]
        shown = shown_document(experiment)
        return Response({**shown.value, "warnings": warned}, headers={"ETag": shown.etag})


class ForecastOf(PortalView):
    """What the plan needs before it is decided."""

    scopes = {"GET": Scope.READ}

    def get(self, request: Request, ref: str) -> Response:
        """Each goal's units and days, whatever the effect is; a warning where the plan cannot end."""
        return Response({"results": _planning(self.experiment(ref)), "next": None, "previous": None})


class Transitions(PortalView):
    """Where an experiment goes next."""

    scopes = {"POST": Scope.WRITE}

    def post(self, request: Request, ref: str) -> HttpResponse:
        """Start, pause, resume or stop; scaled and deleted are answers to a recommendation."""
        experiment, values = self.experiment(ref), self.body(TransitionIn)
        lifecycle.ask(experiment, values["to"], by=self.principal, now=self.now, reason=values.get("reason", ""))
        return _answer(experiment)


def created(values: dict[str, Any], *, team: Team, by: Principal, now: datetime) -> Experiment:
    """A new experiment under its policy. values: what ExperimentIn has validated. Raises PlanRefused, PolicyRefused, Problem."""
    experiment = plan.create(ExperimentIn.domain(values, owner=by.owner), team=team, by=by, now=now)
    _bind(experiment, values.get("policy"))
    show_plan(experiment)
    return experiment


def _planning(experiment: Experiment) -> list[dict[str, Any]]:
    """What each goal needs before it is decided whatever the effect is, with a warning when the plan cannot end."""
    (judging,) = loading.load([experiment.pk])
    return [{**found._asdict(), "warning": found.warning or None} for found in forecast(judging.policy, judging.plan)]


def _of_new_metrics(values: Mapping[str, Any], now: datetime) -> list[str]:
    return plan.warnings_of_new([kpi.metric for kpi in values.get("target_kpis") or ()], made_at=now)


def _warnings(experiment: Experiment) -> list[str]:
    """What is taken and yet hardly meant, such as 60% of harm."""
    (judging,) = loading.load([experiment.pk])
    return plan_warnings(judging.policy, judging.plan)


def shown_document(experiment: Experiment) -> Document:
    found = document(experiment.pk, now=timezone.now())  # noqa: TID251 - a door reads the clock
    if found is None:
        raise Http404
    return found


def matches(header: str, etag: str) -> bool:
    """Whether If-None-Match names this tag, compared weakly as RFC 9110 wants it."""
    return header.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _sent(shown: Document) -> HttpResponse:
    return json_response(shown.text, headers={"ETag": shown.etag, "Cache-Control": "private, no-cache"})


def _answer(experiment: Experiment, *, status: int = 200, headers: dict[str, str] | None = None) -> HttpResponse:
    shown = shown_document(experiment)
    return json_response(shown.text, status=status, headers={"ETag": shown.etag, **(headers or {})})


def _bind(experiment: Experiment, name: str | None) -> None:
    policies.bind(experiment, name)
    _check(experiment)


def _rebind(experiment: Experiment, name: str | None) -> None:
    if experiment.status != Experiment.Status.DRAFT:
        raise Problem(409, "not_draft", f"{experiment.key} is {experiment.status}: its policy stays as it started.")
    _bind(experiment, name)


def _check(experiment: Experiment) -> None:
    """What only policy and plan together can get wrong, such as a goal on a gauge."""
    version = policies.version_for(experiment)
    planned = loading.plans_of([experiment.pk])[experiment.pk]
    places = {kpi.metric: f"/target_kpis/{position}" for position, kpi in enumerate(planned.kpis)}
    errors: list[Fault] = [
        Fault(f"{places[p.metric]}/{p.key}" if p.metric and p.key else "/target_kpis", p.code, p.message)
        for p in lint_plan(parse(version.body), planned)
    ]
    if errors:
        raise invalid(errors)
