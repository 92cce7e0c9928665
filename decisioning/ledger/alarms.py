"""What ticks find wrong is told once a change. What was told stands in PostgreSQL, so that no restart tells it again.

A look finds everything that is wrong now. Something new is told when it has lasted `hold_for`; something told is over when it has
been gone for `keep_firing_for`. Between the two it may come and go without a word. People answer alarms in `decisioning.ledger.snoozing`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial

from django.db import connection, transaction

from decisioning.ledger.items import alone
from decisioning.ledger.models import Alarm, OutboxMessage
from decisioning.ledger.outbox import publish_all
from decisioning.ledger.snoozing import wake
from decisioning.literals import rfc3339

STEADY_AFTER = timedelta(minutes=5)
RETRY_AFTER = timedelta(hours=1)
UPDATE_AFTER = timedelta(hours=1)
"""What spreads is told again only so long after the last message of it."""
_FOUND = ["told_at", "ended_at", "data", "told"]


@dataclass(frozen=True)
class Condition:
    """One thing that is wrong now. subject: what it is about, once within its type and team. data: what the message says."""

    team_id: int
    experiment_id: int | None
    subject: str
    data: Mapping[str, object]


@dataclass(frozen=True)
class Unknown:
    """Nothing can be said of this team now: what was wrong with it stays as it is."""

    team_id: int


type OnResolved = Callable[[Sequence[Alarm]], Mapping[int, Mapping[str, object]]]
"""Of alarms that are over, by id: what to tell of them. One that is left out ends without a word."""
type Spread = Callable[[Mapping[str, object], Mapping[str, object]], bool]
"""Whether what would be told now, the second, reaches further than what was last told, the first."""


class Occasion(StrEnum):
    """Why something that is wrong is told, as a message says it."""

    BEGAN = "began"
    SPREAD = "spread"
    SNOOZE_ENDED = "snooze_ended"


def reconcile(
    event: str,
    find: Callable[[], Iterable[Condition | Unknown]],
    *,
    now: datetime,
    hold_for: timedelta = timedelta(0),
    keep_firing_for: timedelta = timedelta(0),
    on_resolved: tuple[str, OnResolved] | None = None,
    spread: Spread | None = None,
) -> int:
    """Tell what is new of `event`, and what is over by the event of `on_resolved`. In the caller's transaction; returns the messages told.

    find: finds all that is wrong now. Of two ticks at once the second does not even look: the first is just doing so. An alarm that
    cannot be told costs no other its message: why stands in its data, and it is tried again after RETRY_AFTER. What spreads is told again
    UPDATE_AFTER the last message, unless somebody has acknowledged it. Of a snoozed alarm nothing is told; once that ends, what is so then.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT access.lock(%s, false)", [f"alarms {event}"])
        if cursor.fetchone() != (True,):
            return 0
    known = {(alarm.team_id, alarm.subject): alarm for alarm in Alarm.objects.filter(type=event)}
    steps: list[_Step] = []
    for found in find():
        if isinstance(found, Unknown):
            known = {of: alarm for of, alarm in known.items() if alarm.team_id != found.team_id}
            continue
        alarm = known.pop((found.team_id, found.subject), None)
        changed = alarm is None or alarm.ended_at is not None or alarm.told_at is None
        if alarm is None:
            alarm = Alarm(
                team_id=found.team_id,
                experiment_id=found.experiment_id,
                type=event,
                subject=found.subject,
                began_at=now,
            )
        alarm.ended_at = None
        if spread is not None and alarm.data != found.data:
            alarm.data, changed = dict(found.data), True
        occasion = _occasion(alarm, found.data, now, hold_for, spread)
        message = None if occasion is None else _told(alarm, occasion, found.data, now)
        if changed or message is not None:
            steps.append(_Step(alarm, message))
    resolved = []
    for alarm in known.values():
        changed = alarm.told_at is not None and alarm.ended_at is None
        if changed:
            alarm.ended_at = now
        lasting = alarm.told_at is not None and now - (alarm.ended_at or now) < keep_firing_for
        ends = not lasting and not alarm.is_snoozed(now)
        if ends or changed:
            resolved.append(_Step(alarm, goes=ends))
    if on_resolved is not None:
        ended, say = on_resolved
        said = say([step.alarm for step in resolved if step.goes and step.alarm.told_at is not None])
        resolved = [
            _Step(step.alarm, _message(ended, step.alarm, said[step.alarm.pk], now), goes=True)
            if step.goes and step.alarm.pk in said
            else step
            for step in resolved
        ]
    return _take([*steps, *resolved], now)


