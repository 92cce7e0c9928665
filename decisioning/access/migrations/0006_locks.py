"""Locks that readers cannot take, and the end of readers' sessions that go beyond their limits."""

from django.db import migrations

LOCKS = """
SET LOCAL lock_timeout = '1500ms';

-- Whoever may log in may take any advisory lock and keep it. These are rows that nobody is granted, by name; held until the transaction ends.
CREATE TABLE access.locks (name text PRIMARY KEY);
INSERT INTO access.locks VALUES ('telemetry.take_next'), ('metrics.make_partitions'),
  ('alarms decision.overdue'), ('alarms guard.failed'), ('alarms freshness.breached'), ('alarms slo.burning');
CREATE FUNCTION access.lock(wanted text, wait boolean DEFAULT true) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = access, pg_temp AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM locks WHERE name = wanted) THEN
    INSERT INTO locks (name) VALUES (wanted) ON CONFLICT DO NOTHING;      -- a name that no migration knows: once
  END IF;
  IF wait THEN
    PERFORM FROM locks WHERE name = wanted FOR UPDATE;
  ELSE
    PERFORM FROM locks WHERE name = wanted FOR UPDATE SKIP LOCKED;
  END IF;
  RETURN FOUND;
END $$;
"""

READERS = """
-- A session may set its own time limits, and PostgreSQL lets nobody forbid that: so what goes beyond them is ended from outside. Ours are
-- spared by name; the rest of decisioning_reader's members are readers.
CREATE FUNCTION access.end_readers(statement interval, waiting interval, transaction interval, idle interval)
RETURNS TABLE (login text, why text) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  session record;
BEGIN
  IF NOT (pg_has_role(current_user, 'pg_signal_backend', 'USAGE') AND pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')) THEN
    RAISE EXCEPTION 'Sessions of readers cannot be ended before docker/roles.sh has been run again as a superuser';
  END IF;
  FOR session IN
    SELECT a.pid, a.usename, CASE
      WHEN a.state IN ('active', 'fastpath function call') AND clock_timestamp() - a.query_start > statement THEN 'statement'
      WHEN a.state LIKE 'idle in transaction%' AND clock_timestamp() - a.state_change > waiting THEN 'idle in transaction'
      WHEN clock_timestamp() - a.xact_start > transaction THEN 'transaction'
      WHEN a.state = 'idle' AND clock_timestamp() - a.state_change > idle THEN 'idle' END AS beyond
    FROM pg_stat_activity a JOIN pg_auth_members m ON m.member = a.usesysid AND m.roleid = 'decisioning_reader'::regrole
    WHERE a.usename NOT IN ('decisioning_owner', 'decisioning_web', 'decisioning_worker', 'decisioning_backup')
  LOOP
    -- Never in a WHERE: PostgreSQL may ask a function there before it looks at the other conditions.
    IF session.beyond IS NOT NULL AND pg_terminate_backend(session.pid) THEN
      login := session.usename; why := session.beyond;
      RETURN NEXT;
    END IF;
  END LOOP;
END $$;
REVOKE EXECUTE ON FUNCTION access.lock, access.end_readers FROM PUBLIC;
GRANT EXECUTE ON FUNCTION access.lock, access.end_readers TO decisioning_worker;
"""

