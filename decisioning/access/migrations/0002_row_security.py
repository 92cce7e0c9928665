"""Who asks, as PostgreSQL knows it, and `access.protect`, the one way a table comes under row security."""

from django.db import migrations

ROLES_FIRST = """
DO $$
DECLARE missing text;
BEGIN
  SELECT string_agg(r, ', ') INTO missing
  FROM unnest('{decisioning_owner,decisioning_web,decisioning_worker,decisioning_reader}'::text[]) AS r
  WHERE r NOT IN (SELECT rolname FROM pg_roles);
  IF missing IS NOT NULL THEN
    RAISE EXCEPTION 'The database roles % are missing. `manage.py up` makes them; on a server of your own run docker/roles.sh.', missing;
  END IF;
END $$;
"""

SCHEMAS = """
CREATE SCHEMA IF NOT EXISTS access;
CREATE SCHEMA IF NOT EXISTS metadata;
CREATE SCHEMA IF NOT EXISTS metrics;
CREATE SCHEMA IF NOT EXISTS audit;
GRANT USAGE ON SCHEMA access, metadata, metrics, audit TO decisioning_web, decisioning_worker, decisioning_reader;
ALTER TABLE public.teams SET SCHEMA metadata;
ALTER TABLE public.memberships SET SCHEMA metadata;
ALTER TABLE public.api_keys SET SCHEMA metadata;

-- Django's own tables (users, sessions, content types) belong to no team.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO decisioning_web, decisioning_worker;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO decisioning_web, decisioning_worker;
REVOKE INSERT, UPDATE, DELETE ON public.django_migrations FROM decisioning_web, decisioning_worker;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO decisioning_web, decisioning_worker;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO decisioning_web, decisioning_worker;
"""

SETTINGS = """
-- EXECUTE is everybody's by default; from here on a function is callable by those it is granted to.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- A custom setting that was set in an earlier transaction of the same connection reads '', not NULL.
CREATE FUNCTION access.setting(name text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
  RETURN nullif(current_setting('app.' || name, true), '');
CREATE FUNCTION access.is_admin() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
  RETURN access.setting('admin') IS NOT NULL;
CREATE FUNCTION access.teams() RETURNS bigint[] LANGUAGE sql STABLE PARALLEL SAFE
  RETURN coalesce(access.setting('teams'), '{}')::bigint[];

-- Every setting, every time: binding twice in one transaction leaves nothing of the first.
CREATE FUNCTION access.bind(kind text, actor bigint, name text, teams bigint[], admin boolean, request_id text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('app.actor_kind', coalesce(kind, ''), true),
          set_config('app.actor_id', coalesce(actor::text, ''), true),
          set_config('app.actor_name', coalesce(name, ''), true),
          set_config('app.teams', coalesce(teams, '{}')::text, true),
          set_config('app.admin', CASE WHEN admin THEN 'on' ELSE '' END, true),
          set_config('app.request_id', coalesce(request_id, ''), true);
END $$;

CREATE FUNCTION access.bind_user(who bigint, request_id text, OUT id bigint, OUT name text, OUT admin boolean, OUT teams jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = metadata, public, pg_temp AS $$
DECLARE
  ids bigint[];
BEGIN
  SELECT u.id, u.username, u.is_superuser INTO id, name, admin FROM public.auth_user u WHERE u.id = who AND u.is_active;
  SELECT array_agg(m.team_id), jsonb_object_agg(m.team_id, m.role) INTO ids, teams FROM memberships m WHERE m.user_id = bind_user.id;
  PERFORM access.bind(CASE WHEN id IS NULL THEN 'anonymous' ELSE 'user' END, id, name, ids, coalesce(admin, false), request_id);
END $$;

-- Found before its team is known, so as owner. last_used_at moves every ten minutes and never waits for another request.
CREATE FUNCTION access.bind_key(secret_digest bytea, request_id text, OUT id bigint, OUT public_id text, OUT team_id bigint,
  OUT scopes text[], OUT agent boolean, OUT rate text, OUT owner text, OUT owner_id bigint, OUT problem text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = metadata, public, pg_temp AS $$
DECLARE
  k api_keys;
BEGIN
  SELECT * INTO k FROM api_keys a WHERE a.digest = secret_digest;
  problem := CASE WHEN k.id IS NULL THEN 'This key is not known.'
                  WHEN k.revoked_at IS NOT NULL THEN 'This key was revoked.'
                  WHEN k.expires_at <= now() THEN 'This key has expired.' END;
  IF problem IS NOT NULL THEN
    PERFORM access.bind('anonymous', NULL, NULL, NULL, false, request_id);
    RETURN;
  END IF;
  id := k.id; public_id := k.public_id; team_id := k.team_id; scopes := k.scopes; agent := k.agent; rate := k.rate;
  SELECT coalesce(nullif(u.email, ''), u.username), u.id INTO owner, owner_id FROM public.auth_user u WHERE u.id = k.owner_id;
  IF coalesce(k.last_used_at, '-infinity') < now() - interval '10 minutes' AND NOT pg_is_in_recovery() THEN
    UPDATE api_keys SET last_used_at = now()
    WHERE api_keys.id = (SELECT a.id FROM api_keys a WHERE a.id = k.id FOR NO KEY UPDATE SKIP LOCKED);
  END IF;
  PERFORM access.bind('key', k.id, 'dk_' || k.public_id, ARRAY[k.team_id], false, request_id);
END $$;

-- Logins of people's SQL tools, each for one team. A login sees its own row alone: who else reads what is nobody's business.
CREATE TABLE access.readers (login text PRIMARY KEY, team_id bigint NOT NULL REFERENCES metadata.teams (id) ON DELETE CASCADE);
ALTER TABLE access.readers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON access.readers TO decisioning_owner USING (true) WITH CHECK (true);
CREATE POLICY reader ON access.readers FOR SELECT TO decisioning_reader USING (login = current_user);
GRANT SELECT ON access.readers TO decisioning_reader;
CREATE FUNCTION access.reader_teams() RETURNS bigint[] LANGUAGE sql STABLE
  RETURN (SELECT coalesce(array_agg(team_id), '{}') FROM access.readers WHERE login = current_user);
"""

