"""Append-only facts, written in the caller's transaction: the audit, the outbox, and when each job last beat.

And what becomes of the outbox: who is to be told, which message reached whom, and what has been told already.
"""

from datetime import datetime

from auditlog.models import AbstractLogEntry
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.db.models.fields.json import KT
from django.db.models.functions import Cast

from decisioning.access.models import Team


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


def one_of_each(entries: models.QuerySet[Entry]) -> models.QuerySet[Entry]:
    """What is about several teams is written once for each; whoever may see several of these is shown the first alone."""
    before = Entry.objects.annotate(of=_OF).filter(pk__gte=OuterRef("of"), pk__lt=OuterRef("pk"))
    seen_before = Exists(before.filter(Q(pk=OuterRef("of")) | Q(of=OuterRef("of"))))
    shown: models.QuerySet[Entry] = entries.annotate(of=_OF).filter(Q(of__isnull=True) | ~seen_before)
    return shown


_OF = Cast(KT("additional_data__of"), models.BigIntegerField())


class OutboxMessage(models.Model):
    """One event the outside may want to know, written in the transaction that made it true."""

    team_id = models.BigIntegerField()
    experiment_id = models.BigIntegerField(null=True)
    type = models.CharField(max_length=40, help_text="Such as decision.proposed; docs/notifications.md lists them.")
    data = models.JSONField()
    created_at = models.DateTimeField()
    fanned_out_at = models.DateTimeField(
        null=True, help_text="When it was put into the queue of every channel it is for."
    )
    delivered_at = models.DateTimeField(
        null=True, help_text="When the last of them had it; at once when it is for none."
    )

    class Meta:
        db_table = "outbox"
        indexes = [
            models.Index(fields=["id"], condition=Q(fanned_out_at__isnull=True), name="outbox_to_fan_out"),
            models.Index(fields=["created_at"], name="outbox_by_age"),
        ]

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


class Channel(models.Model):
    """One receiver of a team's events. What signs its messages is made from `salt` when needed and kept nowhere."""

    class Kind(models.TextChoices):
        WEBHOOK = "webhook"
        SLACK = "slack"
        EMAIL = "email"

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="channels")
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.WEBHOOK)
    name = models.CharField(max_length=200, help_text="Kind and host: the address itself may hold a token.")
    url = models.CharField(max_length=2000, help_text="https://..., or mailto:... for e-mail.")
    events = ArrayField(models.CharField(max_length=40), help_text="Types of messages it gets.")
    salt = models.CharField(max_length=64, editable=False)
    created_by = models.CharField(max_length=200)
    created_at = models.DateTimeField()
    enabled = models.BooleanField(default=True)
    disabled_at = models.DateTimeField(null=True)
    disabled_reason = models.CharField(max_length=200, blank=True)
    failures = models.PositiveIntegerField(default=0, help_text="Failed attempts since the last good one.")
    failing_since = models.DateTimeField(null=True)
    next_at = models.DateTimeField(help_text="It is not called before: it could not be reached.")
    leased_until = models.DateTimeField(null=True, help_text="Whoever serves it has it to himself until then.")

    class Meta:
        db_table = "channels"
        constraints = [
            models.CheckConstraint(
                name="channel_disabled_with_a_reason",
                condition=Q(enabled=True, disabled_at__isnull=True, disabled_reason="")
                | (Q(enabled=False, disabled_at__isnull=False) & ~Q(disabled_reason="")),
            )
        ]

    def __str__(self) -> str:
        return self.name


class Delivery(models.Model):
    """One message on its way to one channel. Kept in order per experiment: an older one that waits holds the newer ones."""

    class State(models.TextChoices):
        WAITING = "waiting"
        DELIVERED = "delivered"
        DEAD = "dead"

    message = models.ForeignKey(OutboxMessage, on_delete=models.CASCADE, related_name="deliveries")
    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="deliveries")
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+", editable=False)
    experiment_id = models.BigIntegerField(null=True)
    state = models.CharField(max_length=10, choices=State, default=State.WAITING)
    created_at = models.DateTimeField()
    asked_at = models.DateTimeField(null=True, help_text="When somebody asked to send it again.")
    trying_since = models.DateTimeField(null=True, help_text="Its first attempt, since it was asked for again.")
    next_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)
    last_at = models.DateTimeField(null=True)
    last_status = models.PositiveSmallIntegerField(
        null=True, help_text="HTTP status of the last attempt, if it had one."
    )
    last_error = models.CharField(max_length=400, blank=True)
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "deliveries"
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(fields=["message", "channel"], name="one_delivery_per_message_and_channel"),
            models.CheckConstraint(
                name="delivered_at_iff_delivered",
                condition=Q(state="delivered", delivered_at__isnull=False)
                | (~Q(state="delivered") & Q(delivered_at__isnull=True)),
            ),
        ]
        indexes = [
            models.Index(
                fields=["channel", "experiment_id", "message"], condition=Q(state="waiting"), name="deliveries_waiting"
            ),
            models.Index(fields=["channel", "-id"], name="deliveries_of_channel"),
        ]

    def __str__(self) -> str:
        return f"{self.message} to {self.channel}: {self.state}"


class Alarm(models.Model):
    """Something a tick found wrong, from when it was first seen until it was over for a while: what was told is not told again."""

    team_id = models.BigIntegerField()
    experiment_id = models.BigIntegerField(null=True)
    type = models.CharField(max_length=40, help_text="The event it is told as.")
    subject = models.CharField(max_length=300, help_text="What it is about, within its type and team.")
    data = models.JSONField(default=dict, help_text="What a message of it would say now.")
    told = models.JSONField(default=dict, db_default={}, help_text="What was last told.")
    began_at = models.DateTimeField()
    told_at = models.DateTimeField(null=True, help_text="When it was last told.")
    ended_at = models.DateTimeField(
        null=True, help_text="Since when it is no longer so; begins anew when it comes back."
    )
    snoozed_until = models.DateTimeField(null=True, help_text="Nothing is told of it before; null: it is not snoozed.")
    snoozed_at = models.DateTimeField(null=True)
    snoozed_by = models.CharField(max_length=200, blank=True, default="", db_default="")
    snoozed_because = models.CharField(max_length=500, blank=True, default="", db_default="")
    acknowledged_at = models.DateTimeField(
        null=True, help_text="Somebody deals with it: only its end is told from now on."
    )
    acknowledged_by = models.CharField(max_length=200, blank=True, default="", db_default="")

    class Meta:
        db_table = "alarms"
        constraints = [models.UniqueConstraint(fields=["type", "team_id", "subject"], name="one_alarm_per_subject")]

    def __str__(self) -> str:
        return f"{self.type} {self.subject}"

    def is_snoozed(self, now: datetime) -> bool:
        return self.snoozed_until is not None and self.snoozed_until > now
