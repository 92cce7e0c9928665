"""From the outbox to the channels: every message at least once, in order per experiment and channel, each channel by itself.

A message is put into the queue of every channel that asked for its type. A channel is then claimed by a lease, a column that is
committed at once, so that no transaction is open and no row locked while its receiver takes its time. What failed is tried again
later and later; a receiver that cannot be reached rests as a whole, one that refuses a message holds up only that experiment.
"""

import logging
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.db import connection, connections, transaction

from decisioning.access import restored
from decisioning.access.principal import bind_job
from decisioning.ledger.channels import TEST
from decisioning.ledger.items import alone
from decisioning.ledger.models import Channel, Delivery, OutboxMessage

_log = logging.getLogger(__name__)

FIRST_RETRY, LONGEST_RETRY = timedelta(seconds=15), timedelta(hours=1)
GIVE_UP = timedelta(days=3)
"""How long one message is tried; then it is a dead letter, listed and resendable."""
DISABLE = timedelta(days=5)
"""After failing this long without a single success a channel is turned off."""
KEPT = timedelta(days=30)
LANES = 8
"""Channels served at a time by one tick."""
_TURN, _LEASE = timedelta(seconds=30), timedelta(seconds=120)
_BATCH = 20
JOB = "notices.deliver"


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt. `error` is empty when it arrived. unreachable: nobody answered. gone: the receiver wants no more."""

    status: int | None = None
    error: str = ""
    unreachable: bool = False
    gone: bool = False


type Send = Callable[[Delivery, datetime], Outcome]
"""Carries one delivery (with its channel and message) out. Its time is bounded. What it raises counts as no answer."""
type Clock = Callable[[], datetime]


def retry_in(attempts: int) -> timedelta:
    """How long to wait after so many failed attempts: doubled each time up to an hour, half of it by chance.

    >>> all(timedelta(minutes=30) <= retry_in(n) <= LONGEST_RETRY for n in (9, 50, 10_000))
    True
    """
    whole = min(FIRST_RETRY * (1 << min(attempts - 1, 20)), LONGEST_RETRY)
    return whole * random.uniform(0.5, 1.0)  # noqa: S311 - it spreads load, it hides nothing


def fan_out(*, now: datetime, most: int = 5000) -> int:
    """Put messages that are new into the queues of the channels that asked for them. Returns how many messages."""
    with transaction.atomic(), connection.cursor() as cursor:
        bind_job(JOB)
        cursor.execute(
            """
            WITH fresh AS MATERIALIZED (
              SELECT id, team_id, experiment_id, type FROM audit.outbox WHERE fanned_out_at IS NULL ORDER BY id LIMIT %(most)s
              FOR UPDATE SKIP LOCKED),
            queued AS (
              INSERT INTO metadata.deliveries
                (message_id, channel_id, team_id, experiment_id, state, created_at, next_at, attempts, last_error)
              SELECT f.id, c.id, f.team_id, f.experiment_id, 'waiting', %(now)s, %(now)s, 0, ''
              FROM fresh f JOIN metadata.channels c ON c.team_id = f.team_id AND f.type = ANY (c.events) AND c.enabled
              ON CONFLICT (message_id, channel_id) DO NOTHING RETURNING message_id)
            UPDATE audit.outbox o SET fanned_out_at = %(now)s,
              delivered_at = CASE WHEN o.id NOT IN (SELECT message_id FROM queued) THEN %(now)s::timestamptz END
            FROM fresh f WHERE o.id = f.id
            """,
            {"now": now, "most": most},
        )
        return int(cursor.rowcount)


def deliver(send: Send, *, clock: Clock, lanes: int = LANES) -> int:
    """Serve every channel that has something due, several at a time. Returns the attempts made.

    A channel whose receiver hangs takes up one lane for one call; the others go on, and so do those of the next tick. A restored copy
    tells nobody: everything waits.
    """
    if restored.since() is not None:
        return 0
    while fan_out(now=clock()):
        pass
    wanted = min(lanes, len(_due(clock())))
    if wanted <= 1:
        return _lane(send, clock) if wanted else 0
    with ThreadPoolExecutor(wanted, thread_name_prefix="lane") as pool:
        return sum(pool.map(lambda _: _lane_of_its_own(send, clock), range(wanted)))


def sweep(*, now: datetime) -> int:
    """Forget what is older than KEPT and no longer waits. Returns the rows that went."""
    with transaction.atomic():
        bind_job("notices.sweep")
        old = Delivery.objects.filter(created_at__lt=now - KEPT).exclude(state=Delivery.State.WAITING)
        gone, _ = old.delete()
        messages = OutboxMessage.objects.filter(created_at__lt=now - KEPT, fanned_out_at__isnull=False)
        return gone + messages.filter(deliveries__isnull=True).delete()[0]


def _lane_of_its_own(send: Send, clock: Clock) -> int:
    try:
        return _lane(send, clock)
    finally:
        connections.close_all()


def _lane(send: Send, clock: Clock) -> int:
    """Serve one channel after the other, each once, until none is due."""
    served: list[int] = []
    attempts = 0
    while (channel := _claim(clock(), served)) is not None:
        served.append(channel)
        with alone(f"Channel {channel}", rests=partial(_rest, channel, clock())):
            try:
                attempts += _serve(channel, send, clock)
            finally:
                Channel.objects.filter(pk=channel).update(leased_until=None)
    return attempts


def _rest(channel: int, now: datetime, error: str) -> None:
    with transaction.atomic():
        bind_job(JOB)
        _failed(channel, Outcome(error=error, unreachable=True), now)


# What is due of a channel: the oldest waiting message of each experiment, when its time has come. A message about no experiment waits for
# nobody. While the channel is off, only a test goes out.
_HEADS = """
SELECT h.id FROM (
  SELECT DISTINCT ON (coalesce(d.experiment_id, -d.message_id)) d.id, d.message_id, d.next_at
  FROM metadata.deliveries d JOIN metadata.channels its ON its.id = d.channel_id
  WHERE d.channel_id = {channel} AND d.state = 'waiting'
    AND (its.enabled OR EXISTS (SELECT FROM audit.outbox o WHERE o.id = d.message_id AND o.type = %(test)s))
  ORDER BY coalesce(d.experiment_id, -d.message_id), d.message_id) AS h
