"""Who was deleted is erased: `audit.erase` in PostgreSQL puts a pseudonym where his names and addresses stood, and the audit's chain tells it."""

import logging

from django.db import connection, transaction

from decisioning.access.principal import bind_job

_log = logging.getLogger(__name__)


def pseudonym(person: int) -> str:
    """What stands in records for a person who is erased."""
    return f"person-{person}"


def erase_due() -> int:
    """Erase everybody who was deleted and whose last transactions have ended; how many that were."""
    erased = 0
    while True:
        with transaction.atomic(), connection.cursor() as cursor:
            bind_job("erasure")
            cursor.execute("SELECT audit.erase()")
            (person,) = cursor.fetchone() or (None,)
        if person is None:
            return erased
        erased += 1
        _log.info("Erased: %s", pseudonym(person))
