"""Planned outages of the person's teams: what is on, what lies ahead, what is over."""

from datetime import datetime
from typing import Any

from django.http import QueryDict
from django.urls import reverse

from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.presenters.frame import before, older
from experiments.models import Metric
from telemetry.models import Outage

PAGE = 50


def page(principal: Principal, params: QueryDict, *, now: datetime) -> dict[str, Any]:
    """On and ahead first, then what is over, the newest first; and what a new one may be of."""
    ahead = list(Outage.objects.select_related("team").filter(ends_at__gte=now).order_by("begins_at", "pk")[:PAGE])
    over = Outage.objects.select_related("team").filter(ends_at__lt=now).order_by("-pk")
    if last := before(params):
        over = over.filter(pk__lt=last)
    past = list(over[: PAGE + 1])
    on = sum(outage.begins_at <= now for outage in ahead)
    return {
        "title": f"{words.plural(on, 'planned outage')} {'is' if on == 1 else 'are'} on"
        if on
        else "No planned outage is on",
        "outages": [row(outage, principal, now=now) for outage in [*ahead, *past[:PAGE]]],
        "pages": older(params, past, size=PAGE, noun="outage"),
        "metrics": list(Metric.objects.order_by("key").values_list("key", flat=True)[:500]),
        "empty": {
            "icon": "clock",
            "title": "No outage was planned yet",
            "text": "Before a warehouse moves or a shop closes over the holidays, say so here: nothing that is due then is missed.",
            "url": "",
        },
    }


def row(outage: Outage, principal: Principal, *, now: datetime) -> dict[str, Any]:
    may = principal.may(Scope.TELEMETRY, outage.team_id)
    on = outage.begins_at <= now <= outage.ends_at
    return {
        "of": of(outage),
        "team": outage.team.name,
        "pill": words.pill("clock", "On")
        if on
        else words.pill("clock", "Ahead", line=True)
        if outage.begins_at > now
        else words.pill("s-stopped", "Over", line=True),
        "begins": words.instant(outage.begins_at, now),
        "begins_at": outage.begins_at.isoformat(),
        "ends": words.instant(outage.ends_at, now),
        "reason": outage.reason,
        "made": f"{words.instant(outage.created_at, now)}{', afterwards' if outage.created_at > outage.begins_at else ''}",
        "end_url": reverse("outage_end", args=[outage.pk]) if may and on else "",
        "take_back_url": reverse("outage_take_back", args=[outage.pk]) if may else "",
    }


def of(outage: Outage) -> str:
    """What is away, in words."""
    sources = [f"all that {key} feeds" for key in outage.sources]
    return ", ".join([*sources, *outage.metrics])


def said(outage: Outage, now: datetime) -> str:
    """When and why, in a line."""
    return f"{words.instant(outage.begins_at, now)} to {words.instant(outage.ends_at, now)}: {outage.reason}"
