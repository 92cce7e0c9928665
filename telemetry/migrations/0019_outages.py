"""Planned outages; freshness and latencies count due instants: those of a metric's schedules, without those in outages of the team."""

from importlib import import_module

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

GRID = import_module("telemetry.migrations.0012_due_instants")
LATENCIES_BEFORE = "CREATE OR REPLACE FUNCTION metrics.latencies" + GRID.BEFORE.split(
    "CREATE OR REPLACE FUNCTION metrics.latencies"
)[1].replace(
    "GRANT EXECUTE ON FUNCTION metrics.freshness, metrics.latencies TO decisioning_web, decisioning_worker;", ""
)
for old, new in GRID.MENDS.items():
    if old in LATENCIES_BEFORE:
        LATENCIES_BEFORE = LATENCIES_BEFORE.replace(old, new)
SIGNATURE, GRID_LATENCIES = LATENCIES_BEFORE.split(" LANGUAGE sql STABLE AS $$")
GRID_LATENCIES = GRID_LATENCIES.rpartition("$$")[0].replace(
    "metrics.freshness(of_experiment, m.ends", "metrics.freshness(of_experiment, of_metric, m.ends"
)

TABLE = """
ALTER TABLE public.outages SET SCHEMA metadata;
SELECT access.protect('metadata.outages'), audit.watch('metadata.outages', 'telemetry.outage');
GRANT USAGE, SELECT ON SEQUENCE metadata.outages_id_seq TO decisioning_web, decisioning_worker;
"""

DUES = """
-- The due instants of a metric in (after, upto]: on the grid of every_s where it has no schedules.
CREATE FUNCTION metrics.dues(of_metric bigint, every_s integer, after timestamptz, upto timestamptz) RETURNS SETOF timestamptz
LANGUAGE sql STABLE AS $$
  WITH parts AS (
    SELECT s.since, s.every_s, lead(s.since) OVER (ORDER BY s.since NULLS FIRST) AS until
    FROM metadata.metric_schedules s WHERE s.metric_id = of_metric
    UNION ALL
    SELECT NULL, dues.every_s, NULL WHERE NOT EXISTS (SELECT FROM metadata.metric_schedules s WHERE s.metric_id = of_metric))
  SELECT to_timestamp(b * p.every_s::bigint)
  FROM parts p, generate_series(floor(extract(epoch FROM greatest(after, p.since)) / p.every_s)::bigint + 1,
                                floor(extract(epoch FROM least(upto, p.until)) / p.every_s)::bigint) AS b
  WHERE p.every_s IS NOT NULL
  UNION ALL
  SELECT d.at FROM metrics.due_instants d WHERE d.metric_id = of_metric AND d.at > after AND d.at <= upto
$$;

-- The first after an instant. Null: none is laid out.
CREATE FUNCTION metrics.due_after(of_metric bigint, every_s integer, instant timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS $$
  WITH parts AS (
    SELECT s.since, s.every_s, lead(s.since) OVER (ORDER BY s.since NULLS FIRST) AS until
    FROM metadata.metric_schedules s WHERE s.metric_id = of_metric
    UNION ALL
    SELECT NULL, due_after.every_s, NULL WHERE NOT EXISTS (SELECT FROM metadata.metric_schedules s WHERE s.metric_id = of_metric))
  SELECT least(
    (SELECT min(g.due) FROM (
       SELECT to_timestamp((floor(extract(epoch FROM greatest(instant, p.since)) / p.every_s) + 1) * p.every_s) AS due, p.until
       FROM parts p WHERE p.every_s IS NOT NULL) AS g WHERE g.due <= coalesce(g.until, 'infinity')),
    (SELECT d.at FROM metrics.due_instants d WHERE d.metric_id = of_metric AND d.at > instant ORDER BY d.at LIMIT 1))
$$;

-- The newest at or before an instant. Null: none is laid out.
CREATE FUNCTION metrics.due_before(of_metric bigint, every_s integer, instant timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS $$
  WITH parts AS (
    SELECT s.since, s.every_s, lead(s.since) OVER (ORDER BY s.since NULLS FIRST) AS until
    FROM metadata.metric_schedules s WHERE s.metric_id = of_metric
    UNION ALL
    SELECT NULL, due_before.every_s, NULL WHERE NOT EXISTS (SELECT FROM metadata.metric_schedules s WHERE s.metric_id = of_metric))
  SELECT greatest(
    (SELECT max(g.due) FROM (
       SELECT to_timestamp(floor(extract(epoch FROM least(instant, p.until)) / p.every_s) * p.every_s) AS due, p.since
       FROM parts p WHERE p.every_s IS NOT NULL) AS g WHERE g.due > coalesce(g.since, '-infinity')),
    (SELECT d.at FROM metrics.due_instants d WHERE d.metric_id = of_metric AND d.at <= instant ORDER BY d.at DESC LIMIT 1))
$$;

-- The due instant that a row answers: the nearest, of two the earlier; the row's own time before the first that is laid out.
CREATE FUNCTION metrics.due_nearest(of_metric bigint, every_s integer, ts timestamptz) RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
DECLARE behind timestamptz := metrics.due_before(of_metric, every_s, ts); ahead timestamptz;
BEGIN
  IF behind IS NULL OR behind = ts THEN RETURN ts; END IF;
  ahead := metrics.due_after(of_metric, every_s, ts);
  RETURN CASE WHEN ahead - ts < ts - behind THEN ahead ELSE behind END;
END $$;

-- The first after an instant that a team expects: not in one of its outages. As far apart as they mostly are where none is laid out.
CREATE FUNCTION metrics.expected_after(of_team bigint, of_metric bigint, key text, every_s integer, instant timestamptz) RETURNS timestamptz
LANGUAGE plpgsql STABLE AS $$
DECLARE due timestamptz := instant; ends timestamptz := instant;
BEGIN
  LOOP
    due := CASE WHEN metrics.due_before(of_metric, every_s, ends) IS NOT NULL THEN metrics.due_after(of_metric, every_s, ends) END;
    due := coalesce(due, ends + make_interval(secs => every_s));
    ends := metrics.outage_until(of_team, key, due);
    EXIT WHEN ends IS NULL;
  END LOOP;
  RETURN due;
END $$;

-- Until when a bucket of a metric that is due at an instant is not expected of a team; null: it is.
CREATE FUNCTION metrics.outage_until(of_team bigint, of_metric text, due timestamptz) RETURNS timestamptz LANGUAGE sql STABLE AS $$
  SELECT max(o.ends_at) FROM metadata.outages o
  WHERE o.team_id = of_team AND due BETWEEN o.begins_at AND o.ends_at
    AND (of_metric = ANY (o.metrics) OR EXISTS (
      SELECT FROM metadata.sources s WHERE s.team_id = o.team_id AND s.key = ANY (o.sources) AND of_metric = ANY (s.metrics)))
$$;
"""

