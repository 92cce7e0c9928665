"""Experiments and their parts move to `metadata`, under row security and audit."""

from django.db import migrations

FORWARD = """
ALTER TABLE public.metrics SET SCHEMA metadata;
ALTER TABLE public.experiments SET SCHEMA metadata;
ALTER TABLE public.variants SET SCHEMA metadata;
ALTER TABLE public.target_kpis SET SCHEMA metadata;
ALTER TABLE public.pauses SET SCHEMA metadata;
ALTER TABLE public.assets SET SCHEMA metadata;

SELECT access.protect('metadata.metrics', shared_reading => true);
SELECT access.protect('metadata.experiments');
SELECT audit.watch('metadata.metrics', 'experiments.metric');
SELECT audit.watch('metadata.experiments', 'experiments.experiment', experiment => 'id');
SELECT access.protect(t), access.same_team_as_experiment(t), audit.watch(t, label, experiment => 'experiment_id', silent => silent)
FROM (VALUES ('metadata.variants'::regclass, 'experiments.variant', '{}'::text[]), ('metadata.target_kpis', 'experiments.targetkpi', '{}'),
             ('metadata.pauses', 'experiments.pause', '{}'), ('metadata.assets', 'experiments.asset', '{body}')) AS p(t, label, silent);
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA metadata TO decisioning_web, decisioning_worker;

-- A key must be unique in the installation, though a team sees only its own.
CREATE FUNCTION access.experiment_key_taken(wanted text) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metadata, pg_temp AS $$ SELECT EXISTS (SELECT FROM experiments WHERE key = wanted) $$;
REVOKE EXECUTE ON FUNCTION access.experiment_key_taken FROM PUBLIC;
GRANT EXECUTE ON FUNCTION access.experiment_key_taken TO decisioning_web, decisioning_worker;
"""

REVERSE = """
DROP FUNCTION access.experiment_key_taken;
DO $$
DECLARE t text; p record;
BEGIN
  FOREACH t IN ARRAY '{variants,target_kpis,pauses,assets,experiments,metrics}'::text[] LOOP
    EXECUTE format('ALTER TABLE metadata.%I DROP CONSTRAINT IF EXISTS team_of_experiment', t);
    FOR p IN SELECT policyname FROM pg_policies WHERE schemaname = 'metadata' AND tablename = t LOOP
      EXECUTE format('DROP POLICY %I ON metadata.%I', p.policyname, t);
    END LOOP;
    EXECUTE format('DROP TRIGGER audit_insert ON metadata.%I', t);
    EXECUTE format('DROP TRIGGER audit_update ON metadata.%I', t);
    EXECUTE format('DROP TRIGGER audit_delete ON metadata.%I', t);
    EXECUTE format('ALTER TABLE metadata.%I DISABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE metadata.%I SET SCHEMA public', t);
  END LOOP;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("experiments", "0001_initial"), ("ledger", "0002_audit")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
