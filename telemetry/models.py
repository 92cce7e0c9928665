"""What was measured and how it came here."""

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q

from decisioning.access.models import Team, valid_key


class ExperimentKpi(models.Model):
    """One bucket of one series, a row of metrics.experiment_kpis. `ts` is the END of the bucket.

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
    """One attempt of one job to bring something up to date, a row of metadata.refresh_log."""

    class Status(models.TextChoices):
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        PARTIAL = "partial"  # rows came, and some were refused
        FAILED = "failed"
        ABORTED = "aborted"

    run_id = models.UUIDField(help_text="Unique within the team: the job's own id, or ours.")
    job_name = models.CharField(max_length=2000)
    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    source = models.CharField(max_length=200, blank=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    status = models.CharField(max_length=10, choices=Status, default=Status.RUNNING)
    rows = models.PositiveBigIntegerField(null=True, help_text="Rows written; null when the job did not say.")
    outputs = models.PositiveSmallIntegerField(
        null=True, help_text="Datasets that an OpenLineage run named as written."
    )
    refused = models.PositiveBigIntegerField(null=True, help_text="Rows that were not taken; the error says why.")
    ignored = models.PositiveBigIntegerField(null=True, help_text="Rows of experiments that are not here.")
    error = models.TextField(null=True, blank=True)  # noqa: DJ001 - null: no error
    data_watermark = models.DateTimeField(null=True, blank=True, help_text="Newest ts among the rows.")
    heartbeat_at = models.DateTimeField(
        null=True, blank=True, help_text="When a run of a source last showed life; null for jobs that run elsewhere."
    )

    class Meta:
        db_table = "refresh_log"
        ordering = ("-id",)
        constraints = [
            models.UniqueConstraint(fields=["team", "run_id"], name="refresh_run_once", nulls_distinct=False),
            models.UniqueConstraint(
                fields=["team", "source"],
                condition=Q(status="running", heartbeat_at__isnull=False),
                name="one_run_of_a_source_at_a_time",
            ),
            models.CheckConstraint(
                name="refresh_run_finished_iff_terminal",
                condition=Q(status="running", finished_at__isnull=True)
                | (~Q(status="running") & Q(finished_at__isnull=False)),
            ),
        ]
        indexes = [
            models.Index(fields=["job_name", "-id"], name="refresh_log_by_job"),
            models.Index(fields=["source", "-id"], name="refresh_log_by_source"),
        ]

    def __str__(self) -> str:
        return f"{self.job_name} {self.status}"


class Source(models.Model):
    """Where KPI rows are pulled from: a query on somebody's database, on CSV or Parquet files or on a Prometheus, or an address that
    answers with JSON.

    The URL of a database, a Prometheus or an address stands in an environment variable; only its name is stored.
    """

    class Kind(models.TextChoices):
        SQL = "sql"
        FILE = "file"
        HTTP = "http"
        PROMETHEUS = "prometheus"

    class Encoding(models.TextChoices):
        UTF_8 = "", "UTF-8"
        LATIN_1 = "latin-1", "Latin 1, as Excel writes it in Western Europe"
        UTF_16 = "utf-16", "UTF-16, as Excel's Unicode text"

    class TimeFormat(models.TextChoices):
        TIMES = "", "times"
        SECONDS = "epoch_s", "seconds since 1970"
        MILLISECONDS = "epoch_ms", "milliseconds since 1970"

    key = models.CharField(max_length=63, unique=True, validators=[valid_key])
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    kind = models.CharField(max_length=10, choices=Kind)
    url_env = models.CharField(
        max_length=100,
        blank=True,
        help_text="Name of the environment variable that holds the URL of the database, the Prometheus or the address.",
    )
    token_env = models.CharField(
        max_length=100,
        blank=True,
        db_default="",
        default="",
        help_text="Name of the environment variable that holds the bearer token of an address or a Prometheus.",
    )
    path = models.CharField(
        max_length=500,
        blank=True,
        help_text="CSV or Parquet file below DECISIONING_FILES, a folder of them or a pattern such as exports/*.parquet; "
        "of an address what follows the URL, with {since} and {until}.",
    )
    query = models.TextField(
        blank=True,
        help_text="One SELECT that yields experiment, metric, variant, ts, value, n, variance, ... between :since and :until; "
        "a file is the table `rows`. Of a Prometheus one expression of PromQL; an address has none.",
    )
    rows_pointer = models.CharField(
        max_length=200,
        blank=True,
        db_default="",
        default="",
        help_text="JSON pointer to the list of rows in an address's answer, such as /data/rows; empty: the answer is the list.",
    )
    step_s = models.PositiveIntegerField(
        default=60,
        db_default=60,
        validators=[MinValueValidator(1)],
        help_text="Seconds between two times that a Prometheus is asked for.",
    )
    schedule_s = models.PositiveIntegerField(
        default=900, validators=[MinValueValidator(30)], help_text="Seconds from one run to the next."
    )
    overlap_s = models.PositiveIntegerField(
        default=3600, help_text="Every run reads again this far back, for data that comes late."
    )
    time_limit_s = models.PositiveIntegerField(default=60, validators=[MinValueValidator(1)])
    date_format = models.CharField(
        max_length=40,
        blank=True,
        db_default="",
        default="",
        help_text="How times are written that do not begin with the year, such as %m/%d/%Y or %d.%m.%Y %H:%M.",
    )
    time_zone = models.CharField(
        max_length=40,
        blank=True,
        db_default="",
        default="",
        help_text="Zone of times without offset in files and answers, such as UTC or Europe/Berlin; without it they are refused.",
    )
    time_format = models.CharField(
        max_length=8,
        choices=TimeFormat,
        blank=True,
        db_default="",
        default="",
        help_text="How times are held that are numbers; a database's query is then bounded by such numbers too.",
    )
    columns = models.JSONField(
        blank=True, default=dict, db_default={}, help_text='What our columns are called there: {"users": "n"}.'
    )
    null_words = ArrayField(
        models.CharField(max_length=20),
        blank=True,
        default=list,
        db_default=[],
        help_text=r"Texts that say nothing, such as NULL or \N.",
    )
    delimiter = models.CharField(
        max_length=1,
        blank=True,
        db_default="",
        default="",
        help_text="Of a CSV; empty: the one of , ; | tab that its head has.",
    )
    decimal_comma = models.BooleanField(default=False, db_default=False, help_text="Numbers are written 1,5.")
    encoding = models.CharField(max_length=8, choices=Encoding, blank=True, db_default="", default="")
    metrics = ArrayField(models.CharField(max_length=63), help_text="Keys of the metrics it feeds.")
    lineage_job = models.CharField(
        max_length=2000,
        blank=True,
        help_text="namespace/name of the OpenLineage jobs whose COMPLETE refreshes it, with commas between them; * stands for anything.",
    )
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField()
    due_at = models.DateTimeField(help_text="When the next run starts.")
    failures = models.PositiveIntegerField(
        default=0, editable=False, help_text="Failed runs since the last that brought rows."
    )
    read_to = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="Newest ts that a good run has brought."
    )
    again_from = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="The next run reads again from here: rows were refused since, or somebody asked.",
    )
    last_refresh_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        db_table = "sources"
        ordering = ("key",)
        constraints = [
            models.CheckConstraint(
                name="source_has_its_place",
                condition=Q(kind__in=["sql", "prometheus"], path="") & ~Q(url_env="")
                | Q(kind="http") & ~Q(url_env="")
                | Q(kind="file", url_env="") & ~Q(path=""),
            ),
            models.CheckConstraint(name="source_schedule_positive", condition=Q(schedule_s__gte=1)),
        ]
        indexes = [
            models.Index(fields=["due_at"], condition=Q(enabled=True), name="sources_due"),
            models.Index(fields=["lineage_job"], name="sources_by_job"),
        ]

    def __str__(self) -> str:
        return self.key


class SourceFile(models.Model):
    """A file of a folder or pattern that a source has read, as it was then: it is read again once it is another."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    source = models.ForeignKey(Source, on_delete=models.CASCADE, related_name="+")
    path = models.CharField(max_length=500, help_text="Below DECISIONING_FILES.")
    modified_ns = models.BigIntegerField(help_text="Nanoseconds since 1970, as its file system says.")
    size = models.BigIntegerField(help_text="Bytes.")
    read_at = models.DateTimeField()

    class Meta:
        db_table = "source_files"
        ordering = ("source", "path")
        constraints = [models.UniqueConstraint(fields=["source", "path"], name="one_file_once_per_source")]

    def __str__(self) -> str:
        return self.path


