"""Who a team wants to be told by: its webhooks, Slack channels and e-mail addresses. The only maker of channels."""

import base64
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.utils.crypto import salted_hmac

from decisioning.access import outbound
from decisioning.access.models import Team
from decisioning.access.quotas import refuse_one_more
from decisioning.ledger.models import Channel, Delivery
from decisioning.ledger.outbox import EVENTS, publish
from decisioning.refusals import Fault, Refused

TEST = "webhook.test"
"""The type of the message that only tries a channel out: sent to it alone, once, also while the channel is off."""
_SLACK_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")


class ChannelRefused(Refused):
    """The channel is not made, or not used."""


def open_channel(
    team: Team, *, url: str, events: Sequence[str], by: str, now: datetime, kind: str = ""
) -> tuple[Channel, str]:
    """A new channel and the secret that signs its messages ("" for one that is no webhook), which is shown once.

    kind: by default what the address says. Raises ChannelRefused: `webhook_blocked`, `invalid`, `email_off`; QuotaExceeded: `too_many_webhooks`.
    """
    url, kind = url.strip(), kind or kind_of(url.strip())
    unknown = [event for event in events if event not in EVENTS]
    if unknown or not events:
        detail = f"There is no event {unknown[0]!r}." if unknown else "Name at least one event."
        raise ChannelRefused.of(Fault("/events", "invalid", f"{detail} Choose from {', '.join(EVENTS)}."))
    host = _email_host(url) if kind == Channel.Kind.EMAIL else _web_host(url)
    refuse_one_more(team, "webhooks", has=Channel.objects.filter(team=team).count())
    channel = Channel.objects.create(
        team=team,
        kind=kind,
        name=f"{Channel.Kind(kind).label} {host}"[:200],
        url=url,
        events=list(dict.fromkeys(events)),
        salt=secrets.token_urlsafe(32),
        created_by=by,
        created_at=now,
        next_at=now,
    )
    return channel, secret_of(channel) if kind == Channel.Kind.WEBHOOK else ""


def close_channel(channel: Channel) -> None:
    """Nothing more is sent to it; what waited is dropped, and its deliveries are no longer listed."""
    channel.delete()


def kind_of(url: str) -> str:
    """
    >>> [str(kind_of(url)) for url in ("mailto:ann@example.org", "https://hooks.slack.com/services/T/B/x", "https://example.org")]
    ['email', 'slack', 'webhook']
    """
    if url.lower().startswith("mailto:"):
        return Channel.Kind.EMAIL
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    return Channel.Kind.SLACK if host in _SLACK_HOSTS else Channel.Kind.WEBHOOK


def secret_of(channel: Channel) -> str:
    """`whsec_` and 256 bits, made anew from the channel's salt and the installation's key: a dump of the database signs nothing."""
    key = salted_hmac("decisioning.ledger.channels", channel.salt, algorithm="sha256").digest()
    return f"whsec_{base64.b64encode(key).decode()}"


def address_of(channel: Channel) -> str:
    """The address as it may be shown again: that of a Slack channel is a credential, so it is cut off.

    >>> address_of(Channel(kind="slack", url="https://hooks.slack.com/services/T0/B0/secret"))
    'https://hooks.slack.com/…'
    """
    if channel.kind != Channel.Kind.SLACK:
        return channel.url
    parts = urlsplit(channel.url)
    return f"{parts.scheme}://{parts.netloc}/…"


def mailbox_of(url: str) -> str:
    """
    >>> mailbox_of("mailto:ann%2Bdecisions@example.org?subject=x")
    'ann+decisions@example.org'
    """
    return unquote(url.partition(":")[2].partition("?")[0])


def try_out(channel: Channel, *, by: str, now: datetime) -> Delivery:
    """Queue a message that says no more than that the channel works. Arrived at a channel that is off, it turns it on again."""
    message = publish(
        team_id=channel.team_id,
        experiment_id=None,
        type=TEST,
        data={"experiment": None, "webhook": channel.pk, "by": by},
        now=now,
        to_all=False,
    )
    Channel.objects.filter(pk=channel.pk).update(next_at=now)
    return Delivery.objects.create(
        message=message,
        channel=channel,
        team_id=channel.team_id,
        created_at=now,
        next_at=now,
    )


def send_again(delivery: Delivery, *, now: datetime) -> Delivery:
    """Queue a delivery once more, whatever became of it; the receiver knows the message by its id.

    Raises ChannelRefused: 409 `webhook_off`.
    """
    if not delivery.channel.enabled and delivery.message.type != TEST:
        message = (
            f"{delivery.channel} is off: {delivery.channel.disabled_reason} A test that arrives turns it on again."
        )
        raise ChannelRefused("webhook_off", message, status=409)
    delivery.state = Delivery.State.WAITING
    delivery.attempts, delivery.delivered_at = 0, None
    delivery.trying_since, delivery.asked_at, delivery.next_at = None, now, now
    delivery.save(update_fields=["state", "attempts", "delivered_at", "trying_since", "asked_at", "next_at"])
    Channel.objects.filter(pk=delivery.channel_id).update(next_at=now)
    return delivery


def _web_host(url: str) -> str:
    if re.search(r"[\s\x00-\x20\x7f]", url) or len(url) > 2000:
        raise ChannelRefused.of(Fault("/url", "invalid", "The URL holds blanks or is too long."))
    try:
        outbound.check_url(url)
    except outbound.Blocked as refusal:
        raise ChannelRefused.of(Fault("/url", "webhook_blocked", str(refusal)), code="webhook_blocked") from refusal
    return str(urlsplit(url).hostname)


def _email_host(url: str) -> str:
    mailbox = mailbox_of(url)
    try:
        validate_email(mailbox)
    except ValidationError as refusal:
        detail = f"{url[:100]!r} is no mailto: address of one mailbox."
        raise ChannelRefused.of(Fault("/url", "invalid", detail)) from refusal
    if not settings.EMAIL_ON:
        message = "This installation sends no e-mail. Its operator can set DECISIONING_EMAIL_URL."
        raise ChannelRefused.of(Fault("/url", "email_off", message), code="email_off")
    return f"to {mailbox}"
