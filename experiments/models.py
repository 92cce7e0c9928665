"""What is tried, on whom, and which figures tell: the plan of an experiment and the registry of metrics."""

from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.db.models import F, Q, Value

from decisioning.access.models import Team, valid_key

valid_metric_key = RegexValidator(
    r"^[a-z][a-z0-9_]{0,62}$", "Use 1 to 63 lower-case letters, digits and underscores, a letter first."
)


class Metric(models.Model):
    """One figure that is measured the same way everywhere. Shared by all teams, changed by its creating team or an admin."""

    class Kind(models.TextChoices):
        MEAN = "mean"
        PROPORTION = "proportion"
        RATIO = "ratio"
        GAUGE = "gauge"

    class Direction(models.TextChoices):
        INCREASE = "increase"
        DECREASE = "decrease"

    class Temporality(models.TextChoices):
        DELTA = "delta"
        CUMULATIVE = "cumulative"

    key = models.CharField(max_length=63, unique=True, validators=[valid_metric_key])
    name = models.CharField(max_length=200)
    kind = models.CharField(max_length=10, choices=Kind, default=Kind.MEAN)
    unit = models.CharField(max_length=40, blank=True)
    direction = models.CharField(max_length=10, choices=Direction, null=True, blank=True, default=Direction.INCREASE)  # noqa: DJ001 - null: no way is better
    temporality = models.CharField(max_length=10, choices=Temporality, default=Temporality.DELTA)
    expected_every_s = models.PositiveIntegerField(
        default=900,
        validators=[MinValueValidator(1)],
        help_text="A bucket is due this often, in seconds, counted from 1970; where it has schedules, this often mostly.",
    )
    freshness_target_s = models.PositiveIntegerField(
        default=900, validators=[MinValueValidator(1)], help_text="How late a bucket may come, in seconds."
    )
    counts_assignment = models.BooleanField(
        default=True,
        help_text="Whether n counts units assigned to the variant, so that the sample ratio can be checked on it.",
    )
    definition = models.TextField(
        blank=True,
        help_text="What is counted. n counts independent units: users or sessions first seen in the bucket, never the same user every day.",
    )
    team = models.ForeignKey(
        Team, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", help_text="Who made it."
    )
    created_at = models.DateTimeField()
    minimum = models.FloatField(
        null=True, blank=True, help_text="No row's value is below it; a proportion's is 0 in any case."
    )
    maximum = models.FloatField(
        null=True, blank=True, help_text="No row's value is above it; a proportion's is 1 in any case."
    )
    capped_at = models.FloatField(
        null=True, blank=True, help_text="Values of units were capped at it before they came; said, not computed."
    )
    retired_at = models.DateTimeField(null=True, blank=True, help_text="From then on no new plan is judged by it.")
    replaced_by = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text="What to use in its place.",
    )

    class Meta:
        db_table = "metrics"
        ordering = ("key",)
        constraints = [
            models.CheckConstraint(
                name="metric_minimum_below_maximum",
                condition=Q(minimum__isnull=True) | Q(maximum__isnull=True) | Q(minimum__lt=F("maximum")),
            ),
            models.CheckConstraint(
                name="metric_replaced_by_another", condition=Q(replaced_by__isnull=True) | ~Q(replaced_by=F("id"))
            ),
        ]

    def __str__(self) -> str:
        return self.key


class MetricSchedule(models.Model):
    """How the buckets of a metric are due from an instant on. A metric without any is due every `expected_every_s`.

    Written by experiments.feeds alone, which lays out its due instants in metrics.due_instants beside it.
    """

    metric = models.ForeignKey(Metric, on_delete=models.CASCADE, related_name="schedules")
    since = models.DateTimeField(null=True, blank=True, help_text="Null: from the beginning.")
    expected = models.JSONField(help_text="As experiments.expected keeps it.")
    every_s = models.PositiveIntegerField(null=True, blank=True, help_text="Seconds; null: by the calendar.")
    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        db_table = "metric_schedules"
        ordering = ("metric_id", F("since").asc(nulls_first=True))
        constraints = [
            models.UniqueConstraint(fields=["metric", "since"], name="schedule_once_an_instant", nulls_distinct=False)
        ]

    def __str__(self) -> str:
        return f"{self.metric} {'from the beginning' if self.since is None else f'since {self.since:%Y-%m-%d %H:%MZ}'}"


class Experiment(models.Model):
    """One idea under test. What it is judged by is its target KPIs and the policy bound to it (in gates)."""

    class Status(models.TextChoices):
        DRAFT = "draft"
        RUNNING = "running"
        PAUSED = "paused"
        SCALED = "scaled"
        DELETED = "deleted"
        STOPPED = "stopped"

    key = models.CharField(max_length=63, unique=True, validators=[valid_key])
    name = models.CharField(max_length=200)
    hypothesis = models.TextField()
    owner = models.CharField(max_length=200, help_text="Who answers for it: an e-mail address or a name.")
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="experiments")
    status = models.CharField(max_length=10, choices=Status, default=Status.DRAFT)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    expected_units_per_day = models.FloatField(null=True, blank=True, validators=[MinValueValidator(0.0)])

    class Meta:
        db_table = "experiments"
        ordering = ("-id",)
        constraints = [
            models.UniqueConstraint(fields=["id", "team"], name="experiment_and_team"),
            models.CheckConstraint(
                name="experiment_started_unless_draft", condition=Q(status="draft") | Q(started_at__isnull=False)
            ),
            models.CheckConstraint(
                name="experiment_ended_iff_closed",
                condition=Q(status__in=["scaled", "deleted", "stopped"], ended_at__isnull=False)
                | Q(status__in=["draft", "running", "paused"], ended_at__isnull=True),
            ),
            models.CheckConstraint(
                name="experiment_ends_after_it_starts",
                condition=Q(ended_at__isnull=True) | Q(ended_at__gte=F("started_at")),
            ),
        ]

    def __str__(self) -> str:
        return self.key


