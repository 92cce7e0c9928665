"""metrics.freshness, metrics.latencies: how old data is by an experiment's own clock, as the gates count it; every door asks these."""

from django.db import migrations

FORWARD = """
-- Age is the time the experiment has run since the watermark (without one: since its start), as of `at`: pauses do not count, nor does
-- the time before its start and after its end. With every_s = expected_every_s, target_s = freshness_target_s it is
-- `fresh` (age <= every_s), `due` (<= every_s + target_s / 2), `late` (<= every_s + target_s), `stale` (beyond), `unknown` without a watermark.
-- overdue: beyond, with a watermark or without. due_at, stale_at: the last instants of `fresh` and `late`, null where the experiment is
-- paused before. age_s and due_at are null without a watermark.
CREATE FUNCTION metrics.freshness(of_experiment bigint, watermark timestamptz, every_s integer, target_s integer, at timestamptz,
  OUT state text, OUT age_s double precision, OUT due_at timestamptz, OUT stale_at timestamptz, OUT overdue boolean)
LANGUAGE plpgsql STABLE AS $$
DECLARE began timestamptz; present timestamptz; age interval; pause record;
BEGIN
  SELECT coalesce(e.started_at, e.created_at), e.ended_at INTO began, present FROM metadata.experiments e WHERE e.id = of_experiment;
  began := greatest(watermark, began);
  present := least(at, present);
  age := present - began;
  due_at := began + make_interval(secs => every_s);
  stale_at := began + make_interval(secs => every_s + target_s);
  FOR pause IN
    SELECT greatest(p.paused_at, began) AS since, p.resumed_at AS until FROM metadata.pauses p
    WHERE p.experiment_id = of_experiment AND coalesce(p.resumed_at > began, true) ORDER BY p.paused_at
  LOOP
    age := age - greatest(least(pause.until, present) - pause.since, interval '0');
    due_at := due_at + CASE WHEN due_at >= pause.since THEN pause.until - pause.since ELSE interval '0' END;
    stale_at := stale_at + CASE WHEN stale_at >= pause.since THEN pause.until - pause.since ELSE interval '0' END;
  END LOOP;
  overdue := age > make_interval(secs => every_s + target_s);
  state := CASE WHEN watermark IS NULL THEN 'unknown' WHEN age <= make_interval(secs => every_s) THEN 'fresh'
    WHEN age <= make_interval(secs => every_s + target_s / 2.0) THEN 'due' WHEN overdue THEN 'stale' ELSE 'late' END;
  IF watermark IS NULL THEN
    due_at := NULL;
  ELSE
    age_s := extract(epoch FROM age);
  END IF;
END $$;

-- A bucket that is there counts first_received_at - ts. One that is missing counts its age so far, once that is more than the target, so
-- that data which never comes cannot flatter the figure; one that ended in a pause is not expected. The oldest that is missing since the
-- newest row, or since `began`, counts wherever it ended: else a feed of one bucket a day or a week would be good again as soon as what
-- is missing is a day old. Buckets lie on the UTC grid of every_s; a row belongs to the bucket in which its ts falls.
CREATE FUNCTION metrics.latencies(of_experiment bigint, of_metric text, of_variant text, every_s integer, target_s integer,
  began timestamptz, since timestamptz, at timestamptz)
RETURNS SETOF double precision LANGUAGE sql STABLE AS $$
  WITH r AS MATERIALIZED (
    SELECT k.ts, extract(epoch FROM k.first_received_at - k.ts)::float8 AS latency_s, ceil(extract(epoch FROM k.ts) / every_s)::bigint AS bucket
    FROM metrics.experiment_kpis k
    WHERE k.experiment_id = of_experiment AND k.metric = of_metric AND k.variant = of_variant
      AND k.ts > since - make_interval(secs => every_s) AND k.ts <= at),
  oldest AS MATERIALIZED (
    SELECT greatest(ceil(extract(epoch FROM (
                      SELECT k.ts FROM metrics.experiment_kpis k
                      WHERE k.experiment_id = of_experiment AND k.metric = of_metric AND k.variant = of_variant AND k.ts <= at
                      ORDER BY k.ts DESC LIMIT 1)) / every_s)::bigint,
                    floor(extract(epoch FROM began) / every_s)::bigint) + 1 AS bucket
    WHERE NOT EXISTS (SELECT FROM r)),
  expected AS (
    SELECT coalesce((SELECT floor(extract(epoch FROM p.resumed_at) / every_s)::bigint + 1 FROM metadata.pauses p
                     WHERE p.experiment_id = of_experiment AND p.paused_at < to_timestamp(o.bucket * every_s::bigint)
                       AND p.resumed_at >= to_timestamp(o.bucket * every_s::bigint)), o.bucket) AS bucket
    FROM oldest o),
  missing AS MATERIALIZED (
    SELECT to_timestamp(b.bucket * every_s::bigint) AS ends
    FROM generate_series(floor(extract(epoch FROM since) / every_s)::bigint + 1,
                         ceil((extract(epoch FROM at) - target_s) / every_s)::bigint - 1) AS b (bucket)
    WHERE NOT EXISTS (SELECT FROM r WHERE r.bucket = b.bucket)
    UNION ALL
    SELECT to_timestamp(e.bucket * every_s::bigint) FROM expected e WHERE e.bucket * every_s::bigint <= extract(epoch FROM since))
  SELECT r.latency_s FROM r WHERE r.ts > since
  UNION ALL
  SELECT f.age_s FROM missing m CROSS JOIN LATERAL metrics.freshness(of_experiment, m.ends, every_s, target_s, at) AS f
  WHERE f.age_s > target_s
    AND NOT EXISTS (SELECT FROM metadata.pauses p
                    WHERE p.experiment_id = of_experiment AND p.paused_at < m.ends AND coalesce(p.resumed_at >= m.ends, true))
$$;
GRANT EXECUTE ON FUNCTION metrics.freshness, metrics.latencies TO decisioning_web, decisioning_worker;
"""


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0009_news_is_any_change"), ("experiments", "0002_row_security")]
    operations = [migrations.RunSQL(FORWARD, "DROP FUNCTION metrics.latencies, metrics.freshness")]
