"""What is wrong and was told, and what people answered to it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.urls import reverse

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import alarms as sentences
from decisioning.board import words
from decisioning.ledger import snoozing
from decisioning.ledger.models import Alarm

PAGE = 100
_TYPES = {
    "decision.overdue": "Answer overdue",
    "freshness.breached": "Late data",
    "guard.failed": "Guard fails",
    "slo.burning": "Promise broken",
}


def page(principal: Principal, *, now: datetime) -> dict[str, Any]:
    """All of them: first those that are told, the newest first, then those that are snoozed."""
    found = list(snoozing.told().order_by("-began_at", "-pk")[: PAGE + 1])
    loud = [alarm for alarm in found if not alarm.is_snoozed(now) and alarm.ended_at is None]
    return {
        "title": f"{words.plural(len(loud), 'alarm')} {'is' if len(loud) == 1 else 'are'} open"
        if loud
        else "Nothing is wrong now",
        "alarms": rows(sorted(found[:PAGE], key=lambda alarm: alarm not in loud), principal, now=now),
        "more": f"The newest {PAGE} are listed; GET /api/alarms has all." if len(found) > PAGE else "",
        "empty": {
            "icon": "pass",
            "title": "No alarm is open",
            "text": "Late data, failing guards, overdue answers and broken promises are listed here while they last.",
            "url": reverse("freshness"),
            "label": "To the freshness of data",
        },
    }


def rows(found: Sequence[Alarm], principal: Principal, *, now: datetime) -> list[dict[str, Any]]:
    teams = dict(Team.objects.filter(pk__in={alarm.team_id for alarm in found}).values_list("pk", "name"))
    return [_row(alarm, teams.get(alarm.team_id, ""), principal, now) for alarm in found]


def one(alarm: Alarm, principal: Principal, *, now: datetime) -> dict[str, Any]:
    """One alarm, and the forms that answer it for whoever may."""
    (row,) = rows([alarm], principal, now=now)
    return {"alarm": row, "may": principal.may(Scope.WRITE, alarm.team_id)}


def _row(alarm: Alarm, team: str, principal: Principal, now: datetime) -> dict[str, Any]:
    said = sentences.said(alarm.type, alarm.data, at=alarm.told_at or alarm.began_at)
    experiments = alarm.data.get("experiments") or [key for key in (alarm.data.get("experiment"),) if key]
    return {
        "url": reverse("alarm", args=[alarm.pk]),
        "team": team,
        "kind": _TYPES.get(alarm.type, alarm.type),
        "title": said.title if said else f"{alarm.type}: {alarm.subject}",
        "lines": list(said.lines) if said else [],
        "pill": _pill(alarm, now),
        "began": words.instant(alarm.began_at, now),
        "began_at": alarm.began_at.isoformat(),
        "told": words.instant(alarm.told_at, now) if alarm.told_at else "",
        "ended": words.instant(alarm.ended_at, now) if alarm.ended_at else "",
        "snoozed": snoozed(alarm, now),
        "sleeps": snoozed(alarm, now).removeprefix("Snoozed "),
        "acknowledged": f"{alarm.acknowledged_by} deals with it since {words.instant(alarm.acknowledged_at, now)}."
        if alarm.acknowledged_at
        else "",
        "experiments": [{"key": key, "url": reverse("experiment", args=[key])} for key in experiments],
        "others": max(alarm.data.get("experiments_late", 0) - len(experiments), 0),
        "snooze_url": reverse("alarm_snooze", args=[alarm.pk]),
        "wake_url": reverse("alarm_wake", args=[alarm.pk]) if alarm.is_snoozed(now) else "",
        "acknowledge_url": reverse("alarm_acknowledge", args=[alarm.pk]),
    }


def snoozed(alarm: Alarm, now: datetime) -> str:
    """Until when, by whom and why; empty: it is not."""
    if not alarm.is_snoozed(now):
        return ""
    return f"Snoozed until {words.instant(alarm.snoozed_until, now)} by {alarm.snoozed_by}: {alarm.snoozed_because}"


def _pill(alarm: Alarm, now: datetime) -> dict[str, Any]:
    if alarm.is_snoozed(now):
        return words.pill("clock", "Snoozed")
    if alarm.ended_at is not None:
        return words.pill("pass", "Over")
    if alarm.acknowledged_at is not None:
        return words.pill("user", "Acknowledged")
    return (
        words.pill("late", "Open")
        if alarm.type in ("freshness.breached", "decision.overdue")
        else words.pill("fail", "Open")
    )
