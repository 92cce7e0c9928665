"""audit.reads: how many reads were asked and how many failed, a minute and a process. About the portal itself: no team."""

from django.db import migrations, models

FORWARD = """
SET LOCAL lock_timeout = '1500ms';
ALTER TABLE public.reads SET SCHEMA audit;
REVOKE ALL ON audit.reads FROM decisioning_web, decisioning_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON audit.reads TO decisioning_web;
GRANT SELECT ON audit.reads TO decisioning_worker;
GRANT USAGE, SELECT ON SEQUENCE audit.reads_id_seq TO decisioning_web;
"""
REVERSE = "ALTER TABLE audit.reads SET SCHEMA public;"


class Migration(migrations.Migration):
    dependencies = [("access", "0003_login_attempts"), ("ledger", "0003_seals")]
    operations = [
        migrations.CreateModel(
            name="Reads",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("minute", models.DateTimeField()),
                ("process", models.CharField(max_length=32)),
                ("asked", models.PositiveBigIntegerField()),
                ("failed", models.PositiveBigIntegerField(help_text="Answered with a 5xx.")),
                ("stale", models.PositiveBigIntegerField(help_text="Answered from a copy.")),
                ("done", models.BooleanField(help_text="Whether the process counted to the end of the minute.")),
            ],
            options={
                "verbose_name_plural": "reads",
                "db_table": "reads",
                "constraints": [
                    models.UniqueConstraint(fields=["minute", "process"], name="one_count_per_minute_and_process")
                ],
            },
        ),
        migrations.RunSQL(FORWARD, REVERSE),
    ]
