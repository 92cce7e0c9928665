"""Doors for the worker. Messages carry nothing: what there is to do stands in PostgreSQL."""

import datetime as dt

from celery import shared_task
from django.db import connection
from django.utils import timezone

from decisioning.access.principal import bind_job
from telemetry import hours as hour_sums
from telemetry.refresh import logged


@shared_task(name="telemetry.hours")
def hours(**_later: object) -> None:
    """Bring hour sums up to date; beat calls it every 30 seconds."""
    more = True
    while more:
        with logged("portal/hours", clock=timezone.now) as run:
            bind_job("telemetry.hours")
            changes, run.rows, run.data_watermark = hour_sums.rebuild_changed()
            run.worked = more = changes > 0


@shared_task(name="telemetry.partitions")
def partitions(**_later: object) -> None:
    """Make the next months' partitions ahead; beat calls it every hour."""
    now = timezone.now()
    with logged("portal/partitions", clock=timezone.now) as run, connection.cursor() as cursor:
        bind_job("telemetry.partitions")
        cursor.execute("SELECT metrics.make_partitions(%s, %s)", [now, now + dt.timedelta(days=93)])
        (run.rows,) = cursor.fetchone() or (0,)
        run.worked = run.rows > 0
