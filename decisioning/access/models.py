"""Who may see and do what: teams, the people in them, and the keys of programs."""

from typing import Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Func, Q

from decisioning.access.scopes import NEVER_FOR_AGENTS, Scope

KEY_PATTERN = r"^(?=.*[a-z])[a-z0-9][a-z0-9-]{0,62}$"
valid_key = RegexValidator(KEY_PATTERN, "Use 1 to 63 lower-case letters, digits and hyphens, with at least one letter.")


def _quota(what: str) -> "models.PositiveBigIntegerField[int | None, int | None]":
    return models.PositiveBigIntegerField(
        blank=True, null=True, help_text=f"{what} at most; empty: as the installation has it."
    )


class Team(models.Model):
    """A group of people who share experiments; the unit of row security."""

    key = models.CharField(max_length=63, unique=True, validators=[valid_key])
    name = models.CharField(max_length=200)
    created_at = models.DateTimeField()
    answer_within_h = models.PositiveIntegerField(
        default=24, help_text="Hours within which a proposal should be answered; later is overdue."
    )
    second_person = models.BooleanField(
        default=True, help_text="Whether a policy version needs somebody other than its author to activate it."
    )

    most_rows_a_day = _quota("Rows sent a day (UTC)")
    most_experiments = _quota("Open experiments")
    most_sources = _quota("Sources")
    most_webhooks = _quota("Webhooks")

    class Meta:
        db_table = "teams"

    def __str__(self) -> str:
        return self.key


class Membership(models.Model):
    """One person's role in one team; `scopes.ROLES` says what the role may do."""

    class Role(models.TextChoices):
        VIEWER = "viewer"
        OPERATOR = "operator"
        APPROVER = "approver"
        ADMIN = "admin"

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.VIEWER)

    class Meta:
        db_table = "memberships"
        constraints = [models.UniqueConstraint(fields=["team", "user"], name="one_role_per_person_and_team")]

    def __str__(self) -> str:
        return f"{self.user} in {self.team} as {self.role}"


class ApiKeys(models.QuerySet["ApiKey"]):
    def judged(self) -> Self:
        """With `problem`: why the key is refused now, None for a good one. Its owner and the keys that made it count too."""
        return self.annotate(
            problem=Func(F("pk"), function="access.key_problem", output_field=models.TextField(null=True))
        )


class Invitation(models.Model):
    """A link by which one person comes into a team, once. Like a key's, its secret is stored as SHA-256 alone."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="invitations")
    role = models.CharField(max_length=10, choices=Membership.Role)
    digest = models.BinaryField(unique=True, max_length=32, editable=False)
    email = models.EmailField(blank=True, help_text="Whom it is for; empty when the link is handed over.")
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=200)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)
    used_by = models.CharField(max_length=200, blank=True)

    class Meta:
        db_table = "invitations"

    def __str__(self) -> str:
        return f"{self.email or 'somebody'} to {self.team} as {self.role}"


class ApiKey(models.Model):
    """A program's way in. The secret itself is shown once and never stored: `digest` is its SHA-256."""

    public_id = models.CharField(max_length=8, unique=True, help_text="The eight characters after dk_.")
    digest = models.BinaryField(unique=True, max_length=32, editable=False)
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="api_keys")
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="api_keys"
    )
    made_by = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="made",
        help_text="The key that asked for this one: it ends with it.",
    )
    scopes = ArrayField(models.CharField(max_length=20, choices=[(s, s) for s in Scope]))
    agent = models.BooleanField(default=False, help_text="An AI agent's key: may create and push, never decide.")
    rate = models.CharField(
        max_length=20, blank=True, help_text='Requests per window, such as "40/m"; empty means the default.'
    )
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    objects = ApiKeys.as_manager()

    class Meta:
        db_table = "api_keys"
        constraints = [
            models.CheckConstraint(
                name="an_agents_key_never_decides",
                condition=Q(agent=False) | ~Q(scopes__overlap=sorted(NEVER_FOR_AGENTS)),
            )
        ]

    def __str__(self) -> str:
        return f"dk_{self.public_id}"


class LoginAttempts(models.Model):
    """Wrong passwords for one name from one address since the last right one; `access.login` is its only writer."""

    username = models.CharField(max_length=150)
    address = models.GenericIPAddressField()
    failures = models.PositiveIntegerField()
    last_at = models.DateTimeField()

    class Meta:
        db_table = "login_attempts"
        verbose_name_plural = "login attempts"
        constraints = [models.UniqueConstraint(fields=["username", "address"], name="one_count_per_name_and_address")]

    def __str__(self) -> str:
        return f"{self.username} from {self.address}"


class Reads(models.Model):
    """Reads of one minute that one web process was asked for; `availability.read_counter` is its only writer.

    A minute that is over and not `done` was cut short: the process ended before it could tell the rest.
    """

    minute = models.DateTimeField()
    process = models.CharField(max_length=32)
    asked = models.PositiveBigIntegerField()
    failed = models.PositiveBigIntegerField(help_text="Answered with a 5xx.")
    stale = models.PositiveBigIntegerField(help_text="Answered from a copy.")
    done = models.BooleanField(help_text="Whether the process counted to the end of the minute.")

    class Meta:
        db_table = "reads"
        verbose_name_plural = "reads"
        constraints = [
            models.UniqueConstraint(fields=["minute", "process"], name="one_count_per_minute_and_process"),
        ]

    def __str__(self) -> str:
        return f"{self.asked} reads in {self.minute:%Y-%m-%d %H:%MZ}"
