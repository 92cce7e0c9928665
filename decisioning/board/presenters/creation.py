"""A new experiment: the form, how long it will take, and the domain call that makes it."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import ceil, inf
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Lower
from msgspec import UNSET, UnsetType

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.access.quotas import QuotaExceeded
from decisioning.board import words, zones
from decisioning.board.forms import BOTH, ExperimentForm
from decisioning.literals import whole_number
from decisioning.refusals import Fault
from experiments import feeds, plan
from experiments.expected import Expected, nominal_s, part
from experiments.models import Experiment, Metric
from gates import loading, policies
from gates.engine.figures import percent
from gates.engine.forecast import forecast
from gates.engine.plan import Baseline, Kpi, Plan, Variant, to_us
from gates.engine.policy import DEFAULT_BODY, Policy, derive
from gates.engine.policy_checks import lint_plan, parse, plan_warnings
from gates.models import PolicyBinding
from gates.tick import show_plan

# Where the domain's pointers are in the form.
_FIELDS = (("/name", "name"), ("/hypothesis", "hypothesis"), ("/target_kpis/0/minimum_effect", "minimum_effect"),
           ("/target_kpis/0/baseline", "baseline_stddev"), ("/target_kpis/0", "goal"), ("/target_kpis", "guardrails"),
           ("/expected_units_per_day", "units"))  # fmt: skip

# Where the policy's refusals are in the form: a number of the plan by its code, else the KPI by its gate's kind.
_NUMBERS = {"delete_below_scale_above": "minimum_effect", "max_harm_not_positive": "max_harm"}
_ROLES = {"uplift": "goal", "guard": "guardrails"}


def page(form: ExperimentForm, teams: QuerySet[Team], *, now: datetime) -> dict[str, Any]:
    return {
        "form": form,
        "zones": zones.names(),
        "metrics": [
            {"key": m.key, "name": m.name} for m in Metric.objects.filter(retired_at=None).order_by("key")[:500]
        ],
        "duration": duration(form.data if form.is_bound else {}, teams, now=now),
    }


def create(form: ExperimentForm, *, by: Principal, now: datetime) -> Experiment | None:
    """The experiment of a valid form; None with the form's errors filled in when the domain refuses it."""
    data = form.cleaned_data
    named = _Named([data["goal"], *data["guardrails"]], data["expected"])
    if data["expected"] is None and (unknown := named.new()):
        form.add_error(
            "comes", f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} new: say how often data comes."
        )
        return None
    goal_metric = named.metric(data["goal"], data["goal_is"] or "mean increase")
    mean, spread = baseline(named.kind(goal_metric), data["baseline_mean"], data["baseline_stddev"])
    if mean is not None and spread is None:
        share = named.kind(goal_metric) == Metric.Kind.PROPORTION
        form.add_error(
            "baseline_mean" if share else "baseline_stddev",
            "A share lies between 0% and 100%: 5 is 5%." if share else BOTH,
        )
        return None
    goal = plan.NewKpi(
        metric=goal_metric,
        minimum_effect=data["minimum_effect"] / 100,
        baseline_mean=mean,
        baseline_stddev=spread,
    )
    guards = [
        plan.NewKpi(
            metric=named.metric(text, data["guards_are"] or "mean decrease"),
            role="guardrail",
            max_harm=data["max_harm"] / 100,
        )
        for text in data["guardrails"]
    ]
    number = data["treatments"]
    arms = [plan.NewVariant(key="control", control=True)]
    arms += [plan.NewVariant(key="treatment" if number == 1 else f"treatment-{i + 1}") for i in range(number)]
    new = plan.NewExperiment(
        name=data["name"],
        hypothesis=data["hypothesis"],
        owner=by.owner,
        target_kpis=[goal, *guards],
        variants=arms,
        expected_units_per_day=data["units"],
        start=data["start"],
    )
    try:
        with transaction.atomic():
            made = plan.create(new, team=data["team"], by=by, now=now)
            if _fits(form, made):
                show_plan(made)
                return made
            transaction.set_rollback(True)
    except (plan.PlanRefused, QuotaExceeded) as refusal:
        for fault in refusal.errors or (Fault("", refusal.code, refusal.message),):
            field = next((field for start, field in _FIELDS if fault.pointer.startswith(start)), None)
            form.add_error(field, fault.detail)
    return None


