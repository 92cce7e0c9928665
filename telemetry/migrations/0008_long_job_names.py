"""Names of jobs are kept up to 2,000 characters."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0007_refused_rows")]
    operations = [
        migrations.AlterField(model_name="refreshrun", name="job_name", field=models.CharField(max_length=2000)),
        migrations.AlterField(
            model_name="source",
            name="lineage_job",
            field=models.CharField(
                blank=True,
                help_text="namespace/name of the OpenLineage job whose COMPLETE refreshes it.",
                max_length=2000,
            ),
        ),
    ]
