"""The one history: audit.entries, written by statement-level triggers whatever the path, and never edited."""

from django.db import migrations

FORWARD = r"""
REVOKE ALL ON public.auditlog_logentry FROM decisioning_web, decisioning_worker;  -- auditlog's stock table is not used
ALTER TABLE public.entries SET SCHEMA audit;
ALTER TABLE public.outbox SET SCHEMA audit;
ALTER TABLE public.heartbeats SET SCHEMA audit;

-- Made on demand: a data migration may write before Django has made its content types.
CREATE FUNCTION audit.content_type(label text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  app text := split_part(label, '.', 1); kind text := split_part(label, '.', 2); found int;
BEGIN
  SELECT id INTO found FROM public.django_content_type WHERE app_label = app AND model = kind;
  IF found IS NULL THEN
    INSERT INTO public.django_content_type (app_label, model) VALUES (app, kind)
    ON CONFLICT (app_label, model) DO UPDATE SET model = excluded.model RETURNING id INTO found;
  END IF;
  RETURN found;
END $$;

-- One entry for what `e` says. The actor is whoever the transaction is bound to, else the database login. current_user would be
-- the owner inside a definer function.
CREATE FUNCTION audit.write(label text, action int, pk text, repr text, changes jsonb, team bigint, experiment bigint) RETURNS bigint
LANGUAGE sql AS $$
  SELECT pg_current_xact_id();  -- a writer owns its transaction id before it draws an entry's id
  INSERT INTO audit.entries (content_type_id, object_pk, object_id, object_repr, action, changes, changes_text, timestamp, cid,
                             team_id, experiment_id, actor_id, actor_kind, actor_name)
  SELECT audit.content_type(label), left(pk, 255), CASE WHEN pk ~ '^\d{1,18}$' THEN pk::bigint END, repr, action, changes, '',
         clock_timestamp(), access.setting('request_id'), team, experiment,
         CASE access.setting('actor_kind') WHEN 'user' THEN access.setting('actor_id')::int END,
         coalesce(access.setting('actor_kind'), 'role'),
         coalesce(access.setting('actor_name'), nullif(current_setting('role'), 'none'), session_user)
  RETURNING id $$;

-- Arguments: model label, key column, team column, experiment column or '', silent columns (never count), secret columns (shown as ***).
CREATE FUNCTION audit.record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = audit, public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
  label text := TG_ARGV[0]; key text := TG_ARGV[1]; team text := TG_ARGV[2]; experiment text := TG_ARGV[3];
  silent text[] := TG_ARGV[4]; secret text[] := TG_ARGV[5];
  act int := CASE TG_OP WHEN 'INSERT' THEN 0 WHEN 'UPDATE' THEN 1 ELSE 2 END;
  pairs text := CASE TG_OP
    WHEN 'INSERT' THEN 'SELECT NULL::jsonb AS o, to_jsonb(t) AS n FROM new_rows t'
    WHEN 'DELETE' THEN 'SELECT to_jsonb(t) AS o, NULL::jsonb AS n FROM old_rows t'
    ELSE format('SELECT to_jsonb(a) AS o, to_jsonb(b) AS n FROM old_rows a FULL JOIN new_rows b USING (%I)', key) END;
BEGIN
  EXECUTE format($q$
    SELECT audit.write($1, $2, r ->> $3, coalesce(r ->> 'key', r ->> 'name', r ->> 'username', r ->> $3), d.changes,
                       (r ->> $4)::bigint, (r ->> nullif($5, ''))::bigint)
    FROM (%s) AS p, LATERAL coalesce(n, o) AS r,
      LATERAL (SELECT jsonb_object_agg(k, CASE WHEN k = ANY ($7) THEN '["***", "***"]'::jsonb ELSE jsonb_build_array(o -> k, n -> k) END)
               FROM jsonb_object_keys(r) AS k
               WHERE nullif(o -> k, 'null') IS DISTINCT FROM nullif(n -> k, 'null') AND k <> ALL ($6)) AS d(changes)
    WHERE d.changes IS NOT NULL$q$, pairs)
  USING label, act, key, team, experiment, silent, secret;
  RETURN NULL;
END $$;

CREATE FUNCTION audit.watch(tab regclass, label text, key text DEFAULT 'id', team text DEFAULT 'team_id', experiment text DEFAULT '',
  silent text[] DEFAULT '{}', secret text[] DEFAULT '{}') RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  op text; tables text;
BEGIN
  FOREACH op IN ARRAY '{INSERT,UPDATE,DELETE}'::text[] LOOP
    tables := concat_ws(' ', CASE WHEN op <> 'INSERT' THEN 'OLD TABLE AS old_rows' END, CASE WHEN op <> 'DELETE' THEN 'NEW TABLE AS new_rows' END);
    EXECUTE format('CREATE TRIGGER audit_%s AFTER %s ON %s REFERENCING %s FOR EACH STATEMENT EXECUTE FUNCTION audit.record(%L, %L, %L, %L, %L, %L)',
      lower(op), op, tab, tables, label, key, team, experiment, silent, secret);
  END LOOP;
END $$;

-- The only thing the application writes itself: that a request was refused (auditlog's action 3). It cannot pass for a change.
CREATE FUNCTION audit.refusal(method text, path text, status int) RETURNS bigint LANGUAGE sql SECURITY DEFINER
SET search_path = audit, public, pg_temp AS $$
  SELECT audit.write('access.refusal', 3, status::text, left(method || ' ' || path, 200), NULL, (access.teams())[1], NULL) $$;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA audit FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.refusal TO decisioning_web, decisioning_worker;

SELECT access.protect('audit.entries', writes => '');
SELECT access.protect('audit.outbox', writes => 'INSERT, UPDATE');
REVOKE ALL ON audit.heartbeats FROM decisioning_web, decisioning_worker;
GRANT SELECT ON audit.heartbeats TO decisioning_web;
GRANT SELECT, INSERT, UPDATE ON audit.heartbeats TO decisioning_worker;
REVOKE ALL ON SEQUENCE audit.entries_id_seq FROM decisioning_web, decisioning_worker;
GRANT USAGE, SELECT ON SEQUENCE audit.outbox_id_seq TO decisioning_web, decisioning_worker;

SELECT audit.watch('metadata.teams', 'access.team', team => 'id');
SELECT audit.watch('metadata.memberships', 'access.membership');
SELECT audit.watch('metadata.api_keys', 'access.apikey', silent => '{last_used_at}', secret => '{digest}');
SELECT audit.watch('access.readers', 'access.reader', key => 'login');
SELECT audit.watch('public.auth_user', 'auth.user', team => 'none', silent => '{last_login}', secret => '{password}');
"""

REVERSE = """
DROP TRIGGER audit_insert ON public.auth_user; DROP TRIGGER audit_update ON public.auth_user; DROP TRIGGER audit_delete ON public.auth_user;
ALTER TABLE audit.entries SET SCHEMA public;
ALTER TABLE audit.outbox SET SCHEMA public;
ALTER TABLE audit.heartbeats SET SCHEMA public;
DROP FUNCTION audit.record, audit.watch, audit.refusal, audit.write, audit.content_type CASCADE;
"""


class Migration(migrations.Migration):
    dependencies = [("ledger", "0001_initial"), ("access", "0002_row_security"), ("auditlog", "__latest__")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
