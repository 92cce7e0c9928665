"""What a message of the outbox says to people. Made when it is sent or shown, from the message alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.urls import reverse

from decisioning.board import alarms, words
from decisioning.board.alarms import about, page
from decisioning.ledger.channels import TEST
from decisioning.ledger.models import OutboxMessage


@dataclass(frozen=True)
class Notice:
    """A message for people. lines: plain sentences, the weightiest first. path: where on the board to go on reading; answer_path: where to
    snooze or acknowledge the alarm that it tells of, if it tells of one."""

    title: str
    lines: Sequence[str] = ()
    path: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    answer_path: str = ""

    @property
    def url(self) -> str:
        return f"{settings.PUBLIC_URL}{self.path or reverse('board')}"

    @property
    def answer_url(self) -> str:
        return f"{settings.PUBLIC_URL}{self.answer_path}" if self.answer_path else ""


def notice_of(message: OutboxMessage) -> Notice:
    """A message in words. A type nobody has words for is told by its name, so that nothing is lost."""
    data = data_of(message)
    if (wrong := alarms.said(message.type, message.data, at=message.created_at)) is not None:
        woken = ["It was snoozed until now."] if data.get("occasion") == "snooze_ended" else []
        answer = reverse("alarm", args=[data["alarm"]]) if "occasion" in data else ""
        return Notice(wrong.title, [*woken, *wrong.lines], wrong.path, answer_path=answer)
    of = _SAID.get(message.type)
    if of is None:
        return Notice(f"{message.type}: {data.get('experiment') or 'the portal'}", path=page(data))
    return of(data)


def data_of(message: OutboxMessage) -> Mapping[str, Any]:
    """What a message says, its reasons in sentences, too: as of when it was made, so that every attempt says the same."""
    return alarms.with_sentences(message.type, message.data, at=message.created_at)


def _proposed(data: Mapping[str, Any]) -> Notice:
    why = words.CODES.get(str(data.get("code")), str(data.get("code")))
    return Notice(
        f"{str(data['action']).capitalize()}? {about(data)}",
        [str(line) for line in data.get("rationale") or ()][:6],
        page(data),
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
    return Notice(f"{str(data['recommended']).capitalize()} {did}: {about(data)}", lines, page(data))


def _changed(data: Mapping[str, Any]) -> Notice:
    was = f", was {data['from']}" if data.get("from") else ""
    lines = [f"By {data['by']}."] if data.get("by") else []
    lines += [f"Reason: {data['reason']}"] if data.get("reason") else []
    return Notice(f"{data['experiment']} is {data['to']}{was}", lines, page(data))


def _test(data: Mapping[str, Any]) -> Notice:
    return Notice("A test from Decisioning", [f"{data['by']} asked for it. This channel works."])


_SAID: Mapping[str, Callable[[Mapping[str, Any]], Notice]] = {
    "decision.proposed": _proposed,
    "decision.answered": _answered,
    "experiment.changed": _changed,
    TEST: _test,
}
