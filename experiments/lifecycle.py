"""The life of an experiment: one transition table, and the only code that changes a status."""

from datetime import datetime

from decisioning.access.principal import Principal
from decisioning.ledger.outbox import publish
from decisioning.refusals import Refused
from experiments.models import Experiment, Pause

Status = Experiment.Status

TRANSITIONS: dict[str, tuple[str, ...]] = {
    Status.DRAFT: (Status.RUNNING,),
    Status.RUNNING: (Status.PAUSED, Status.SCALED, Status.DELETED, Status.STOPPED),
    Status.PAUSED: (Status.RUNNING, Status.SCALED, Status.DELETED, Status.STOPPED),
    Status.SCALED: (),
    Status.DELETED: (),
    Status.STOPPED: (),
}
BY_HAND = (Status.RUNNING, Status.PAUSED, Status.STOPPED)
"""What a person or a program may ask for; scaled and deleted are answers to a recommendation (`gates.decisions`)."""


class TransitionRefused(Refused):
    """This experiment cannot go there from where it is; `allowed` says where it can."""

    usual_status = 409

    def __init__(self, experiment: Experiment, to: str, allowed: tuple[str, ...]) -> None:
        choices = f"It may become {', '.join(allowed)}." if allowed else "It has ended and stays as it is."
        message = f"{experiment.key} is {experiment.status} and cannot become {to}. {choices}"
        super().__init__("transition_refused", message, extra={"allowed": [str(to) for to in allowed]})
        self.allowed = allowed


def next_statuses(status: str) -> tuple[str, ...]:
    """Where an experiment with this status may go.

    >>> [str(status) for status in next_statuses("draft")], next_statuses("scaled")
    (['running'], ())
    """
    return TRANSITIONS[status]


def transition(experiment: Experiment, to: str, *, by: Principal, now: datetime, reason: str = "") -> Experiment:
    """Move to another status: pauses, start and end are written with it, and `experiment.changed` goes out.

    The row is locked and read anew, so of two that ask at once the second is judged by what the first has done.
    Raises TransitionRefused.
    """
    # no_key: the tick, which holds the cursor this update will touch, may still point new facts at the experiment.
    locked = Experiment.objects.select_for_update(no_key=True).get(pk=experiment.pk)
    before = locked.status
    if to not in next_statuses(before):
        raise TransitionRefused(locked, to, next_statuses(before))
    if before == Status.DRAFT:
        locked.started_at = locked.started_at or now
    if before == Status.PAUSED:
        for pause in locked.pauses.filter(resumed_at__isnull=True):
            pause.resumed_at = max(now, pause.paused_at)
            pause.save(update_fields=["resumed_at"])
    if to == Status.PAUSED:
        Pause.objects.create(experiment=locked, paused_at=now)
    if not next_statuses(to):
        locked.ended_at = max(now, locked.started_at or now)
    locked.status = to
    locked.save(update_fields=["status", "started_at", "ended_at"])
    publish(
        team_id=locked.team_id,
        experiment_id=locked.pk,
        type="experiment.changed",
        data={"experiment": locked.key, "from": before, "to": to, "by": by.owner, "reason": reason},
        now=now,
    )
    experiment.refresh_from_db(fields=["status", "started_at", "ended_at"])
    return experiment


def ask(experiment: Experiment, to: str, *, by: Principal, now: datetime, reason: str = "") -> Experiment:
    """A transition that somebody asks for by hand: only those of BY_HAND. Raises TransitionRefused."""
    if to not in BY_HAND:
        raise TransitionRefused(experiment, to, tuple(s for s in next_statuses(experiment.status) if s in BY_HAND))
    try:
        return transition(experiment, to, by=by, now=now, reason=reason)
    except TransitionRefused as refusal:
        choices = tuple(status for status in refusal.allowed if status in BY_HAND)
        experiment.refresh_from_db(fields=["status"])
        raise TransitionRefused(experiment, to, choices) from refusal