def _occasion(
    alarm: Alarm, found: Mapping[str, object], now: datetime, hold_for: timedelta, spread: Spread | None
) -> Occasion | None:
    """Why to tell of an alarm now; None: nothing is to be told."""
    if alarm.is_snoozed(now):
        return None
    if alarm.told_at is None:
        return Occasion.BEGAN if now - alarm.began_at >= hold_for else None
    if alarm.snoozed_until is not None:
        return Occasion.SNOOZE_ENDED
    told_again = alarm.acknowledged_at is None and now - alarm.told_at >= UPDATE_AFTER
    return Occasion.SPREAD if told_again and spread is not None and spread(alarm.told, found) else None


def _told(alarm: Alarm, occasion: Occasion, found: Mapping[str, object], now: datetime) -> OutboxMessage:
    """The message, and the alarm as it is once it is told."""
    alarm.told_at, alarm.data, alarm.told = now, dict(found), dict(found)
    return _message(alarm.type, alarm, {**found, "occasion": occasion, "began_at": rfc3339(alarm.began_at)}, now)


@dataclass(frozen=True)
class _Step:
    """An alarm as it is from now on, and what is told of it."""

    alarm: Alarm
    message: OutboxMessage | None = None
    goes: bool = False


def _take(steps: Sequence[_Step], now: datetime) -> int:
    """All at once; where that fails each alone, so that what is wrong with one holds up that one. Returns the messages told."""
    new = [step.alarm for step in steps if step.alarm.pk is None]
    try:
        with transaction.atomic():
            _write(steps)
    except Exception:  # which of them it is, and what it says, is found out now
        for row in (*new, *(step.message for step in steps if step.message is not None)):
            row.pk = None  # it was given one that was then rolled back
        done = [step for step in steps if _took(step, now)]
    else:
        done = list(steps)
    return sum(step.message is not None for step in done)


def _took(step: _Step, now: datetime) -> bool:
    with alone(f"Alarm {step.alarm} of team {step.alarm.team_id}", rests=partial(_retry_later, step.alarm, now)):
        with transaction.atomic():
            _write([step])
        return True
    return False


def _write(steps: Sequence[_Step]) -> None:
    kept = [step.alarm for step in steps if not step.goes]
    Alarm.objects.bulk_create([alarm for alarm in kept if alarm.pk is None], batch_size=1000)
    Alarm.objects.bulk_update([alarm for alarm in kept if alarm.pk is not None], _FOUND, batch_size=500)
    for step in steps:
        if step.message is not None:
            step.message.data["alarm"] = step.alarm.pk
            if step.message.data.get("occasion") == Occasion.SNOOZE_ENDED:
                wake(Alarm.objects.filter(pk=step.alarm.pk, snoozed_until__lte=step.message.created_at))
    Alarm.objects.filter(pk__in=[step.alarm.pk for step in steps if step.goes]).delete()
    publish_all([step.message for step in steps if step.message is not None])


def _retry_later(alarm: Alarm, now: datetime, error: str) -> None:
    """Not told: it begins anew later, as far as its telling goes."""
    Alarm.objects.update_or_create(
        type=alarm.type,
        team_id=alarm.team_id,
        subject=alarm.subject,
        defaults={
            "experiment_id": alarm.experiment_id,
            "began_at": now + RETRY_AFTER,
            "told_at": None,
            "ended_at": None,
            "data": {"failure": error},
        },
    )


def _message(event: str, alarm: Alarm, data: Mapping[str, object], now: datetime) -> OutboxMessage:
    return OutboxMessage(
        team_id=alarm.team_id, experiment_id=alarm.experiment_id, type=event, data=dict(data), created_at=now
    )
