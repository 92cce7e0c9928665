"""cursors.readable_at: from when on an experiment could be read, for the days from there to a proposal."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("gates", "0007_cursor_without_due")]
    operations = [
        migrations.AddField(
            model_name="cursor",
            name="readable_at",
            field=models.DateTimeField(
                help_text="The first look that could be read: fresh, dense, with its floors and min_days.", null=True
            ),
        )
    ]