WHERE h.next_at <= %(now)s ORDER BY h.next_at, h.message_id LIMIT %(most)s
"""
_FREE = f"""
SELECT c.id FROM metadata.channels c
WHERE c.next_at <= %(now)s AND coalesce(c.leased_until, '-infinity') <= %(now)s AND c.id <> ALL (%(served)s)
  AND EXISTS ({_HEADS.format(channel="c.id")}) ORDER BY c.next_at, c.id
"""  # noqa: S608 - made of constants

_CLAIM = f"""
UPDATE metadata.channels SET leased_until = %(until)s WHERE id = ({_FREE} LIMIT 1 FOR UPDATE OF c SKIP LOCKED) RETURNING id
"""  # noqa: S608


def _parameters(now: datetime, served: Sequence[int] = (), most: int = 1) -> dict[str, Any]:
    return {"now": now, "served": list(served), "most": most, "test": TEST}


def _due(now: datetime) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(_FREE, _parameters(now))
        return [pk for (pk,) in cursor.fetchall()]


def _claim(now: datetime, served: Sequence[int]) -> int | None:
    """A channel that is ours until its lease ends; None when all that are due are served or taken."""
    with transaction.atomic(), connection.cursor() as cursor:
        bind_job(JOB)
        cursor.execute(_CLAIM, {**_parameters(now, served), "until": now + _LEASE})
        row = cursor.fetchone()
    return None if row is None else int(row[0])


def _serve(channel: int, send: Send, clock: Clock) -> int:
    """Call a channel's receiver for what is due, for a turn at most. Returns the attempts made."""
    until, attempts = clock() + _TURN, 0
    while heads := _heads(channel, clock()):
        for delivery in heads:
            now = clock()
            outcome = _sent(send, delivery, now)
            attempts += 1
            with transaction.atomic():
                bind_job(JOB)
                _record(delivery, outcome, now)
            if outcome.unreachable or outcome.gone or clock() >= until:
                return attempts  # whoever did not answer this would not answer the next, at the same cost
    return attempts


