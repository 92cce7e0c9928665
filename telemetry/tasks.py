"""Doors for the worker. Messages carry nothing: what there is to do stands in PostgreSQL."""

import time
from functools import partial
from threading import Event, Timer

from celery import shared_task
from django.conf import settings
from django.db import connections, transaction
from django.utils import timezone

from decisioning.access.principal import bind_job
from decisioning.ledger.items import alone
from experiments import feeds
from experiments.models import Experiment
from telemetry import hours as hour_sums
from telemetry import retention
from telemetry.refresh import logged
from telemetry.sources import runs

_ENOUGH_S = 30
_LONG_S = 3.0
"""After so long a run is waited for no more: the others go on beside it."""


@shared_task(name="telemetry.hours")
def hours(**_later: object) -> None:
    """Bring hour sums up to date; beat calls it every 30 seconds."""
    more = True
    while more:
        with logged("portal/hours", clock=timezone.now) as run:
            bind_job("telemetry.hours")
            done = hour_sums.rebuild_changed()
            run.rows, run.data_watermark = done.hours, done.newest
            run.worked = more = done.changes > 0
            named = Experiment.objects.in_bulk([span.experiment_id for span, _ in done.failed])
            for span, problem in done.failed:
                run.told[span.team_id].append(
                    f"{named[span.experiment_id].key}, {span.metric} of {span.variant}: {problem}"
                )
            if done.failed:
                run.failures.append(
                    f"{len(done.failed)} series could not be summed; the log of its team says which and why"
                )


@shared_task(name="telemetry.sources", soft_time_limit=880, time_limit=900)
def sources(**_later: object) -> None:
    """Start and carry out runs of sources that are due; beat calls it every 30 seconds, and a run that was asked for at once."""
    for step in (runs.fail_lost, runs.queue_due):
        with alone(step.__name__), transaction.atomic():
            bind_job("telemetry.sources")
            step(now=timezone.now())
    _carry_out(place=1)


def _carry_out(*, place: int) -> None:
    """One run after the other. While one takes long, the next place has a thread that goes on with the others: a source that stalls or
    floods holds up no other, and one process alone, so that the ticks of the gates have the others."""
    until = time.monotonic() + _ENOUGH_S
    most = 1 if place == 1 else settings.SOURCE_PULLS  # what another process has begun, it goes on with
    while time.monotonic() < until and (run := runs.take_next(now=timezone.now(), most=most)):
        over = Event()
        beside = Timer(_LONG_S, _go_on_beside, kwargs={"over": over, "place": place + 1})
        beside.daemon = True  # a driver that never returns keeps no process from ending
        if place < settings.SOURCE_PULLS:
            beside.start()
        given_up = partial(runs.give_up, run, timezone.now())
        try:
            with alone(f"Run {run.run_id} of source {run.source}", rests=given_up):
                runs.pull(run, clock=timezone.now)
        finally:
            over.set()
            beside.cancel()
            if beside.is_alive():
                beside.join()


def _go_on_beside(*, over: Event, place: int) -> None:
    try:
        while not over.is_set():
            _carry_out(place=place)
            over.wait(1)
    finally:
        connections.close_all()  # this thread's own


@shared_task(name="telemetry.partitions")
def partitions(**_later: object) -> None:
    """Make the next months' partitions and the due instants of calendars ahead, and watch the default partition; beat calls it every hour."""
    with alone("Making partitions"), logged("portal/partitions", clock=timezone.now) as run:
        bind_job("telemetry.partitions")
        run.rows = retention.make_partitions(now=timezone.now(), failures=run.failures)
        run.worked = run.rows > 0
    with alone("Laying out due instants"), transaction.atomic():
        bind_job("telemetry.partitions")
        feeds.lay_out(now=timezone.now())
    with logged("portal/default-partition", clock=timezone.now):
        bind_job("telemetry.partitions")
        retention.refuse_stranded_rows()


@shared_task(name="telemetry.retention", soft_time_limit=280, time_limit=300)
def keep(**_later: object) -> None:
    """Drop what is past its time; beat calls it every hour."""
    with logged("portal/retention", clock=timezone.now) as run:
        bind_job("telemetry.retention")
        swept = retention.sweep(now=timezone.now(), failures=run.failures)
        run.rows = swept.rows
        run.worked = bool(swept.partitions or swept.rows)
