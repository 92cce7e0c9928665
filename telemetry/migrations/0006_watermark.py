"""metrics.watermark: how far a series reaches, as the gates read it. A function, so that what is seldom asked is planned only then."""

from django.db import migrations

FORWARD = """
CREATE FUNCTION metrics.watermark(of_experiment bigint, of_metric text, of_variant text, temporality text) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
DECLARE newest record; other timestamptz;
BEGIN
  SELECT k.ts, k.n INTO newest FROM metrics.experiment_kpis k
  WHERE k.experiment_id = of_experiment AND k.metric = of_metric AND k.variant = of_variant AND k.n IS DISTINCT FROM 0
  ORDER BY k.ts DESC LIMIT 1;
  IF NOT FOUND OR temporality <> 'cumulative' OR newest.n IS NULL THEN
    RETURN newest.ts;
  END IF;
  SELECT k.ts INTO other FROM metrics.experiment_kpis k
  WHERE k.experiment_id = of_experiment AND k.metric = of_metric AND k.variant = of_variant AND k.ts < newest.ts
    AND k.n IS DISTINCT FROM newest.n
  ORDER BY k.ts DESC LIMIT 1;
  RETURN (
    SELECT k.ts FROM metrics.experiment_kpis k
    WHERE k.experiment_id = of_experiment AND k.metric = of_metric AND k.variant = of_variant AND k.ts <= newest.ts
      AND k.ts > coalesce(other, '-infinity')
    ORDER BY k.ts LIMIT 1);
END $$;
GRANT EXECUTE ON FUNCTION metrics.watermark TO decisioning_web, decisioning_worker;
"""


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0005_runs_by_source")]
    operations = [migrations.RunSQL(FORWARD, "DROP FUNCTION metrics.watermark")]
