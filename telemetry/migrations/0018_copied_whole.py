"""COPY of the partitioned table by a reader says why it cannot be, where it read nothing without a word."""

from django.db import migrations

# Under row security PostgreSQL makes COPY of a table one of ONLY that table, and a partitioned one holds no row itself. IMMUTABLE, so that it
# is asked while the statement is planned: of a table without a row nothing is asked later.
FORWARD = r"""
SET LOCAL lock_timeout = '1500ms';
CREATE FUNCTION metrics.not_copied() RETURNS boolean LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_query() ~* '^(\s|--[^\n]*\n|/\*.*?\*/)*copy\s+("?metrics"?\s*\.\s*)?"?experiment_kpis"?\M' THEN
    RAISE EXCEPTION 'COPY of a partitioned table would read none of its rows'
      USING ERRCODE = 'wrong_object_type', HINT = 'Write COPY (SELECT * FROM metrics.experiment_kpis) TO ...';
  END IF;
  RETURN true;
END $$;
REVOKE EXECUTE ON FUNCTION metrics.not_copied FROM PUBLIC;
GRANT EXECUTE ON FUNCTION metrics.not_copied TO decisioning_reader;
CREATE POLICY not_copied ON metrics.experiment_kpis AS RESTRICTIVE FOR SELECT TO decisioning_reader USING (metrics.not_copied());
"""

REVERSE = """
DROP POLICY not_copied ON metrics.experiment_kpis;
DROP FUNCTION metrics.not_copied;
"""


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0017_outputs_of_runs")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
