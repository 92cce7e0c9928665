"""What was measured and how it came here."""

from django.db import models
from django.db.models import Q

from decisioning.access.models import Team


class ExperimentKpi(models.Model):
    """One bucket of one series: the PRD's metrics.experiment_kpis. `ts` is the END of the bucket.

    Partitioned by month on ts; written by telemetry.ingest alone, in SQL. Metric and variant are text so that a person
    in psql and this model read the same thing.
    """

    pk = models.CompositePrimaryKey("experiment_id", "metric", "variant", "ts")
    experiment_id = models.BigIntegerField()
    metric = models.TextField()
    variant = models.TextField(default="all")
    ts = models.DateTimeField()
    value = models.FloatField()
    n = models.BigIntegerField(null=True)
    variance = models.FloatField(null=True)
    denominator_value = models.FloatField(null=True)
    denominator_variance = models.FloatField(null=True)
    covariance = models.FloatField(null=True)
    window_s = models.IntegerField(null=True)
    revision = models.BigIntegerField(null=True)
    first_received_at = models.DateTimeField()
    received_at = models.DateTimeField()
    team_id = models.BigIntegerField()

    class Meta:
        managed = False
        db_table = "experiment_kpis"

    def __str__(self) -> str:
        return f"{self.metric}/{self.variant} at {self.ts:%Y-%m-%d %H:%MZ}"


class KpiHour(models.Model):
    """One series in one hour, for charts only; rebuilt from rows, read by no verdict. `hour` is the START of the hour."""

    pk = models.CompositePrimaryKey("experiment_id", "metric", "variant", "hour")
    experiment_id = models.BigIntegerField()
    metric = models.TextField()
    variant = models.TextField()
    hour = models.DateTimeField()
    value = models.FloatField(
        help_text="Mean over units where n is known, over rows otherwise; the last row of a cumulative series."
    )
    n = models.BigIntegerField(null=True)
    variance = models.FloatField(null=True)
    rows = models.IntegerField()
    team_id = models.BigIntegerField()

    class Meta:
        managed = False
        db_table = "kpi_hours"

    def __str__(self) -> str:
        return f"{self.metric}/{self.variant} {self.hour:%Y-%m-%d %H}h"


class RefreshRun(models.Model):
    """One attempt of one job to bring something up to date: the PRD's metadata.refresh_log."""

    class Status(models.TextChoices):
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        ABORTED = "aborted"

    run_id = models.UUIDField(unique=True)
    job_name = models.CharField(max_length=500)
    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    experiment_id = models.BigIntegerField(null=True, blank=True)
    source = models.CharField(max_length=200, blank=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    status = models.CharField(max_length=10, choices=Status, default=Status.RUNNING)
    rows = models.PositiveBigIntegerField(null=True, help_text="Rows written; null when the job did not say.")
    error = models.TextField(null=True, blank=True)  # noqa: DJ001 - null: no error, as the PRD has it
    data_watermark = models.DateTimeField(null=True, blank=True, help_text="Newest ts among the rows.")

    class Meta:
        db_table = "refresh_log"
        ordering = ("-id",)
        constraints = [
            models.CheckConstraint(
                name="refresh_run_finished_iff_terminal",
                condition=Q(status="running", finished_at__isnull=True)
                | (~Q(status="running") & Q(finished_at__isnull=False)),
            )
        ]
        indexes = [models.Index(fields=["job_name", "-id"], name="refresh_log_by_job")]

    def __str__(self) -> str:
        return f"{self.job_name} {self.status}"
