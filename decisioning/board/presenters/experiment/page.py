"""One experiment on one page: what is recommended and why, what each gate reads, how it got there, what people did."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.urls import reverse

from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.presenters import freshness, page_data
from decisioning.board.presenters import gates as gate_presenter
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


def experiment(d: ExperimentContext, *, answer: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole page; `answer` is what a person sent and why it was refused, shown in the form again."""
    e = d.e
    goal = next((k for k in d.kpis if k.role == "goal"), None)
    passed = sum(g["verdict"] == "pass" for g in d.gates)
    several = len(d.treatments) > 1
    fresh = freshness.ages([e.pk], now=d.now)
    ages = {a.metric: a for a in fresh}
    runs = runs_feeding(e).order_by("-id")[:6]
    main = kpi_card(d, goal, ages, d.kpis.index(goal)) if goal else None
    return {
        "key": e.key,
        "name": e.name,
        "status": words.status(e.status),
        "day": _day(d),
        "actions": _actions(d),
        "hypothesis": e.hypothesis,
        "meta": _meta(d),
        "notes": _notes(d),
        "verdicts": verdicts(d, answer=answer),
        "gates_note": f"{passed} of {len(d.gates)} pass{as_of(d)}. The bar is the always-valid interval; a post is cleared when "
        "the whole bar is on its flag's side."
        if d.gates
        else "None read yet.",
        "gates": [
            gate_presenter.row(g, d.metrics, several=several, uid=f"g{i}", now=d.now) for i, g in enumerate(d.gates)
        ],
        "no_gates": _no_gates(e),
        "kpis_note": "Treatment against control, day by day." if d.treatments else "Against its target, day by day.",
        "uplifts": [
            u for i, t in enumerate(d.treatments) if goal and (u := uplift_chart(d, goal, t, several=several, i=i))
        ],
        "goal": main,
        "kpis": [kpi_card(d, k, ages, i) for i, k in enumerate(d.kpis) if k is not goal],
        "fresh": freshness.table(fresh, now=d.now),
        "runs": present_runs(runs, now=d.now),
        "runs_url": f"{reverse('refresh_log')}?experiment={e.key}",
        "split": split_text(d),
        "shares": shares_chart(d, goal),
        "variants": variant_cards(d, goal),
        "may_edit": d.principal.may(Scope.WRITE, e.team_id),
        "timeline": timeline(d),
        "audit_url": f"{reverse('audit')}?object={e.key}",
        "evidence": evidence_card(d),
        "report_url": d.url("report"),
    }


def _day(d: ExperimentContext) -> str:
    e = d.e
    if e.started_at is None:
        return "not started"
    if e.ended_at is not None:
        return f"ended {words.day(e.ended_at)}, after {words.plural(page_data.ran_days(d.plan, e.ended_at), 'day')}"
    return f"day {page_data.ran_days(d.plan, d.now)} of {d.body.get('max_days', 28)}"


def _actions(d: ExperimentContext) -> list[dict[str, Any]]:
    if not d.principal.may(Scope.WRITE, d.e.team_id):
        return []
    moves = [to for to in next_statuses(d.e.status) if to in BY_HAND]
    names = {**_MOVES, "running": "Start" if d.e.status == "draft" else "Resume"}
    return [{"url": d.url("move", to), "label": names[to], "go": d.e.status == "draft"} for to in moves]


def _meta(d: ExperimentContext) -> list[dict[str, str]]:
    e = d.e
    version = d.cursor.policy_version if d.cursor else None
    policy = (
        {
            "text": f"policy {version.policy.name}, version {version.number}",
            "url": reverse("policy_version", args=[version.policy_id, version.number]),
        }
        if version
        else {"text": "no policy yet", "url": ""}
    )
    started = f"started {words.day(e.started_at)}" if e.started_at else f"created {words.day(e.created_at)}"
    return [*({"text": t, "url": ""} for t in (e.team.name, e.owner, started)), policy, {"text": f"#{e.pk}", "url": ""}]


def _notes(d: ExperimentContext) -> list[dict[str, str]]:
    notes = []
    if d.e.status == "paused":
        notes.append(
            {"tone": "hold", "icon": "hold", "title": "Paused.", "text": "Rows still arrive and are kept; gates rest."}
        )
    if d.cursor and (why := d.cursor.unjudgeable):
        since = words.instant(datetime.fromisoformat(why["since"]), d.now)
        text = f"{why['reason']} Nothing that it proposes can be accepted until then."
        notes.append({"tone": "late", "icon": "stale", "title": f"Suspended {since}.", "text": text})
    judged = d.cursor.judged_to if d.cursor else None
    if d.e.status == "running" and judged and (behind := (d.now - judged).total_seconds()) > LATE_AFTER_S:
        text = f"Newest slot {words.instant(judged, d.now)}, {span(behind)} ago. Verdicts below are as of then."
        notes.append({"tone": "late", "icon": "stale", "title": "Evaluation is late.", "text": text})
    return [*notes, *_revised(d)]


def _revised(d: ExperimentContext) -> list[dict[str, str]]:
    """Answers that would now be others, while it runs on; of what has ended the banner says it."""
    revisions = d.cursor.revisions if d.cursor and d.e.status in page_data.OPEN else {}
    if not revisions:
        return []
    answers = Decision.objects.filter(experiment=d.e, pk__in=revisions).select_related("recommendation__variant")
    return [
        {
            "tone": "review",
            "icon": "review",
            "title": f"{answered(a)} by {a.by}, {words.instant(a.at, d.now)}.",
            "text": words.on_older_data(revisions[str(a.pk)]),
        }
        for a in answers.order_by("-pk")
    ]


def _no_gates(e: Experiment) -> dict[str, Any]:
    if e.status == "draft":
        return {
            "icon": "inconclusive",
            "title": "No gate is read yet",
            "text": "Start the experiment; its gates are made from its policy and KPIs.",
            "url": "",
        }
    return {
        "icon": "inconclusive",
        "title": "No gate is read yet",
        "text": f"The first slot after the first rows reads them. Send rows to /api/experiments/{e.key}/kpis.",
        "url": "",
    }