def _fits(form: ExperimentForm, made: Experiment) -> bool:
    """Whether its policy can judge the new experiment; what it cannot, such as a goal on a gauge, is said at its field."""
    policy, planned = parse(policies.version_for(made).body), loading.plans_of([made.pk])[made.pk]
    kinds = {gate.name: gate.kind for gate in derive(policy, planned)}
    problems = lint_plan(policy, planned)
    for problem in problems:
        form.add_error(
            problem.key or _NUMBERS.get(problem.code) or _ROLES.get(kinds.get(problem.gate or "", "")), problem.message
        )
    return not problems


def warnings(made: Experiment) -> list[str]:
    """What the form was taken with and is hardly meant."""
    (judging,) = loading.load([made.pk])
    return plan_warnings(judging.policy, judging.plan)


def baseline(kind: str, mean: float | None, spread: float | None) -> tuple[float | None, float | None]:
    """(mean, standard deviation per unit) as the plan has them, of what the form asks: a share in percent, whose deviation follows from it.

    >>> baseline("mean", 3.1, 22), baseline("proportion", 50, None), baseline("proportion", 500, None)
    ((3.1, 22), (0.5, 0.5), (5.0, None))
    """
    if kind != Metric.Kind.PROPORTION or mean is None:
        return mean, spread
    share = mean / 100
    return share, math.sqrt(share * (1 - share)) if 0 < share < 1 else None


class _Named:
    """Metrics as people name them: by key or by name when the registry has them, else in their own words."""

    def __init__(self, texts: Sequence[str], expected: Expected | None = None) -> None:
        """expected: when new ones are due."""
        self.texts, self.expected = [text.strip() for text in texts], expected
        self.keys = {_key(text) for text in texts}
        wanted = [text.strip().lower() for text in texts]
        known = (
            Metric.objects.annotate(low=Lower("name")).filter(Q(key__in=self.keys) | Q(low__in=wanted)).order_by("-pk")
        )
        self.known = {called: m.key for m in known for called in (m.name.lower(), m.key)}
        self._kinds = {m.key: m.kind for m in known}

    def kind(self, metric: str | plan.NewMetric) -> str:
        """Of a metric that it has named."""
        said = self._kinds.get(metric, "") if isinstance(metric, str) else metric.kind
        return said if isinstance(said, str) else ""

    def new(self) -> list[str]:
        """Those that the registry does not have."""
        return [text for text in self.texts if _key(text) and not isinstance(self.metric(text, "mean increase"), str)]

    def metric(self, text: str, is_: str) -> str | plan.NewMetric:
        """A key that is known, or a new metric; what makes no key is handed on for the domain to refuse."""
        text, key = text.strip(), _key(text)
        found = self.known.get(key) or self.known.get(text.lower())
        if found or not key:
            return found or text
        kind, direction = is_.split()
        name = text if text != key else key.replace("_", " ").capitalize()
        due, late_s = (UNSET, UNSET) if self.expected is None else (self.expected, _may_be_late_s(self.expected))
        return plan.NewMetric(
            key=key, name=name, kind=kind, direction=direction, expected=due, freshness_target_s=late_s
        )


def _may_be_late_s(expected: Expected) -> int:
    """How late a row may be of what is due like this.

    >>> [_may_be_late_s({"every_s": s}) for s in (300, 900, 3_600, 86_400, 604_800)]
    [900, 900, 3600, 21600, 86400]
    """
    apart_s = nominal_s(expected)
    return min(max(apart_s, 900), 3_600) if apart_s < 86_400 else 21_600 if apart_s < 7 * 86_400 else 86_400


def _key(text: str) -> str:
    """
    >>> _key(" Value per session (EUR)"), _key("error_rate"), _key("24 h returns"), _key("!")
    ('value_per_session_eur', 'error_rate', 'm_24_h_returns', '')
    """
    key = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:60]
    return f"m_{key}" if key[:1].isdigit() else key


