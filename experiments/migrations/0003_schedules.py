"""Schedules of metrics, their due instants laid out for SQL, and guardrails in which nothing may happen."""

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

FORWARD = """
ALTER TABLE public.metric_schedules SET SCHEMA metadata;
SELECT access.protect('metadata.metric_schedules', shared_reading => true), audit.watch('metadata.metric_schedules', 'experiments.metricschedule');
GRANT USAGE, SELECT ON SEQUENCE metadata.metric_schedules_id_seq TO decisioning_web, decisioning_worker;

-- When the buckets of a metric that follows a calendar are due, for as long as it does: what experiments.schedule says, laid out.
CREATE TABLE metrics.due_instants (
  metric_id bigint NOT NULL REFERENCES metadata.metrics (id) ON DELETE CASCADE,
  at timestamptz NOT NULL,
  PRIMARY KEY (metric_id, at)
);
SELECT access.protect('metrics.due_instants', writes => 'INSERT, DELETE', shared_reading => true,
  team => '(SELECT m.team_id FROM metadata.metrics m WHERE m.id = metric_id)');
"""

REVERSE = """
DROP TABLE metrics.due_instants;
DO $$
DECLARE p record;
BEGIN
  FOR p IN SELECT policyname FROM pg_policies WHERE schemaname = 'metadata' AND tablename = 'metric_schedules' LOOP
    EXECUTE format('DROP POLICY %I ON metadata.metric_schedules', p.policyname);
  END LOOP;
END $$;
DROP TRIGGER audit_insert ON metadata.metric_schedules;
DROP TRIGGER audit_update ON metadata.metric_schedules;
DROP TRIGGER audit_delete ON metadata.metric_schedules;
ALTER TABLE metadata.metric_schedules DISABLE ROW LEVEL SECURITY;
ALTER TABLE metadata.metric_schedules SET SCHEMA public;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0007_invitations"),
        ("experiments", "0002_row_security"),
    ]

    operations = [
        migrations.AddField(
            model_name="targetkpi",
            name="sparse",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Of a guardrail: where the goal's row came and its own did not, nothing happened.",
            ),
        ),
        migrations.AlterField(
            model_name="metric",
            name="expected_every_s",
            field=models.PositiveIntegerField(
                default=900,
                help_text="A bucket is due this often, in seconds, counted from 1970; where it has schedules, this often mostly.",
                validators=[django.core.validators.MinValueValidator(1)],
            ),
        ),
        migrations.CreateModel(
            name="MetricSchedule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("since", models.DateTimeField(blank=True, help_text="Null: from the beginning.", null=True)),
                ("expected", models.JSONField(help_text="As experiments.expected keeps it.")),
                (
                    "every_s",
                    models.PositiveIntegerField(blank=True, help_text="Seconds; null: by the calendar.", null=True),
                ),
                (
                    "metric",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="schedules",
                        to="experiments.metric",
                    ),
                ),
                (
                    "team",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to="access.team",
                    ),
                ),
            ],
            options={
                "db_table": "metric_schedules",
                "ordering": ("metric_id", models.OrderBy(models.F("since"), nulls_first=True)),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("metric", "since"), name="schedule_once_an_instant", nulls_distinct=False
                    )
                ],
            },
        ),
        migrations.RunSQL(FORWARD, REVERSE),
    ]