def _sent(send: Send, delivery: Delivery, now: datetime) -> Outcome:
    outcome = Outcome(error="It was not sent.", unreachable=True)

    def note(error: str) -> None:
        nonlocal outcome
        outcome = Outcome(error=error, unreachable=True)

    with alone(f"Message {delivery.message_id} to {delivery.channel}", rests=note):
        outcome = send(delivery, now)
    return outcome


def _heads(channel: int, now: datetime) -> list[Delivery]:
    with connection.cursor() as cursor:
        cursor.execute(_HEADS.format(channel="%(channel)s"), {**_parameters(now, most=_BATCH), "channel": channel})
        order = [pk for (pk,) in cursor.fetchall()]
    found = Delivery.objects.select_related("message", "channel").in_bulk(order)
    return [found[pk] for pk in order if pk in found]


def _record(delivery: Delivery, outcome: Outcome, now: datetime) -> None:
    mine = Delivery.objects.filter(pk=delivery.pk, state=Delivery.State.WAITING)
    since = delivery.trying_since or now
    facts: dict[str, Any] = {
        "trying_since": since,
        "attempts": delivery.attempts + 1,
        "last_at": now,
        "last_status": outcome.status,
        "last_error": outcome.error[:400],
    }
    is_test = delivery.message.type == TEST
    if not outcome.error:
        mine.update(**facts, state=Delivery.State.DELIVERED, delivered_at=now)
        _arrived(delivery, now, is_test=is_test)
        return
    if is_test or now - since >= GIVE_UP:
        mine.update(**facts, state=Delivery.State.DEAD)
        _log.warning("Message %s is a dead letter of %s: %s", delivery.message_id, delivery.channel, outcome.error)
    else:
        mine.update(**facts, next_at=now + retry_in(delivery.attempts + 1))
    if not is_test:
        _failed(delivery.channel_id, outcome, now)


def _arrived(delivery: Delivery, now: datetime, *, is_test: bool) -> None:
    channel = Channel.objects.filter(pk=delivery.channel_id)
    channel.filter(failures__gt=0).update(failures=0, failing_since=None)
    if is_test:
        channel.filter(enabled=False).update(enabled=True, disabled_at=None, disabled_reason="")
    owed = Delivery.objects.filter(message=delivery.message_id).exclude(state=Delivery.State.DELIVERED)
    if not owed.exists():
        OutboxMessage.objects.filter(pk=delivery.message_id).update(delivered_at=now)


def _failed(channel_id: int, outcome: Outcome, now: datetime) -> None:
    """Count it; rest a receiver that cannot be reached; turn off one that is gone or has failed for too long."""
    channel = Channel.objects.select_for_update(no_key=True).filter(pk=channel_id).first()
    if channel is None:
        return
    channel.failures += 1
    channel.failing_since = channel.failing_since or now
    if outcome.unreachable:
        channel.next_at = now + retry_in(channel.failures)
    reason = ""
    if outcome.gone:
        reason = f"Its receiver answered {outcome.status} Gone on {now:%Y-%m-%d}."
    elif now - channel.failing_since >= DISABLE:
        reason = f"It failed {channel.failures} times since {channel.failing_since:%Y-%m-%d %H:%MZ} without one success. Last: {outcome.error}"
    if reason and channel.enabled:
        channel.enabled, channel.disabled_at, channel.disabled_reason = False, now, reason[:200]
        _log.error("%s of team %s is turned off: %s", channel, channel.team_id, reason)
    channel.save(update_fields=["failures", "failing_since", "next_at", "enabled", "disabled_at", "disabled_reason"])