class OfExperiment(models.Model):
    """A part of one experiment. `team` repeats the experiment's, so that row security is one comparison; a composite
    foreign key holds the two together."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="%(class)ss")
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="+", editable=False)

    class Meta:
        abstract = True

    def save(self, *args: object, **kwargs: object) -> None:
        self.team_id = self.team_id or self.experiment.team_id
        super().save(*args, **kwargs)  # type: ignore[arg-type]


class Variant(OfExperiment):
    """One arm: the control, a treatment, or `all` when there is nothing to compare."""

    key = models.CharField(max_length=63, validators=[valid_key])
    name = models.CharField(max_length=200, blank=True)
    weight = models.FloatField(default=1.0, help_text="Planned share of units, on any scale.")
    control = models.BooleanField(default=False)
    position = models.PositiveSmallIntegerField()
    dropped_at = models.DateTimeField(null=True, blank=True, help_text="When this arm alone was deleted.")

    class Meta:
        db_table = "variants"
        ordering = ("experiment_id", "position")
        constraints = [
            models.UniqueConstraint(fields=["experiment", "key"], name="variant_key_once"),
            models.UniqueConstraint(fields=["experiment"], condition=Q(control=True), name="one_control"),
            models.CheckConstraint(name="variant_weight_positive", condition=Q(weight__gt=0)),
        ]

    def __str__(self) -> str:
        return self.key


class TargetKpi(OfExperiment):
    """One metric the experiment is judged by, or only shown."""

    class Role(models.TextChoices):
        GOAL = "goal"
        GUARDRAIL = "guardrail"
        SHOWN = "shown"
        EXPOSURE = "exposure"

    metric = models.ForeignKey(Metric, on_delete=models.PROTECT, related_name="+")
    role = models.CharField(max_length=10, choices=Role, default=Role.GOAL)
    position = models.PositiveSmallIntegerField()
    minimum_effect = models.FloatField(
        null=True, blank=True, help_text="Smallest effect worth having, as a fraction: 0.02 is 2%."
    )
    max_harm = models.FloatField(null=True, blank=True, help_text="Most harm that is tolerated, as a fraction.")
    baseline_mean = models.FloatField(null=True, blank=True)
    baseline_stddev = models.FloatField(null=True, blank=True)
    target_at_least = models.FloatField(null=True, blank=True)
    target_at_most = models.FloatField(null=True, blank=True)
    plausible_to = models.FloatField(
        null=True,
        blank=True,
        help_text="Of a goal: the largest effect that is believed, as minimum_effect; what is proved beyond is reviewed, not scaled.",
    )
    trusted = models.JSONField(
        default=list,
        db_default=Value([], models.JSONField()),
        blank=True,
        help_text="Each time somebody set doubt in its rows aside: {since, until, reason, by}. Written by gates.doubts alone.",
    )
    sparse = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Of a guardrail: where the goal's row came and its own did not, nothing happened.",
    )

    class Meta:
        db_table = "target_kpis"
        ordering = ("experiment_id", "position")
        constraints = [
            models.UniqueConstraint(fields=["experiment", "metric"], name="metric_once_per_experiment"),
            models.CheckConstraint(
                name="baseline_whole_or_absent",
                condition=Q(baseline_mean__isnull=True, baseline_stddev__isnull=True)
                | Q(baseline_mean__isnull=False, baseline_stddev__gt=0),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.metric} as {self.role}"


class Pause(OfExperiment):
    """A stretch in which the experiment was not judged."""

    paused_at = models.DateTimeField()
    resumed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "pauses"
        constraints = [
            models.UniqueConstraint(fields=["experiment"], condition=Q(resumed_at__isnull=True), name="one_open_pause"),
            models.CheckConstraint(
                name="pause_ends_after_it_starts",
                condition=Q(resumed_at__isnull=True) | Q(resumed_at__gte=F("paused_at")),
            ),
        ]

    def __str__(self) -> str:
        return f"since {self.paused_at:%Y-%m-%d %H:%MZ}"


class Asset(OfExperiment):
    """A picture of what a variant looks like, with the words for people who cannot see it."""

    variant = models.ForeignKey(Variant, on_delete=models.CASCADE, related_name="assets")
    title = models.CharField(max_length=200)
    alt = models.CharField(max_length=400, help_text="What the picture shows, in words.")
    media_type = models.CharField(max_length=40)
    body = models.BinaryField()
    created_at = models.DateTimeField()

    class Meta:
        db_table = "assets"

    def __str__(self) -> str:
        return self.title
