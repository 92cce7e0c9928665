"""Entries belong to the teams they are about; who signs in and out, takes along and reads evidence is in them; strangers are counted."""

from django.db import migrations

FORWARD = r"""
SET LOCAL lock_timeout = '1500ms';

-- One entry. `address`: of who asked, where that says more than the actor. `of`: the first entry of its group, of which this is another
-- team's copy.
CREATE FUNCTION audit.enter(label text, action int, pk text, repr text, changes jsonb, team bigint, experiment bigint, address inet, of bigint)
RETURNS bigint LANGUAGE sql AS $$
  SELECT pg_current_xact_id();  -- a writer owns its transaction id before it draws an entry's id
  INSERT INTO audit.entries (content_type_id, object_pk, object_id, object_repr, action, changes, changes_text, timestamp, cid, remote_addr,
                             additional_data, team_id, experiment_id, actor_id, actor_kind, actor_name)
  SELECT audit.content_type(label), left(pk, 255), CASE WHEN pk ~ '^\d{1,18}$' THEN pk::bigint END, repr, action, changes, '',
         clock_timestamp(), access.setting('request_id'), address, CASE WHEN of IS NOT NULL THEN jsonb_build_object('of', of) END, team, experiment,
         CASE access.setting('actor_kind') WHEN 'user' THEN access.setting('actor_id')::int END,
         coalesce(access.setting('actor_kind'), 'role'),
         coalesce(access.setting('actor_name'), CASE access.setting('actor_kind') WHEN 'anonymous' THEN 'nobody' END,
                  nullif(current_setting('role'), 'none'), session_user)
  RETURNING id $$;

CREATE OR REPLACE FUNCTION audit.write(label text, action int, pk text, repr text, changes jsonb, team bigint, experiment bigint) RETURNS bigint
LANGUAGE sql AS $$ SELECT audit.enter(label, action, pk, repr, changes, team, experiment, NULL, NULL) $$;

-- What is about several teams is one group of entries, one a team: each sees its own.
CREATE FUNCTION audit.enter_for(label text, action int, pk text, repr text, changes jsonb, teams bigint[], experiment bigint, address inet)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  first bigint := audit.enter(label, action, pk, repr, changes, teams[1], experiment, address, NULL); team bigint;
BEGIN
  FOREACH team IN ARRAY teams[2:] LOOP
    PERFORM audit.enter(label, action, pk, repr, changes, team, NULL, address, first);
  END LOOP;
  RETURN first;
END $$;

-- A seventh argument: SQL for further teams that a row `r` concerns.
CREATE OR REPLACE FUNCTION audit.record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = audit, public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
  label text := TG_ARGV[0]; key text := TG_ARGV[1]; team text := TG_ARGV[2]; experiment text := TG_ARGV[3];
  silent text[] := TG_ARGV[4]; secret text[] := TG_ARGV[5]; also text := TG_ARGV[6];
  act int := CASE TG_OP WHEN 'INSERT' THEN 0 WHEN 'UPDATE' THEN 1 ELSE 2 END;
  pairs text := CASE TG_OP
    WHEN 'INSERT' THEN 'SELECT NULL::jsonb AS o, to_jsonb(t) AS n FROM new_rows t'
    WHEN 'DELETE' THEN 'SELECT to_jsonb(t) AS o, NULL::jsonb AS n FROM old_rows t'
    ELSE format('SELECT to_jsonb(a) AS o, to_jsonb(b) AS n FROM old_rows a FULL JOIN new_rows b USING (%I)', key) END;
  written text := CASE WHEN also IS NULL THEN 'audit.write($1, $2, r ->> $3, name, d.changes, (r ->> $4)::bigint, (r ->> nullif($5, ''''))::bigint)'
    ELSE format('audit.enter_for($1, $2, r ->> $3, name, d.changes, (r ->> $4)::bigint || ARRAY(%s), (r ->> nullif($5, ''''))::bigint, NULL)', also) END;
BEGIN
  EXECUTE format($q$
    SELECT %s
    FROM (%s) AS p, LATERAL coalesce(n, o) AS r, LATERAL coalesce(r ->> 'key', r ->> 'name', r ->> 'username', r ->> $3) AS name,
      LATERAL (SELECT jsonb_object_agg(k, CASE WHEN k = ANY ($7) THEN '["***", "***"]'::jsonb ELSE jsonb_build_array(o -> k, n -> k) END)
               FROM jsonb_object_keys(r) AS k
               WHERE nullif(o -> k, 'null') IS DISTINCT FROM nullif(n -> k, 'null') AND k <> ALL ($6)) AS d(changes)
    WHERE d.changes IS NOT NULL$q$, written, pairs)
  USING label, act, key, team, experiment, silent, secret;
  RETURN NULL;
END $$;

-- A metric concerns every team that judges by it.
DO $$
DECLARE
  users constant text := 'SELECT DISTINCT k.team_id FROM metadata.target_kpis k WHERE k.metric_id = (r ->> ''id'')::bigint AND k.team_id IS DISTINCT FROM (r ->> ''team_id'')::bigint';
BEGIN
  EXECUTE format('CREATE OR REPLACE TRIGGER audit_update AFTER UPDATE ON metadata.metrics REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.record(%L, %L, %L, %L, %L, %L, %L)', 'experiments.metric', 'id', 'team_id', '', '{}', '{}', users);
END $$;

-- How often somebody has done something within the hour. What would fill the history is written at the first time, the tenth, the
-- hundredth ... Strangers that are too many to be told apart are counted as one.
CREATE TABLE audit.noted (hour timestamptz, who text, subject text, times bigint NOT NULL, PRIMARY KEY (hour, who, subject));
CREATE FUNCTION audit.worth_noting(who text, subject text, stranger boolean) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  times bigint;
  this constant timestamptz := date_trunc('hour', now());
BEGIN
  IF stranger THEN
    who := 'stranger ' || who;
    IF NOT EXISTS (SELECT FROM audit.noted n WHERE (n.hour, n.who, n.subject) = (this, worth_noting.who, worth_noting.subject))
       AND (SELECT count(*) FROM audit.noted n WHERE n.hour = this AND n.who LIKE 'stranger %') >= 300 THEN
      who := 'stranger'; subject := 'many';
    END IF;
  END IF;
  INSERT INTO audit.noted AS n VALUES (this, who, subject, 1)
  ON CONFLICT ON CONSTRAINT noted_pkey DO UPDATE SET times = n.times + 1 RETURNING n.times INTO times;
  IF times = 1 THEN
    DELETE FROM audit.noted n WHERE n.hour < this - interval '1 day';
  END IF;
  RETURN CASE WHEN times = 10 ^ floor(log(times)) THEN times END;
END $$;
CREATE FUNCTION audit.changes_of(times bigint) RETURNS jsonb LANGUAGE sql IMMUTABLE
  RETURN CASE WHEN times > 1 THEN jsonb_build_object('times', jsonb_build_array(NULL, times)) END;

-- The team that an address of the portal is about, and the experiment when it is one's; nothing for what is no team's or nobody's.
CREATE FUNCTION audit.about(path text, OUT team bigint, OUT experiment bigint) LANGUAGE plpgsql STABLE AS $$
DECLARE
  parts constant text[] := string_to_array(regexp_replace(path, '^/(api/)?(v1/)?', ''), '/');
  ref constant text := parts[2];
  n constant bigint := CASE WHEN ref ~ '^\d{1,18}$' THEN ref::bigint END;
BEGIN
  CASE parts[1]
    WHEN 'experiments' THEN SELECT e.team_id, e.id INTO team, experiment FROM metadata.experiments e WHERE e.id = n OR e.key = ref LIMIT 1;
    WHEN 'sources' THEN SELECT s.team_id INTO team FROM metadata.sources s WHERE s.id = n OR s.key = ref
      ORDER BY s.team_id = ANY (access.teams()) DESC LIMIT 1;
    WHEN 'policies' THEN SELECT p.team_id INTO team FROM metadata.policies p WHERE (p.id = n OR p.name = ref) AND p.team_id IS NOT NULL
      ORDER BY p.team_id = ANY (access.teams()) DESC LIMIT 1;
    WHEN 'metrics' THEN SELECT m.team_id INTO team FROM metadata.metrics m WHERE m.key = ref LIMIT 1;
    WHEN 'keys' THEN SELECT k.team_id INTO team FROM metadata.api_keys k WHERE k.id = n OR k.public_id = regexp_replace(ref, '^dk_', '') LIMIT 1;
    WHEN 'webhooks' THEN SELECT c.team_id INTO team FROM metadata.channels c WHERE c.id = n;
    WHEN 'assets' THEN SELECT a.team_id INTO team FROM metadata.assets a WHERE a.id = n;
    WHEN 'quarantine' THEN SELECT q.team_id INTO team FROM metadata.quarantined_events q WHERE q.id = n;
    ELSE NULL;
  END CASE;
END $$;

-- A request was refused (auditlog's action 3); it cannot pass for a change. It belongs to the team it was about: the one the door knows, else the
-- address says, else the only one that who asked is in.
CREATE FUNCTION audit.refusal(method text, path text, status int, address inet, door_team bigint, askers_team bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = audit, public, pg_temp AS $$
DECLARE
  stranger constant boolean := coalesce(access.setting('actor_kind'), 'anonymous') = 'anonymous';
  team constant bigint := coalesce(door_team, (SELECT a.team FROM audit.about(path) AS a), askers_team);
  times bigint := 1;
BEGIN
  IF stranger THEN
    times := audit.worth_noting(coalesce(access.setting('actor_name'), host(address), ''), format('refusal %s', team), true);
    IF times IS NULL THEN RETURN NULL; END IF;
  END IF;
  RETURN audit.enter('access.refusal', 3, status::text, left(method || ' ' || path, 200), audit.changes_of(times), team, NULL, address, NULL);
END $$;

-- Somebody signed in or out, or failed to. A failed one is nobody's doing, and is about the person it was tried for, if there is one: what else
-- was typed for a name may be a password.
CREATE FUNCTION audit.signed(kind text, person bigint, address inet) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = audit, public, pg_temp AS $$
DECLARE
  named constant text := (SELECT u.username FROM public.auth_user u WHERE u.id = person);
  teams bigint[] := ARRAY(SELECT m.team_id FROM metadata.memberships m WHERE m.user_id = person ORDER BY 1);
  was constant text[] := ARRAY[access.setting('actor_kind'), access.setting('actor_id'), access.setting('actor_name')];
  times bigint := 1; entry bigint;
BEGIN
  IF kind NOT IN ('signin', 'signout', 'failedsignin') THEN RAISE EXCEPTION 'no such kind: %', kind; END IF;
  IF kind = 'failedsignin' THEN
    times := audit.worth_noting(coalesce(host(address), ''), format('sign-in %s', person), true);
    IF times IS NULL THEN RETURN NULL; END IF;
    PERFORM set_config('app.actor_kind', 'anonymous', true), set_config('app.actor_name', '', true), set_config('app.actor_id', '', true);
  ELSE
    PERFORM set_config('app.actor_kind', 'user', true), set_config('app.actor_name', named, true), set_config('app.actor_id', person::text, true);
  END IF;
  entry := audit.enter_for('access.' || kind, 3, coalesce(person::text, '0'), coalesce(named, 'a name that nobody has'), audit.changes_of(times),
                           CASE WHEN teams = '{}' THEN ARRAY[NULL::bigint] ELSE teams END, NULL, address);
  PERFORM set_config('app.actor_kind', coalesce(was[1], ''), true), set_config('app.actor_id', coalesce(was[2], ''), true),
          set_config('app.actor_name', coalesce(was[3], ''), true);
  RETURN entry;
END $$;

-- Something was taken along ('export') or evidence was read ('evidence'): once an hour, and how often.
CREATE FUNCTION audit.reading(kind text, path text, address inet) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = audit, public, pg_temp AS $$
DECLARE
  times constant bigint := audit.worth_noting(coalesce(access.setting('actor_kind'), '') || ' ' || coalesce(access.setting('actor_name'), ''), path, false);
  of constant record := audit.about(path);
BEGIN
  IF kind NOT IN ('export', 'evidence') THEN RAISE EXCEPTION 'no such kind: %', kind; END IF;
  IF times IS NULL THEN RETURN NULL; END IF;
  RETURN audit.enter_for('access.' || kind, 3, '0', left(path, 200), audit.changes_of(times),
    CASE WHEN of.team IS NOT NULL THEN ARRAY[of.team] WHEN access.is_admin() OR access.teams() = '{}' THEN ARRAY[NULL::bigint] ELSE access.teams() END,
    of.experiment, address);
END $$;

REVOKE EXECUTE ON FUNCTION audit.enter, audit.enter_for, audit.worth_noting, audit.changes_of, audit.about, audit.refusal(text, text, int, inet, bigint, bigint),
  audit.signed, audit.reading FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.refusal(text, text, int, inet, bigint, bigint), audit.signed, audit.reading TO decisioning_web, decisioning_worker;
"""

