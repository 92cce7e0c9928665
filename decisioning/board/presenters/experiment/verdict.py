"""What is recommended of the experiment, and how it can be answered."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.presenters import gates as gate_presenter
from decisioning.board.presenters import page_data
from decisioning.board.presenters.experiment import feeds
from decisioning.board.presenters.experiment.context import ExperimentContext, as_of, slot_of
from gates.engine.figures import span
from gates.engine.narration import rationale, sentence
from gates.engine.policy import setting
from gates.engine.reasons import blocking, each_once, told
from gates.models import Decision, Recommendation

# What an answer does, in words that end the choice it stands beside.
_THEN = {
    "scale": "The variant {variant} goes to everyone; the experiment ends as scaled.",
    "delete": "Control stays for everyone; the experiment ends as deleted.",
    "review": "Marked as seen; it runs on and is not proposed again for a while.",
}
_INSTEAD = {
    "scale": "Scale: give the treatment to everyone",
    "delete": "Delete: keep control for everyone",
    "stop": "Stop: end it without a winner",
    "hold": "Hold: go on reading",
}


def verdicts(context: ExperimentContext, *, answer: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """One banner for each proposal that waits, else the one that says why there is nothing to answer."""
    waiting = sorted(
        context.proposals,
        key=lambda recommendation: (
            recommendation.code != "unsafe",
            recommendation.variant_id is not None,
            recommendation.pk,
        ),
    )
    if waiting and context.experiment.status in page_data.OPEN:
        shown = [_proposal(context, recommendation, answer=answer, i=i) for i, recommendation in enumerate(waiting)]
    else:
        last = (
            Decision.objects.filter(experiment=context.experiment)
            .select_related("recommendation__variant")
            .order_by("-pk")
            .first()
        )
        shown = [
            _decided(context, last)
            if last is not None and context.experiment.status in page_data.CLOSED
            else _nothing(context)
        ]
    shown[0]["replaced"] = answer.get("replaced") if answer else None
    return shown


def _heading(action: str, variant: str | None, *, several: bool) -> str:
    verb = action.capitalize()
    if action == "review":
        return "Review it"
    if action == "hold":
        return "Hold"
    if variant and (several or action == "scale"):
        return f"{verb} the variant {variant}"
    return f"{verb} it: keep control" if action == "delete" else f"{verb} it"


def _because(context: ExperimentContext, reasons: Sequence[Mapping[str, Any]], action: str) -> list[dict[str, str]]:
    icon = {"scale": "pass", "delete": "fail", "review": "review"}.get(action, "inconclusive")
    return [
        *({"icon": icon, "tone": "", "text": line} for line in rationale(reasons, context.reader)),
        *(
            {
                "icon": "stale" if reason["code"] == "stale" else "no_data",
                "tone": "late",
                "text": sentence(reason, context.reader),
            }
            for reason in blocking(reasons)
        ),
    ]


def _proof(context: ExperimentContext, code: str, variant: str | None, *, uid: str) -> dict[str, Any]:
    gate = gate_presenter.telling(context.gates, code=code, variant=variant)
    if gate is None:
        return {"kpi": "", "estimate": "", "range": "", "interval": ""}
    text, spread = gate_presenter.value_text(gate, context.metrics)
    name = gate_presenter.name_of(gate, context.metrics)
    if why := gate_presenter.distrust(context.gates, gate, code=code):
        return {"kpi": name, "estimate": "not trusted", "range": f"{why}, so this is not a result", "interval": ""}
    return {
        "kpi": name,
        "estimate": text,
        "range": spread,
        "interval": gate_presenter.drawn(gate, context.metrics, uid=uid),
    }


def _proposal(
    context: ExperimentContext, recommendation: Recommendation, *, answer: Mapping[str, Any] | None, i: int
) -> dict[str, Any]:
    experiment, several = context.experiment, len(context.treatments) > 1
    variant = recommendation.variant.key if recommendation.variant else context.said.get("variant")
    suspended = _suspended(context, recommendation)
    within = timedelta(hours=experiment.team.answer_within_h)
    left = (recommendation.proposed_at + within - context.now).total_seconds()
    uid = "decide" if i == 0 else f"decide-{recommendation.pk}"
    stable = (
        f", {span((recommendation.proposed_at - recommendation.knowable_at).total_seconds())} after the first stable read could be known"
        if recommendation.knowable_at
        else ""
    )
    mine = answer if answer and answer.get("proposal") in (None, recommendation.pk) else None
    banner = {
        "id": uid,
        "tone": words.TONES[recommendation.action],
        "icon": recommendation.action,
        "heading": _heading(recommendation.action, variant, several=several),
        "tag": {"icon": "stale", "text": "Suspended"}
        if suspended
        else {"icon": "clock", "text": "Waiting for an answer"},
        "said": f"{words.CODES.get(recommendation.code, recommendation.code)} · proposed {words.instant(recommendation.proposed_at, context.now)}{stable}",
        **_proof(context, recommendation.code, variant, uid=f"p{recommendation.pk}"),
        "because": _because(
            context,
            each_once([*recommendation.told, *blocking(suspended["reasons"] if suspended else [])]),
            recommendation.action,
        )
        + feeds.because(context),
        **_digest(context, recommendation.evidence_digest, recommendation.slot),
        "late": left < 6 * 3600,
        "left": f"{span(left)} left" if left > 0 else f"{span(-left)} overdue",
        "clock": page_data.clock(
            context.now - recommendation.proposed_at, within, uid=f"k{recommendation.pk}", width=300
        ),
        "stable": f"Proposed {words.instant(recommendation.proposed_at, context.now)}",
        "promised": f"Promised by {words.instant(recommendation.proposed_at + within, context.now)}",
        "answer": None,
        "aside": None,
    }
    if suspended:
        banner["aside"] = _not_now(context)
    elif not context.principal.may(Scope.REVIEW, experiment.team_id):
        lines = ["Your role in the team may look and not decide. An approver of the team answers this."]
        banner["aside"] = {"title": "Waits for an approver", "lines": lines}
    else:
        banner["answer"] = _answer(context, recommendation, variant, mine)
    return banner


def _suspended(context: ExperimentContext, recommendation: Recommendation) -> Mapping[str, Any] | None:
    """What the newest slot says of this proposal when it suspends it: its inputs have died, or were restated."""
    told = [*(context.shown.get("variants") or []), context.said]
    mine = (
        t for t in told if t.get("state") == "suspended" and t.get("evidence_digest") == recommendation.evidence_digest
    )
    return next(mine, None)


def _not_now(context: ExperimentContext) -> dict[str, Any]:
    """Beside a suspended proposal; what blocks it stands in its reasons."""
    if context.cursor and context.cursor.unjudgeable:
        lines = ["It cannot be judged just now, so it cannot be answered.",
                 "When the cause is mended it is judged again by itself, and this form is back."]  # fmt: skip
        return {
            "title": "Not now",
            "lines": lines,
            "url": context.url("experiment") + "#gates",
            "label": "See the gates",
        }
    if gate_presenter.late(context.gates):
        lines = ["Its inputs are late, so it cannot be answered: a proposal is only as good as its newest data.",
                 "When the data is back it is judged again, and this form with it."]  # fmt: skip
        return {
            "title": "Not now",
            "lines": lines,
            "url": context.url("experiment") + "#freshness",
            "label": "See the freshness",
        }
    lines = ["What it rests on changed or is no longer whole, so it cannot be answered.",
             "It is judged again at every look; once the gates give the same answer again, the form is back."]  # fmt: skip
    return {"title": "Not now", "lines": lines, "url": context.url("experiment") + "#gates", "label": "See the gates"}


def _answer(
    context: ExperimentContext, recommendation: Recommendation, variant: str | None, sent: Mapping[str, Any] | None
) -> dict[str, Any]:
    whole = recommendation.variant_id is None or len(context.treatments) < 2
    then = (
        _THEN[recommendation.action]
        if whole or recommendation.action != "delete"
        else "This variant is dropped; the rest of the experiment runs on."
    )
    instead = [to for to in ("scale", "delete", "stop", "hold") if to != recommendation.action]
    sent = sent or {}
    accept = {"scale": "Accept and scale", "delete": "Accept and delete", "review": "Mark as seen"}[
        recommendation.action
    ]
    return {
        "url": context.url("decide"),
        "accept": f"Accept: {recommendation.action}" if recommendation.action != "review" else "Accept: I have looked",
        "accept_then": then.format(variant=variant or "that wins"),
        "accept_button": accept,
        "options": [
            {"value": "", "label": "Choose what is done instead", "here": not sent.get("override_to")},
            *({"value": to, "label": _INSTEAD[to], "here": to == sent.get("override_to")} for to in instead),
        ],
        "to_error": sent.get("to_error", ""),
        "override": sent.get("action") == "override",
        "reason": sent.get("reason", ""),
        "reason_error": sent.get("reason_error", ""),
        "error": sent.get("error", ""),
        "who": context.principal.name,
    }


def _digest(context: ExperimentContext, digest: str, slot: datetime | None) -> dict[str, str]:
    if not digest:
        return {"digest": "", "short": "", "evidence_url": "", "as_of": ""}
    short = f"{digest[:11]}…{digest[-4:]}"
    as_of = f"as of slot {words.instant(slot, context.now)}" if slot else ""
    return {"digest": digest, "short": short, "evidence_url": context.url("evidence", digest), "as_of": as_of}


def _decided(context: ExperimentContext, answer: Decision) -> dict[str, Any]:
    recommendation = answer.recommendation
    verb = {"scaled": "scale", "deleted": "delete"}.get(context.experiment.status, "hold")
    how = "accepted" if answer.action == "accept" else "overridden"
    took = span((answer.at - recommendation.proposed_at).total_seconds())
    lines = [{"icon": "pass", "tone": "", "text": f"Answered {took} after it was proposed, by {answer.by}."}]
    if answer.reason:
        lines.append({"icon": "user", "tone": "", "text": f"“{answer.reason}”"})
    if revised := (context.cursor.revisions if context.cursor else {}).get(str(answer.pk)):
        lines.insert(0, {"icon": "review", "tone": "review", "text": words.on_older_data(revised)})
    lines += [{"icon": "info", "tone": "", "text": line} for line in rationale(recommendation.told, context.reader)]
    variant = recommendation.variant.key if recommendation.variant else context.said.get("variant")
    return {
        "id": "decide",
        "tone": words.TONES[verb],
        "icon": f"s-{context.experiment.status}",
        "heading": f"{words.STATUSES[context.experiment.status]}, {how}",
        "tag": {"icon": "pass", "text": "Decided"},
        "said": f"{recommendation.action.capitalize()} was proposed {words.instant(recommendation.proposed_at, context.now)}, answered {words.instant(answer.at, context.now)}",
        **_proof(context, recommendation.code, variant, uid="p0"),
        "because": lines + feeds.because(context),
        **_digest(context, answer.evidence_digest, recommendation.slot),
        "aside": {
            "title": "What happened then",
            "lines": [
                f"Ended {words.instant(context.experiment.ended_at, context.now)}.",
                "The answer, the evidence and every row stay readable.",
            ],
            "url": context.url("report"),
            "label": "Report on one page",
        },
    }


def _nothing(context: ExperimentContext) -> dict[str, Any]:
    experiment = context.experiment
    code, action = context.said.get("code", ""), context.said.get("action", "hold")
    reasons: list[Mapping[str, Any]] = context.said.get("reasons") or []
    if experiment.status == "draft":
        heading = "Not started"
        reasons = [told("Start it, and it is judged at the first slot after its first rows.")]
    elif experiment.status == "paused":
        heading = "Paused"
        reasons = [told("Rows still arrive and are kept; gates rest until it is started again.")]
    elif experiment.status in page_data.CLOSED:
        heading = f"{words.STATUSES[experiment.status]} without an answer"
        reasons = reasons or [told("It ended before a proposal was answered.")]
    elif not context.said and context.cursor and context.cursor.unjudgeable:
        heading, reasons = "Hold, cannot be judged", [told(context.cursor.unjudgeable["reason"])]
    elif not context.said:
        heading = "Hold, no data"
        reasons = [told(f"No slot was judged yet. Send the first rows to /api/experiments/{experiment.key}/kpis.")]
    else:
        heading = f"{action.capitalize()}, {words.CODES.get(code, code).lower()}"
    aside = _wait(context)
    warnings = [{"icon": "late", "tone": "late", "text": warning} for warning in context.warnings]
    return {
        "id": "decide",
        "tone": words.TONES.get(action, "hold") if experiment.status == "running" else "hold",
        "icon": action if experiment.status == "running" else "hold",
        "heading": heading,
        "tag": {"icon": "clock", "text": "Nothing to answer"},
        "said": f"read{as_of(context)}" if context.said else "",
        **_proof(context, code, context.said.get("variant"), uid="p0"),
        "because": [*_because(context, reasons, action), *feeds.because(context), *warnings],
        **_digest(context, proven := context.said.get("evidence_digest") or "", slot_of(context, proven)),
        "aside": aside,
    }


def _wait(context: ExperimentContext) -> dict[str, Any] | None:
    """What a person can do while there is nothing to answer."""
    experiment = context.experiment
    if experiment.status in page_data.CLOSED:
        return {
            "title": "It is over",
            "lines": ["Its rows, gates and history stay readable."],
            "url": context.url("report"),
            "label": "Report on one page",
        }
    if experiment.status == "draft":
        return {
            "title": "Next",
            "lines": ["Check the plan below, then start it."],
            "url": context.url("move", "running"),
            "label": "Start it",
        }
    lines = []
    if experiment.started_at and experiment.status == "running":
        least, most = setting(context.body, "min_days"), setting(context.body, "max_days")
        first, last = page_data.ran_until(context.plan, least), page_data.ran_until(context.plan, most)
        lines.append(
            f"Not before {words.day(first)} ({least} days)." if first > context.now else f"{least} days are in."
        )
        lines.append(f"By {words.day(last)} at the latest it asks for a person ({most} days).")
        previous = Decision.objects.filter(experiment=experiment).order_by("-pk").first()
        if previous is not None:
            lines.append(
                f"Last answered {words.instant(previous.at, context.now)} by {previous.by}: {previous.action}{' to ' + previous.override_to if previous.override_to else ''}."
            )
    return {"title": "What it waits for", "lines": lines or ["Start it again when it should be judged on."]}
