from django.db import migrations

FORWARD = """
-- The version that judges an experiment: of its own policy, else of its team's default, else of the shipped default, the one activated last.
CREATE FUNCTION metadata.policy_in_force(experiment bigint, team bigint) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT (
    SELECT v.id FROM metadata.policy_versions v WHERE v.activated_at IS NOT NULL AND v.policy_id = coalesce(
      (SELECT b.policy_id FROM metadata.policy_bindings b WHERE b.experiment_id = experiment),
      (SELECT b.policy_id FROM metadata.policy_bindings b WHERE b.team_id = team AND b.experiment_id IS NULL),
      (SELECT p.id FROM metadata.policies p WHERE p.team_id IS NULL AND p.name = 'default'))
    ORDER BY v.activated_at DESC, v.number DESC LIMIT 1)
$$;
REVOKE EXECUTE ON FUNCTION metadata.policy_in_force FROM PUBLIC;
GRANT EXECUTE ON FUNCTION metadata.policy_in_force TO decisioning_web, decisioning_worker;
"""


class Migration(migrations.Migration):
    """Which policy judges, said once for the tick, the API's documents and creation."""

    dependencies = [("gates", "0015_reasons")]
    operations = [migrations.RunSQL(FORWARD, "DROP FUNCTION metadata.policy_in_force")]
