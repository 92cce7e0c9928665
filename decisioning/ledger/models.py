"""Append-only facts, written in the caller's transaction: the audit, the outbox, and when each job last beat."""

from auditlog.models import AbstractLogEntry
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.db import models


class Entry(AbstractLogEntry):  # type: ignore[misc] # auditlog has no types
    """One change of one object, or one KPI batch. Written by database triggers alone, never by Python.

    The actor is a person, a key, a job or a database login; history outlives users and content types, so both
    references do nothing when their target goes.
    """

    content_type = models.ForeignKey(ContentType, on_delete=models.DO_NOTHING, related_name="+", db_constraint=False)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        related_name="+",
        db_constraint=False,
    )
    actor_kind = models.CharField(max_length=10, help_text="user, key, job or role (a database login).")
    actor_name = models.CharField(max_length=200)
    team_id = models.BigIntegerField(null=True, db_index=True)
    experiment_id = models.BigIntegerField(null=True, db_index=True, help_text="The experiment the object belongs to.")

    class Meta:
        db_table = "entries"
        ordering = ("-id",)
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.get_action_display()} {self.object_repr} by {self.actor_name}"


class OutboxMessage(models.Model):
    """One event the outside may want to know, written in the transaction that made it true."""

    team_id = models.BigIntegerField()
    experiment_id = models.BigIntegerField(null=True)
    type = models.CharField(max_length=40, help_text="Such as decision.proposed; API.md lists them.")
    data = models.JSONField()
    created_at = models.DateTimeField()
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "outbox"
        indexes = [models.Index(fields=["id"], condition=models.Q(delivered_at__isnull=True), name="outbox_waiting")]

    def __str__(self) -> str:
        return f"{self.type} #{self.pk}"


class Heartbeat(models.Model):
    """When a job last finished, and the newest slot it has dealt with: what the watchdog looks at."""

    name = models.CharField(max_length=60, primary_key=True)
    at = models.DateTimeField()
    slot = models.DateTimeField(null=True)

    class Meta:
        db_table = "heartbeats"

    def __str__(self) -> str:
        return self.name
