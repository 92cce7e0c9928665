"""Doors for the worker. Messages carry nothing: what there is to do stands in PostgreSQL."""

import logging
import time
from functools import partial
from threading import Thread

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
from telemetry.models import RefreshRun
from telemetry.refresh import logged
from telemetry.sources import runs

_log = logging.getLogger(__name__)
_ENOUGH_S = 30
_LONG_S = 3.0
"""After so long a run is waited for no more: the others go on beside it."""
_LONGEST_S = 600
"""So long others go on beside runs that take long; what is then under way ends within the task's time."""
_LOOK_S = 1.0
"""So often it is looked which go on."""


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
    with alone("fail_lost"), transaction.atomic():
        bind_job("telemetry.sources")
        runs.fail_lost(now=timezone.now(), shown=settings.SOURCE_PULLS > 1)
    with alone("queue_due"), transaction.atomic():
        bind_job("telemetry.sources")
        runs.queue_due(now=timezone.now())
    _carry_out()


def _carry_out() -> None:
    """Run after run. One that takes long is waited for no more and the next go on beside it, each in a thread: a source that stalls or floods
    holds up no other for as long as there is a place. All of them in one process, so that the ticks of the gates have the others."""
    began, going = time.monotonic(), dict[Thread, RefreshRun]()
    while True:
        going = {pull: run for pull, run in going.items() if pull.is_alive()}
        if going:
            runs.show_life([*going.values()], now=timezone.now())
        run = None
        if time.monotonic() - began < (_LONGEST_S if going else _ENOUGH_S) and len(going) < settings.SOURCE_PULLS:
            most = settings.SOURCE_PULLS if going else 1  # what another process has begun, it goes on with
            run = runs.take_next(now=timezone.now(), most=most)
        if run is not None and settings.SOURCE_PULLS == 1:
            _pull(run)
        elif run is not None:
            # A driver that never returns keeps no process from ending.
            pull = Thread(target=_pull_beside, args=(run,), daemon=True)
            pull.start()
            pull.join(_LONG_S)
            going[pull] = run
        elif going:
            next(reversed(going)).join(_LOOK_S)
        else:
            return


def _pull(run: RefreshRun) -> None:
    with alone(f"Run {run.run_id} of source {run.source}", rests=partial(runs.give_up, run, timezone.now())):
        runs.pull(run, clock=timezone.now)


def _pull_beside(run: RefreshRun) -> None:
    try:
        _pull(run)
    except Exception:  # nobody waits for what a thread raises; a database that is back finds the run lost and fails it
        _log.exception("Run %s of source %s broke off", run.run_id, run.source)
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
