"""metrics.experiment_kpis, partitioned by month; its trigger; hour sums; the refresh log under row security."""

from django.db import migrations

TABLES = """
ALTER TABLE public.refresh_log SET SCHEMA metadata;
SELECT access.protect('metadata.refresh_log', writes => 'INSERT, UPDATE');
CREATE POLICY portal ON metadata.refresh_log FOR SELECT TO decisioning_web, decisioning_reader USING (team_id IS NULL);
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA metadata TO decisioning_web, decisioning_worker;

CREATE TABLE metrics.experiment_kpis (
  experiment_id bigint NOT NULL,
  ts timestamptz NOT NULL,
  metric text NOT NULL,
  value double precision NOT NULL,
  variant text NOT NULL DEFAULT 'all',
  n bigint CHECK (n >= 0),
  variance double precision CHECK (variance >= 0),
  denominator_value double precision,
  denominator_variance double precision CHECK (denominator_variance >= 0),
  covariance double precision,
  window_s integer CHECK (window_s > 0),
  revision bigint,
  first_received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  team_id bigint NOT NULL,
  PRIMARY KEY (experiment_id, metric, variant, ts)
) PARTITION BY RANGE (ts);
CREATE TABLE metrics.experiment_kpis_default PARTITION OF metrics.experiment_kpis DEFAULT;
SELECT access.protect('metrics.experiment_kpis', writes => 'INSERT, UPDATE');

CREATE TABLE metrics.kpi_hours (
  experiment_id bigint NOT NULL,
  metric text NOT NULL,
  variant text NOT NULL,
  hour timestamptz NOT NULL,
  value double precision NOT NULL,
  n bigint,
  variance double precision,
  rows integer NOT NULL,
  team_id bigint NOT NULL,
  PRIMARY KEY (experiment_id, metric, variant, hour)
);
SELECT access.protect('metrics.kpi_hours', writes => '');
GRANT INSERT, UPDATE, DELETE ON metrics.kpi_hours TO decisioning_worker;

-- What changed since a job last looked: one row per series and statement. Insert-only for writers, so that ingest never waits
-- for the tick; the job deletes what it has dealt with in its own transaction.
CREATE TABLE metrics.kpi_changes (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job text NOT NULL CHECK (job IN ('fold', 'hours')),
  experiment_id bigint NOT NULL,
  metric text NOT NULL,
  variant text NOT NULL,
  from_ts timestamptz NOT NULL,
  to_ts timestamptz NOT NULL,
  from_received_at timestamptz NOT NULL,
  team_id bigint NOT NULL
);
CREATE INDEX kpi_changes_by_experiment ON metrics.kpi_changes (job, experiment_id);
SELECT access.protect('metrics.kpi_changes', writes => '', reader => false);
GRANT UPDATE, DELETE ON metrics.kpi_changes TO decisioning_worker;  -- FOR UPDATE asks for UPDATE
"""

