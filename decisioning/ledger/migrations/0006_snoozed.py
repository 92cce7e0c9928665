"""What was last told of an alarm, and people's answers to one: it is snoozed until an instant, or acknowledged; both audited."""

from django.db import migrations, models

FORWARD = """
UPDATE metadata.alarms SET told = data WHERE told_at IS NOT NULL;
GRANT UPDATE (snoozed_until, snoozed_at, snoozed_by, snoozed_because, acknowledged_at, acknowledged_by) ON metadata.alarms TO decisioning_web;
-- What ticks find stands in messages; what a person does to an alarm is history.
CREATE TRIGGER audit_update AFTER UPDATE ON metadata.alarms REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT
  EXECUTE FUNCTION audit.record('ledger.alarm', 'id', 'team_id', 'experiment_id', '{data,told,began_at,told_at,ended_at}', '{}');
"""
REVERSE = """
DROP TRIGGER audit_update ON metadata.alarms;
REVOKE UPDATE (snoozed_until, snoozed_at, snoozed_by, snoozed_because, acknowledged_at, acknowledged_by) ON metadata.alarms FROM decisioning_web;
"""


class Migration(migrations.Migration):
    dependencies = [("ledger", "0005_told")]

    operations = [
        migrations.AlterField(
            "alarm", "data", models.JSONField(default=dict, help_text="What a message of it would say now.")
        ),
        migrations.AlterField("alarm", "told_at", models.DateTimeField(null=True, help_text="When it was last told.")),
        migrations.AddField(
            "alarm", "told", models.JSONField(default=dict, db_default={}, help_text="What was last told.")
        ),
        migrations.AddField(
            "alarm",
            "snoozed_until",
            models.DateTimeField(null=True, help_text="Nothing is told of it before; null: it is not snoozed."),
        ),
        migrations.AddField("alarm", "snoozed_at", models.DateTimeField(null=True)),
        migrations.AddField(
            "alarm", "snoozed_by", models.CharField(max_length=200, blank=True, default="", db_default="")
        ),
        migrations.AddField(
            "alarm", "snoozed_because", models.CharField(max_length=500, blank=True, default="", db_default="")
        ),
        migrations.AddField(
            "alarm",
            "acknowledged_at",
            models.DateTimeField(null=True, help_text="Somebody deals with it: only its end is told from now on."),
        ),
        migrations.AddField(
            "alarm", "acknowledged_by", models.CharField(max_length=200, blank=True, default="", db_default="")
        ),
        migrations.RunSQL(FORWARD, REVERSE),
    ]
