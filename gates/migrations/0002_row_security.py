"""Policies, cursors, evaluations, recommendations and decisions move to `metadata`, under row security and audit."""

from django.db import migrations

FORWARD = """
ALTER TABLE public.policies SET SCHEMA metadata;
ALTER TABLE public.policy_versions SET SCHEMA metadata;
ALTER TABLE public.policy_bindings SET SCHEMA metadata;
ALTER TABLE public.cursors SET SCHEMA metadata;
ALTER TABLE public.steps SET SCHEMA metadata;
ALTER TABLE public.evidence SET SCHEMA metadata;
ALTER TABLE public.evaluations SET SCHEMA metadata;
ALTER TABLE public.recommendations SET SCHEMA metadata;
ALTER TABLE public.decisions SET SCHEMA metadata;

-- Policies without a team ship with the portal: every team reads them, only an admin writes them.
SELECT access.protect('metadata.policies'), access.protect('metadata.policy_versions');
CREATE POLICY shipped ON metadata.policies FOR SELECT TO decisioning_web, decisioning_reader USING (team_id IS NULL);
CREATE POLICY shipped ON metadata.policy_versions FOR SELECT TO decisioning_web, decisioning_reader USING (team_id IS NULL);
SELECT access.protect('metadata.policy_bindings');
SELECT access.protect(t), access.same_team_as_experiment(t)
FROM unnest('{metadata.cursors,metadata.steps,metadata.evidence,metadata.evaluations,metadata.recommendations,metadata.decisions}'::regclass[]) AS t;
REVOKE UPDATE, DELETE ON metadata.evidence, metadata.evaluations, metadata.decisions FROM decisioning_web, decisioning_worker;
REVOKE DELETE ON metadata.recommendations FROM decisioning_web, decisioning_worker;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA metadata TO decisioning_web, decisioning_worker;

-- Whatever the path by which an experiment comes to be or changes its status, it has a cursor and the tick looks at it.
CREATE FUNCTION metadata.follow_experiment() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = metadata, pg_temp AS $$
BEGIN
  INSERT INTO cursors (experiment_id, team_id, fold, missed_slots, due_at)
  VALUES (NEW.id, NEW.team_id, 1, 0, CASE WHEN NEW.status <> 'draft' THEN now() END)
  ON CONFLICT (experiment_id) DO UPDATE SET due_at = excluded.due_at;
  RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION metadata.follow_experiment FROM PUBLIC;
CREATE TRIGGER follow AFTER INSERT OR UPDATE OF status, started_at, ended_at ON metadata.experiments
  FOR EACH ROW EXECUTE FUNCTION metadata.follow_experiment();

SELECT audit.watch('metadata.policies', 'gates.policy');
SELECT audit.watch('metadata.policy_versions', 'gates.policyversion');
SELECT audit.watch('metadata.policy_bindings', 'gates.policybinding', experiment => 'experiment_id');
SELECT audit.watch('metadata.recommendations', 'gates.recommendation', experiment => 'experiment_id');
SELECT audit.watch('metadata.decisions', 'gates.decision', experiment => 'experiment_id');
"""

REVERSE = """
DROP TRIGGER follow ON metadata.experiments;
DROP FUNCTION metadata.follow_experiment;
DO $$
DECLARE t text; p record; r record;
BEGIN
  FOREACH t IN ARRAY '{decisions,recommendations,evaluations,evidence,steps,cursors,policy_bindings,policy_versions,policies}'::text[] LOOP
    EXECUTE format('ALTER TABLE metadata.%I DROP CONSTRAINT IF EXISTS team_of_experiment', t);
    FOR p IN SELECT policyname FROM pg_policies WHERE schemaname = 'metadata' AND tablename = t LOOP
      EXECUTE format('DROP POLICY %I ON metadata.%I', p.policyname, t);
    END LOOP;
    FOR r IN SELECT tgname FROM pg_trigger WHERE tgrelid = ('metadata.' || t)::regclass AND tgname LIKE 'audit!_%' ESCAPE '!' LOOP
      EXECUTE format('DROP TRIGGER %I ON metadata.%I', r.tgname, t);
    END LOOP;
    EXECUTE format('ALTER TABLE metadata.%I DISABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE metadata.%I SET SCHEMA public', t);
  END LOOP;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("gates", "0001_initial"), ("telemetry", "0002_kpis")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
