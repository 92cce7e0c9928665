"""One line of the board: a case that needs an answer, or a row of a lane."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.urls import reverse
from django.utils.safestring import SafeString

from decisioning.board import charts, words
from decisioning.board.presenters import freshness
from decisioning.board.presenters import gates as gate_presenter
from decisioning.board.presenters.page_data import (
    OPEN,
    PageData,
    clock,
    ran_days,
    ran_until,
    reader_of,
    said_of,
    shown_of,
    trend,
)
from experiments.models import Experiment
from gates.engine.figures import span
from gates.engine.narration import rationale
from gates.engine.plan import Kpi
from gates.engine.policy import setting
from gates.models import PolicyVersion, Recommendation

URGENT = {"unsafe": 0, "harm": 1}


def _goal(data: PageData, pk: int) -> Kpi | None:
    return next((kpi for kpi in data.plans[pk].kpis if kpi.role == "goal"), None)


def _body(version: PolicyVersion | None) -> Mapping[str, Any]:
    return version.body if version else {}


def _assets(data: PageData, pk: int, variant: str | None) -> list[dict[str, str]]:
    """What the control and one treatment (the first by default) look like, where somebody has uploaded it."""
    plan, kept = data.plans[pk], data.assets.get(pk, {})
    chosen = variant or next((v.key for v in plan.judged_variants), "")
    shown = [v.key for v in plan.variants if v.control or v.key == chosen]
    return [
        {
            "url": reverse("asset", args=[kept[key].pk]),
            "small": reverse("asset_small", args=[kept[key].pk]),
            "alt": kept[key].alt,
            "variant": key,
        }
        for key in shown
        if key in kept
    ]


def _spark(data: PageData, pk: int, variant: str | None, *, uid: str) -> SafeString:
    points = trend(data, pk, variant)
    if not points:
        return gate_presenter.svg("")
    gate = next((g for g in shown_of(data, pk).get("gates") or [] if g["kind"] == "uplift"), None)
    say, last = gate_presenter.change(gate, data.metrics), points[-1]
    title = f"So far: {say(last.estimate)}{say.worth(last.estimate)} {gate_presenter.spread(say, last)}"
    if gate_presenter.split_is_wrong(shown_of(data, pk).get("gates") or []):
        title = "So far: not trusted, the split is wrong"
    return gate_presenter.svg(
        charts.sparkline(points, uid=uid, title=title, desc="The effect day by day, against zero")
    )


def case(pk: int, data: PageData, *, first: bool) -> dict[str, Any]:
    experiment, recommendation = data.experiments[pk], _foremost(data.proposals[pk])
    shown = shown_of(data, pk)
    gates = shown.get("gates") or []
    variant = (
        recommendation.variant.key if recommendation.variant else (shown.get("recommendation") or {}).get("variant")
    )
    gate = gate_presenter.telling(gates, code=recommendation.code, variant=variant)
    text, spread = gate_presenter.value_text(gate, data.metrics) if gate else ("", "")
    distrust = gate_presenter.distrust(gates, gate, code=recommendation.code)
    due = recommendation.proposed_at + timedelta(hours=experiment.team.answer_within_h)
    left = (due - data.now).total_seconds()
    safety = recommendation.code in URGENT
    age = data.ages.get(pk)
    return {
        "tone": words.TONES[recommendation.action],
        "next": first,
        "safety": safety,
        "icon": recommendation.action,
        "verb": recommendation.action.capitalize(),
        "why": words.CODES.get(recommendation.code, recommendation.code)
        + (f": {recommendation.variant}" if recommendation.variant and len(data.plans[pk].variants) > 2 else ""),
        "name": experiment.name,
        "url": reverse("experiment", args=[experiment.key]),
        "hypothesis": experiment.hypothesis,
        "reason": next(iter(rationale(recommendation.told, reader_of(data, pk))), ""),
        "revised": _revised(data, pk),
        "chips": gate_presenter.chips(gates, data.metrics),
        "meta": [experiment.team.name, experiment.owner, _day_of(experiment, data, pk)],
        "kpi": gate_presenter.name_of(gate, data.metrics) if gate else "",
        "estimate": "not trusted" if distrust else text,
        "range": distrust or spread,
        "interval": gate_presenter.drawn(gate, data.metrics, uid=f"i{pk}") if gate and not distrust else "",
        "pictures": _assets(data, pk, variant),
        "spark": _spark(data, pk, variant, uid=f"s{pk}"),
        "age": freshness.text(age, now=data.now) if age else None,
        "late": left < 6 * 3600,
        "left": "Act now" if safety else f"{span(left)} left" if left > 0 else f"{span(-left)} overdue",
        "clock": clock(
            data.now - recommendation.proposed_at, timedelta(hours=experiment.team.answer_within_h), uid=f"c{pk}"
        ),
        "since": f"of {experiment.team.answer_within_h} h since the proposal, {words.instant(recommendation.proposed_at, data.now)}",
    }


def _foremost(found: Sequence[Recommendation]) -> Recommendation:
    return min(found, key=lambda recommendation: (URGENT.get(recommendation.code, 2), recommendation.pk))


def _day_of(experiment: Experiment, data: PageData, pk: int) -> str:
    if experiment.started_at is None:
        return "not started"
    cursor = data.cursors.get(pk)
    most = setting(_body(cursor.policy_version if cursor else None), "max_days")
    return f"day {ran_days(data.plans[pk], data.now)} of {most}"


def row(pk: int, data: PageData, *, lane: str) -> dict[str, Any]:
    experiment = data.experiments[pk]
    shown = shown_of(data, pk)
    gates = shown.get("gates") or []
    said = said_of(data, pk)
    variant = said.get("variant")
    gate = gate_presenter.telling(gates, code="", variant=variant)
    text, spread = gate_presenter.value_text(gate, data.metrics) if gate else ("", "")
    goal = _goal(data, pk)
    pill, reason = _said_closed(experiment, data) if lane == "closed" else _said_open(experiment, said, data)
    left, since = _last(experiment, said, data) if lane == "progress" else _ended(experiment, data)
    age = data.ages.get(pk) if experiment.status in ("running", "paused") else None
    invalid = said.get("code") == "invalid" or gate_presenter.split_is_wrong(gates)
    return {
        "name": experiment.name,
        "url": reverse("experiment", args=[experiment.key]),
        "hypothesis": experiment.hypothesis,
        "status": words.status(experiment.status),
        "team": experiment.team.name,
        "owner": experiment.owner,
        "pill": pill,
        "reason": reason,
        "revised": _revised(data, pk),
        "chips": gate_presenter.chips(gates, data.metrics),
        "kpi": (goal.name or goal.metric) if goal else "Goal KPI",
        "tone": {"scaled": "scale", "deleted": "delete"}.get(experiment.status, "hold"),
        "pictures": _assets(data, pk, variant),
        "spark": _spark(data, pk, variant, uid=f"s{pk}"),
        "estimate": "not trusted" if invalid and text else text,
        "range": "" if invalid else spread,
        "age": freshness.text(age, now=data.now) if age else None,
        "no_age": "Ended" if lane == "closed" else "Not started",
        "left": left,
        "since": since,
    }


def _said_open(experiment: Experiment, said: Mapping[str, Any], data: PageData) -> tuple[dict[str, Any], str]:
    reasons = [*(said.get("blockers") or []), *(said.get("rationale") or [])]
    first = reasons[0] if reasons else ""
    if experiment.status == "draft":
        return words.pill("hold", "Not started"), "Start it, and it is judged as soon as rows arrive."
    if experiment.status == "paused":
        return words.pill(
            "hold", "Hold, paused"
        ), "Rows still arrive and are kept; gates rest until it is started again."
    if (cursor := data.cursors.get(experiment.pk)) and cursor.unjudgeable:
        action = said.get("action", "hold")
        how = "suspended" if said.get("state") == "suspended" else "cannot be judged"
        return words.pill(action, f"{action.capitalize()}, {how}", line=True), cursor.unjudgeable["reason"]
    if not said:
        return words.pill("hold", "Hold, no data"), "No slot was judged yet: send the first rows."
    action, code = said["action"], said["code"]
    why = words.CODES.get(code, code).lower()
    if said.get("state") == "suspended":
        return words.pill(action, f"{action.capitalize()}, suspended", line=True), first
    return words.pill(action, f"{action.capitalize()}, {why}"), first


def _revised(data: PageData, pk: int) -> str:
    """Said of an experiment that runs on: that an answer of people would now be another; of several, the newest."""
    cursor = data.cursors.get(pk)
    revisions = cursor.revisions if cursor and data.experiments[pk].status in OPEN else {}
    return words.on_older_data(revisions[max(revisions, key=int)]) if revisions else ""


def _said_closed(experiment: Experiment, data: PageData) -> tuple[dict[str, Any], str]:
    decision = data.decisions.get(experiment.pk)
    verb = {"scaled": "scale", "deleted": "delete"}.get(experiment.status, "hold")
    if decision is None:
        return words.pill(
            verb, words.STATUSES[experiment.status], line=True
        ), "Ended without a proposal that was answered."
    accepted = decision.action == "accept"
    said = (
        f"Accepted by {decision.by}, on the evidence as proposed.{f' “{decision.reason}”' if decision.reason else ''}"
        if accepted
        else f"{decision.recommendation.action.capitalize()} was proposed. {decision.by}: “{decision.reason}”"
    )
    cursor = data.cursors.get(experiment.pk)
    if cursor and (revised := cursor.revisions.get(str(decision.pk))):
        said = words.on_older_data(revised)
    return words.pill(verb, f"{words.STATUSES[experiment.status]}, {'accepted' if accepted else 'overridden'}"), said


def _last(experiment: Experiment, said: Mapping[str, Any], data: PageData) -> tuple[str, str]:
    if experiment.started_at is None:
        return "no date", f"draft since {words.day(experiment.created_at)}"
    plan = data.plans[experiment.pk]
    ran = ran_days(plan, data.now)
    if experiment.status == "paused":
        return "not counting", f"ran {words.plural(ran, 'day')}"
    cursor = data.cursors.get(experiment.pk)
    body = _body(cursor.policy_version if cursor else None)
    least, most = setting(body, "min_days"), setting(body, "max_days")
    suspended = said.get("state") == "suspended"
    if suspended and not gate_presenter.late(shown_of(data, experiment.pk).get("gates") or []):
        return "when it holds again", f"day {ran} of {most}"
    if suspended or said.get("code") in ("stale", "no_data"):
        return "when data is back", f"day {ran} of {most}"
    left = _days_left(data, experiment.pk)
    if left is not None and left < most - ran:
        when = words.day(data.now + timedelta(days=max(left, least - ran)))[:-5]
        return f"about {when}", f"if the effect stays; day {ran} of {most}"
    if ran < least:
        return f"not before {words.day(ran_until(plan, least))[:-5]}", f"day {ran} of at least {least}"
    return f"by {words.day(ran_until(plan, most))[:-5]}", f"day {ran} of {most}"


def _days_left(data: PageData, pk: int) -> float | None:
    """Days until the last goal is decided if its effect stays; None when that cannot be said."""
    found = [
        g["limits"].get("days_left")
        for g in shown_of(data, pk).get("gates") or []
        if g["kind"] == "uplift" and g.get("limits")
    ]
    known = [float(days) for days in found if days is not None]
    return max(known) if known and len(known) == len(found) else None


def _ended(experiment: Experiment, data: PageData) -> tuple[str, str]:
    decision = data.decisions.get(experiment.pk)
    if decision is None or experiment.ended_at is None:
        return words.instant(experiment.ended_at, data.now), ""
    took = (decision.at - decision.recommendation.proposed_at).total_seconds()
    return words.instant(experiment.ended_at, data.now), f"{span(took)} after the proposal"
