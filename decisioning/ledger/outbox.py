"""The only writer of the outbox. Delivery reads it later; a message is as durable as the change it tells of."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from decisioning.ledger.models import OutboxMessage

EVENTS = {
    "decision.proposed": "The gates propose something.",
    "decision.answered": "A person has answered a proposal.",
    "decision.overdue": "Nobody has answered in the team's time.",
    "experiment.changed": "An experiment was made, started, paused, stopped, scaled or deleted.",
    "freshness.breached": "Data of a running experiment is older than its target allows.",
    "freshness.recovered": "It is in time again.",
    "guard.failed": "A guard or a safety limit of a running experiment fails.",
    "slo.burning": "One of the portal's promises to the team is broken.",
}
"""What a team may ask to be told, and when it is."""


def publish(
    *,
    team_id: int,
    experiment_id: int | None,
    type: str,  # noqa: A002 - the event's own word
    data: Mapping[str, object],
    now: datetime,
    to_all: bool = True,
) -> OutboxMessage:
    """Record an event in the caller's transaction. to_all: of the team's channels that ask for it; else who records it delivers it."""
    return OutboxMessage.objects.create(
        team_id=team_id,
        experiment_id=experiment_id,
        type=type,
        data=dict(data),
        created_at=now,
        fanned_out_at=None if to_all else now,
    )


def publish_all(messages: Sequence[OutboxMessage]) -> None:
    """Record many at once, in the caller's transaction."""
    OutboxMessage.objects.bulk_create(messages, batch_size=1000)
