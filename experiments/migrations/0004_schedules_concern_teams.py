"""A schedule concerns every team that judges by its metric: each has its change in its own audit, as it has changes of the metric itself."""

from django.db import migrations

FORWARD = """
SET LOCAL lock_timeout = '1500ms';
DO $$
DECLARE
  users constant text := {users};
BEGIN
  EXECUTE format('CREATE OR REPLACE TRIGGER audit_insert AFTER INSERT ON metadata.metric_schedules REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.record(%L, %L, %L, %L, %L, %L{also})', 'experiments.metricschedule', 'id', 'team_id', '', '{{}}', '{{}}'{value});
  EXECUTE format('CREATE OR REPLACE TRIGGER audit_update AFTER UPDATE ON metadata.metric_schedules REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.record(%L, %L, %L, %L, %L, %L{also})', 'experiments.metricschedule', 'id', 'team_id', '', '{{}}', '{{}}'{value});
  EXECUTE format('CREATE OR REPLACE TRIGGER audit_delete AFTER DELETE ON metadata.metric_schedules REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.record(%L, %L, %L, %L, %L, %L{also})', 'experiments.metricschedule', 'id', 'team_id', '', '{{}}', '{{}}'{value});
END $$;
"""
USERS = """
  'SELECT DISTINCT k.team_id FROM metadata.target_kpis k WHERE k.metric_id = (r ->> ''metric_id'')::bigint AND k.team_id IS DISTINCT FROM (r ->> ''team_id'')::bigint'
"""


class Migration(migrations.Migration):
    dependencies = [("experiments", "0003_schedules"), ("ledger", "0005_told")]
    operations = [
        migrations.RunSQL(
            FORWARD.format(users=USERS, also=", %L", value=", users"), FORWARD.format(users="''", also="", value="")
        )
    ]
