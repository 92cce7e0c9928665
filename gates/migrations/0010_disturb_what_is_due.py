"""Whoever changes what a fold reads writes to the cursor, also one that is not quiet: a tick that is judging by what was sees it."""

from django.db import migrations

FORWARD = """
CREATE OR REPLACE FUNCTION metadata.disturb() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = metadata, pg_temp AS $$
DECLARE changed jsonb := to_jsonb(coalesce(NEW, OLD));
BEGIN
  CASE TG_TABLE_NAME
    WHEN 'experiments' THEN UPDATE cursors SET quiet_to = NULL WHERE experiment_id = (changed ->> 'id')::bigint;
    WHEN 'metrics' THEN UPDATE cursors SET quiet_to = NULL WHERE {watched}
      AND experiment_id IN (SELECT experiment_id FROM target_kpis WHERE metric_id = (changed ->> 'id')::bigint);
    WHEN 'policy_versions' THEN UPDATE cursors SET quiet_to = NULL WHERE {watched};
    WHEN 'policy_bindings' THEN UPDATE cursors SET quiet_to = NULL WHERE {watched}
      AND team_id = (changed ->> 'team_id')::bigint;
    ELSE UPDATE cursors SET quiet_to = NULL WHERE experiment_id = (changed ->> 'experiment_id')::bigint AND {watched};
  END CASE;
  RETURN NULL;
END $$;
"""
_QUIET, _DUE = "quiet_to IS NOT NULL", "due_at IS NOT NULL"  # what is quiet has a slot that is due as well


class Migration(migrations.Migration):
    dependencies = [("gates", "0009_superseded_because")]
    operations = [migrations.RunSQL(FORWARD.replace("{watched}", _DUE), FORWARD.replace("{watched}", _QUIET))]