FRESHNESS = """
-- Age is the time the experiment has run since the watermark (without one, or with one from before its start: since its start), as of
-- `at`: pauses do not count, nor does the time before its start and after its end. A row is awaited until the next due instant that is
-- expected: on a grid for every_s after the watermark, wherever on the grid that lies, at least until one that an outage puts off; of a
-- calendar as much longer as the newest row is stamped after the instant it answers, unless an outage lies between, and at most until the
-- next but one. So a newer watermark is never awaited for less.
-- With that wait w and target_s = freshness_target_s it is `fresh` (age <= w), `due` (<= w + target_s / 2), `late` (<= w + target_s),
-- `stale` (beyond), `unknown` without a watermark. overdue: beyond, with a watermark or without. due_at, stale_at: the last instants of
-- `fresh` and `late`, null where the experiment is paused before. age_s and due_at are null without a watermark.
-- The function of five arguments is that of the version before.
CREATE FUNCTION metrics.freshness(of_experiment bigint, of_metric text, watermark timestamptz, every_s integer, target_s integer,
  at timestamptz, OUT state text, OUT age_s double precision, OUT due_at timestamptz, OUT stale_at timestamptz, OUT overdue boolean)
LANGUAGE plpgsql STABLE AS $$
DECLARE
  began timestamptz; present timestamptz; team bigint; metric bigint; on_grid boolean; in_outage boolean;
  reached timestamptz; answered timestamptz; further timestamptz; has_row boolean; is_next boolean; wait interval; age interval; pause record;
  target interval := make_interval(secs => target_s);
BEGIN
  SELECT coalesce(e.started_at, e.created_at), e.ended_at, e.team_id, m.id,
         NOT EXISTS (SELECT FROM metadata.metric_schedules s WHERE s.metric_id = m.id),
         EXISTS (SELECT FROM metadata.outages o
                 WHERE o.team_id = e.team_id AND o.ends_at >= greatest(watermark, coalesce(e.started_at, e.created_at)))
  INTO began, present, team, metric, on_grid, in_outage
  FROM metadata.experiments e LEFT JOIN metadata.metrics m ON m.key = of_metric WHERE e.id = of_experiment;
  has_row := coalesce(watermark > began, false);
  reached := greatest(watermark, began);
  IF on_grid AND NOT in_outage THEN
    due_at := reached + make_interval(secs => every_s);
  ELSE
    answered := metrics.due_nearest(metric, every_s, reached);
    due_at := metrics.expected_after(team, metric, of_metric, every_s, answered);
    is_next := due_at = metrics.due_after(metric, every_s, answered);
    IF on_grid AND is_next AND metrics.outage_until(team, of_metric, answered) IS NULL THEN
      due_at := reached + make_interval(secs => every_s);
    ELSIF on_grid THEN
      due_at := greatest(reached + make_interval(secs => every_s), due_at);
    ELSIF has_row AND is_next THEN
      further := metrics.expected_after(team, metric, of_metric, every_s, due_at);
      due_at := least(due_at + greatest(reached - answered, interval '0'), further);
    END IF;
  END IF;
  wait := due_at - reached;
  stale_at := due_at + target;
  present := least(at, present);
  age := present - reached;
  FOR pause IN
    SELECT greatest(p.paused_at, reached) AS since, p.resumed_at AS until FROM metadata.pauses p
    WHERE p.experiment_id = of_experiment AND coalesce(p.resumed_at > reached, true) ORDER BY p.paused_at
  LOOP
    age := age - greatest(least(pause.until, present) - pause.since, interval '0');
    due_at := due_at + CASE WHEN due_at >= pause.since THEN pause.until - pause.since ELSE interval '0' END;
    stale_at := stale_at + CASE WHEN stale_at >= pause.since THEN pause.until - pause.since ELSE interval '0' END;
  END LOOP;
  overdue := age > wait + target;
  state := CASE WHEN watermark IS NULL THEN 'unknown' WHEN age <= wait THEN 'fresh'
    WHEN age <= wait + target / 2.0 THEN 'due' WHEN overdue THEN 'stale' ELSE 'late' END;
  IF watermark IS NULL THEN
    due_at := NULL;
  ELSE
    age_s := extract(epoch FROM age);
  END IF;
END $$;
"""