def _number(sent: Mapping[str, Any], name: str) -> float | None:
    try:
        value = float(sent.get(name) or "")
    except (TypeError, ValueError):
        return None
    return value if abs(value) < 1e15 else None


def _policy(sent: Mapping[str, Any], teams: QuerySet[Team]) -> Policy:
    """What judges the experiments of the chosen team that name no policy; until one is chosen, of the first."""
    chosen = str(sent.get("team") or "")
    team = teams.filter(pk=whole_number(chosen) or 0).first() or teams.first()
    bound = PolicyBinding.objects.filter(team=team, experiment__isnull=True).select_related("policy").first()
    version = policies.in_force(bound.policy) if bound else None
    return parse(version.body if version else DEFAULT_BODY)


def _due(metric: str | plan.NewMetric, now: datetime) -> dict[str, Any]:
    """When the goal's buckets are due, as a plan says it."""
    if isinstance(metric, str):
        known = Metric.objects.prefetch_related("schedules").filter(key=metric).first()
        if known is None:  # a name that makes no key
            return {"metric": "goal"}
        parts = feeds.parts_of(list(known.schedules.all()), around=now)
        return {"metric": metric, "expected": parts, "expected_every_s": known.expected_every_s}
    if isinstance(metric.expected, UnsetType):
        return {"metric": metric.key}
    parts = (part(metric.expected, since=None, around=to_us(now)),)
    return {"metric": metric.key, "expected": parts, "expected_every_s": nominal_s(metric.expected)}


def duration(sent: Mapping[str, Any], teams: QuerySet[Team], *, now: datetime) -> dict[str, str]:
    """How long a decision takes at these numbers by the team's policy, in words; what is missing when it cannot be said."""
    units = _number(sent, "units")
    worthwhile = (_number(sent, "minimum_effect") or 0) / 100
    policy = _policy(sent, teams)
    named, said = _Named([str(sent.get("goal") or "goal")]), ExperimentForm(sent)
    said.is_valid()
    kind = named.kind(named.metric(named.texts[0], said.cleaned_data.get("goal_is") or "mean increase"))
    mean, spread = baseline(kind, _number(sent, "baseline_mean"), _number(sent, "baseline_stddev"))
    if not (mean and spread and units and worthwhile > 0 and spread > 0 and units >= 1):
        text = f"Give the goal's mean and deviation today and the units a day, and it is said here. Never less than {policy.min_days} days."
        return {"tone": "hold", "icon": "clock", "title": "Planned duration", "text": text}
    treatments = min(max(int(_number(sent, "treatments") or 1), 1), 20)
    metric = _Named(named.texts, said.cleaned_data.get("expected")).metric(named.texts[0], "mean increase")
    goal = Kpi(**_due(metric, now), direction="increase", minimum_effect=worthwhile, baseline=Baseline(mean, spread))
    arms = (Variant("control", control=True), *(Variant(f"t{i}", position=i + 1) for i in range(treatments)))
    planned = forecast(
        policy,
        Plan(started_at=to_us(now), created_at=to_us(now), variants=arms, kpis=(goal,), expected_units_per_day=units),
    )
    if not planned:
        text = "No gate of the team's policy compares this goal, so nothing decides it."
        return {"tone": "late", "icon": "late", "title": "Never", "text": text}
    found = max(planned, key=lambda one: inf if one.days is None else one.days)
    if found.ends and found.units and found.days:
        return {
            "tone": "scale",
            "icon": "clock",
            "title": f"Decided in {words.plural(ceil(found.days), 'day')} at the latest",
            "text": f"{words.count(found.units)} units of both arms settle it whatever the effect is; a large effect shows sooner.",
        }
    took = words.plural(ceil(found.days), "day") if found.days else "longer than can be counted"
    return {
        "tone": "late",
        "icon": "late",
        "title": f"Too long: {took}",
        "text": f"After {found.max_days} days it asks for a person, decided or not. With these units the smallest effect that is surely "
        f"decided by then is {percent(found.smallest_effect).lstrip('+') if found.relative else f'{found.smallest_effect:.3g}'}.",
    }
