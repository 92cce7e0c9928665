"""What ticks find wrong is told once a change. What was told stands in PostgreSQL, so that no restart tells it again.

A look finds everything that is wrong now. Something new is told when it has lasted `after`; something told is over when it has
been gone for `until`. Between the two it may come and go without a word.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection

from decisioning.ledger.models import Alarm, OutboxMessage
from decisioning.ledger.outbox import tell_all

GRACE = timedelta(minutes=5)


@dataclass(frozen=True)
class Wrong:
    """One thing that is wrong now. subject: what it is about, once within its type and team. data: what the message says."""

    team_id: int
    experiment_id: int | None
    subject: str
    data: Mapping[str, object]


type Over = Callable[[Sequence[Alarm]], Mapping[int, Mapping[str, object]]]
"""Of alarms that are over, by id: what to tell of them. One that is left out ends without a word."""


def reconcile(
    event: str,
    look: Callable[[], Iterable[Wrong]],
    *,
    now: datetime,
    after: timedelta = timedelta(0),
    until: timedelta = timedelta(0),
    over: tuple[str, Over] | None = None,
) -> int:
    """Tell what is new of `event`, and what is over by the event of `over`. In the caller's transaction; returns the messages told.

    look: finds all that is wrong now. Of two ticks at once the second does not even look: the first is just doing so.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT access.lock(%s, false)", [f"alarms {event}"])
        if cursor.fetchone() != (True,):
            return 0
    known = {(alarm.team_id, alarm.subject): alarm for alarm in Alarm.objects.filter(type=event)}
    messages, new, changed = [], [], []
    for found in look():
        alarm = known.pop((found.team_id, found.subject), None)
        if alarm is None:
            alarm = Alarm(
                team_id=found.team_id,
                experiment_id=found.experiment_id,
                type=event,
                subject=found.subject,
                began_at=now,
            )
            new.append(alarm)
        elif alarm.ended_at is not None or alarm.told_at is None:
            changed.append(alarm)
        alarm.ended_at = None
        if alarm.told_at is None and now - alarm.began_at >= after:
            alarm.told_at, alarm.data = now, dict(found.data)
            messages.append(_message(event, alarm, found.data, now))
    gone = []
    for alarm in known.values():
        if alarm.told_at is not None and alarm.ended_at is None:
            alarm.ended_at = now
            changed.append(alarm)
        if alarm.told_at is None or now - (alarm.ended_at or now) >= until:
            gone.append(alarm)
    if over is not None:
        ended, say = over
        said = say([alarm for alarm in gone if alarm.told_at is not None])
        messages += [_message(ended, alarm, said[alarm.pk], now) for alarm in gone if alarm.pk in said]
    Alarm.objects.bulk_create(new, batch_size=1000)
    Alarm.objects.bulk_update(changed, ["told_at", "ended_at", "data"], batch_size=500)
    Alarm.objects.filter(pk__in=[alarm.pk for alarm in gone]).delete()
    tell_all(messages)
    return len(messages)


def _message(event: str, alarm: Alarm, data: Mapping[str, object], now: datetime) -> OutboxMessage:
    return OutboxMessage(
        team_id=alarm.team_id, experiment_id=alarm.experiment_id, type=event, data=dict(data), created_at=now
    )
