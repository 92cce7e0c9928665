"""metrics.watermark_beside: how far a sparse series reaches, as the gates read it: as far as its own rows or those of its goal."""

from django.db import migrations

FORWARD = """
-- The goal is the first that counts units bucket by bucket and comes from where the metric comes from, as the gates choose it (gates.feeds).
CREATE FUNCTION metrics.watermark_beside(of_experiment bigint, of_metric text, of_variant text) RETURNS timestamptz LANGUAGE sql STABLE AS $$
  SELECT greatest(
    metrics.watermark(of_experiment, of_metric, of_variant, 'delta'),
    (SELECT metrics.watermark(of_experiment, g.key, of_variant, 'delta')
     FROM metadata.target_kpis t JOIN metadata.metrics g ON g.id = t.metric_id
     WHERE t.experiment_id = of_experiment AND t.role = 'goal' AND g.temporality = 'delta' AND g.kind <> 'gauge'
       AND CASE WHEN EXISTS (SELECT FROM metadata.sources s WHERE s.team_id = t.team_id AND of_metric = ANY (s.metrics))
                THEN EXISTS (SELECT FROM metadata.sources s WHERE s.team_id = t.team_id AND of_metric = ANY (s.metrics) AND g.key = ANY (s.metrics))
                ELSE NOT EXISTS (SELECT FROM metadata.sources s WHERE s.team_id = t.team_id AND g.key = ANY (s.metrics)) END
     ORDER BY t.position LIMIT 1))
$$;
GRANT EXECUTE ON FUNCTION metrics.watermark_beside TO decisioning_web, decisioning_worker;
"""


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0019_outages")]
    operations = [migrations.RunSQL(FORWARD, "DROP FUNCTION metrics.watermark_beside")]
