"""cursors.rules: by which revision of the rules an experiment was judged; what runs is judged anew once by mended ones."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("gates", "0011_cursor_unjudgeable")]
    operations = [
        migrations.AddField(
            model_name="cursor",
            name="rules",
            field=models.PositiveSmallIntegerField(
                db_default=1,
                default=1,
                help_text="The revision of the rules that judged (gates.engine.compiled.REVISION).",
            ),
        ),
        migrations.AlterField(
            model_name="recommendation",
            name="superseded_because",
            field=models.CharField(
                blank=True,
                choices=[
                    ("evidence_corrected", "Evidence corrected"),
                    ("policy_changed", "Policy changed"),
                    ("judged_anew", "Judged anew"),
                    ("rules_mended", "Rules mended"),
                    ("newer_proposal", "Newer proposal"),
                    ("another_answer", "Another answer"),
                ],
                db_default="",
                help_text="Empty in records older than the field.",
                max_length=20,
            ),
        ),
    ]
