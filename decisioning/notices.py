"""What a message of the outbox says to people and programs, and how it gets to them: signed webhook, Slack, e-mail.

Bodies are made when they are sent, from the message alone; `decisioning.ledger.delivery` says what is sent when, and again.
"""

import json
import smtplib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.urls import reverse
from standardwebhooks.webhooks import Webhook

from decisioning.access import outbound
from decisioning.board import words
from decisioning.ledger.channels import TEST, mailbox_of, secret_of
from decisioning.ledger.delivery import Outcome
from decisioning.ledger.models import Channel, Delivery, OutboxMessage

STEP_S, CALL_S = 5.0, 10.0
"""The longest step of a call, and the longest call."""
_EXCERPT = 300

type Picture = Callable[[OutboxMessage, datetime], tuple[str, str] | None]
"""(public URL of a PNG, what it shows in words) for a message, where there is one."""


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


def send(delivery: Delivery, now: datetime, *, picture: Picture = lambda _message, _now: None) -> Outcome:
    """Carry one delivery out; takes at most CALL_S (an e-mail: a few steps of STEP_S)."""
    channel, message = delivery.channel, delivery.message
    if channel.kind == Channel.Kind.EMAIL:
        return _mail(channel, message)
    if channel.kind == Channel.Kind.SLACK:
        # Slack refuses the whole message when it cannot fetch the picture: a second attempt goes without.
        shown = picture(message, now) if delivery.attempts == 0 else None
        body = json.dumps(slack_body(message, picture=shown)).encode()
        return _post(channel.url, body, {})
    body = webhook_body(message)
    return _post(channel.url, body, signed(channel, message, body, now))


# Webhooks -----------------------------------------------------------------------------------------------------------------


def webhook_id(message: OutboxMessage) -> str:
    """The same at every attempt and on every channel, so that a receiver knows what it has."""
    return f"msg_{message.pk}"


def webhook_body(message: OutboxMessage) -> bytes:
    """`{type, timestamp, data}` as UTF-8 JSON; timestamp is when it happened, not when it is sent."""
    told = {
        "type": message.type,
        "timestamp": _rfc3339(message.created_at),
        "data": {"experiment": None, **message.data},
    }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()


def signed(channel: Channel, message: OutboxMessage, body: bytes, now: datetime) -> dict[str, str]:
    """The three headers of Standard Webhooks."""
    at = now.astimezone(UTC)
    signature = Webhook(secret_of(channel)).sign(webhook_id(message), at, body.decode())
    return {
        "webhook-id": webhook_id(message),
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": signature,
    }


def _post(url: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
    import httpx  # here: a process that calls nobody does not pay for it

    from decisioning.access import calls

    sent = {"Content-Type": "application/json", "User-Agent": "decisioning", **headers}
    try:
        with (
            calls.client(timeout_s=min(STEP_S, CALL_S), within_s=CALL_S) as client,
            client.stream("POST", url, content=body, headers=sent) as response,
        ):
            status = response.status_code
            if 200 <= status < 300:
                return Outcome(status)
            excerpt = next(response.iter_raw(_EXCERPT), b"").decode(errors="replace")
    except outbound.Blocked as refusal:
        return Outcome(error=f"webhook_blocked: {refusal}", unreachable=True)
    except (httpx.HTTPError, httpx.InvalidURL) as failure:
        return Outcome(
            error=f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__, unreachable=True
        )
    said = " ".join("".join(c if c.isprintable() else " " for c in excerpt).split())
    word = "a redirect, which is not followed" if 300 <= status < 400 else said
    return Outcome(status, f"It answered {status}{': ' if word else ''}{word}", gone=status == 410)


# Slack --------------------------------------------------------------------------------------------------------------------


def slack_body(message: OutboxMessage, *, picture: tuple[str, str] | None = None) -> dict[str, Any]:
    """An incoming webhook's body: Block Kit with a button to the board; `text` is what a notification shows."""
    notice = notice_of(message)
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": notice.title[:150], "emoji": False}}
    ]
    if notice.lines:
        text = "\n".join(f"• {_slack(line)}" for line in notice.lines)
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": text[:3000]}})
    if notice.facts:
        facts = [{"type": "mrkdwn", "text": f"*{_slack(k)}*\n{_slack(v)}"[:2000]} for k, v in notice.facts.items()]
        blocks.append({"type": "section", "fields": facts[:10]})
    if picture:
        url, alt = picture
        blocks.append({"type": "image", "image_url": url, "alt_text": alt[:2000]})
    button = {"type": "button", "text": {"type": "plain_text", "text": "Open the board"}, "url": notice.url}
    blocks.append({"type": "actions", "elements": [button]})
    blocks.append(
        {
            "type": "context",
            "elements": [{"type": "mrkdwn", "text": f"{message.type} · {_rfc3339(message.created_at)}"}],
        }
    )
    return {"text": _slack(notice.title), "blocks": blocks}


def _slack(text: str) -> str:
    """Slack's three control characters."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# E-mail -------------------------------------------------------------------------------------------------------------------


def _mail(channel: Channel, message: OutboxMessage) -> Outcome:
    notice = notice_of(message)
    facts = [f"{name}: {text}" for name, text in notice.facts.items()]
    text = "\n\n".join(
        filter(
            None,
            ["\n".join(notice.lines), "\n".join(facts), notice.url, f"{message.type}, {_rfc3339(message.created_at)}"],
        )
    )
    # The receiver's program sees the same message by the same id, and threads what is about one experiment.
    headers = {
        "Message-ID": f"<{webhook_id(message)}.{channel.pk}@{settings.DEFAULT_FROM_EMAIL.rpartition('@')[2].rstrip('>')}>"
    }
    mail = EmailMessage(
        f"[Decisioning] {' '.join(notice.title.split())}", text, to=[mailbox_of(channel.url)], headers=headers
    )
    if not settings.EMAIL_ON:
        return Outcome(error="This installation sends no e-mail: DECISIONING_EMAIL_URL is not set.", unreachable=True)
    try:
        mail.send()
    except smtplib.SMTPRecipientsRefused as refusal:
        said = "; ".join(f"{code} {_words(reply)}" for code, reply in refusal.recipients.values())
        return Outcome(error=f"The mail server refuses the address: {said}")
    except smtplib.SMTPResponseException as refusal:
        return Outcome(refusal.smtp_code, f"The mail server answered {refusal.smtp_code}: {_words(refusal.smtp_error)}")
    except (OSError, smtplib.SMTPException) as failure:
        return Outcome(error=f"{type(failure).__name__}: {failure}", unreachable=True)
    return Outcome()


def _words(text: bytes | str) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


# In words -----------------------------------------------------------------------------------------------------------------


def notice_of(message: OutboxMessage) -> Notice:
    """A message in words. A type nobody has words for is told by its name, so that nothing is lost."""
    data: Mapping[str, Any] = message.data
    of = _SAID.get(message.type)
    if of is None:
        return Notice(f"{message.type}: {data.get('experiment') or 'the portal'}", path=_page(data))
    return of(data)


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
    return Notice(f"Data is late: {data['experiment']}", [*lines, "It is not judged on what is late."], _page(data))


def _recovered(data: Mapping[str, Any]) -> Notice:
    return Notice(f"Data is back: {data['experiment']}", [f"It was late since {data['since']}."], _page(data))


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


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
