"""What is kept how long. Rows go by whole months, with their partition; the rest by age."""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from decisioning.ledger.items import alone
from telemetry import hours

REFRESH_LOG = dt.timedelta(days=90)
EVENTS = dt.timedelta(days=90)
REPLAYED = dt.timedelta(days=90)
IDEMPOTENCY = dt.timedelta(hours=24)
MONTHS_AHEAD = dt.timedelta(days=93)


@dataclass(frozen=True)
class Swept:
    """How much went: names of partitions, and rows of each table."""

    partitions: tuple[str, ...]
    kpi_hours: int
    refresh_log: int
    events: int
    quarantined_events: int
    idempotency: int
    rows_sent: int

    @property
    def rows(self) -> int:
        return self.kpi_hours + self.refresh_log + self.events + self.quarantined_events + self.idempotency


# A run that still goes on stays; so does an event that nobody has understood yet, however long that takes.
_AGED = {
    "refresh_log": "finished_at < %(now)s - %(refresh_log)s",
    "events": "received_at < %(now)s - %(events)s",
    "quarantined_events": "replayed_at < %(now)s - %(replayed)s",
    "idempotency": "created_at < %(now)s - %(idempotency)s",
    "rows_sent": "day < (%(now)s AT TIME ZONE 'UTC')::date - 7",
}


def sweep(*, now: dt.datetime, failures: list[str] | None = None) -> Swept:
    """Drop what is past its time, in the caller's transaction. failures: what could not be dropped is added, and costs no other its turn."""
    failures = [] if failures is None else failures
    oldest = now - dt.timedelta(days=settings.RETENTION_DAYS)
    ages: dict[str, Any] = {
        "refresh_log": REFRESH_LOG,
        "events": EVENTS,
        "replayed": REPLAYED,
        "idempotency": IDEMPOTENCY,
        "now": now,
    }
    month = oldest.astimezone(dt.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    dropped, forgotten, gone = [], 0, dict.fromkeys(_AGED, 0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM metrics.old_partitions(%s) AS name", [oldest])
        for (name,) in cursor.fetchall():
            with _step(f"Partition {name}", failures):
                cursor.execute("SELECT metrics.drop_partition(%s, %s)", [name, oldest])
                dropped.append(name)
        if dropped:
            with _step("Hours of dropped partitions", failures):
                forgotten = hours.forget_before(month)
        for table, condition in _AGED.items():
            with _step(f"Old rows of {table}", failures):
                cursor.execute(f"DELETE FROM metadata.{table} WHERE {condition}", ages)  # noqa: S608
                gone[table] = cursor.rowcount
    return Swept(tuple(dropped), forgotten, **gone)


def make_partitions(*, now: dt.datetime, failures: list[str] | None = None) -> int:
    """Partitions for this month and the next three; how many were made. failures: months that could not be made are added."""
    failures = [] if failures is None else failures
    made, month = 0, now
    while month <= now + MONTHS_AHEAD:
        with _step(f"Partition of {month:%Y-%m}", failures), connection.cursor() as cursor:
            cursor.execute("SELECT metrics.make_partitions(%s, %s)", [month, month])
            made += (cursor.fetchone() or (0,))[0]
        month = (month.replace(day=1) + dt.timedelta(days=32)).replace(day=1)
    return made


@contextmanager
def _step(what: str, failures: list[str]) -> Iterator[None]:
    with alone(what, rests=lambda error: failures.append(f"{what}: {error}")), transaction.atomic():
        yield


class RowsStranded(Exception):
    """Rows wait in the default partition, which is for months that nobody made ahead. They are read as all others."""


def refuse_stranded_rows() -> None:
    """Raises RowsStranded when the default partition is in use."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT metrics.default_partition_rows()")
        (rows,) = cursor.fetchone() or (0,)
    if rows:
        raise RowsStranded(
            f"{rows} rows of months without a partition. SELECT metrics.make_partitions(since, until) moves them."
        )