BY_ROWS = r"""
CREATE OR REPLACE FUNCTION audit.seal(most bigint DEFAULT 20000) RETURNS SETOF audit.seals LANGUAGE plpgsql SECURITY DEFINER
SET search_path = audit, pg_temp AS $$
DECLARE
  m mark; last seals; top bigint; own xid8; done bigint; until bigint;
BEGIN
  IF pg_current_xact_id_if_assigned() IS NOT NULL THEN RAISE EXCEPTION 'audit.seal() needs a transaction of its own'; END IF;
  LOCK TABLE mark IN SHARE ROW EXCLUSIVE MODE;                 -- on rows it would draw the transaction id too early
  SELECT * INTO m FROM mark;
  SELECT * INTO last FROM seals ORDER BY n DESC LIMIT 1;
  done := coalesce(last.to_id, 0);
  SELECT CASE WHEN is_called THEN last_value ELSE 0 END INTO top FROM entries_id_seq;
  IF top = done THEN RETURN; END IF;
  own := pg_current_xact_id();                                  -- after the id was read, or a writer could slip in between
  IF m.last_id > done AND m.next_xid <= own THEN
    IF pg_snapshot_xmin(pg_current_snapshot()) < m.next_xid THEN RETURN; END IF;           -- an older writer still runs
    until := least(m.last_id, done + most);
    RETURN QUERY
      INSERT INTO seals (n, from_id, to_id, ids, hashes, digest, sealed_at)
      SELECT coalesce(last.n, 0) + 1, done + 1, until, ids, hashes, digest(coalesce(last.digest, ''), done + 1, until, hashes), now()
      FROM (SELECT coalesce(array_agg(e.id ORDER BY e.id), '{}') AS ids, coalesce(array_agg(hash(e) ORDER BY e.id), '{}') AS hashes
            FROM entries e WHERE e.id BETWEEN done + 1 AND until) AS found
      RETURNING *;
    IF until < m.last_id THEN RETURN; END IF;                   -- the mark holds for the rest of its range
  END IF;
  INSERT INTO mark (last_id, next_xid) VALUES (top, own) ON CONFLICT (one) DO UPDATE SET last_id = top, next_xid = own;
END $$;

CREATE OR REPLACE FUNCTION metrics.make_partitions(since timestamptz, until timestamptz) RETURNS int LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metrics, pg_temp SET timezone = 'UTC' AS $$
DECLARE
  month timestamptz; name text; made int := 0;
BEGIN
  PERFORM access.lock('metrics.make_partitions');
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
"""

BY_ADVISORY_LOCKS = r"""
CREATE OR REPLACE FUNCTION audit.seal(most bigint DEFAULT 20000) RETURNS SETOF audit.seals LANGUAGE plpgsql SECURITY DEFINER
SET search_path = audit, pg_temp AS $$
DECLARE
  m mark; last seals; top bigint; own xid8; done bigint; until bigint;
BEGIN
  IF pg_current_xact_id_if_assigned() IS NOT NULL THEN RAISE EXCEPTION 'audit.seal() needs a transaction of its own'; END IF;
  PERFORM pg_advisory_xact_lock(hashtext('audit.seal'));
  SELECT * INTO m FROM mark;
  SELECT * INTO last FROM seals ORDER BY n DESC LIMIT 1;
  done := coalesce(last.to_id, 0);
  SELECT CASE WHEN is_called THEN last_value ELSE 0 END INTO top FROM entries_id_seq;
  IF top = done THEN RETURN; END IF;
  own := pg_current_xact_id();                                  -- after the id was read, or a writer could slip in between
  IF m.last_id > done AND m.next_xid <= own THEN
    IF pg_snapshot_xmin(pg_current_snapshot()) < m.next_xid THEN RETURN; END IF;           -- an older writer still runs
    until := least(m.last_id, done + most);
    RETURN QUERY
      INSERT INTO seals (n, from_id, to_id, ids, hashes, digest, sealed_at)
      SELECT coalesce(last.n, 0) + 1, done + 1, until, ids, hashes, digest(coalesce(last.digest, ''), done + 1, until, hashes), now()
      FROM (SELECT coalesce(array_agg(e.id ORDER BY e.id), '{}') AS ids, coalesce(array_agg(hash(e) ORDER BY e.id), '{}') AS hashes
            FROM entries e WHERE e.id BETWEEN done + 1 AND until) AS found
      RETURNING *;
    IF until < m.last_id THEN RETURN; END IF;                   -- the mark holds for the rest of its range
  END IF;
  INSERT INTO mark (last_id, next_xid) VALUES (top, own) ON CONFLICT (one) DO UPDATE SET last_id = top, next_xid = own;
END $$;

CREATE OR REPLACE FUNCTION metrics.make_partitions(since timestamptz, until timestamptz) RETURNS int LANGUAGE plpgsql SECURITY DEFINER
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
"""


class Migration(migrations.Migration):
    dependencies = [("access", "0005_keys_end"), ("ledger", "0004_channels"), ("telemetry", "0006_watermark")]
    operations = [
        migrations.RunSQL(
            [LOCKS, READERS, BY_ROWS],
            [BY_ADVISORY_LOCKS, "DROP FUNCTION access.end_readers, access.lock; DROP TABLE access.locks;"],
        )
    ]
