"""What ticks find wrong is told once a change. What was told stands in PostgreSQL, so that no restart tells it again.

A look finds everything that is wrong now. Something new is told when it has lasted `after`; something told is over when it has
been gone for `until`. Between the two it may come and go without a word.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from django.db import connection, transaction

from decisioning.ledger.items import alone
from decisioning.ledger.models import Alarm, OutboxMessage
from decisioning.ledger.outbox import publish_all

STEADY_AFTER = timedelta(minutes=5)
RETRY_AFTER = timedelta(hours=1)


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


def reconcile(
    event: str,
    find: Callable[[], Iterable[Condition | Unknown]],
    *,
    now: datetime,
    hold_for: timedelta = timedelta(0),
    keep_firing_for: timedelta = timedelta(0),
    on_resolved: tuple[str, OnResolved] | None = None,
) -> int:
    """Tell what is new of `event`, and what is over by the event of `over`. In the caller's transaction; returns the messages told.

    look: finds all that is wrong now. Of two ticks at once the second does not even look: the first is just doing so. An alarm that
    cannot be told costs no other its message: why stands in its data, and it is tried again after RESTS.
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
        alarm.ended_at, message = None, None
        if alarm.told_at is None and now - alarm.began_at >= hold_for:
            alarm.told_at, alarm.data = now, dict(found.data)
            message = _message(event, alarm, found.data, now)
        if changed:
            steps.append(_Step(alarm, message))
    resolved = []
    for alarm in known.values():
        changed = alarm.told_at is not None and alarm.ended_at is None
        if changed:
            alarm.ended_at = now
        ends = alarm.told_at is None or now - (alarm.ended_at or now) >= keep_firing_for
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
    Alarm.objects.bulk_update(
        [alarm for alarm in kept if alarm.pk is not None], ["told_at", "ended_at", "data"], batch_size=500
    )
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
