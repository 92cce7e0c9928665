"""recommendations.superseded_because: a correction, another policy, a newer proposal or an answer; not recorded until now."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("gates", "0008_cursor_readable_at")]
    operations = [
        migrations.AddField(
            model_name="recommendation",
            name="superseded_because",
            field=models.CharField(
                max_length=20,
                choices=[
                    ("evidence_corrected", "Evidence corrected"),
                    ("policy_changed", "Policy changed"),
                    ("judged_anew", "Judged anew"),
                    ("newer_proposal", "Newer proposal"),
                    ("another_answer", "Another answer"),
                ],
                blank=True,
                db_default="",
                help_text="Empty in records older than the field.",
            ),
        ),
        migrations.AddConstraint(
            model_name="recommendation",
            constraint=models.CheckConstraint(
                condition=models.Q(("superseded_because", ""), ("superseded_at__isnull", False), _connector="OR"),
                name="because_only_of_superseded",
            ),
        ),
    ]
