"""A candidate version on trial: a backtest over the team's recorded experiments, asked for by a person and run by a job."""

import datetime as dt
from typing import Any

import msgspec
from django.db import transaction

from decisioning.access.principal import Principal
from experiments.models import Experiment
from gates.engine import backtest as pure
from gates.engine.plan import newest_slot, rfc3339, to_us
from gates.engine.policy import Policy
from gates.engine.policy_checks import parse
from gates.loading import JudgingInput, load, rows_of, series_of
from gates.models import Backtest, PolicyVersion

MOST_EXPERIMENTS = 200
"""The newest that have started; a trial has to end while somebody waits for it."""


def ask(version: PolicyVersion, *, by: Principal, now: dt.datetime) -> Backtest:
    """The trial that waits to be run; asking again while it waits gives the same one."""
    waiting, _ = Backtest.objects.get_or_create(
        version=version,
        state=Backtest.State.QUEUED,
        defaults={"team_id": version.team_id, "asked_by": by.owner, "asked_at": now},
    )
    return waiting


def newest(version: PolicyVersion) -> Backtest | None:
    """The trial asked for last."""
    return version.backtests.order_by("-id").first()


def passed(version: PolicyVersion) -> bool:
    """Whether a trial of this version has finished, so that somebody could look at it."""
    return version.backtests.filter(state=Backtest.State.FINISHED).exists()


def run_one(*, now: dt.datetime) -> Backtest | None:
    """Run the oldest trial that waits, in the caller's transaction; None when none does. A fault is kept with the trial.

    Another worker skips the one that is locked; a crash leaves it waiting.
    """
    waiting = Backtest.objects.select_for_update(skip_locked=True).filter(state=Backtest.State.QUEUED).order_by("id")
    trial = waiting.first()
    if trial is None:
        return None
    try:
        with transaction.atomic():
            trial.result = _result(trial.version, now)
    except Exception as failure:  # whatever it is, a person waits to hear of it
        trial.state, trial.result, trial.error = Backtest.State.FAILED, None, f"{type(failure).__name__}: {failure}"
    else:
        trial.state = Backtest.State.FINISHED
    trial.finished_at = now
    trial.save()
    return trial


def _result(version: PolicyVersion, now: dt.datetime) -> dict[str, Any]:
    candidate = parse(version.body, name=version.policy.name, version=version.number)
    recorded = Experiment.objects.exclude(status=Experiment.Status.DRAFT)
    if version.team_id is not None:
        recorded = recorded.filter(team=version.team_id)
    ids = list(recorded.order_by("-started_at").values_list("pk", flat=True)[:MOST_EXPERIMENTS])
    found = {judging.experiment.key: _one(judging, candidate, now) for judging in load(ids)}
    figures: dict[str, Any] = msgspec.to_builtins(pure.figures(found.values()))
    return {**figures, "experiments": [{"experiment": key, **_as_json(one)} for key, one in found.items()]}


def _one(judging: JudgingInput, candidate: Policy, now: dt.datetime) -> pure.Backtest:
    plan, pk = judging.plan, judging.experiment.pk
    rows = rows_of({pk: dict.fromkeys(series_of(plan), plan.started_at)})[pk]
    return pure.backtest(candidate, judging.policy, plan, rows, to=to_us(newest_slot(now, judging.policy.slot_s)))


def _as_json(one: pure.Backtest) -> dict[str, Any]:
    """In the API's words: instants as RFC 3339."""
    told: dict[str, Any] = msgspec.to_builtins(one)
    for variant in told["variants"]:
        for side in ("live", "candidate"):
            if variant[side] is not None:
                variant[side]["slot"] = rfc3339(variant[side]["slot"])
    for span in told["stretches"]:
        span["begin"], span["end"] = rfc3339(span["begin"]), rfc3339(span["end"])
    for answer in told["answers"]:
        answer["at"] = rfc3339(answer["at"])
    return told
