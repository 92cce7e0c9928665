"""Whoever plans an outage, or binds a metric to a source, changes what a fold reads."""

from importlib import import_module

from django.db import migrations

BEFORE = import_module("gates.migrations.0010_disturb_what_is_due").FORWARD.replace("{watched}", "due_at IS NOT NULL")
FORWARD = BEFORE.replace(
    "    WHEN 'policy_bindings'",
    """    WHEN 'outages', 'sources' THEN UPDATE cursors SET quiet_to = NULL WHERE due_at IS NOT NULL AND team_id = (changed ->> 'team_id')::bigint;
    WHEN 'policy_bindings'""",
)
TRIGGERS = """
CREATE TRIGGER disturb AFTER INSERT OR UPDATE OR DELETE ON metadata.outages FOR EACH ROW EXECUTE FUNCTION metadata.disturb();
CREATE TRIGGER disturb AFTER INSERT OR DELETE ON metadata.sources FOR EACH ROW EXECUTE FUNCTION metadata.disturb();
CREATE TRIGGER disturb_update AFTER UPDATE ON metadata.sources FOR EACH ROW
  WHEN (OLD.metrics IS DISTINCT FROM NEW.metrics) EXECUTE FUNCTION metadata.disturb();
"""
REVERSE = """
DROP TRIGGER disturb ON metadata.outages;
DROP TRIGGER disturb ON metadata.sources;
DROP TRIGGER disturb_update ON metadata.sources;
"""


class Migration(migrations.Migration):
    dependencies = [("gates", "0017_on_record"), ("telemetry", "0019_outages")]
    operations = [migrations.RunSQL([FORWARD, TRIGGERS], [REVERSE, BEFORE])]
