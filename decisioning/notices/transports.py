"""How a message gets to its receiver: signed webhook, Slack, e-mail.

Bodies are made when they are sent, from the message alone; `decisioning.ledger.delivery` says what is sent when, and again.
"""

import json
import smtplib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from standardwebhooks.webhooks import Webhook

from decisioning.access import outbound
from decisioning.ledger.channels import mailbox_of, secret_of
from decisioning.ledger.delivery import Outcome
from decisioning.ledger.models import Channel, Delivery, OutboxMessage
from decisioning.literals import rfc3339
from decisioning.notices.messages import data_of, notice_of

STEP_S, CALL_S = 5.0, 10.0
"""The longest step of a call, and the longest call."""
_EXCERPT = 300

type Picture = Callable[[OutboxMessage, datetime], tuple[str, str] | None]
"""(public URL of a PNG, what it shows in words) for a message, where there is one."""


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
        "timestamp": rfc3339(message.created_at, timespec="milliseconds"),
        "data": {"experiment": None, **data_of(message)},
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
    """An incoming webhook's body: Block Kit with a button to the board. `text` is what a notification shows, and all that Mattermost and
    Discord's /slack show, so it has reason and link too."""
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
    buttons = [("Open the board", notice.url), ("Snooze or acknowledge", notice.answer_url)]
    elements = [
        {"type": "button", "text": {"type": "plain_text", "text": label}, "url": url} for label, url in buttons if url
    ]
    blocks.append({"type": "actions", "elements": elements})
    blocks.append(
        {
            "type": "context",
            "elements": [
                {"type": "mrkdwn", "text": f"{message.type} · {rfc3339(message.created_at, timespec='milliseconds')}"}
            ],
        }
    )
    text = "\n".join([_slack(notice.title), *(_slack(line) for line in notice.lines[:1]), notice.url])
    return {"text": text[:3_000], "blocks": blocks}


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
            [
                "\n".join(notice.lines),
                "\n".join(facts),
                notice.url,
                notice.answer_url and f"Snooze or acknowledge it: {notice.answer_url}",
                f"{message.type}, {rfc3339(message.created_at, timespec='milliseconds')}",
            ],
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
