"""cursors.quiet_to, and the triggers that take it back whenever a plan or a policy changes, whatever the path."""

from django.db import migrations, models

FORWARD = """
-- What a quiet slot moves is a few instants: state and document stay where they are, out of the row that is written anew.
ALTER TABLE metadata.cursors SET (toast_tuple_target = 128, fillfactor = 50);
ALTER TABLE metadata.cursors ALTER COLUMN state SET STORAGE EXTERNAL;

CREATE FUNCTION metadata.disturb() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = metadata, pg_temp AS $$
DECLARE changed jsonb := to_jsonb(coalesce(NEW, OLD));
BEGIN
  CASE TG_TABLE_NAME
    WHEN 'experiments' THEN UPDATE cursors SET quiet_to = NULL WHERE experiment_id = (changed ->> 'id')::bigint;
    WHEN 'metrics' THEN UPDATE cursors SET quiet_to = NULL WHERE quiet_to IS NOT NULL
      AND experiment_id IN (SELECT experiment_id FROM target_kpis WHERE metric_id = (changed ->> 'id')::bigint);
    WHEN 'policy_versions' THEN UPDATE cursors SET quiet_to = NULL WHERE quiet_to IS NOT NULL;
    WHEN 'policy_bindings' THEN UPDATE cursors SET quiet_to = NULL WHERE quiet_to IS NOT NULL
      AND team_id = (changed ->> 'team_id')::bigint;
    ELSE UPDATE cursors SET quiet_to = NULL WHERE experiment_id = (changed ->> 'experiment_id')::bigint AND quiet_to IS NOT NULL;
  END CASE;
  RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION metadata.disturb FROM PUBLIC;
CREATE TRIGGER disturb AFTER UPDATE ON metadata.experiments FOR EACH ROW EXECUTE FUNCTION metadata.disturb();
CREATE TRIGGER disturb AFTER UPDATE ON metadata.metrics FOR EACH ROW EXECUTE FUNCTION metadata.disturb();
CREATE TRIGGER disturb AFTER INSERT OR UPDATE OR DELETE ON metadata.variants FOR EACH ROW EXECUTE FUNCTION metadata.disturb();
CREATE TRIGGER disturb AFTER INSERT OR UPDATE OR DELETE ON metadata.target_kpis FOR EACH ROW EXECUTE FUNCTION metadata.disturb();
CREATE TRIGGER disturb AFTER INSERT OR UPDATE OR DELETE ON metadata.pauses FOR EACH ROW EXECUTE FUNCTION metadata.disturb();
CREATE TRIGGER disturb AFTER INSERT ON metadata.decisions FOR EACH ROW EXECUTE FUNCTION metadata.disturb();
CREATE TRIGGER disturb AFTER INSERT OR UPDATE OR DELETE ON metadata.policy_bindings FOR EACH ROW EXECUTE FUNCTION metadata.disturb();
CREATE TRIGGER disturb AFTER INSERT OR UPDATE OF activated_at ON metadata.policy_versions FOR EACH ROW EXECUTE FUNCTION metadata.disturb();
"""

REVERSE = """
DROP FUNCTION metadata.disturb CASCADE;
ALTER TABLE metadata.cursors RESET (toast_tuple_target, fillfactor);
ALTER TABLE metadata.cursors ALTER COLUMN state SET STORAGE EXTENDED;
"""


class Migration(migrations.Migration):
    dependencies = [("gates", "0005_revisions")]
    operations = [
        migrations.AddField(
            model_name="cursor",
            name="quiet_to",
            field=models.DateTimeField(
                help_text="Up to this slot nothing changes unless rows, answers, plan or policy do.", null=True
            ),
        ),
        migrations.RunSQL(FORWARD, REVERSE),
    ]
