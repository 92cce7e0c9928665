"""Whom a team has told: its webhooks, Slack channels and e-mail addresses, and what became of each message."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Count, Q
from django.http import QueryDict
from django.urls import reverse

from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.presenters.frame import before, older, options, query
from decisioning.ledger.channels import address_of
from decisioning.ledger.models import Channel, Delivery

PAGE = 50
STATES = {"waiting": "Waiting", "delivered": "Delivered", "dead": "Dead letter"}
_TONES = {"waiting": "hold", "delivered": "pass", "dead": "fail"}


def may_see(principal: Principal) -> Sequence[int] | None:
    """Teams whose receivers the person may manage; None is every team."""
    if principal.is_admin:
        return None
    return [team for team, held in principal.teams.items() if Scope.KEYS in held]


def webhooks(principal: Principal, *, now: datetime) -> dict[str, Any]:
    """Every receiver of the teams in which the person may manage them."""
    found = Channel.objects.select_related("team").order_by("-id")
    teams = may_see(principal)
    if teams is not None:
        found = found.filter(team__in=teams)
    counted = found.annotate(
        waiting=Count("deliveries", filter=Q(deliveries__state="waiting")),
        dead=Count("deliveries", filter=Q(deliveries__state="dead")),
    )
    return {
        "webhooks": [_row(channel, now) for channel in counted],
        "empty": {
            "icon": "link",
            "title": "Nobody is told yet",
            "text": "Add an address below, and what happens to your experiments is told there as it happens.",
            "url": "",
        },
    }


def webhook(channel: Channel, params: QueryDict, *, now: datetime) -> dict[str, Any]:
    """One receiver and its deliveries, newest first."""
    chosen = params.get("state", "") if params.get("state", "") in STATES else ""
    deliveries = Delivery.objects.select_related("message").filter(channel=channel).order_by("-id")
    if chosen:
        deliveries = deliveries.filter(state=chosen)
    if last := before(params):
        deliveries = deliveries.filter(pk__lt=last)
    found = list(deliveries[: PAGE + 1])
    return {
        "name": channel.name,
        "address": address_of(channel),
        "team": channel.team.name,
        "pill": _pill(channel),
        "off": channel.disabled_reason,
        "facts": _facts(channel, now),
        "test_url": reverse("webhook_test", args=[channel.pk]),
        "delete_url": reverse("webhook_delete", args=[channel.pk]),
        "csv": reverse("deliveries_csv", args=[channel.pk]) + query(params, before=None),
        "states": options(STATES, chosen),
        "deliveries": [_delivery(d, channel, now) for d in found[:PAGE]],
        "pages": older(params, found, size=PAGE, noun="delivery", nouns="deliveries"),
        "empty": {
            "icon": "search" if chosen else "clock",
            "title": "No delivery matches" if chosen else "Nothing was sent yet",
            "text": "Nothing in the list is in this state."
            if chosen
            else "Try it out: a test goes out within seconds.",
            "url": reverse("webhook", args=[channel.pk]) if chosen else "",
            "label": "Show every delivery",
        },
    }


def notices(principal: Principal) -> list[Mapping[str, str]]:
    """What stands above every page for those who can mend it: receivers that were turned off."""
    teams = may_see(principal)
    if teams == []:
        return []
    off = Channel.objects.filter(enabled=False).order_by("-disabled_at")
    if teams is not None:
        off = off.filter(team__in=teams)
    return [
        {"text": f"{channel} was turned off. {channel.disabled_reason}", "url": reverse("webhook", args=[channel.pk])}
        for channel in off[:3]
    ]


def _row(channel: Channel, now: datetime) -> dict[str, Any]:
    waiting, dead = channel.waiting, channel.dead  # type: ignore[attr-defined]
    told = [words.plural(waiting, "waits", "wait")] if waiting else []
    told += [words.plural(dead, "dead letter")] if dead else []
    return {
        "name": channel.name,
        "team": channel.team.name,
        "pill": _pill(channel),
        "events": ", ".join(channel.events),
        "queue": ", ".join(told) or "nothing",
        "made": f"{words.instant(channel.created_at, now)} by {channel.created_by}",
        "url": reverse("webhook", args=[channel.pk]),
    }


def _pill(channel: Channel) -> dict[str, Any]:
    if not channel.enabled:
        return words.pill("fail", "Off")
    if channel.failures:
        return words.pill("late", f"Failing, {channel.failures}")
    return words.pill("pass", "On")


def _facts(channel: Channel, now: datetime) -> list[dict[str, str]]:
    facts = [
        ("Gets", ", ".join(channel.events)),
        ("Made", f"{words.instant(channel.created_at, now)} by {channel.created_by}"),
    ]
    if channel.failing_since:
        facts.append(("Failing since", words.instant(channel.failing_since, now)))
    if channel.enabled and channel.next_at > now:
        facts.append(("Called again", f"{words.instant(channel.next_at, now)}: it could not be reached"))
    return [{"label": label, "text": text} for label, text in facts]


def _delivery(delivery: Delivery, channel: Channel, now: datetime) -> dict[str, Any]:
    experiment = delivery.message.data.get("experiment")
    return {
        "id": delivery.pk,
        "message": f"msg_{delivery.message_id}",
        "at": delivery.message.created_at.isoformat(),
        "when": words.instant(delivery.message.created_at, now),
        "type": delivery.message.type,
        "experiment": experiment or "",
        "experiment_url": reverse("experiment", args=[experiment]) if experiment else "",
        "pill": words.pill(_TONES[delivery.state], STATES[delivery.state]),
        "attempts": words.plural(delivery.attempts, "attempt"),
        "next": words.instant(delivery.next_at, now) if delivery.state == Delivery.State.WAITING else "",
        "arrived": words.instant(delivery.delivered_at, now) if delivery.delivered_at else "",
        "error": delivery.last_error,
        "again_url": reverse("webhook_again", args=[channel.pk, delivery.pk]),
    }