TRIGGERS = """
-- psql and plain INSERTs of (experiment_id, ts, metric, value) need not know the team.
CREATE FUNCTION metrics.fill_team() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  SELECT team_id INTO NEW.team_id FROM metadata.experiments WHERE id = NEW.experiment_id;
  RETURN NEW;
END $$;
CREATE TRIGGER fill_team BEFORE INSERT ON metrics.experiment_kpis FOR EACH ROW WHEN (NEW.team_id IS NULL) EXECUTE FUNCTION metrics.fill_team();

-- Set-based, once a statement, whatever the path: the experiment must be the team's, the jobs learn what changed, the audit gets
-- one entry per experiment. An upsert fires the triggers of UPDATE and then those of INSERT; the second adds its rows to the entry
-- that the first has noted, so that a batch is one entry.
CREATE FUNCTION metrics.kpis_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metrics, metadata, public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
  touched text := CASE TG_OP WHEN 'INSERT' THEN 'SELECT * FROM new_rows' WHEN 'DELETE' THEN 'SELECT * FROM old_rows'
                  ELSE 'SELECT * FROM new_rows UNION ALL SELECT * FROM old_rows' END;
  noted jsonb := CASE WHEN TG_OP = 'INSERT' THEN nullif(current_setting('app.kpi_entries', true), '')::jsonb END;
  batch record; written jsonb := '{}'; stranger bigint;
BEGIN
  FOR batch IN EXECUTE format($q$
    WITH series AS MATERIALIZED (
      SELECT experiment_id, team_id, metric, variant, min(ts) AS from_ts, max(ts) AS to_ts, min(first_received_at) AS from_received_at,
             count(*) AS n
      FROM (%s) AS t GROUP BY 1, 2, 3, 4),
    told AS (
      INSERT INTO kpi_changes (job, experiment_id, metric, variant, from_ts, to_ts, from_received_at, team_id)
      SELECT job, experiment_id, metric, variant, from_ts, to_ts, from_received_at, team_id FROM series, unnest('{fold,hours}'::text[]) AS job)
    SELECT s.experiment_id, s.team_id, (sum(n) / $1)::bigint AS n, min(from_ts) AS from_ts, max(to_ts) AS to_ts, jsonb_agg(DISTINCT metric) AS metrics,
           (SELECT e.team_id = s.team_id FROM experiments e WHERE e.id = s.experiment_id) AS ours
    FROM series s GROUP BY 1, 2$q$, touched)
  USING CASE TG_OP WHEN 'UPDATE' THEN 2 ELSE 1 END LOOP
    IF batch.ours IS NOT TRUE THEN stranger := batch.experiment_id; CONTINUE; END IF;
    IF noted ? batch.experiment_id::text THEN
      UPDATE audit.entries SET object_repr = (changes #>> '{rows,1}')::bigint + batch.n || ' rows',
        changes = changes || jsonb_build_object(
          'rows', jsonb_build_array(NULL, (changes #>> '{rows,1}')::bigint + batch.n), 'changed', changes -> 'rows',
          'ts', jsonb_build_array(least(batch.from_ts, (changes #>> '{ts,0}')::timestamptz), greatest(batch.to_ts, (changes #>> '{ts,1}')::timestamptz)),
          'metric', (SELECT jsonb_agg(DISTINCT m) FROM jsonb_array_elements(changes -> 'metric' || batch.metrics) AS m))
      WHERE id = (noted ->> batch.experiment_id::text)::bigint AND timestamp >= transaction_timestamp();
      CONTINUE WHEN FOUND;
    END IF;
    written := written || jsonb_build_object(batch.experiment_id, audit.write('telemetry.experimentkpi',
      CASE TG_OP WHEN 'INSERT' THEN 0 WHEN 'UPDATE' THEN 1 ELSE 2 END, 'batch', batch.n || ' rows',
      jsonb_build_object('rows', CASE TG_OP WHEN 'DELETE' THEN jsonb_build_array(batch.n, NULL) ELSE jsonb_build_array(NULL, batch.n) END,
                         'ts', jsonb_build_array(batch.from_ts, batch.to_ts), 'metric', batch.metrics),
      batch.team_id, batch.experiment_id));
  END LOOP;
  PERFORM set_config('app.kpi_entries', CASE WHEN TG_OP = 'UPDATE' THEN written::text ELSE '' END, true);
  IF stranger IS NOT NULL THEN
    RAISE EXCEPTION 'experiment % does not exist in that team', stranger USING ERRCODE = 'foreign_key_violation';
  END IF;
  RETURN NULL;
END $$;
-- What an earlier UPDATE of the transaction has noted is not this statement's.
CREATE FUNCTION metrics.kpis_begin() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('app.kpi_entries', '', true);
  RETURN NULL;
END $$;
CREATE TRIGGER begins BEFORE INSERT ON metrics.experiment_kpis FOR EACH STATEMENT EXECUTE FUNCTION metrics.kpis_begin();
CREATE TRIGGER changed_insert AFTER INSERT ON metrics.experiment_kpis REFERENCING NEW TABLE AS new_rows
  FOR EACH STATEMENT EXECUTE FUNCTION metrics.kpis_changed();
CREATE TRIGGER changed_update AFTER UPDATE ON metrics.experiment_kpis REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
  FOR EACH STATEMENT EXECUTE FUNCTION metrics.kpis_changed();
CREATE TRIGGER changed_delete AFTER DELETE ON metrics.experiment_kpis REFERENCING OLD TABLE AS old_rows
  FOR EACH STATEMENT EXECUTE FUNCTION metrics.kpis_changed();
"""