# A bucket that is there counts first_received_at - ts, as on the grid; one of a calendar that is missing is one of its due instants.
CALENDAR_LATENCIES = """
  WITH newest AS MATERIALIZED (
    SELECT k.ts, metrics.due_nearest(feed, every_s, k.ts) AS answered
    FROM metrics.experiment_kpis k
    WHERE k.experiment_id = of_experiment AND k.metric = of_metric AND k.variant = of_variant AND k.ts <= at
    ORDER BY k.ts DESC LIMIT 1),
  behind AS MATERIALIZED (
    SELECT least(n.ts - n.answered, metrics.expected_after(of_team, feed, of_metric, every_s, d.next) - d.next) AS late
    FROM newest n, LATERAL (SELECT metrics.expected_after(of_team, feed, of_metric, every_s, n.answered) AS next) AS d
    WHERE n.ts > n.answered),
  r AS MATERIALIZED (
    SELECT k.ts, extract(epoch FROM k.first_received_at - k.ts)::float8 AS latency_s, metrics.due_nearest(feed, every_s, k.ts) AS due
    FROM metrics.experiment_kpis k
    WHERE k.experiment_id = of_experiment AND k.metric = of_metric AND k.variant = of_variant
      AND k.ts > coalesce(metrics.due_before(feed, every_s, since), since) AND k.ts <= at),
  oldest AS MATERIALIZED (
    SELECT metrics.expected_after(of_team, feed, of_metric, every_s,
             greatest((SELECT n.answered FROM newest n), metrics.due_before(feed, every_s, began), began - make_interval(secs => every_s))) AS ends
    WHERE NOT EXISTS (SELECT FROM r)),
  first AS (
    SELECT coalesce((SELECT metrics.expected_after(of_team, feed, of_metric, every_s, p.resumed_at) FROM metadata.pauses p
                     WHERE p.experiment_id = of_experiment AND p.paused_at < o.ends AND p.resumed_at >= o.ends), o.ends) AS ends
    FROM oldest o),
  missing AS MATERIALIZED (
    SELECT d.ends FROM metrics.dues(feed, every_s, since, at - make_interval(secs => target_s)) AS d (ends)
    WHERE NOT EXISTS (SELECT FROM r WHERE r.due = d.ends) AND metrics.outage_until(of_team, of_metric, d.ends) IS NULL
    UNION ALL
    SELECT f.ends FROM first f WHERE f.ends <= since)
  SELECT r.latency_s FROM r WHERE r.ts > since
  UNION ALL
  SELECT f.age_s FROM missing m
  CROSS JOIN LATERAL metrics.freshness(of_experiment, of_metric, m.ends + coalesce((SELECT b.late FROM behind b), '0'), every_s, target_s, at) AS f
  WHERE f.age_s > target_s
    AND NOT EXISTS (SELECT FROM metadata.pauses p
                    WHERE p.experiment_id = of_experiment AND p.paused_at < m.ends AND coalesce(p.resumed_at >= m.ends, true))
"""