PROTECT = """
-- Enabled and forced, one policy a role: the owner (migrations, definer functions) and the worker see every team; web sees the
-- teams bound to its transaction; a reader those of its login. `team` is an expression on the row; `writes` what web and worker may do.
CREATE FUNCTION access.protect(tab regclass, team text DEFAULT 'team_id', writes text DEFAULT 'INSERT, UPDATE, DELETE',
  shared_reading boolean DEFAULT false, reader boolean DEFAULT true) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  mine text := format('(SELECT access.is_admin()) OR %s = ANY ((SELECT access.teams())::bigint[])', team);
BEGIN
  EXECUTE format('REVOKE ALL ON %s FROM decisioning_web, decisioning_worker, decisioning_reader', tab);
  EXECUTE format('GRANT SELECT%s ON %s TO decisioning_web, decisioning_worker', coalesce(', ' || nullif(writes, ''), ''), tab);
  EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', tab);
  EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', tab);
  EXECUTE format('CREATE POLICY owner ON %s TO decisioning_owner USING (true) WITH CHECK (true)', tab);
  EXECUTE format('CREATE POLICY worker ON %s TO decisioning_worker USING (true) WITH CHECK (true)', tab);
  EXECUTE format('CREATE POLICY team ON %s TO decisioning_web USING (%s)', tab, mine);
  IF shared_reading THEN
    EXECUTE format('CREATE POLICY shared ON %s FOR SELECT TO decisioning_web USING (true)', tab);
  END IF;
  IF reader THEN
    EXECUTE format('GRANT SELECT ON %s TO decisioning_reader', tab);
    EXECUTE format('CREATE POLICY reader ON %s FOR SELECT TO decisioning_reader USING (%s)', tab,
      CASE WHEN shared_reading THEN 'true' ELSE format('%s = ANY ((SELECT access.reader_teams())::bigint[])', team) END);
  END IF;
END $$;

-- A part of an experiment carries the experiment's team; this makes a lie impossible.
CREATE FUNCTION access.same_team_as_experiment(tab regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('ALTER TABLE %s ADD CONSTRAINT team_of_experiment FOREIGN KEY (experiment_id, team_id)
    REFERENCES metadata.experiments (id, team_id) DEFERRABLE INITIALLY DEFERRED', tab);
END $$;

SELECT access.protect('metadata.teams', team => 'id');
SELECT access.protect('metadata.memberships', reader => false);
SELECT access.protect('metadata.api_keys', reader => false);
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA metadata TO decisioning_web, decisioning_worker;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA access FROM PUBLIC;
GRANT EXECUTE ON FUNCTION access.setting, access.is_admin, access.teams, access.bind, access.bind_user, access.bind_key
  TO decisioning_web, decisioning_worker;
GRANT EXECUTE ON FUNCTION access.reader_teams TO decisioning_reader;
"""

REVERSE = """
ALTER TABLE metadata.teams SET SCHEMA public;
ALTER TABLE metadata.memberships SET SCHEMA public;
ALTER TABLE metadata.api_keys SET SCHEMA public;
DROP SCHEMA access CASCADE;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON TABLES FROM decisioning_web, decisioning_worker;
ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON SEQUENCES FROM decisioning_web, decisioning_worker;
DO $$
DECLARE p record;
BEGIN
  FOR p IN SELECT policyname, tablename FROM pg_policies WHERE schemaname = 'public' AND tablename IN ('teams', 'memberships', 'api_keys') LOOP
    EXECUTE format('DROP POLICY %I ON public.%I', p.policyname, p.tablename);
  END LOOP;
END $$;
ALTER TABLE public.teams DISABLE ROW LEVEL SECURITY;
ALTER TABLE public.memberships DISABLE ROW LEVEL SECURITY;
ALTER TABLE public.api_keys DISABLE ROW LEVEL SECURITY;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0001_initial"),
        ("admin", "0003_logentry_add_action_flag_choices"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("sessions", "0001_initial"),
    ]
    operations = [migrations.RunSQL([ROLES_FIRST, SCHEMAS, SETTINGS, PROTECT], REVERSE)]
