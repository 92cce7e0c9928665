"""A new experiment: the form, how long it will take, and the domain call that makes it."""

from collections.abc import Mapping
from datetime import datetime
from math import ceil, sqrt
from typing import Any

from django.db import transaction
from django.db.models import QuerySet

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import charts, words
from decisioning.board.forms import ExperimentForm
from experiments import plan
from experiments.models import Experiment, Metric
from gates.policy import DEFAULT_BODY
from gates.statistics import planning, sequences

# Where the domain's pointers are in the form.
_FIELDS = (("/name", "name"), ("/hypothesis", "hypothesis"), ("/target_kpis/0/minimum_effect", "minimum_effect"),
           ("/target_kpis/0/baseline", "baseline_stddev"), ("/target_kpis/0", "goal"), ("/target_kpis", "guardrails"),
           ("/expected_units_per_day", "units"))  # fmt: skip


def writable_teams(principal: Principal) -> QuerySet[Team]:
    """Teams in which the person may create."""
    if principal.is_admin:
        return Team.objects.order_by("name")
    return Team.objects.filter(pk__in=[t for t, s in principal.teams.items() if Scope.WRITE in s]).order_by("name")


def page(form: ExperimentForm) -> dict[str, Any]:
    return {
        "form": form,
        "metrics": [{"key": m.key, "name": m.name} for m in Metric.objects.order_by("key")[:500]],
        "duration": duration(form.data if form.is_bound else {}),
    }


def create(form: ExperimentForm, *, by: Principal, now: datetime) -> Experiment | None:
    """The experiment of a valid form; None with the form's errors filled in when the domain refuses it."""
    data = form.cleaned_data
    goal = plan.NewKpi(
        metric=data["goal"].strip(),
        minimum_effect=data["minimum_effect"] / 100 or None,
        baseline_mean=data["baseline_mean"],
        baseline_stddev=data["baseline_stddev"],
    )
    guards = [plan.NewKpi(metric=key, role="guardrail", max_harm=data["max_harm"] / 100) for key in data["guardrails"]]
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
            return plan.create(new, team=data["team"], by=by, now=now)
    except plan.PlanRefused as refusal:
        for pointer, _, detail in refusal.errors or [("", refusal.code, refusal.message)]:
            form.add_error(next((field for start, field in _FIELDS if pointer.startswith(start)), None), detail)
        return None


def _number(sent: Mapping[str, Any], name: str) -> float | None:
    try:
        value = float(sent.get(name) or "")
    except (TypeError, ValueError):
        return None
    return value if abs(value) < 1e15 else None


def duration(sent: Mapping[str, Any]) -> dict[str, str]:
    """How long a decision takes at these numbers, in words; what is missing when it cannot be said.

    B of GATES.md section 6: the days by which the goal is decided whatever the effect is, for two equal arms of k + 1.
    """
    mean, spread, units = (_number(sent, n) for n in ("baseline_mean", "baseline_stddev", "units"))
    worthwhile = (_number(sent, "minimum_effect") or 0) / 100
    least, most = DEFAULT_BODY["min_days"], DEFAULT_BODY["max_days"]
    if not (mean and spread and units and worthwhile > 0 and spread > 0 and units >= 1):
        text = f"Give the goal's mean and deviation today and the units a day, and it is said here. Never less than {least} days."
        return {"tone": "hold", "icon": "clock", "title": "Planned duration", "text": text}
    arms = int(_number(sent, "treatments") or 1)
    alpha = DEFAULT_BODY["alpha"] / max(arms, 1)
    relative = spread / abs(mean)
    rho2 = sequences.tuning(2 * planning.planned_units(relative, worthwhile), alpha)
    daily = units * 2 / (arms + 1)
    needed = planning.units_for_half(worthwhile / 2, 2 * relative / sqrt(2), 2, rho2, alpha)
    days = max(ceil(needed / daily), least) if needed else None
    if days is not None and days <= most:
        return {
            "tone": "scale",
            "icon": "clock",
            "title": f"Decided in {words.plural(days, 'day')} at the latest",
            "text": f"{words.count(needed)} units of both arms settle it whatever the effect is; a large effect shows sooner.",
        }
    smallest = planning.smallest_effect(daily * most, relative, rho2, alpha)
    took = words.plural(days, "day") if days else "longer than can be counted"
    return {
        "tone": "late",
        "icon": "late",
        "title": f"Too long: {took}",
        "text": f"After {most} days it asks for a person, decided or not. With these units the smallest effect that is surely "
        f"decided by then is {charts.percent(smallest).lstrip('+')}.",
    }
