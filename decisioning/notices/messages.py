"""What a message of the outbox says to people. Made when it is sent or shown, from the message alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.urls import reverse

from decisioning.board import words
from decisioning.ledger.channels import TEST
from decisioning.ledger.models import OutboxMessage
from gates import wording
from gates.engine.narration import gate_in_words


@dataclass(frozen=True)
class Notice:
    """A message for people. lines: plain sentences, the weightiest first. path: where on the board to go on reading."""

    title: str
    lines: Sequence[str] = ()
    path: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{settings.PUBLIC_URL}{self.path or reverse('board')}"


def notice_of(message: OutboxMessage) -> Notice:
    """A message in words. A type nobody has words for is told by its name, so that nothing is lost."""
    data = data_of(message)
    of = _SAID.get(message.type)
    if of is None:
        return Notice(f"{message.type}: {data.get('experiment') or 'the portal'}", path=_page(data))
    return of(data)


def data_of(message: OutboxMessage) -> Mapping[str, Any]:
    """What a message says, its reasons in sentences, too: as of when it was made, so that every attempt says the same."""
    data: Mapping[str, Any] = message.data
    if "reasons" not in data:
        return data
    if message.type == "guard.failed":
        return {**data, "reason": gate_in_words(data, wording.reader([data], message.created_at))["reason"]}
    return {**data, "rationale": wording.sentences(data, message.created_at)[0]}


def _page(data: Mapping[str, Any]) -> str:
    return reverse("experiment", args=[data["experiment"]]) if data.get("experiment") else ""


def _about(data: Mapping[str, Any]) -> str:
    variant = data.get("variant")
    return f"{data['experiment']}, {variant}" if variant else str(data["experiment"])


def _proposed(data: Mapping[str, Any]) -> Notice:
    why = words.CODES.get(str(data.get("code")), str(data.get("code")))
    return Notice(
        f"{str(data['action']).capitalize()}? {_about(data)}",
        [str(line) for line in data.get("rationale") or ()][:6],
        _page(data),
        {"Proposed": str(data["action"]), "Why": why},
    )


def _answered(data: Mapping[str, Any]) -> Notice:
    did = f"overridden to {data['override_to']}" if data.get("override_to") else "accepted"
    lines = (
        [f"{data['by']} answered; the experiment is {data['status']}."]
        if data.get("status")
        else [f"{data['by']} answered."]
    )
    lines += [f"Reason: {data['reason']}"] if data.get("reason") else []
    return Notice(f"{str(data['recommended']).capitalize()} {did}: {_about(data)}", lines, _page(data))


def _overdue(data: Mapping[str, Any]) -> Notice:
    return Notice(
        f"Unanswered: {data['action']} {_about(data)}",
        [f"Proposed {data['proposed_at']}; the team answers within {data['answer_within_h']} h."],
        _page(data),
    )


def _changed(data: Mapping[str, Any]) -> Notice:
    was = f", was {data['from']}" if data.get("from") else ""
    lines = [f"By {data['by']}."] if data.get("by") else []
    lines += [f"Reason: {data['reason']}"] if data.get("reason") else []
    return Notice(f"{data['experiment']} is {data['to']}{was}", lines, _page(data))


def _breached(data: Mapping[str, Any]) -> Notice:
    lines = [
        f"{kpi['metric']}: "
        + (
            f"newest row {kpi['data_watermark']}, stale since {kpi['stale_at']}."
            if kpi["data_watermark"]
            else "no row yet."
        )
        for kpi in data["kpis"]
    ]
    late, waiting = data.get("experiments_late", 1), data.get("experiments_waiting", 1)
    if not waiting:
        lines.append("Nothing waits for it: it is shown only.")
    elif late == 1:
        lines.append("It is not judged on what is late.")
    else:
        suspended = data["proposals_suspended"]
        also = f" {suspended} of their proposals to scale cannot be accepted meanwhile." if suspended else ""
        lines.append(
            f"{waiting} of {late} experiments wait for it, among them {', '.join(data['experiments'][:5])}.{also}"
        )
    return Notice(f"Data is late: {_feed(data)}", lines, _page(data))


def _feed(data: Mapping[str, Any]) -> str:
    """A feed by its experiment when it is one, else by its source or metric."""
    if data.get("experiments_late", len(data.get("experiments", ()))) < 2:
        return str(data["experiment"])
    return str(data["feed"]["source"] or data["feed"]["metrics"][0])


def _recovered(data: Mapping[str, Any]) -> Notice:
    return Notice(f"Data is back: {_feed(data)}", [f"It was late since {data['since']}."], _page(data))


def _guard(data: Mapping[str, Any]) -> Notice:
    return Notice(
        f"Guard failed: {_about(data)}", [f"{data['gate']} ({data['metric']}): {data['reason']}"], _page(data)
    )


def _burning(data: Mapping[str, Any]) -> Notice:
    lines = [f"{data['figure']}, promised is {data['target']}."]
    return Notice(f"Promise broken: {data['name']}", lines, reverse("promises"))


def _test(data: Mapping[str, Any]) -> Notice:
    return Notice("A test from Decisioning", [f"{data['by']} asked for it. This channel works."])


_SAID: Mapping[str, Callable[[Mapping[str, Any]], Notice]] = {
    "decision.proposed": _proposed,
    "decision.answered": _answered,
    "decision.overdue": _overdue,
    "experiment.changed": _changed,
    "freshness.breached": _breached,
    "freshness.recovered": _recovered,
    "guard.failed": _guard,
    "slo.burning": _burning,
    TEST: _test,
}
