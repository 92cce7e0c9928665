"""Doubt in the rows of one KPI: why, and who set it aside."""

from collections.abc import Mapping
from typing import Any

from django import forms
from django.urls import reverse
from django.utils.dateparse import parse_datetime

from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.presenters.experiment.context import ExperimentContext
from experiments.models import TargetKpi
from gates.doubts import is_set_aside
from gates.engine.narration import sentence
from gates.engine.plan import Kpi

_DOUBTS = ("rows_doubted", "more_than_exposed")


def page(context: ExperimentContext, kpi: TargetKpi, form: forms.Form) -> dict[str, Any]:
    """What doubt.html shows."""
    key, metric = context.experiment.key, kpi.metric.key
    reasons = [r for gate in context.gates if gate["kind"] == "doubt" for r in gate.get("reasons") or ()]
    return {
        "crumb": context.experiment.name,
        "back": reverse("experiment", args=[key]) + "#gates",
        "name": kpi.metric.name or metric,
        "why": [sentence(r, context.reader) for r in reasons if r["code"] in _DOUBTS and r["metric"] == metric],
        "is_set_aside": is_set_aside(kpi),
        "before": [_told(span) for span in reversed(kpi.trusted)],
        "may": context.principal.may(Scope.REVIEW, context.experiment.team_id),
        "form": form,
    }


def _told(span: Mapping[str, Any]) -> dict[str, str]:
    since, until = (parse_datetime(span[end] or "") for end in ("since", "until"))
    ends = {"since": words.stamp(since) if since else "", "until": words.stamp(until) if until else "now"}
    return {**ends, "reason": span["reason"], "by": span["by"]}


def links(gate: Mapping[str, Any], key: str, metrics: Mapping[str, Kpi]) -> list[dict[str, str]]:
    """Where doubt in each KPI that a doubt gate names is set aside, or doubted again."""
    if gate["kind"] != "doubt":
        return []
    named = [r["metric"] for r in gate.get("reasons") or () if r["code"] in (*_DOUBTS, "doubt_set_aside")]
    return [
        {"text": f"Doubt in {metrics[m].name if m in metrics else m}", "url": reverse("doubt", args=[key, m])}
        for m in dict.fromkeys(named)
    ]
