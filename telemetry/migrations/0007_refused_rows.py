"""A run whose rows were refused in part is `partial`; what it refused is read again. Dates are written as their source says."""

from django.db import migrations, models

FORWARD = """
SET LOCAL lock_timeout = '4s';
DROP TRIGGER audit_insert ON metadata.sources;
DROP TRIGGER audit_update ON metadata.sources;
DROP TRIGGER audit_delete ON metadata.sources;
SELECT audit.watch('metadata.sources', 'telemetry.source', silent => '{due_at,failures,read_to,last_refresh_at%s}');
"""


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0006_watermark")]
    operations = [
        migrations.AddField(
            model_name="refreshrun",
            name="refused",
            field=models.PositiveBigIntegerField(help_text="Rows that were not taken; the error says why.", null=True),
        ),
        migrations.AddField(
            model_name="refreshrun",
            name="ignored",
            field=models.PositiveBigIntegerField(help_text="Rows of experiments that are not here.", null=True),
        ),
        migrations.AddField(
            model_name="source",
            name="again_from",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="The next run reads again from here: rows were refused since, or somebody asked.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="source",
            name="date_format",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="How times are written that do not begin with the year, such as %m/%d/%Y or %d.%m.%Y %H:%M; UTC without %z.",
                max_length=40,
            ),
        ),
        migrations.AlterField(
            model_name="refreshrun",
            name="status",
            field=models.CharField(
                choices=[
                    ("running", "Running"),
                    ("succeeded", "Succeeded"),
                    ("partial", "Partial"),
                    ("failed", "Failed"),
                    ("aborted", "Aborted"),
                ],
                default="running",
                max_length=10,
            ),
        ),
        migrations.AlterField(
            model_name="source",
            name="failures",
            field=models.PositiveIntegerField(
                default=0, editable=False, help_text="Failed runs since the last that brought rows."
            ),
        ),
        migrations.RunSQL(FORWARD % ",again_from", FORWARD % ""),
    ]
