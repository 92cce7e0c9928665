"""Sources, events taken in and events in quarantine come under row security; answers to repeated POSTs are kept."""

import django.contrib.postgres.fields
import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

FORWARD = """
ALTER TABLE public.sources SET SCHEMA metadata;
ALTER TABLE public.events SET SCHEMA metadata;
ALTER TABLE public.quarantined_events SET SCHEMA metadata;
SELECT access.protect('metadata.sources'), audit.watch('metadata.sources', 'telemetry.source', silent => '{due_at,failures,read_to,last_refresh_at}');
SELECT access.protect('metadata.events', writes => 'INSERT');
SELECT access.protect('metadata.quarantined_events', writes => 'INSERT, UPDATE'), audit.watch('metadata.quarantined_events', 'telemetry.quarantinedevent');

-- What a POST with an Idempotency-Key was answered, by whom. Without a body the answer held a secret, which is shown once.
CREATE TABLE metadata.idempotency (
  principal text NOT NULL,
  key text NOT NULL,
  fingerprint bytea NOT NULL,
  status smallint NOT NULL,
  headers jsonb NOT NULL,
  body bytea,
  created_at timestamptz NOT NULL,
  PRIMARY KEY (principal, key)
);
CREATE INDEX idempotency_by_age ON metadata.idempotency (created_at);
ALTER TABLE metadata.idempotency ENABLE ROW LEVEL SECURITY;
ALTER TABLE metadata.idempotency FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON metadata.idempotency TO decisioning_owner USING (true) WITH CHECK (true);
CREATE POLICY worker ON metadata.idempotency TO decisioning_worker USING (true) WITH CHECK (true);
CREATE POLICY mine ON metadata.idempotency TO decisioning_web
  USING (principal = (SELECT access.setting('actor_kind') || ':' || access.setting('actor_id')));
GRANT SELECT, INSERT, UPDATE ON metadata.idempotency TO decisioning_web;

-- Retention is the worker's.
GRANT SELECT, DELETE ON metadata.idempotency, metadata.events, metadata.quarantined_events, metadata.refresh_log TO decisioning_worker;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA metadata TO decisioning_web, decisioning_worker;
"""

