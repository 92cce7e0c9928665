"""cursors.unjudgeable: why an experiment cannot be judged, and since when; what it proposes is suspended meanwhile."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("gates", "0010_disturb_what_is_due")]
    operations = [
        migrations.AddField(
            model_name="cursor",
            name="unjudgeable",
            field=models.JSONField(
                help_text="Why the newest slot could not be judged: {since, reason, row}; null while it can. "
                "Nothing proposed is accepted meanwhile.",
                null=True,
            ),
        )
    ]