PARTITIONS = """
-- Partitions for every month from `since` to `until`, made when absent; rows that had to wait in the default partition move in the
-- same transaction. Returns how many were made. Nobody is granted anything on a partition: queried directly it would bypass the policies.
CREATE FUNCTION metrics.make_partitions(since timestamptz, until timestamptz) RETURNS int LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metrics, pg_temp SET timezone = 'UTC' AS $$
DECLARE
  month timestamptz; name text; made int := 0;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('metrics.make_partitions'));
  FOR month IN SELECT generate_series(date_trunc('month', since), date_trunc('month', until), interval '1 month') LOOP
    name := 'experiment_kpis_' || to_char(month, 'YYYY_MM');
    CONTINUE WHEN to_regclass('metrics.' || name) IS NOT NULL;
    EXECUTE format('CREATE TABLE %I (LIKE experiment_kpis INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY owner ON %I TO decisioning_owner USING (true) WITH CHECK (true)', name);
    EXECUTE format('WITH moved AS (DELETE FROM experiment_kpis_default WHERE ts >= %L AND ts < %L RETURNING *) INSERT INTO %I SELECT * FROM moved',
                   month, month + interval '1 month', name);
    EXECUTE format('ALTER TABLE experiment_kpis ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, month, month + interval '1 month');
    made := made + 1;
  END LOOP;
  RETURN made;
END $$;

-- Whole months that ended before `before`. Returns their names.
CREATE FUNCTION metrics.drop_partitions(before timestamptz) RETURNS text[] LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metrics, pg_temp SET timezone = 'UTC' AS $$
DECLARE
  name text; gone text[] := '{}';
BEGIN
  FOR name IN SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
              WHERE i.inhparent = 'metrics.experiment_kpis'::regclass AND c.relname ~ '^experiment_kpis_\\d{4}_\\d{2}$'
                AND to_timestamp(right(c.relname, 7), 'YYYY_MM') + interval '1 month' <= before ORDER BY 1 LOOP
    EXECUTE format('DROP TABLE %I', name);
    gone := gone || name;
  END LOOP;
  RETURN gone;
END $$;

-- Rows waiting in the default partition: a month nobody made ahead.
CREATE FUNCTION metrics.default_partition_rows() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metrics, pg_temp AS $$ SELECT count(*) FROM experiment_kpis_default $$;

ALTER TABLE metrics.experiment_kpis_default ENABLE ROW LEVEL SECURITY;
ALTER TABLE metrics.experiment_kpis_default FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON metrics.experiment_kpis_default TO decisioning_owner USING (true) WITH CHECK (true);
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA metrics FROM PUBLIC;
GRANT EXECUTE ON FUNCTION metrics.make_partitions, metrics.drop_partitions, metrics.default_partition_rows TO decisioning_worker;
SELECT metrics.make_partitions(now() - interval '14 months', now() + interval '3 months');
"""

REVERSE = """
DROP TABLE metrics.experiment_kpis, metrics.kpi_hours, metrics.kpi_changes;
DROP FUNCTION metrics.fill_team, metrics.kpis_changed, metrics.kpis_begin, metrics.make_partitions, metrics.drop_partitions, metrics.default_partition_rows;
DO $$
DECLARE p record;
BEGIN
  FOR p IN SELECT policyname FROM pg_policies WHERE schemaname = 'metadata' AND tablename = 'refresh_log' LOOP
    EXECUTE format('DROP POLICY %I ON metadata.refresh_log', p.policyname);
  END LOOP;
END $$;
ALTER TABLE metadata.refresh_log DISABLE ROW LEVEL SECURITY;
ALTER TABLE metadata.refresh_log SET SCHEMA public;
"""


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0001_initial"), ("experiments", "0002_row_security")]
    operations = [migrations.RunSQL([TABLES, TRIGGERS, PARTITIONS], REVERSE)]
