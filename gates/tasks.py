"""The tick's door. A message carries nothing: which experiments are due stands in PostgreSQL."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from celery import shared_task
from django.utils import timezone

from decisioning.access.principal import bind_job
from experiments.models import Experiment
from gates.backtests import run_one
from gates.tick import (
    FIRST_CHUNK,
    PASSED_AT_ONCE,
    TickReport,
    due,
    evaluate,
    heartbeat,
    left_anew,
    next_size,
    skip_unchanged,
)
from telemetry import wake
from telemetry.refresh import logged

_log = logging.getLogger(__name__)


@shared_task(name="gates.tick")
def tick(**_later: object) -> None:
    """Judge every experiment that is due or whose rows changed; ingest hints at it, beat calls it every 30 seconds."""
    while _logged(lambda: skip_unchanged(now=timezone.now())).passed == PASSED_AT_ONCE:
        pass
    more, shared, size = True, False, FIRST_CHUNK
    while more:
        chunks, more = due(now=timezone.now())
        if len(chunks) > 1 and not shared:
            shared = True
            wake.tick()  # there is work for another worker, which asks the next one in turn
        judged = []
        for ids in chunks:
            left = list(ids)
            while left:
                began = monotonic()
                judged.append(_logged(partial(_evaluate, left[:size])))
                left, size = left[size:], next_size(size, monotonic() - began)
        for pk in [pk for done in judged for pk in done.overtaken]:
            _logged(partial(_evaluate, [pk]))
        more = more or any(done.put_off for done in judged)
        more = more and any(done.experiments for done in judged)  # else others are at what is left
    heartbeat(now=timezone.now())


def _evaluate(ids: Sequence[int]) -> TickReport:
    return evaluate(ids, now=timezone.now())


def _logged(work: Callable[[], TickReport]) -> TickReport:
    """A part of the tick, in a transaction of its own."""
    with logged("portal/evaluate", clock=timezone.now) as run:
        bind_job("gates.tick")
        done = work()
        run.rows, run.data_watermark = done.evaluations, done.newest_slot
        run.worked = done.experiments + done.passed > 0
        teams = Experiment.objects.in_bulk([key for key, _ in done.failed], field_name="key")
        for key, error in done.failed:
            _log.error("Experiment %s could not be judged: %s", key, error)
            run.told[teams[key].team_id].append(f"{key}: {error}")
        if done.anew:
            _log.info(
                "%d experiments judged anew from their rows: their state was of another version, policy or plan. %d to go.",
                done.anew,
                left_anew(),
            )
        if done.failed:
            run.failures.append(
                f"{len(done.failed)} experiments could not be judged; the log of their teams says which and why"
            )
        return done


@shared_task(name="gates.backtests", soft_time_limit=570, time_limit=600)
def backtests(**_later: object) -> None:
    """Run the backtests that people have asked for, one after the other."""
    trial = True
    while trial:
        with logged("portal/backtest", clock=timezone.now) as run:
            bind_job("gates.backtests")
            trial = run_one(now=timezone.now()) is not None
            run.rows, run.worked = int(trial), trial
