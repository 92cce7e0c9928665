"""What a metric means is frozen while a started experiment is judged by it; bounds, caps, successors and retirement of metrics."""

import django.db.models.deletion
from django.db import migrations, models

FORWARD = """
-- How many started experiments judge by each of these metrics, those of teams that the caller does not see too: a count alone, so as owner.
CREATE FUNCTION metadata.metric_users(ids bigint[]) RETURNS TABLE (metric bigint, users integer) LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metadata, pg_temp AS $$
  SELECT k.metric_id, count(*)::integer FROM target_kpis k JOIN experiments e ON e.id = k.experiment_id
  WHERE k.metric_id = ANY (ids) AND e.status IN ('running', 'paused') GROUP BY 1 $$;
REVOKE EXECUTE ON FUNCTION metadata.metric_users FROM PUBLIC;
GRANT EXECUTE ON FUNCTION metadata.metric_users TO decisioning_web, decisioning_worker;

CREATE FUNCTION metadata.keep_meaning() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = metadata, pg_temp AS $$
BEGIN
  IF EXISTS (SELECT FROM metric_users(ARRAY[old.id])) THEN
    RAISE check_violation USING CONSTRAINT = 'metric_in_use',
      MESSAGE = format('metric_in_use: what %s means cannot change while experiments are judged by it', old.key);
  END IF;
  RETURN new;
END $$;
REVOKE EXECUTE ON FUNCTION metadata.keep_meaning FROM PUBLIC;
CREATE TRIGGER keep_meaning BEFORE UPDATE OF key, kind, direction, temporality, counts_assignment ON metadata.metrics FOR EACH ROW
  WHEN ((old.key, old.kind, old.direction, old.temporality, old.counts_assignment)
        IS DISTINCT FROM (new.key, new.kind, new.direction, new.temporality, new.counts_assignment))
  EXECUTE FUNCTION metadata.keep_meaning();
"""
REVERSE = """
DROP TRIGGER keep_meaning ON metadata.metrics;
DROP FUNCTION metadata.keep_meaning();
DROP FUNCTION metadata.metric_users(bigint[]);
"""


class Migration(migrations.Migration):
    dependencies = [("experiments", "0005_doubt")]
    operations = [
        migrations.AddField(
            model_name="metric",
            name="capped_at",
            field=models.FloatField(
                blank=True,
                help_text="Values of units were capped at it before they came; said, not computed.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="metric",
            name="maximum",
            field=models.FloatField(
                blank=True, help_text="No row's value is above it; a proportion's is 1 in any case.", null=True
            ),
        ),
        migrations.AddField(
            model_name="metric",
            name="minimum",
            field=models.FloatField(
                blank=True, help_text="No row's value is below it; a proportion's is 0 in any case.", null=True
            ),
        ),
        migrations.AddField(
            model_name="metric",
            name="replaced_by",
            field=models.ForeignKey(
                blank=True,
                help_text="What to use in its place.",
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="experiments.metric",
            ),
        ),
        migrations.AddField(
            model_name="metric",
            name="retired_at",
            field=models.DateTimeField(blank=True, help_text="From then on no new plan is judged by it.", null=True),
        ),
        migrations.AddConstraint(
            model_name="metric",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("minimum__isnull", True),
                    ("maximum__isnull", True),
                    ("minimum__lt", models.F("maximum")),
                    _connector="OR",
                ),
                name="metric_minimum_below_maximum",
            ),
        ),
        migrations.AddConstraint(
            model_name="metric",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("replaced_by__isnull", True),
                    models.Q(("replaced_by", models.F("id")), _negated=True),
                    _connector="OR",
                ),
                name="metric_replaced_by_another",
            ),
        ),
        migrations.RunSQL(FORWARD, REVERSE),
    ]