class SourcePlace(models.Model):
    """Where sources of a team may read, beside the folder of files that has the team's own key for a name. Bound by the operator alone."""

    class Kind(models.TextChoices):
        VARIABLE = "variable", "environment variable with a database's URL"
        FOLDER = "folder", "folder or file below DECISIONING_FILES"

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    kind = models.CharField(max_length=8, choices=Kind)
    name = models.CharField(
        max_length=500,
        help_text="Of the variable, such as WAREHOUSE_URL; or the path, with . for the whole folder of files.",
    )
    created_at = models.DateTimeField()

    class Meta:
        db_table = "source_places"
        ordering = ("team", "kind", "name")
        constraints = [models.UniqueConstraint(fields=["team", "kind", "name"], name="one_place_once_per_team")]

    def __str__(self) -> str:
        return f"{self.name} of {self.team}"


class Outage(models.Model):
    """A stretch of time in which some feeds of a team are not expected to bring anything; written by telemetry.outages alone."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    begins_at = models.DateTimeField()
    ends_at = models.DateTimeField(help_text="Buckets that are due from its beginning to its end are not expected.")
    metrics = ArrayField(models.CharField(max_length=63), blank=True, default=list, help_text="Keys of metrics.")
    sources = ArrayField(
        models.CharField(max_length=63),
        blank=True,
        default=list,
        help_text="Keys of sources: all the metrics they feed.",
    )
    reason = models.CharField(max_length=500)
    created_at = models.DateTimeField()

    class Meta:
        db_table = "outages"
        ordering = ("-begins_at", "-id")
        constraints = [
            models.CheckConstraint(name="outage_ends_after_it_begins", condition=Q(ends_at__gt=models.F("begins_at"))),
            models.CheckConstraint(name="outage_is_of_a_feed", condition=Q(metrics__len__gt=0) | Q(sources__len__gt=0)),
        ]
        indexes = [models.Index(fields=["team", "ends_at"], name="outages_by_team")]

    def __str__(self) -> str:
        return f"{self.begins_at:%Y-%m-%d %H:%MZ} to {self.ends_at:%Y-%m-%d %H:%MZ}"


class Event(models.Model):
    """One CloudEvent that was taken in: its (source, id) is never taken in again."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    source = models.CharField(max_length=400)
    event_id = models.CharField(max_length=200)
    type = models.CharField(max_length=200)
    received_at = models.DateTimeField()

    class Meta:
        db_table = "events"
        constraints = [models.UniqueConstraint(fields=["team", "source", "event_id"], name="event_once")]

    def __str__(self) -> str:
        return f"{self.source} {self.event_id}"


class QuarantinedEvent(models.Model):
    """One CloudEvent that was not understood when it came: kept whole, to be replayed after an upgrade."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    source = models.CharField(max_length=400)
    event_id = models.CharField(max_length=200)
    type = models.CharField(max_length=200)
    reason = models.CharField(max_length=400)
    body = models.JSONField(help_text="The whole event as it came.")
    received_at = models.DateTimeField()
    replayed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "quarantined_events"
        ordering = ("-id",)
        constraints = [models.UniqueConstraint(fields=["team", "source", "event_id"], name="quarantined_once")]

    def __str__(self) -> str:
        return f"{self.type} {self.event_id}"
