"""Sources read addresses and Prometheus too, folders and patterns of files, and times without offset in a zone that they name."""

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

FORWARD = """
ALTER TABLE public.source_files SET SCHEMA metadata;
SELECT access.protect('metadata.source_files', reader => false);
GRANT USAGE, SELECT ON SEQUENCE metadata.source_files_id_seq TO decisioning_web, decisioning_worker;
-- What was read as UTC yesterday is read as UTC tomorrow.
UPDATE metadata.sources SET time_zone = 'UTC' WHERE kind = 'file';
"""


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0007_invitations"),
        ("telemetry", "0015_source_options"),
    ]

    operations = [
        migrations.CreateModel(
            name="SourceFile",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("path", models.CharField(help_text="Below DECISIONING_FILES.", max_length=500)),
                ("modified_ns", models.BigIntegerField(help_text="Nanoseconds since 1970, as its file system says.")),
                ("size", models.BigIntegerField(help_text="Bytes.")),
                ("read_at", models.DateTimeField()),
            ],
            options={
                "db_table": "source_files",
                "ordering": ("source", "path"),
            },
        ),
        migrations.RemoveConstraint(
            model_name="source",
            name="source_has_its_place",
        ),
        migrations.AddField(
            model_name="source",
            name="rows_pointer",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="JSON pointer to the list of rows in an address's answer, such as /data/rows; empty: the answer is the list.",
                max_length=200,
            ),
        ),
        migrations.AddField(
            model_name="source",
            name="step_s",
            field=models.PositiveIntegerField(
                db_default=60,
                default=60,
                help_text="Seconds between two times that a Prometheus is asked for.",
                validators=[django.core.validators.MinValueValidator(1)],
            ),
        ),
        migrations.AddField(
            model_name="source",
            name="time_zone",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Zone of times without offset in files and answers, such as UTC or Europe/Berlin; without it they are refused.",
                max_length=40,
            ),
        ),
        migrations.AddField(
            model_name="source",
            name="token_env",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Name of the environment variable that holds the bearer token of an address or a Prometheus.",
                max_length=100,
            ),
        ),
        migrations.AlterField(
            model_name="source",
            name="date_format",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="How times are written that do not begin with the year, such as %m/%d/%Y or %d.%m.%Y %H:%M.",
                max_length=40,
            ),
        ),
        migrations.AlterField(
            model_name="source",
            name="kind",
            field=models.CharField(
                choices=[("sql", "Sql"), ("file", "File"), ("http", "Http"), ("prometheus", "Prometheus")],
                max_length=10,
            ),
        ),
        migrations.AlterField(
            model_name="source",
            name="path",
            field=models.CharField(
                blank=True,
                help_text="CSV or Parquet file below DECISIONING_FILES, a folder of them or a pattern such as exports/*.parquet; of an address what follows the URL, with {since} and {until}.",
                max_length=500,
            ),
        ),
        migrations.AlterField(
            model_name="source",
            name="query",
            field=models.TextField(
                blank=True,
                help_text="One SELECT that yields experiment, metric, variant, ts, value, n, variance, ... between :since and :until; a file is the table `rows`. Of a Prometheus one expression of PromQL; an address has none.",
            ),
        ),
        migrations.AlterField(
            model_name="source",
            name="url_env",
            field=models.CharField(
                blank=True,
                help_text="Name of the environment variable that holds the URL of the database, the Prometheus or the address.",
                max_length=100,
            ),
        ),
        migrations.AddConstraint(
            model_name="source",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("kind__in", ["sql", "prometheus"]), ("path", ""), models.Q(("url_env", ""), _negated=True)
                    ),
                    models.Q(("kind", "http"), models.Q(("url_env", ""), _negated=True)),
                    models.Q(("kind", "file"), ("url_env", ""), models.Q(("path", ""), _negated=True)),
                    _connector="OR",
                ),
                name="source_has_its_place",
            ),
        ),
        migrations.AddField(
            model_name="sourcefile",
            name="source",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="+", to="telemetry.source"
            ),
        ),
        migrations.AddField(
            model_name="sourcefile",
            name="team",
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="+", to="access.team"),
        ),
        migrations.AddConstraint(
            model_name="sourcefile",
            constraint=models.UniqueConstraint(fields=("source", "path"), name="one_file_once_per_source"),
        ),
        migrations.RunSQL(FORWARD, "ALTER TABLE metadata.source_files SET SCHEMA public"),
    ]
