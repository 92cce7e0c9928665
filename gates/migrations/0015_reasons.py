from django.db import migrations, models


class Migration(migrations.Migration):
    """Why, as data. What was told in sentences before stays as it is."""

    dependencies = [("gates", "0014_claims")]

    operations = [
        migrations.AddField(
            "recommendation",
            "reasons",
            models.JSONField(db_default=models.Value([], models.JSONField()), default=list),
        ),
        migrations.AlterField("recommendation", "blockers", models.JSONField(default=list)),
        migrations.AlterField("recommendation", "rationale", models.JSONField(default=list)),
    ]