REVERSE = r"""
DROP FUNCTION audit.reading, audit.signed, audit.refusal(text, text, int, inet, bigint, bigint), audit.about, audit.worth_noting, audit.changes_of;
DROP TABLE audit.noted;
CREATE OR REPLACE TRIGGER audit_update AFTER UPDATE ON metadata.metrics REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
  FOR EACH STATEMENT EXECUTE FUNCTION audit.record('experiments.metric', 'id', 'team_id', '', '{}', '{}');
CREATE OR REPLACE FUNCTION audit.record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
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
CREATE OR REPLACE FUNCTION audit.write(label text, action int, pk text, repr text, changes jsonb, team bigint, experiment bigint) RETURNS bigint
LANGUAGE sql AS $$
  SELECT pg_current_xact_id();
  INSERT INTO audit.entries (content_type_id, object_pk, object_id, object_repr, action, changes, changes_text, timestamp, cid,
                             team_id, experiment_id, actor_id, actor_kind, actor_name)
  SELECT audit.content_type(label), left(pk, 255), CASE WHEN pk ~ '^\d{1,18}$' THEN pk::bigint END, repr, action, changes, '',
         clock_timestamp(), access.setting('request_id'), team, experiment,
         CASE access.setting('actor_kind') WHEN 'user' THEN access.setting('actor_id')::int END,
         coalesce(access.setting('actor_kind'), 'role'),
         coalesce(access.setting('actor_name'), nullif(current_setting('role'), 'none'), session_user)
  RETURNING id $$;
DROP FUNCTION audit.enter_for, audit.enter;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("ledger", "0004_channels"),
        ("access", "0006_locks"),
        ("experiments", "0002_row_security"),
        ("telemetry", "0010_freshness"),
        ("gates", "0013_people_may_go"),
    ]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
