"""What OpenLineage runs have written, so that one which wrote nothing where others did moves no source."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("telemetry", "0016_source_kinds"),
    ]

    operations = [
        migrations.AddField(
            model_name="refreshrun",
            name="outputs",
            field=models.PositiveSmallIntegerField(
                help_text="Datasets that an OpenLineage run named as written.", null=True
            ),
        ),
        migrations.AlterField(
            model_name="source",
            name="lineage_job",
            field=models.CharField(
                blank=True,
                help_text="namespace/name of the OpenLineage jobs whose COMPLETE refreshes it, with commas between them; * stands for anything.",
                max_length=2000,
            ),
        ),
    ]
