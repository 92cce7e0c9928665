"""The only writer of the outbox. Delivery reads it later; a message is as durable as the change it tells of."""

from collections.abc import Mapping
from datetime import datetime

from decisioning.ledger.models import OutboxMessage


def tell(
    *,
    team_id: int,
    experiment_id: int | None,
    type: str,  # noqa: A002 - the event's own word
    data: Mapping[str, object],
    now: datetime,
) -> OutboxMessage:
    """Record an event in the caller's transaction."""
    return OutboxMessage.objects.create(
        team_id=team_id, experiment_id=experiment_id, type=type, data=dict(data), created_at=now
    )