REVERSE = """
DROP TABLE metadata.idempotency;
DO $$
DECLARE t text; p record;
BEGIN
  FOREACH t IN ARRAY '{sources,events,quarantined_events}'::text[] LOOP
    FOR p IN SELECT policyname FROM pg_policies WHERE schemaname = 'metadata' AND tablename = t LOOP
      EXECUTE format('DROP POLICY %I ON metadata.%I', p.policyname, t);
    END LOOP;
    EXECUTE format('DROP TRIGGER IF EXISTS audit_insert ON metadata.%I', t);
    EXECUTE format('DROP TRIGGER IF EXISTS audit_update ON metadata.%I', t);
    EXECUTE format('DROP TRIGGER IF EXISTS audit_delete ON metadata.%I', t);
    EXECUTE format('ALTER TABLE metadata.%I DISABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE metadata.%I SET SCHEMA public', t);
  END LOOP;
END $$;
REVOKE DELETE ON metadata.refresh_log FROM decisioning_worker;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0002_row_security"),
        ("telemetry", "0002_kpis"),
    ]

    operations = [
        migrations.CreateModel(
            name="Event",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("source", models.CharField(max_length=400)),
                ("event_id", models.CharField(max_length=200)),
                ("type", models.CharField(max_length=200)),
                ("received_at", models.DateTimeField()),
                (
                    "team",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="+", to="access.team"),
                ),
            ],
            options={
                "db_table": "events",
                "constraints": [models.UniqueConstraint(fields=("team", "source", "event_id"), name="event_once")],
            },
        ),
        migrations.CreateModel(
            name="QuarantinedEvent",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("source", models.CharField(max_length=400)),
                ("event_id", models.CharField(max_length=200)),
                ("type", models.CharField(max_length=200)),
                ("reason", models.CharField(max_length=400)),
                ("body", models.JSONField(help_text="The whole event as it came.")),
                ("received_at", models.DateTimeField()),
                ("replayed_at", models.DateTimeField(blank=True, null=True)),
                (
                    "team",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="+", to="access.team"),
                ),
            ],
            options={
                "db_table": "quarantined_events",
                "ordering": ("-id",),
                "constraints": [
                    models.UniqueConstraint(fields=("team", "source", "event_id"), name="quarantined_once")
                ],
            },
        ),
        migrations.CreateModel(
            name="Source",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "key",
                    models.CharField(
                        max_length=63,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                "^(?=.*[a-z])[a-z0-9][a-z0-9-]{0,62}$",
                                "Use 1 to 63 lower-case letters, digits and hyphens, with at least one letter.",
                            )
                        ],
                    ),
                ),
                ("kind", models.CharField(choices=[("sql", "Sql"), ("file", "File")], max_length=4)),
                (
                    "url_env",
                    models.CharField(
                        blank=True,
                        help_text="Name of the environment variable that holds the database URL.",
                        max_length=100,
                    ),
                ),
                (
                    "path",
                    models.CharField(
                        blank=True, help_text="CSV or Parquet file below DECISIONING_FILES.", max_length=500
                    ),
                ),
                (
                    "query",
                    models.TextField(
                        help_text="One SELECT that yields experiment, metric, variant, ts, value, n, variance, ... between :since and :until; a file is the table `rows`."
                    ),
                ),
                (
                    "schedule_s",
                    models.PositiveIntegerField(
                        default=900,
                        help_text="Seconds from one run to the next.",
                        validators=[django.core.validators.MinValueValidator(30)],
                    ),
                ),
                (
                    "overlap_s",
                    models.PositiveIntegerField(
                        default=3600, help_text="Every run reads again this far back, for data that comes late."
                    ),
                ),
                (
                    "time_limit_s",
                    models.PositiveIntegerField(default=60, validators=[django.core.validators.MinValueValidator(1)]),
                ),
                (
                    "metrics",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=63), help_text="Keys of the metrics it feeds."
                    ),
                ),
                (
                    "lineage_job",
                    models.CharField(
                        blank=True,
                        help_text="namespace/name of the OpenLineage job whose COMPLETE refreshes it.",
                        max_length=500,
                    ),
                ),
                ("enabled", models.BooleanField(default=True)),
                ("created_at", models.DateTimeField()),
                ("due_at", models.DateTimeField(help_text="When the next run starts.")),
                (
                    "failures",
                    models.PositiveIntegerField(
                        default=0, editable=False, help_text="Failed runs since the last good one."
                    ),
                ),
                (
                    "read_to",
                    models.DateTimeField(
                        blank=True, editable=False, help_text="Newest ts that a good run has brought.", null=True
                    ),
                ),
                ("last_refresh_at", models.DateTimeField(blank=True, editable=False, null=True)),
                (
                    "team",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="+", to="access.team"),
                ),
            ],
            options={
                "db_table": "sources",
                "ordering": ("key",),
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("kind", "sql"), ("path", ""), models.Q(("url_env", ""), _negated=True)),
                            models.Q(("kind", "file"), ("url_env", ""), models.Q(("path", ""), _negated=True)),
                            _connector="OR",
                        ),
                        name="source_has_its_place",
                    ),
                    models.CheckConstraint(condition=models.Q(("schedule_s__gte", 1)), name="source_schedule_positive"),
                ],
                "indexes": [
                    models.Index(condition=models.Q(("enabled", True)), fields=["due_at"], name="sources_due"),
                    models.Index(fields=["lineage_job"], name="sources_by_job"),
                ],
            },
        ),
        migrations.AddField(
            model_name="refreshrun",
            name="heartbeat_at",
            field=models.DateTimeField(
                blank=True,
                help_text="When a run of a source last showed life; null for jobs that run elsewhere.",
                null=True,
            ),
        ),
        migrations.AlterField(
            model_name="refreshrun",
            name="run_id",
            field=models.UUIDField(help_text="Unique within the team: the job's own id, or ours."),
        ),
        migrations.AddConstraint(
            model_name="refreshrun",
            constraint=models.UniqueConstraint(
                fields=("team", "run_id"), name="refresh_run_once", nulls_distinct=False
            ),
        ),
        migrations.AddConstraint(
            model_name="refreshrun",
            constraint=models.UniqueConstraint(
                condition=models.Q(("heartbeat_at__isnull", False), ("status", "running")),
                fields=("team", "source"),
                name="one_run_of_a_source_at_a_time",
            ),
        ),
        migrations.RunSQL(FORWARD, REVERSE),
    ]
