"""Times that are numbers since 1970."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0013_free_places")]
    operations = [
        migrations.AddField(
            model_name="source",
            name="time_format",
            field=models.CharField(
                blank=True,
                choices=[("", "times"), ("epoch_s", "seconds since 1970"), ("epoch_ms", "milliseconds since 1970")],
                db_default="",
                default="",
                help_text="How times are held that are numbers; a database's query is then bounded by such numbers too.",
                max_length=8,
            ),
        ),
    ]
