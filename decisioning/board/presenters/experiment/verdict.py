"""What is recommended of the experiment, and how it can be answered."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.presenters import gates as gate_presenter
from decisioning.board.presenters import page_data
from decisioning.board.presenters.experiment.context import ExperimentContext, as_of, slot_of
from gates.engine.figures import span
from gates.engine.narration import rationale, sentence
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


def verdicts(d: ExperimentContext, *, answer: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """One banner for each proposal that waits, else the one that says why there is nothing to answer."""
    waiting = sorted(d.proposals, key=lambda r: (r.code != "unsafe", r.variant_id is not None, r.pk))
    if waiting and d.e.status in page_data.OPEN:
        shown = [_proposal(d, r, answer=answer, i=i) for i, r in enumerate(waiting)]
    else:
        last = Decision.objects.filter(experiment=d.e).select_related("recommendation__variant").order_by("-pk").first()
        shown = [_decided(d, last) if last is not None and d.e.status in page_data.CLOSED else _nothing(d)]
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


def _because(d: ExperimentContext, reasons: Sequence[Mapping[str, Any]], action: str) -> list[dict[str, str]]:
    icon = {"scale": "pass", "delete": "fail", "review": "review"}.get(action, "inconclusive")
    return [
        *({"icon": icon, "tone": "", "text": line} for line in rationale(reasons, d.reader)),
        *(
            {
                "icon": "stale" if reason["code"] == "stale" else "no_data",
                "tone": "late",
                "text": sentence(reason, d.reader),
            }
            for reason in blocking(reasons)
        ),
    ]


def _proof(d: ExperimentContext, code: str, variant: str | None, *, uid: str) -> dict[str, Any]:
    gate = gate_presenter.telling(d.gates, code=code, variant=variant)
    if gate is None:
        return {"kpi": "", "estimate": "", "range": "", "interval": ""}
    text, spread = gate_presenter.value_text(gate, d.metrics)
    name = gate_presenter.name_of(gate, d.metrics)
    if why := gate_presenter.distrust(d.gates, gate, code=code):
        return {"kpi": name, "estimate": "not trusted", "range": f"{why}, so this is not a result", "interval": ""}
    return {"kpi": name, "estimate": text, "range": spread, "interval": gate_presenter.drawn(gate, d.metrics, uid=uid)}


def _proposal(d: ExperimentContext, r: Recommendation, *, answer: Mapping[str, Any] | None, i: int) -> dict[str, Any]:
    e, several = d.e, len(d.treatments) > 1
    variant = r.variant.key if r.variant else d.said.get("variant")
    suspended = _suspended(d, r)
    within = timedelta(hours=e.team.answer_within_h)
    left = (r.proposed_at + within - d.now).total_seconds()
    uid = "decide" if i == 0 else f"decide-{r.pk}"
    stable = (
        f", {span((r.proposed_at - r.knowable_at).total_seconds())} after the first stable read could be known"
        if r.knowable_at
        else ""
    )
    mine = answer if answer and answer.get("proposal") in (None, r.pk) else None
    banner = {
        "id": uid,
        "tone": words.TONES[r.action],
        "icon": r.action,
        "heading": _heading(r.action, variant, several=several),
        "tag": {"icon": "stale", "text": "Suspended"}
        if suspended
        else {"icon": "clock", "text": "Waiting for an answer"},
        "said": f"{words.CODES.get(r.code, r.code)} · proposed {words.instant(r.proposed_at, d.now)}{stable}",
        **_proof(d, r.code, variant, uid=f"p{r.pk}"),
        "because": _because(d, each_once([*r.told, *blocking(suspended["reasons"] if suspended else [])]), r.action),
        **_digest(d, r.evidence_digest, r.slot),
        "late": left < 6 * 3600,
        "left": f"{span(left)} left" if left > 0 else f"{span(-left)} overdue",
        "clock": page_data.clock(d.now - r.proposed_at, within, uid=f"k{r.pk}", width=300),
        "stable": f"Proposed {words.instant(r.proposed_at, d.now)}",
        "promised": f"Promised by {words.instant(r.proposed_at + within, d.now)}",
        "answer": None,
        "aside": None,
    }
    if suspended:
        banner["aside"] = _not_now(d)
    elif not d.principal.may(Scope.REVIEW, e.team_id):
        lines = ["Your role in the team may look and not decide. An approver of the team answers this."]
        banner["aside"] = {"title": "Waits for an approver", "lines": lines}
    else:
        banner["answer"] = _answer(d, r, variant, mine)
    return banner


def _suspended(d: ExperimentContext, r: Recommendation) -> Mapping[str, Any] | None:
    """What the newest slot says of this proposal when it suspends it: its inputs have died, or were restated."""
    told = [*(d.shown.get("variants") or []), d.said]
    mine = (t for t in told if t.get("state") == "suspended" and t.get("evidence_digest") == r.evidence_digest)
    return next(mine, None)


def _not_now(d: ExperimentContext) -> dict[str, Any]:
    """Beside a suspended proposal; what blocks it stands in its reasons."""
    if d.cursor and d.cursor.unjudgeable:
        lines = ["It cannot be judged just now, so it cannot be answered.",
                 "When the cause is mended it is judged again by itself, and this form is back."]  # fmt: skip
        return {"title": "Not now", "lines": lines, "url": d.url("experiment") + "#gates", "label": "See the gates"}
    if gate_presenter.late(d.gates):
        lines = ["Its inputs are late, so it cannot be answered: a proposal is only as good as its newest data.",
                 "When the data is back it is judged again, and this form with it."]  # fmt: skip
        return {
            "title": "Not now",
            "lines": lines,
            "url": d.url("experiment") + "#freshness",
            "label": "See the freshness",
        }
    lines = ["What it rests on changed or is no longer whole, so it cannot be answered.",
             "It is judged again at every look; once the gates give the same answer again, the form is back."]  # fmt: skip
    return {"title": "Not now", "lines": lines, "url": d.url("experiment") + "#gates", "label": "See the gates"}


def _answer(
    d: ExperimentContext, r: Recommendation, variant: str | None, sent: Mapping[str, Any] | None
) -> dict[str, Any]:
    whole = r.variant_id is None or len(d.treatments) < 2
    then = (
        _THEN[r.action]
        if whole or r.action != "delete"
        else "This variant is dropped; the rest of the experiment runs on."
    )
    instead = [to for to in ("scale", "delete", "stop", "hold") if to != r.action]
    sent = sent or {}
    accept = {"scale": "Accept and scale", "delete": "Accept and delete", "review": "Mark as seen"}[r.action]
    return {
        "url": d.url("decide"),
        "accept": f"Accept: {r.action}" if r.action != "review" else "Accept: I have looked",
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
        "who": d.principal.name,
    }


def _digest(d: ExperimentContext, digest: str, slot: datetime | None) -> dict[str, str]:
    if not digest:
        return {"digest": "", "short": "", "evidence_url": "", "as_of": ""}
    short = f"{digest[:11]}…{digest[-4:]}"
    as_of = f"as of slot {words.instant(slot, d.now)}" if slot else ""
    return {"digest": digest, "short": short, "evidence_url": d.url("evidence", digest), "as_of": as_of}


def _decided(d: ExperimentContext, answer: Decision) -> dict[str, Any]:
    r = answer.recommendation
    verb = {"scaled": "scale", "deleted": "delete"}.get(d.e.status, "hold")
    how = "accepted" if answer.action == "accept" else "overridden"
    took = span((answer.at - r.proposed_at).total_seconds())
    lines = [{"icon": "pass", "tone": "", "text": f"Answered {took} after it was proposed, by {answer.by}."}]
    if answer.reason:
        lines.append({"icon": "user", "tone": "", "text": f"“{answer.reason}”"})
    if revised := (d.cursor.revisions if d.cursor else {}).get(str(answer.pk)):
        lines.insert(0, {"icon": "review", "tone": "review", "text": words.on_older_data(revised)})
    lines += [{"icon": "info", "tone": "", "text": line} for line in rationale(r.told, d.reader)]
    variant = r.variant.key if r.variant else d.said.get("variant")
    return {
        "id": "decide",
        "tone": words.TONES[verb],
        "icon": f"s-{d.e.status}",
        "heading": f"{words.STATUSES[d.e.status]}, {how}",
        "tag": {"icon": "pass", "text": "Decided"},
        "said": f"{r.action.capitalize()} was proposed {words.instant(r.proposed_at, d.now)}, answered {words.instant(answer.at, d.now)}",
        **_proof(d, r.code, variant, uid="p0"),
        "because": lines,
        **_digest(d, answer.evidence_digest, r.slot),
        "aside": {
            "title": "What happened then",
            "lines": [
                f"Ended {words.instant(d.e.ended_at, d.now)}.",
                "The answer, the evidence and every row stay readable.",
            ],
            "url": d.url("report"),
            "label": "Report on one page",
        },
    }


def _nothing(d: ExperimentContext) -> dict[str, Any]:
    e = d.e
    code, action = d.said.get("code", ""), d.said.get("action", "hold")
    reasons: list[Mapping[str, Any]] = d.said.get("reasons") or []
    if e.status == "draft":
        heading = "Not started"
        reasons = [told("Start it, and it is judged at the first slot after its first rows.")]
    elif e.status == "paused":
        heading = "Paused"
        reasons = [told("Rows still arrive and are kept; gates rest until it is started again.")]
    elif e.status in page_data.CLOSED:
        heading = f"{words.STATUSES[e.status]} without an answer"
        reasons = reasons or [told("It ended before a proposal was answered.")]
    elif not d.said and d.cursor and d.cursor.unjudgeable:
        heading, reasons = "Hold, cannot be judged", [told(d.cursor.unjudgeable["reason"])]
    elif not d.said:
        heading = "Hold, no data"
        reasons = [told(f"No slot was judged yet. Send the first rows to /api/experiments/{e.key}/kpis.")]
    else:
        heading = f"{action.capitalize()}, {words.CODES.get(code, code).lower()}"
    aside = _wait(d)
    warnings = [{"icon": "late", "tone": "late", "text": warning} for warning in d.warnings]
    return {
        "id": "decide",
        "tone": words.TONES.get(action, "hold") if e.status == "running" else "hold",
        "icon": action if e.status == "running" else "hold",
        "heading": heading,
        "tag": {"icon": "clock", "text": "Nothing to answer"},
        "said": f"read{as_of(d)}" if d.said else "",
        **_proof(d, code, d.said.get("variant"), uid="p0"),
        "because": [*_because(d, reasons, action), *warnings],
        **_digest(d, proven := d.said.get("evidence_digest") or "", slot_of(d, proven)),
        "aside": aside,
    }


def _wait(d: ExperimentContext) -> dict[str, Any] | None:
    """What a person can do while there is nothing to answer."""
    e = d.e
    if e.status in page_data.CLOSED:
        return {
            "title": "It is over",
            "lines": ["Its rows, gates and history stay readable."],
            "url": d.url("report"),
            "label": "Report on one page",
        }
    if e.status == "draft":
        return {
            "title": "Next",
            "lines": ["Check the plan below, then start it."],
            "url": d.url("move", "running"),
            "label": "Start it",
        }
    lines = []
    if e.started_at and e.status == "running":
        least, most = d.body.get("min_days", 7), d.body.get("max_days", 28)
        first, last = page_data.ran_until(d.plan, least), page_data.ran_until(d.plan, most)
        lines.append(f"Not before {words.day(first)} ({least} days)." if first > d.now else f"{least} days are in.")
        lines.append(f"By {words.day(last)} at the latest it asks for a person ({most} days).")
        previous = Decision.objects.filter(experiment=e).order_by("-pk").first()
        if previous is not None:
            lines.append(
                f"Last answered {words.instant(previous.at, d.now)} by {previous.by}: {previous.action}{' to ' + previous.override_to if previous.override_to else ''}."
            )
    return {"title": "What it waits for", "lines": lines or ["Start it again when it should be judged on."]}
