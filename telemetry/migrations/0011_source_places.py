"""Where the sources of each team may read, beginning with where they do; partitions past their time are dropped one by one."""

import django.db.models.deletion
from django.db import migrations, models

FORWARD = r"""
SET LOCAL lock_timeout = '1500ms';
ALTER TABLE public.source_places SET SCHEMA metadata;
SELECT access.protect('metadata.source_places', reader => false), audit.watch('metadata.source_places', 'telemetry.sourceplace');
GRANT USAGE, SELECT ON SEQUENCE metadata.source_places_id_seq TO decisioning_web, decisioning_worker;
-- A team that could bind would read what the operator has put there for another.
CREATE POLICY operators ON metadata.source_places AS RESTRICTIVE FOR INSERT TO decisioning_web WITH CHECK ((SELECT access.is_admin()));
CREATE POLICY operators_change ON metadata.source_places AS RESTRICTIVE FOR UPDATE TO decisioning_web USING ((SELECT access.is_admin()));
CREATE POLICY operators_remove ON metadata.source_places AS RESTRICTIVE FOR DELETE TO decisioning_web USING ((SELECT access.is_admin()));
-- What sources read today they may read tomorrow.
INSERT INTO metadata.source_places (team_id, kind, name, created_at)
SELECT DISTINCT team_id, CASE kind WHEN 'sql' THEN 'variable' ELSE 'folder' END, CASE kind WHEN 'sql' THEN url_env ELSE path END, now()
FROM metadata.sources;

CREATE FUNCTION metrics.old_partitions(before timestamptz) RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metrics, pg_temp SET timezone = 'UTC' AS $$
  SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
  WHERE i.inhparent = 'metrics.experiment_kpis'::regclass AND c.relname ~ '^experiment_kpis_\d{4}_\d{2}$'
    AND to_timestamp(right(c.relname, 7), 'YYYY_MM') + interval '1 month' <= before ORDER BY 1 $$;
CREATE FUNCTION metrics.drop_partition(partition text, before timestamptz) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metrics, pg_temp AS $$
BEGIN
  IF partition NOT IN (SELECT metrics.old_partitions(before)) THEN RAISE EXCEPTION '% is no partition past its time', partition; END IF;
  EXECUTE format('DROP TABLE %I', partition);
END $$;
REVOKE EXECUTE ON FUNCTION metrics.old_partitions, metrics.drop_partition FROM PUBLIC;
GRANT EXECUTE ON FUNCTION metrics.old_partitions, metrics.drop_partition TO decisioning_worker;
"""

REVERSE = """
DROP FUNCTION metrics.drop_partition, metrics.old_partitions;
DROP POLICY operators ON metadata.source_places; DROP POLICY operators_change ON metadata.source_places;
DROP POLICY operators_remove ON metadata.source_places;
ALTER TABLE metadata.source_places SET SCHEMA public;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0006_locks"),
        ("ledger", "0005_told"),
        ("telemetry", "0010_freshness"),
    ]

    operations = [
        migrations.CreateModel(
            name="SourcePlace",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("variable", "environment variable with a database's URL"),
                            ("folder", "folder or file below DECISIONING_FILES"),
                        ],
                        max_length=8,
                    ),
                ),
                (
                    "name",
                    models.CharField(
                        help_text="Of the variable, such as WAREHOUSE_URL; or the path, with . for the whole folder of files.",
                        max_length=500,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                (
                    "team",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="+", to="access.team"),
                ),
            ],
            options={
                "db_table": "source_places",
                "ordering": ("team", "kind", "name"),
                "constraints": [
                    models.UniqueConstraint(fields=("team", "kind", "name"), name="one_place_once_per_team")
                ],
            },
        ),
        migrations.RunSQL(FORWARD, REVERSE),
    ]
