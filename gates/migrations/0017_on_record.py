from django.db import migrations, models


class Migration(migrations.Migration):
    """What is on record, beside the cursor: so that a slot at which nobody is told anything new reads and writes little."""

    dependencies = [("gates", "0016_policy_in_force")]
    operations = [
        migrations.AddField(
            "cursor",
            "on_record",
            models.JSONField(
                null=True,
                help_text="Of the newest evaluation on record {day, fold, version, gist}, and of `shown` {open, basis, gates}: its open proposals, and "
                "digests of what it follows from and of its gates; null: they have to be read.",
            ),
        )
    ]
