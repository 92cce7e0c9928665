"""The ledger's ticks."""

from celery import shared_task

from decisioning.ledger import erasure, seals


@shared_task(name="ledger.seal", ignore_result=True, soft_time_limit=50, time_limit=60)
def seal(**_later: object) -> None:
    """Seal the audit entries that nobody can write between any more; beat calls it every 30 seconds."""
    seals.seal_closed()


@shared_task(name="ledger.verify", ignore_result=True, soft_time_limit=540, time_limit=600)
def verify(**_later: object) -> None:
    """Recompute the chain of seals; beat calls it every hour. What it finds is on the audit page and in the log."""
    seals.verify()


@shared_task(name="ledger.erase", ignore_result=True, soft_time_limit=540, time_limit=600)
def erase(**_later: object) -> None:
    """Put pseudonyms in the place of people who were deleted; beat calls it every minute, and there is nearly always nobody."""
    erasure.erase_due()
