"""The newest run of a source is asked for with every KPI that is shown."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0004_runs_name_no_experiment")]
    operations = [
        migrations.AddIndex(
            model_name="refreshrun", index=models.Index(fields=["source", "-id"], name="refresh_log_by_source")
        )
    ]
