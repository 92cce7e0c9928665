"""What is believed of a goal, and when doubt in a KPI's rows was set aside."""

from django.db import migrations, models
from django.db.models import Value


class Migration(migrations.Migration):
    dependencies = [("experiments", "0004_schedules_concern_teams")]
    operations = [
        migrations.AddField(
            model_name="targetkpi",
            name="plausible_to",
            field=models.FloatField(
                blank=True,
                null=True,
                help_text="Of a goal: the largest effect that is believed, as minimum_effect; what is proved beyond is reviewed, not scaled.",
            ),
        ),
        migrations.AddField(
            model_name="targetkpi",
            name="trusted",
            field=models.JSONField(
                blank=True,
                default=list,
                db_default=Value([], models.JSONField()),
                help_text="Each time somebody set doubt in its rows aside: {since, until, reason, by}. Written by gates.doubts alone.",
            ),
        ),
    ]
