"""The tick's door. A message carries nothing: which experiments are due stands in PostgreSQL."""

import logging

from celery import shared_task
from django.utils import timezone

from decisioning.access.principal import bind_job
from gates import evaluation, trials
from telemetry.refresh import logged

_log = logging.getLogger(__name__)


@shared_task(name="gates.tick")
def tick(**_later: object) -> None:
    """Judge every experiment that is due or whose rows changed; ingest hints at it, beat calls it every 30 seconds."""
    more = True
    while more:
        with logged("portal/evaluate", clock=timezone.now) as run:
            bind_job("gates.tick")
            done = evaluation.evaluate_some(now=timezone.now())
            run.rows, run.data_watermark = done.evaluations, done.newest_slot
            run.worked, more = done.experiments + done.passed > 0, done.more
            for key, error in done.failed:
                _log.error("Experiment %s could not be judged: %s", key, error)
                run.failures.append(f"{key}: {error}")
    evaluation.beat(now=timezone.now())


@shared_task(name="gates.backtests", soft_time_limit=570, time_limit=600)
def backtests(**_later: object) -> None:
    """Run the backtests that people have asked for, one after the other."""
    trial = True
    while trial:
        with logged("portal/backtest", clock=timezone.now) as run:
            bind_job("gates.backtests")
            trial = trials.run_one(now=timezone.now()) is not None
            run.rows, run.worked = int(trial), trial
