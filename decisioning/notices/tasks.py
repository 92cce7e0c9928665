"""The house's ticks: what is told to the outside. They have a queue and a process of their own, so that no receiver slows the gates."""

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial

from celery import shared_task
from django.db import connection, transaction
from django.utils import timezone

from decisioning.access import readers
from decisioning.access.principal import bind_job
from decisioning.ledger import delivery
from decisioning.ledger.items import alone
from decisioning.ledger.models import OutboxMessage
from decisioning.notices.transports import send
from decisioning.slo.alarms import tell_broken
from gates import alarms
from telemetry import breaches
from telemetry.refresh import logged

_log = logging.getLogger(__name__)


@shared_task(name="notices.deliver", ignore_result=True)
def deliver(**_later: object) -> None:
    """Bring new messages of the outbox to the channels; beat calls it every few seconds, and two at once share the channels."""
    delivery.deliver(partial(send, picture=_picture), clock=timezone.now)


@shared_task(name="notices.watch", ignore_result=True)
def watch(**_later: object) -> None:
    """Tell what only time brings about: overdue answers, data that is late or back, guards that fail; beat calls it every 30 seconds."""
    for look in (alarms.tell_overdue, alarms.tell_failed_guards, breaches.tell_changes):
        with alone(look.__name__):
            _logged(look)


@shared_task(name="access.readers", ignore_result=True)
def limit_readers(**_later: object) -> None:
    """End what people's SQL tools do for too long; beat calls it every ten seconds, here where nothing long is ever in the way."""
    with transaction.atomic():
        bind_job("access.readers")
        ended = readers.end_beyond_limits()
    for login, why in ended:
        _log.warning("Ended a session of %s: beyond its limit for %s", login, why)


@shared_task(name="notices.promises", ignore_result=True)
def promises(**_later: object) -> None:
    """Tell each team which of the portal's promises to it are broken; beat calls it every five minutes."""
    _logged(tell_broken)


@shared_task(name="notices.sweep", ignore_result=True)
def sweep(**_later: object) -> None:
    """Forget old messages; beat calls it every hour."""
    delivery.sweep(now=timezone.now())


def _logged(look: Callable[..., int]) -> None:
    """One look; that it failed is in the refresh log."""
    now: datetime = timezone.now()
    with logged(f"portal/{look.__name__.replace('_', '-')}", clock=timezone.now), connection.cursor() as cursor:
        bind_job("notices.watch")
        cursor.execute("SET LOCAL statement_timeout = '60s'")  # the next tick looks again, perhaps in a quieter minute
        look(now=now)


def _picture(message: OutboxMessage, now: datetime) -> tuple[str, str] | None:
    from decisioning.board import snapshots  # loads most of the web side, which a worker needs for nothing else

    return snapshots.of_message(message, now)
