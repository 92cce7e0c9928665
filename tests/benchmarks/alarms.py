"""What the looks for what is wrong cost over many running experiments: overdue answers, failing guards, late data, broken promises.

    uv run python -m tests.benchmarks.alarms [--experiments 5000] [--teams 50] [--every-s 900]

A PostgreSQL of its own gets one judged experiment with two metrics and two variants, and copies of it spread over teams, each with a day of
rows (a bucket in twenty is missing, so that the latency of what never came is counted, too). Then, wall seconds of each look, first and again.
"""

import argparse
import time
from datetime import timedelta
from typing import Any

import psycopg

from tests.benchmarks.scene import say
from tests.benchmarks.sweep import END, copied, database, one, set_up


def spread(root: "psycopg.Connection[Any]", teams: int, every_s: int) -> None:
    """Hand the experiments out to teams, whole tables at a time, and give each a day of rows in buckets of `every_s`."""
    root.execute("SET session_replication_role = replica")
    root.execute(
        """
        INSERT INTO metadata.teams SELECT (jsonb_populate_record(t, jsonb_build_object('id', 1000 + n, 'key', 'team-' || n))).*
        FROM metadata.teams t, generate_series(0, %s - 1) AS n WHERE t.key = 'sweep'
        """,
        [teams],
    )
    root.execute("UPDATE metadata.metrics SET expected_every_s = %s, freshness_target_s = %s", [every_s, every_s])
    root.execute("UPDATE metadata.experiments SET team_id = 1000 + id %% %s", [teams])
    for table in ("variants", "target_kpis", "cursors", "steps", "evaluations", "evidence"):
        if root.execute(
            "SELECT FROM information_schema.columns WHERE table_schema = 'metadata' AND table_name = %s AND column_name = 'team_id'",
            [table],
        ).rowcount:
            root.execute(f"UPDATE metadata.{table} SET team_id = 1000 + experiment_id %% %s", [teams])  # noqa: S608 - names of our own
    root.execute("DELETE FROM metrics.experiment_kpis")
    root.execute(
        """
        INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, value, variant, n, variance, first_received_at, received_at, team_id)
        SELECT e.id, ts, m.key, 3, v.key, 900, 9, ts + interval '1 minute', ts + interval '1 minute', e.team_id
        FROM metadata.experiments e JOIN metadata.target_kpis k ON k.experiment_id = e.id JOIN metadata.metrics m ON m.id = k.metric_id
        JOIN metadata.variants v ON v.experiment_id = e.id
        CROSS JOIN LATERAL generate_series(%s - interval '1 day', %s, make_interval(secs => %s)) AS ts
        WHERE (e.id + extract(epoch FROM ts)::bigint / %s) %% 20 <> 0
        """,
        [END, END, every_s, every_s],
    )
    root.execute("SET session_replication_role = origin")
    root.execute("VACUUM ANALYZE")


def main() -> None:
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--experiments", type=int, default=5_000)
    known.add_argument("--teams", type=int, default=50)
    known.add_argument("--every-s", type=int, default=900)
    options = known.parse_args()
    with database() as dsn, psycopg.connect(dsn, autocommit=True) as root:
        set_up()
        root.execute("GRANT decisioning_owner TO decisioning_worker WITH INHERIT FALSE, SET TRUE")
        of = one()
        root.execute("REVOKE decisioning_owner FROM decisioning_worker")
        copied(root, of, options.experiments - 1)
        spread(root, options.teams, options.every_s)
        (rows,) = root.execute("SELECT count(*) FROM metrics.experiment_kpis").fetchone() or (0,)
        say(f"{options.experiments} running experiments of {options.teams} teams, {rows:,} rows of one day")
        looks()


def looks() -> None:
    from django.db import transaction

    from decisioning.access.principal import bind_job
    from decisioning.slo import alarms as slo
    from gates import alarms
    from telemetry import breaches

    now = END + timedelta(minutes=2)
    for turn in ("first", "again"):
        for name, look in (
            ("decision.overdue", alarms.tell_overdue),
            ("guard.failed", alarms.tell_failed_guards),
            ("freshness.breached", breaches.tell_changes),
            ("slo.burning", slo.tell_broken),
        ):
            began = time.perf_counter()
            with transaction.atomic():
                bind_job("notices.watch")
                told = look(now=now)
            say(f"  {name}, {turn}: {time.perf_counter() - began:.2f} s, {told} messages")
        now += timedelta(minutes=20)


if __name__ == "__main__":
    main()
