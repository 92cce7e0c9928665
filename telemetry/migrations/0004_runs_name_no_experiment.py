"""A run names no experiment: which experiments it feeds follows from its source's metrics."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0003_sources")]
    operations = [migrations.RemoveField(model_name="refreshrun", name="experiment_id")]