LATENCIES = f"""{SIGNATURE} LANGUAGE plpgsql STABLE AS $body$
#variable_conflict use_column
DECLARE of_team bigint; feed bigint; on_grid boolean;
BEGIN
  SELECT e.team_id, m.id, NOT EXISTS (SELECT FROM metadata.metric_schedules s WHERE s.metric_id = m.id)
    AND NOT EXISTS (SELECT FROM metadata.outages o WHERE o.team_id = e.team_id AND o.ends_at >= least(latencies.since, latencies.began))
  INTO of_team, feed, on_grid
  FROM metadata.experiments e LEFT JOIN metadata.metrics m ON m.key = of_metric WHERE e.id = of_experiment;
  IF on_grid THEN
    RETURN QUERY {GRID_LATENCIES};
  ELSE
    RETURN QUERY {CALENDAR_LATENCIES};
  END IF;
END $body$;
"""  # noqa: S608 - constants
GRANTS = """
GRANT EXECUTE ON FUNCTION metrics.dues, metrics.due_after, metrics.due_before, metrics.due_nearest, metrics.expected_after, metrics.outage_until,
  metrics.freshness(bigint, text, timestamptz, integer, integer, timestamptz) TO decisioning_web, decisioning_worker;
"""
REVERSE = f"""
{LATENCIES_BEFORE};
DROP FUNCTION metrics.freshness(bigint, text, timestamptz, integer, integer, timestamptz), metrics.expected_after, metrics.outage_until,
  metrics.due_nearest, metrics.due_before, metrics.due_after, metrics.dues;
DO $$
DECLARE p record;
BEGIN
  FOR p IN SELECT policyname FROM pg_policies WHERE schemaname = 'metadata' AND tablename = 'outages' LOOP
    EXECUTE format('DROP POLICY %I ON metadata.outages', p.policyname);
  END LOOP;
END $$;
DROP TRIGGER audit_insert ON metadata.outages; DROP TRIGGER audit_update ON metadata.outages; DROP TRIGGER audit_delete ON metadata.outages;
ALTER TABLE metadata.outages DISABLE ROW LEVEL SECURITY;
ALTER TABLE metadata.outages SET SCHEMA public;
"""  # noqa: S608 - constants


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0007_invitations"),
        ("experiments", "0003_schedules"),
        ("telemetry", "0018_copied_whole"),
    ]

    operations = [
        migrations.CreateModel(
            name="Outage",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("begins_at", models.DateTimeField()),
                (
                    "ends_at",
                    models.DateTimeField(
                        help_text="Buckets that are due from its beginning to its end are not expected."
                    ),
                ),
                (
                    "metrics",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=63),
                        blank=True,
                        default=list,
                        help_text="Keys of metrics.",
                    ),
                ),
                (
                    "sources",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=63),
                        blank=True,
                        default=list,
                        help_text="Keys of sources: all the metrics they feed.",
                    ),
                ),
                ("reason", models.CharField(max_length=500)),
                ("created_at", models.DateTimeField()),
                (
                    "team",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="+", to="access.team"),
                ),
            ],
            options={
                "db_table": "outages",
                "ordering": ("-begins_at", "-id"),
                "indexes": [models.Index(fields=["team", "ends_at"], name="outages_by_team")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("ends_at__gt", models.F("begins_at"))), name="outage_ends_after_it_begins"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("metrics__len__gt", 0), ("sources__len__gt", 0), _connector="OR"),
                        name="outage_is_of_a_feed",
                    ),
                ],
            },
        ),
        migrations.RunSQL([TABLE, DUES, FRESHNESS, LATENCIES, GRANTS], REVERSE),
    ]
