"""What people answer an alarm: to tell nothing of it until an instant, or that somebody deals with it. Both are in the audit."""

from datetime import datetime, timedelta

from django.db.models import QuerySet

from decisioning.ledger.models import Alarm
from decisioning.literals import rfc3339
from decisioning.refusals import Fault, Refused

LONGEST = timedelta(days=30)
"""For no longer is an alarm snoozed: what stays wrong is looked at again."""


class SnoozeRefused(Refused):
    """Nothing was changed."""


def told() -> QuerySet[Alarm]:
    """The alarms that were told and are not over, or are snoozed: those that somebody can answer."""
    return Alarm.objects.filter(told_at__isnull=False)


def snooze(alarm: Alarm, *, until: datetime, reason: str, by: str, now: datetime) -> Alarm:
    """Tell nothing of it before `until`, neither that it spreads nor that it is over; then what is so. Again: another end or reason.

    Raises SnoozeRefused: `timestamp_in_past`, `timestamp_in_future`, `missing_field`, `invalid_text`.
    """
    faults = []
    if until <= now:
        detail = f"until is {rfc3339(until)}, which is over ({rfc3339(now, timespec='seconds')}). Give an instant that lies ahead."
        faults.append(Fault("/until", "timestamp_in_past", detail))
    elif until > now + LONGEST:
        detail = f"until is {rfc3339(until)}, more than {LONGEST.days} days ahead. Snooze it again then, or mend what is wrong."
        faults.append(Fault("/until", "timestamp_in_future", detail))
    if not reason.strip():
        faults.append(Fault("/reason", "missing_field", "reason is empty. Say why nobody needs to be told meanwhile."))
    elif len(reason) > 500:
        faults.append(Fault("/reason", "invalid_text", f"reason has {len(reason)} characters, at most 500 fit."))
    if faults:
        raise SnoozeRefused.of(*faults)
    alarm.snoozed_until, alarm.snoozed_at, alarm.snoozed_by, alarm.snoozed_because = until, now, by, reason.strip()
    alarm.save(update_fields=["snoozed_until", "snoozed_at", "snoozed_by", "snoozed_because"])
    return alarm


def wake(alarms: QuerySet[Alarm]) -> None:
    """They are snoozed no longer. Woken by a person an alarm is not told anew: whoever wakes it knows."""
    alarms.update(snoozed_until=None, snoozed_at=None, snoozed_by="", snoozed_because="")


def acknowledge(alarm: Alarm, *, by: str, now: datetime) -> Alarm:
    """Somebody deals with it: that it spreads is told no more, that it is over is. Done twice it is the first one's."""
    if alarm.acknowledged_at is None:
        alarm.acknowledged_at, alarm.acknowledged_by = now, by
        alarm.save(update_fields=["acknowledged_at", "acknowledged_by"])
    return alarm


def take_back(alarm: Alarm) -> Alarm:
    """Nobody deals with it any more: it is told again as it spreads."""
    alarm.acknowledged_at, alarm.acknowledged_by = None, ""
    alarm.save(update_fields=["acknowledged_at", "acknowledged_by"])
    return alarm
