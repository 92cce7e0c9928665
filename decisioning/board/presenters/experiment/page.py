"""One experiment on one page: what is recommended and why, what each gate reads, how it got there, what people did."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.urls import reverse

from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.presenters import freshness, page_data
from decisioning.board.presenters import gates as gate_presenter
from decisioning.board.presenters.experiment import doubt
from decisioning.board.presenters.experiment.context import ExperimentContext, as_of
from decisioning.board.presenters.experiment.evidence import evidence_card
from decisioning.board.presenters.experiment.kpis import kpi_card, shares_chart, split_text, uplift_chart, variant_cards
from decisioning.board.presenters.experiment.timeline import answered, timeline
from decisioning.board.presenters.experiment.verdict import verdicts
from decisioning.board.presenters.frame import LATE_AFTER_S
from decisioning.board.presenters.records import present_runs
from experiments.lifecycle import BY_HAND, next_statuses
from experiments.models import Experiment
from gates.engine.figures import span
from gates.models import Decision
from telemetry.refresh import runs_feeding

_MOVES = {"running": "Start", "paused": "Pause", "stopped": "Stop"}


def page(context: ExperimentContext, *, answer: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole page; `answer` is what a person sent and why it was refused, shown in the form again."""
    experiment = context.experiment
    goal = next((k for k in context.kpis if k.role == "goal"), None)
    passed = sum(g["verdict"] == "pass" for g in context.gates)
    several = len(context.treatments) > 1
    fresh = freshness.ages([experiment.pk], now=context.now)
    ages = {a.metric: a for a in fresh}
    runs = runs_feeding(experiment).order_by("-id")[:6]
    main = kpi_card(context, goal, ages, context.kpis.index(goal)) if goal else None
    return {
        "key": experiment.key,
        "name": experiment.name,
        "status": words.status(experiment.status),
        "day": _day(context),
        "actions": _actions(context),
        "hypothesis": experiment.hypothesis,
        "meta": _meta(context),
        "notes": _notes(context),
        "verdicts": verdicts(context, answer=answer),
        "gates_note": f"{passed} of {len(context.gates)} pass{as_of(context)}. The bar is the always-valid interval; a post is cleared when "
        "the whole bar is on its flag's side."
        if context.gates
        else "None read yet.",
        "gates": [
            gate_presenter.row(g, context.metrics, several=several, uid=f"g{i}", now=context.now)
            | {"links": doubt.links(g, experiment.key, context.metrics)}
            for i, g in enumerate(context.gates)
        ],
        "no_gates": _no_gates(experiment),
        "kpis_note": "Treatment against control, day by day."
        if context.treatments
        else "Against its target, day by day.",
        "uplifts": [
            u
            for i, t in enumerate(context.treatments)
            if goal and (u := uplift_chart(context, goal, t, several=several, i=i))
        ],
        "goal": main,
        "kpis": [kpi_card(context, k, ages, i) for i, k in enumerate(context.kpis) if k is not goal],
        "fresh": freshness.table(fresh, now=context.now),
        "runs": present_runs(runs, now=context.now),
        "runs_url": f"{reverse('refresh_log')}?experiment={experiment.key}",
        "split": split_text(context),
        "shares": shares_chart(context, goal),
        "variants": variant_cards(context, goal),
        "may_edit": context.principal.may(Scope.WRITE, experiment.team_id),
        "timeline": timeline(context),
        "audit_url": f"{reverse('audit')}?object={experiment.key}",
        "evidence": evidence_card(context),
        "report_url": context.url("report"),
    }


def _day(context: ExperimentContext) -> str:
    experiment = context.experiment
    if experiment.started_at is None:
        return "not started"
    if experiment.ended_at is not None:
        return f"ended {words.day(experiment.ended_at)}, after {words.plural(page_data.ran_days(context.plan, experiment.ended_at), 'day')}"
    return f"day {page_data.ran_days(context.plan, context.now)} of {context.body.get('max_days', 28)}"


def _actions(context: ExperimentContext) -> list[dict[str, Any]]:
    if not context.principal.may(Scope.WRITE, context.experiment.team_id):
        return []
    moves = [to for to in next_statuses(context.experiment.status) if to in BY_HAND]
    names = {**_MOVES, "running": "Start" if context.experiment.status == "draft" else "Resume"}
    return [
        {"url": context.url("move", to), "label": names[to], "go": context.experiment.status == "draft"} for to in moves
    ]


def _meta(context: ExperimentContext) -> list[dict[str, str]]:
    experiment = context.experiment
    version = context.cursor.policy_version if context.cursor else None
    policy = (
        {
            "text": f"policy {version.policy.name}, version {version.number}",
            "url": reverse("policy_version", args=[version.policy_id, version.number]),
        }
        if version
        else {"text": "no policy yet", "url": ""}
    )
    started = (
        f"started {words.day(experiment.started_at)}"
        if experiment.started_at
        else f"created {words.day(experiment.created_at)}"
    )
    return [
        *({"text": t, "url": ""} for t in (experiment.team.name, experiment.owner, started)),
        policy,
        {"text": f"#{experiment.pk}", "url": ""},
    ]


def _notes(context: ExperimentContext) -> list[dict[str, str]]:
    notes = []
    if context.experiment.status == "paused":
        notes.append(
            {"tone": "hold", "icon": "hold", "title": "Paused.", "text": "Rows still arrive and are kept; gates rest."}
        )
    if context.cursor and (why := context.cursor.unjudgeable):
        since = words.instant(datetime.fromisoformat(why["since"]), context.now)
        text = f"{why['reason']} Nothing that it proposes can be accepted until then."
        notes.append({"tone": "late", "icon": "stale", "title": f"Suspended {since}.", "text": text})
    judged = context.cursor.judged_to if context.cursor else None
    if (
        context.experiment.status == "running"
        and judged
        and (behind := (context.now - judged).total_seconds()) > LATE_AFTER_S
    ):
        text = f"Newest slot {words.instant(judged, context.now)}, {span(behind)} ago. Verdicts below are as of then."
        notes.append({"tone": "late", "icon": "stale", "title": "Evaluation is late.", "text": text})
    return [*notes, *_revised(context)]


def _revised(context: ExperimentContext) -> list[dict[str, str]]:
    """Answers that would now be others, while it runs on; of what has ended the banner says it."""
    revisions = context.cursor.revisions if context.cursor and context.experiment.status in page_data.OPEN else {}
    if not revisions:
        return []
    answers = Decision.objects.filter(experiment=context.experiment, pk__in=revisions).select_related(
        "recommendation__variant"
    )
    return [
        {
            "tone": "review",
            "icon": "review",
            "title": f"{answered(a)} by {a.by}, {words.instant(a.at, context.now)}.",
            "text": words.on_older_data(revisions[str(a.pk)]),
        }
        for a in answers.order_by("-pk")
    ]


def _no_gates(experiment: Experiment) -> dict[str, Any]:
    if experiment.status == "draft":
        return {
            "icon": "inconclusive",
            "title": "No gate is read yet",
            "text": "Start the experiment; its gates are made from its policy and KPIs.",
            "url": "",
        }
    return {
        "icon": "inconclusive",
        "title": "No gate is read yet",
        "text": f"The first slot after the first rows reads them. Send rows to /api/experiments/{experiment.key}/kpis.",
        "url": "",
    }
