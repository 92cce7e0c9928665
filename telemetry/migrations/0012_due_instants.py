"""metrics.latencies: a row belongs to the due instant it answers, the nearest, as the gates count buckets (experiments.schedule)."""

from importlib import import_module

from django.db import migrations

BEFORE = import_module("telemetry.migrations.0010_freshness").FORWARD.replace(
    "CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"
)
ANSWERED = """
-- The due instant that a row of `ts` answers when one is due every every_s seconds, counted from the epoch: the nearest, of two the
-- earlier; in numbers from 0.
CREATE FUNCTION metrics.answered(ts timestamptz, every_s integer) RETURNS bigint LANGUAGE sql IMMUTABLE
RETURN ceil(extract(epoch FROM ts) / every_s - 0.5)::bigint;
GRANT EXECUTE ON FUNCTION metrics.answered TO decisioning_web, decisioning_worker;
"""
MENDS = {
    "a row belongs to the bucket in which its ts falls.": (
        "a row belongs to the bucket whose end is nearest,\n-- and a feed that stamps its rows after it is awaited as much longer."
    ),
    "ceil(extract(epoch FROM k.ts) / every_s)::bigint AS bucket": "metrics.answered(k.ts, every_s) AS bucket",
    "  WITH r AS MATERIALIZED (": """  WITH newest AS MATERIALIZED (
    SELECT k.ts, greatest(k.ts - to_timestamp(metrics.answered(k.ts, every_s) * every_s::bigint), interval '0') AS behind
    FROM metrics.experiment_kpis k
    WHERE k.experiment_id = of_experiment AND k.metric = of_metric AND k.variant = of_variant AND k.ts <= at
    ORDER BY k.ts DESC LIMIT 1),
  r AS MATERIALIZED (""",
    """ceil(extract(epoch FROM (
                      SELECT k.ts FROM metrics.experiment_kpis k
                      WHERE k.experiment_id = of_experiment AND k.metric = of_metric AND k.variant = of_variant AND k.ts <= at
                      ORDER BY k.ts DESC LIMIT 1)) / every_s)::bigint""": "metrics.answered((SELECT n.ts FROM newest n), every_s)",
    "metrics.freshness(of_experiment, m.ends, every_s, target_s, at)": (
        "metrics.freshness(of_experiment, m.ends + coalesce((SELECT n.behind FROM newest n), '0'), every_s, target_s, at)"
    ),
}


def _mended(sql: str) -> str:
    for old, new in MENDS.items():
        if sql.count(old) != 1:
            raise ValueError(f"{old!r} is there {sql.count(old)} times.")
        sql = sql.replace(old, new)
    return sql


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0011_source_places")]
    operations = [
        migrations.RunSQL(ANSWERED, "DROP FUNCTION metrics.answered"),
        migrations.RunSQL(_mended(BEFORE), BEFORE),
    ]
